"""Evaluate an exported detector in onnxruntime with the metrics of a config.

    python tools/test_onnx.py CONFIG MODEL.onnx [--threads N] [--json OUT]

Images come from the config's test dataloader and go to mmdet's own evaluator.
"""

import argparse
from pathlib import Path

import mmdet.datasets  # noqa: F401  registers data sets and their transforms
import mmdet.evaluation  # noqa: F401  registers metrics
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader

from maxq_mm import cli
from maxq_mm.deploy.onnx_detector import OnnxDetector


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument('model', type=Path, metavar='MODEL.onnx',
                        help='file that export_onnx.py wrote')
    parser.add_argument('--threads', type=cli.positive,
                        help='threads of onnxruntime; as many as torch has by default')
    parser.add_argument('--json', type=Path, metavar='OUT', help='also write the metrics here')
    args = parser.parse_args()
    cli.check_outputs(args.json, inputs=[args.config, args.model])
    return args


def check_metrics(detector: OnnxDetector, cfg: Config, path: Path) -> None:
    """InputError if the evaluator asks for masks, which the file does not give."""
    for evaluator in cli.evaluators(cfg, 'test'):
        if 'segm' in (evaluator.get('metric') or ()) and 'masks' not in detector.outputs:
            raise cli.InputError(f'{path} gives no masks, and test_evaluator asks for segm')


def evaluate(detector: OnnxDetector, loader: DataLoader, cfg: Config) -> dict[str, float]:
    """The metrics of the config's evaluator."""
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    for data in track(loader, 'onnxruntime', console=Console(stderr=True), transient=True):
        evaluator.process(detector.test_step(data), data)
    return evaluator.evaluate(len(loader.dataset))


def main() -> None:
    args = parse_args()
    cfg = cli.read_config(args, 'test')
    cli.check_settings(cfg, args.config, 'test_dataloader', 'test_evaluator')
    cli.check_data(cfg, 'test')
    detector = OnnxDetector.from_file(args.model, args.threads)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    check_metrics(detector, cfg, args.model)
    for dataset in cli.datasets(cfg.test_dataloader):
        dataset.serialize_data = False  # an empty set cannot be serialized
    loader = Runner.build_dataloader(cfg.test_dataloader, seed=0)
    if not len(loader.dataset):
        raise cli.InputError('the test set has no images')
    cli.check_classes(detector.about.classes, args.model, loader.dataset)
    metrics = evaluate(detector, loader, cfg)
    print(f'{args.model}: ' + ', '.join(
        f'{name} {value:.3f}' for name, value in metrics.items()))
    if args.json is not None:
        cli.write_json({name: float(value) for name, value in metrics.items()}, args.json)


if __name__ == '__main__':
    cli.run(main)

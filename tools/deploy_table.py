"""Compare a dense and a sparse detector in mmdet, as ONNX and in int8: mAP, latency, file size.

    python tools/deploy_table.py --set NAME CONFIG DENSE.pth MAXQ.pth DATA_ROOT [--set ...]

Exports and quantizes both checkpoints with the tools beside this one, evaluates all six on the
whole test set, and times them on its first images, in turns. A latency is that from an image of
the test pipeline to detections with masks in the original image, one image at a time.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track
from test_onnx import evaluate

from maxq_mm import cli
from maxq_mm.cli.timing import alternate, machine, summarize
from maxq_mm.deploy.onnx_detector import OnnxDetector
from maxq_mm.utils.tables import table

TOOLS = Path(__file__).parent
MIB = 2**20
SCORES = ('bbox_mAP', 'segm_mAP')
CPU = torch.device('cpu')


@dataclass
class Variant:
    """One row: a network in a runtime; ``model.test_step`` detects."""

    network: str
    runtime: str
    model: object
    file: Path

    @property
    def name(self) -> str:
        return f'{self.network}, {self.runtime}'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--set', action='append', nargs=5, required=True, dest='sets',
                        metavar=('NAME', 'CONFIG', 'DENSE', 'MAXQ', 'DATA_ROOT'),
                        help='a data set with a dense and a MaxQ checkpoint of one config')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/deploy'),
                        help='folder for the exported files')
    parser.add_argument('--calib-images', type=cli.positive, default=64,
                        help='training images that int8 is calibrated on')
    parser.add_argument('--images', type=cli.positive, default=20, help='images of a timed turn')
    parser.add_argument('--repeat', type=cli.positive, default=9, help='timed turns')
    parser.add_argument('--threads', type=cli.positive, help='CPU threads')
    parser.add_argument('--json', type=Path, metavar='OUT', help='also write everything here')
    return parser.parse_args()


def call(tool: str, *arguments) -> None:
    """Run a tool of this folder; InputError with its complaint if it fails."""
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    print(done.stdout, end='', flush=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f'exit code {done.returncode}']
        raise cli.InputError(f'{tool}: {lines[-1].removeprefix("error: ")}')


def variants(cfg: Config, config: Path, network: str, checkpoint: Path, data_root: Path,
             args: argparse.Namespace, folder: Path) -> list[Variant]:
    """A network in mmdet, as ONNX and in int8; writes the files of the latter two."""
    content = cli.read_checkpoint(checkpoint)
    plain, onnx, int8 = (folder / f'{network.lower()}{end}'
                         for end in ('.pth', '.onnx', '_int8.onnx'))
    weights = {key: content[key] for key in ('meta', 'state_dict') if key in content}
    cli.write_checkpoint(weights or content, plain)
    common = '--data-root', data_root
    call('export_onnx.py', config, checkpoint, onnx, *common)
    call('quantize_int8.py', config, onnx, int8, '--calib-images', args.calib_images, *common)
    return [Variant(network, 'mmdet', cli.load_model(cfg, content, checkpoint), plain),
            *(Variant(network, name, OnnxDetector.from_file(file, args.threads), file)
              for name, file in (('onnxruntime', onnx), ('onnxruntime int8', int8)))]


def detect(model, batches: list[dict]) -> None:
    for data in batches:
        model.test_step(data)


@torch.no_grad()
def compare(given: list[str], args: argparse.Namespace) -> list[dict]:
    """The rows of one ``--set``."""
    name, config, data_root = given[0], Path(given[1]), Path(given[4])
    own = argparse.Namespace(config=config, data_root=data_root, cfg_options=None)
    cfg = cli.read_config(own)
    cli.check_data(cfg, 'train', 'test')
    cfg.test_dataloader.update(batch_size=1, num_workers=0, persistent_workers=False)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    rows: list[Variant] = []
    for network, checkpoint in zip(('dense', 'MaxQ'), given[2:4], strict=True):
        rows += variants(cfg, config, network, Path(checkpoint), data_root, args,
                         args.work_dir / name)
    loader = Runner.build_dataloader(cfg.test_dataloader, seed=0)
    scores = {}
    for row in rows:
        print(f'{name}: {row.name}', flush=True)
        scores[row.name] = evaluate(row.model, loader, cfg)
    batches = list(islice(loader, args.images))
    seconds = alternate(
        {row.name: partial(detect, row.model, batches) for row in rows}, args.repeat, CPU,
        lambda turns: track(turns, f'{name}: turns', console=Console(stderr=True)))
    return [dict(
        set=name, network=row.network, runtime=row.runtime,
        **{score: scores[row.name].get(f'coco/{score}') for score in SCORES},
        latency_ms=1000 * timing['median_s'] / len(batches), ratio=timing['ratio'],
        ratio_low=timing['ratio_low'], ratio_high=timing['ratio_high'],
        size_mib=row.file.stat().st_size / MIB)
        for row, timing in zip(rows, summarize(seconds, rows[0].name), strict=True)]


def check_sets(args: argparse.Namespace) -> None:
    """InputError for names that are no folders of their own, and inputs that are not there or
    would be overwritten."""
    names = [given[0] for given in args.sets]
    for name, config, dense, maxq, _ in args.sets:
        if names.count(name) > 1 or Path(name).name != name:
            raise cli.InputError(f'--set {name}: not a name for a folder of its own')
        for path in map(Path, (config, dense, maxq)):
            if not path.is_file():
                raise cli.InputError(f'--set {name}: file not found: {path}')
            if path.resolve().is_relative_to((args.work_dir / name).resolve()):
                raise cli.InputError(f'--set {name}: {path} is in the folder that is to be '
                                     'written: give another --work-dir')


def text(value: float | None) -> str:
    return '' if value is None else f'{value:.3f}'


def main() -> None:
    args = parse_args()
    check_sets(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    rows = [row for given in args.sets for row in compare(given, args)]
    print(table(
        ('data', 'network', 'runtime', 'bbox mAP', 'segm mAP', 'ms', 'of dense', 'MiB'),
        [(row['set'], row['network'], row['runtime'], text(row['bbox_mAP']),
          text(row['segm_mAP']), f'{row["latency_ms"]:.1f}', f'{row["ratio"]:.2f}',
          f'{row["size_mib"]:.2f}') for row in rows]))
    if args.json is not None:
        cli.write_json(dict(machine=machine(CPU), images=args.images, repeat=args.repeat,
                            calib_images=args.calib_images, rows=rows), args.json)


if __name__ == '__main__':
    cli.run(main)

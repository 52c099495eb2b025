"""Evaluate a checkpoint, or a file that tools/accelerate.py wrote, with the metrics of its config.

    python tools/test.py CONFIG CHECKPOINT [--show-dir DIR] [--out RESULTS.pkl] ...
"""

import argparse
from pathlib import Path

from mmdet.evaluation import DumpDetResults
from mmengine.model import is_model_wrapper

from maxq_mm import cli
from maxq_mm.runtime import served


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_run_arguments(parser)
    parser.add_argument('checkpoint', type=Path, help='checkpoint or accelerated file')
    parser.add_argument('--out', type=Path, metavar='RESULTS.pkl', help='write all predictions')
    parser.add_argument('--show-dir', type=Path,
                        help='write images of detections beside ground truth')
    args = parser.parse_args()
    if args.out is not None and args.out.suffix not in ('.pkl', '.pickle'):
        raise cli.InputError(f'--out must end with .pkl or .pickle, got {args.out}')
    cli.check_outputs(args.out, inputs=[args.config, args.checkpoint], folders=[args.show_dir])
    return args


def main() -> None:
    args = parse_args()
    cfg = cli.prepare_run(args, 'test')
    cli.check_settings(cfg, args.config, 'test_dataloader', 'test_cfg', 'test_evaluator')
    cli.check_data(cfg, 'test')
    accelerated = (served.read_accelerated(args.checkpoint) if args.checkpoint.is_file()
                   and served.is_accelerated_file(args.checkpoint) else None)
    if accelerated is None:
        checkpoint = cli.read_checkpoint(args.checkpoint, mapped=True)  # mmengine reads it again
        cfg.load_from = str(args.checkpoint)
    else:
        checkpoint = accelerated.checkpoint
        cfg.load_from = None
    cfg.resume = False
    if args.show_dir is not None:
        cfg.setdefault('default_hooks', {}).setdefault('visualization', {}).update(
            type='DetVisualizationHook', draw=True, test_out_dir=str(args.show_dir.resolve()))
    runner = cli.build_runner(cfg)
    cli.load_weights(runner.model, checkpoint, args.checkpoint)
    cli.build_data(runner, 'test')
    cli.check_classes(cli.trained_classes(checkpoint), args.checkpoint,
                      runner.test_dataloader.dataset)
    del checkpoint
    if accelerated is not None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.to('cpu').eval()  # whatever else the Runner has found
        served.use_decisions(model, accelerated.decisions, args.checkpoint, anew=True)
    if args.out is not None:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=str(args.out)))
    runner.test()


if __name__ == '__main__':
    cli.run(main)

"""Train a detector, with or without MaxQ.

    python tools/train.py CONFIG [--work-dir DIR] [--resume [CHECKPOINT]] [--amp] ...
"""

import argparse
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner, find_latest_checkpoint

from maxq_mm import cli
from maxq_mm.engine.checkpoint import layer_patterns


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_run_arguments(parser)
    parser.add_argument('--amp', action='store_true', help='train in mixed precision: '
                        'float16 on GPUs, bfloat16 on CPUs')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate with the batch size')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
                        help='go on from a checkpoint; without one, from the last in the work dir')
    return parser.parse_args()


def apply(args: argparse.Namespace, cfg: Config) -> None:
    """Put train's own flags into the config."""
    if args.amp:
        if get_device() == 'cpu':
            cfg.optim_wrapper.type = 'CPUAmpOptimWrapper'
            for setting in ('loss_scale', 'dtype'):  # of float16; bfloat16 needs no scaling
                cfg.optim_wrapper.pop(setting, None)
        else:
            cfg.optim_wrapper.type = 'AmpOptimWrapper'
            cfg.optim_wrapper.loss_scale = 'dynamic'
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise cli.InputError(f'--auto-scale-lr needs auto_scale_lr.base_batch_size, '
                                 f'which {args.config} does not set')
        cfg.auto_scale_lr.enable = True
    resume = args.resume
    if resume == 'auto':  # a first start has nothing to resume, and goes on as without the flag
        resume = find_latest_checkpoint(cfg.work_dir)
        if resume == '':
            raise cli.InputError(f'{cfg.work_dir}/last_checkpoint is empty: name the checkpoint, '
                                 '--resume CHECKPOINT')
    if resume is not None:
        cfg.resume = True
        cfg.load_from = resume


def build(cfg: Config) -> Runner:
    """The runner; InputError unless the checkpoint that it starts from, if any, can be used.

    That is looked into here, and read by mmengine later: nothing of it is held meanwhile.
    """
    path = cfg.get('load_from')
    if not isinstance(path, str | None) or path == '':
        raise cli.InputError(f'load_from must be the path of a checkpoint, got {path!r}')
    if not path or '://' in path:
        return cli.build_runner(cfg)
    checkpoint = cli.read_checkpoint(path, mapped=True)
    if cfg.get('resume'):
        cli.check_resumable(checkpoint, path)
    runner = cli.build_runner(cfg)
    cli.check_start(runner.model, checkpoint, path)
    if cfg.get('resume') and layer_patterns(checkpoint) and not cli.maxq_hooks(cfg):
        runner.logger.warning(f'{path} is of a MaxQ training, and the config has no MaxQHook: '
                              'training goes on dense, and the zeros are lost')
    return runner


def main() -> None:
    args = parse_args()
    cfg = cli.prepare_run(args, 'train', 'val')
    cli.check_settings(cfg, args.config, 'train_dataloader', 'train_cfg', 'optim_wrapper')
    apply(args, cfg)
    cli.check_data(cfg, 'train', 'val')
    runner = build(cfg)
    cli.build_data(runner, 'train', 'val')
    try:
        runner.train()
    except OSError as error:
        if not cli.is_of_the_disk(error):
            raise
        raise cli.InputError(f'cannot write in {cfg.work_dir}: {error.strerror}; training stops. '
                             + remaining(Path(cfg.work_dir))) from error


def remaining(work_dir: Path) -> str:
    """What a training that broke off has left."""
    last = max(work_dir.glob('*.pth'), key=lambda path: path.stat().st_mtime, default=None)
    if last is None:
        return 'No checkpoint has been written: all of it is lost'
    return f'What came after {last} is lost; --resume {last} goes on from there'


if __name__ == '__main__':
    cli.run(main)

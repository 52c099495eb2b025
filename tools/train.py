"""Train a detector, with or without MaxQ.

    python tools/train.py CONFIG [--work-dir DIR] [--resume [CHECKPOINT]] [--amp] ...
"""

import argparse

from mmengine.device import get_device
from mmengine.runner import find_latest_checkpoint

from maxq_mm import cli


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


def apply(args: argparse.Namespace, cfg) -> None:
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
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
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


def check_start(cfg) -> None:
    """InputError unless the checkpoint that training starts from, if any, can be used."""
    if cfg.get('load_from') and '://' not in cfg.load_from:
        checkpoint = cli.read_checkpoint(cfg.load_from)
        if cfg.get('resume'):
            cli.check_resumable(checkpoint, cfg.load_from)


def main() -> None:
    args = parse_args()
    cfg = cli.prepare_run(args)
    apply(args, cfg)
    cli.check_data(cfg, 'train', 'val')
    check_start(cfg)
    cli.build_runner(cfg).train()


if __name__ == '__main__':
    cli.run(main)

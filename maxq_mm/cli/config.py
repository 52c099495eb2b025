"""The config that a tool is given, and the Runner made of it."""

import argparse
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..engine.compact import name_for_mmengine
from ..engine.runner import MaxQRunner
from ..utils.errors import InputError, first_line
from .data import use_data_root


class _Options(DictAction):
    """mmengine's KEY=VALUE pairs, with an error for what is none."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        unlike = next((value for value in values if '=' not in value), None)
        if unlike is not None:
            raise InputError(f'{option_string} takes KEY=VALUE, got {unlike}')
        super().__call__(parser, namespace, values, option_string)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every tool that reads a config."""
    parser.add_argument('config', type=Path, help='config file')
    parser.add_argument('--data-root', type=Path,
                        help='use this COCO-format data set (the layout that the config names) '
                        'and its classes')
    parser.add_argument('--cfg-options', nargs='+', action=_Options, metavar='KEY=VALUE',
                        help='override settings of the config')


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the tools that drive a Runner."""
    add_config_arguments(parser)
    parser.add_argument('--work-dir', type=Path, help='folder for logs and checkpoints')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    # torch.distributed.launch passes it; torchrun sets LOCAL_RANK instead
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help=argparse.SUPPRESS)


def read_config(args: argparse.Namespace) -> Config:
    """The config as the arguments of :func:`add_config_arguments` make it."""
    if not args.config.is_file():
        raise InputError(f'config not found: {args.config}')
    try:
        cfg = Config.fromfile(args.config)
    except Exception as error:  # a config is code and can fail in any way
        raise InputError(f'not a readable config: {args.config} ({first_line(error)})') from error
    if 'model' not in cfg:
        raise InputError(f'not the config of a detector: {args.config} defines no model')
    if args.data_root is not None:
        use_data_root(cfg, args.data_root)
    if args.cfg_options:  # last, so that what is spelled out counts
        merge_options(cfg, args.cfg_options, args.config)
    return cfg


def merge_options(cfg: Config, options: dict, source: Path) -> None:
    """Change settings of ``source``'s config, named by dotted keys; InputError if one cannot be."""
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f'options {options} do not fit {source} '
                         f'({first_line(error)})') from error


def prepare_run(args: argparse.Namespace) -> Config:
    """The config as the arguments of :func:`add_run_arguments` make it."""
    cfg = read_config(args)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = str(args.work_dir)
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / args.config.stem)
    return cfg


def build_runner(cfg: Config) -> Runner:
    """The Runner, of the type that the config asks for; else :class:`MaxQRunner`."""
    if cfg.get('load_from'):
        cfg.load_from = name_for_mmengine(cfg.load_from)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else MaxQRunner.from_cfg(cfg)

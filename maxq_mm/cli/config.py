"""The config that a tool is given, and the Runner made of it."""

import argparse
import os
from pathlib import Path

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..engine.compact import name_for_mmengine
from ..engine.runner import WholeCheckpointRunner
from ..utils.errors import InputError, first_line
from .data import use_data_root
from .run import check_outputs

# What each launcher tells the processes that it starts.
_LAUNCHERS = dict(pytorch=('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
                  slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
                  mpi=('OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_RANK'))


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
    parser.add_argument('--launcher', choices=('none', *_LAUNCHERS), default='none')
    # torch.distributed.launch passes it; torchrun sets LOCAL_RANK instead
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help=argparse.SUPPRESS)


def read_config(args: argparse.Namespace, *splits: str) -> Config:
    """The config as the arguments of :func:`add_config_arguments` make it.

    ``splits`` are those whose data the tool needs, for ``--data-root``.
    """
    if not args.config.is_file():
        raise InputError(f'config not found: {args.config}')
    try:
        cfg = Config.fromfile(args.config)
    except Exception as error:  # a config is code and can fail in any way
        raise InputError(f'not a readable config: {args.config} ({first_line(error)})') from error
    if not isinstance(cfg.get('model'), dict) or 'type' not in cfg.model:
        raise InputError(f'not the config of a detector: {args.config} defines no model')
    if args.data_root is not None:
        use_data_root(cfg, args.data_root, *splits)
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


def maxq_hooks(cfg: Config) -> list[dict]:
    """The settings of the config's MaxQHooks, as they stand in it."""
    return [hook for hook in cfg.get('custom_hooks') or [] if hook.get('type') == 'MaxQHook']


def prepare_run(args: argparse.Namespace, *splits: str) -> Config:
    """The config as the arguments of :func:`add_run_arguments` make it; see :func:`read_config`.

    Raises:
        InputError: also for a launcher that has not started this process, and a work dir that
            cannot be written.
    """
    cfg = read_config(args, *splits)
    cfg.launcher = args.launcher
    missing = [name for name in _LAUNCHERS.get(args.launcher, ()) if name not in os.environ]
    if missing:
        raise InputError(f'--launcher {args.launcher}: {missing[0]} is not set, so that launcher '
                         'has not started this process; tools/dist_train.sh and dist_test.sh '
                         'call torchrun')
    if args.work_dir is not None:
        cfg.work_dir = str(args.work_dir)
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / args.config.stem)
    check_outputs(folders=[Path(cfg.work_dir)])
    return cfg


def check_settings(cfg: Config | ConfigDict, source: Path, *names: str) -> None:
    """InputError naming the first of these settings that ``source``'s config does not have."""
    missing = [name for name in names if not cfg.get(name) and cfg.get(name) != {}]
    if missing:
        raise InputError(f'{source} has no {missing[0]}')


def build_runner(cfg: Config) -> Runner:
    """The Runner, of the type that the config asks for; else :class:`WholeCheckpointRunner`."""
    if cfg.get('load_from'):
        cfg.load_from = name_for_mmengine(cfg.load_from)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else WholeCheckpointRunner.from_cfg(cfg)

"""What the tools share: reading a config, checking files, and one-line errors."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from maxq_mm.engine.checkpoint import load_file

USAGE_ERROR = 2


class UsageError(Exception):
    """Something the user gave is wrong; the message is one line that names it."""


def run(main: Callable[[], None]) -> None:
    """Run a tool: a UsageError becomes one line on stderr and exit code 2."""
    try:
        main()
    except UsageError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(USAGE_ERROR)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every tool that reads a config."""
    parser.add_argument('config', type=Path, help='config file')
    parser.add_argument('--data-root', type=Path,
                        help='use this COCO-format data set (the layout that the config names) '
                        'and its classes')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
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
        raise UsageError(f'config not found: {args.config}')
    try:
        cfg = Config.fromfile(args.config)
    except Exception as error:  # a config is code and can fail in any way
        raise UsageError(f'not a readable config: {args.config} ({_first_line(error)})') from error
    if args.data_root is not None:
        use_data_root(cfg, args.data_root)
    if args.cfg_options:  # last, so that what is spelled out counts
        cfg.merge_from_dict(args.cfg_options)
    return cfg


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
    """The Runner, of the type that the config asks for."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def read_checkpoint(path: str | Path) -> dict:
    """A checkpoint's content; UsageError if it cannot be read."""
    try:
        return load_file(path)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from error


def check_fit(model: nn.Module, checkpoint: dict, path: str | Path) -> None:
    """UsageError unless the checkpoint has every weight of the model, in its shape."""
    stored = checkpoint.get('state_dict', checkpoint)
    stored = {key.removeprefix('module.'): value for key, value in stored.items()}
    wanted = {key: value for key, value in model.state_dict().items()
              if not key.endswith('num_batches_tracked')}
    missing = [key for key in wanted if key not in stored]
    unlike = [key for key, value in wanted.items() if key in stored
              and getattr(stored[key], 'shape', None) != value.shape]
    problems = [f'{len(keys)} of {len(wanted)} weights {what}, such as {keys[0]}'
                for keys, what in ((missing, 'missing'), (unlike, 'of another shape')) if keys]
    if problems:
        raise UsageError(f'checkpoint {path} does not fit the config: ' + '; '.join(problems))


def check_data(cfg: Config, *splits: str) -> None:
    """UsageError naming the first annotation file or image folder that is not there."""
    for split in splits:
        for dataset in _datasets(cfg.get(f'{split}_dataloader')):
            if dataset.get('backend_args') is not None:
                continue  # not on this machine's disk
            root = Path(dataset.get('data_root') or '')
            paths = [dataset.get('ann_file'), *(dataset.get('data_prefix') or {}).values()]
            for path in paths:
                if path and not (root / path).exists():
                    raise UsageError(f'{split} data not found: {root / path}')
        evaluators = cfg.get(f'{split}_evaluator') or []
        for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
            path = evaluator.get('ann_file')
            if path and evaluator.get('backend_args') is None and not Path(path).is_file():
                raise UsageError(f'{split} annotations not found: {path}')


def use_data_root(cfg: Config, root: Path) -> None:
    """Point every data set and metric of ``cfg`` to ``root``, and take over its classes."""
    old = cfg.get('data_root')
    cfg.data_root = f'{root}/'
    classes = None
    for split in ('train', 'val', 'test'):
        for dataset in _datasets(cfg.get(f'{split}_dataloader')):
            old = dataset.get('data_root', old)
            dataset.data_root = cfg.data_root
            if classes is None:
                classes = _read_classes(root / dataset.ann_file)
            dataset.metainfo = dict(classes=classes)
        evaluators = cfg.get(f'{split}_evaluator') or []
        for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
            path = Path(evaluator.get('ann_file') or '')
            if old is not None and path.is_relative_to(old):
                evaluator.ann_file = str(root / path.relative_to(old))
    if classes is not None:
        _set_num_classes(cfg.model, len(classes))


def _datasets(node: dict | list | None) -> Iterator[ConfigDict]:
    """The data sets in a dataloader's config that read files, out of their wrappers."""
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _datasets(item)
    elif isinstance(node, dict):
        if 'ann_file' in node:
            yield node
        else:
            for key in ('dataset', 'datasets'):
                yield from _datasets(node.get(key))


def _read_classes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise UsageError(f'annotations not found: {path}')
    try:
        return tuple(category['name'] for category in json.loads(path.read_text())['categories'])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f'not COCO annotations: {path} ({_first_line(error)})') from error


def _set_num_classes(node: dict | list, number: int) -> None:
    if isinstance(node, dict):
        if 'num_classes' in node:
            node['num_classes'] = number
        for value in node.values():
            _set_num_classes(value, number)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _set_num_classes(value, number)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__

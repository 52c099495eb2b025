"""What the tools share: reading a config, checking files, and one-line errors."""

import argparse
import json
import signal
import sys
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.model import is_model_wrapper
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner
from torch import nn

import maxq_mm
from maxq_mm.engine.checkpoint import save_file, save_text
from maxq_mm.engine.compact import load_any, name_for_mmengine

# Of mmengine and mmcv, at every config that they read.
warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
USAGE_ERROR = 2
# What mmengine needs to resume; a folded checkpoint or a bare state dict does not have it.
_RESUME_KEYS = ('meta', 'state_dict', 'message_hub', 'optimizer')


class UsageError(Exception):
    """Something the user gave is wrong; the message is one line that names it."""


def run(main: Callable[[], None]) -> None:
    """Run a tool: a UsageError becomes one line on stderr and exit code 2.

    So does a ValueError that maxq_mm raises itself, and a file that is not there: those are about
    what a user gave. Being terminated is an exit like others: what is half written is removed.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main()
    except UsageError as error:
        _fail(error)
    except FileNotFoundError as error:
        if error.filename is None:
            raise
        _fail(UsageError(f'file not found: {error.filename}'))
    except ValueError as error:
        # mmengine's registry raises errors of a constructor anew, with the original as context.
        own = next((e for e in (error, error.__context__) if e and _raised_by_maxq(e)), None)
        if own is None:
            raise
        _fail(own)


def _fail(error: BaseException) -> None:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(USAGE_ERROR)


def _raised_by_maxq(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(maxq_mm.__path__[0])


class _Options(DictAction):
    """mmengine's KEY=VALUE pairs, with an error for what is none."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        unlike = next((value for value in values if '=' not in value), None)
        if unlike is not None:
            raise UsageError(f'{option_string} takes KEY=VALUE, got {unlike}')
        super().__call__(parser, namespace, values, option_string)


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


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
        raise UsageError(f'config not found: {args.config}')
    try:
        cfg = Config.fromfile(args.config)
    except Exception as error:  # a config is code and can fail in any way
        raise UsageError(f'not a readable config: {args.config} ({first_line(error)})') from error
    if 'model' not in cfg:
        raise UsageError(f'not the config of a detector: {args.config} defines no model')
    if args.data_root is not None:
        use_data_root(cfg, args.data_root)
    if args.cfg_options:  # last, so that what is spelled out counts
        merge_options(cfg, args.cfg_options, args.config)
    return cfg


def merge_options(cfg: Config, options: dict, source: Path) -> None:
    """Change settings of ``source``'s config, named by dotted keys; UsageError if one cannot be."""
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, IndexError) as error:
        raise UsageError(f'options {options} do not fit {source} '
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
    """The Runner, of the type that the config asks for; else :class:`maxq_mm.MaxQRunner`."""
    if cfg.get('load_from'):
        cfg.load_from = name_for_mmengine(cfg.load_from)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else maxq_mm.MaxQRunner.from_cfg(cfg)


def read_checkpoint(path: str | Path) -> dict:
    """A checkpoint's content, of a compact file, too; UsageError if it cannot be read."""
    try:
        return load_any(path)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from error


def check_not_itself(out: Path, source: Path) -> None:
    """UsageError if ``out`` is the file ``source`` that a tool reads."""
    if out.exists() and out.samefile(source):
        raise UsageError(f'{out} is the input itself: give another file to write')


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """UsageError if ``path`` cannot be written in here."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
        reason = getattr(error, 'strerror', None) or str(error).splitlines()[0]
        raise UsageError(f'cannot write {path}: {reason}') from error


def write_checkpoint(checkpoint: dict, path: Path) -> None:
    """Write a checkpoint whole or not at all; UsageError if it cannot be written."""
    with writing(path):
        save_file(checkpoint, path)


def write_json(content: dict, path: Path) -> None:
    """Write a JSON file whole or not at all; UsageError if it cannot be written."""
    with writing(path):
        save_text(json.dumps(content, indent=1), path)


def check_resumable(checkpoint: dict, path: str | Path) -> None:
    """UsageError unless training can go on from the checkpoint."""
    missing = [key for key in _RESUME_KEYS if key not in checkpoint]
    if missing:
        raise UsageError(f'cannot resume from {path}: it has no {missing[0]}')


def load_model(cfg: Config, checkpoint: dict, path: str | Path) -> nn.Module:
    """The detector of ``cfg`` with the checkpoint's weights, ready to test."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = MODELS.build(cfg.model).eval()
    load_weights(model, checkpoint, path)
    return model


def load_weights(model: nn.Module, checkpoint: dict, path: str | Path) -> None:
    """Load the checkpoint; UsageError unless it has every weight of the model, in its shape."""
    model = model.module if is_model_wrapper(model) else model
    state = checkpoint.get('state_dict', checkpoint)
    stored = {key.removeprefix('module.'): value for key, value in state.items()}
    wanted = model.state_dict()
    unlike = [key for key, value in wanted.items() if key in stored
              and getattr(stored[key], 'shape', None) != value.shape]
    fitting = OrderedDict((key, value) for key, value in stored.items() if key not in unlike)
    fitting._metadata = getattr(state, '_metadata', None)
    # Loading is what tells: some of mmdet's modules rename keys of older checkpoints then.
    missing = [key for key in model.load_state_dict(fitting, strict=False).missing_keys
               if key not in unlike and not key.endswith('num_batches_tracked')]
    problems = [f'{len(keys)} of {len(wanted)} weights {what}, such as {keys[0]}'
                for keys, what in ((missing, 'missing'), (unlike, 'of another shape')) if keys]
    if problems:
        raise UsageError(f'checkpoint {path} does not fit the config: ' + '; '.join(problems))


def check_data(cfg: Config, *splits: str) -> None:
    """UsageError naming the first annotation file or image folder that is not there."""
    for split in splits:
        for dataset in datasets(cfg.get(f'{split}_dataloader')):
            if dataset.get('backend_args') is not None:
                continue  # not on this machine's disk
            root = Path(dataset.get('data_root') or '')
            paths = [dataset.get('ann_file'), *(dataset.get('data_prefix') or {}).values()]
            for path in paths:
                if path and not (root / path).exists():
                    raise UsageError(f'{split} data not found: {root / path}')
        for evaluator in _evaluators(cfg, split):
            path = evaluator.get('ann_file')
            if path and evaluator.get('backend_args') is None and not Path(path).is_file():
                raise UsageError(f'{split} annotations not found: {path}')


def use_data_root(cfg: Config, root: Path) -> None:
    """Point every data set and metric of ``cfg`` to ``root``, and take over its classes."""
    old = Path(cfg.get('data_root') or '.')
    cfg.data_root = f'{root}/'
    classes = None
    for split in ('train', 'val', 'test'):
        for dataset in datasets(cfg.get(f'{split}_dataloader')):
            old = Path(dataset.get('data_root') or old)
            dataset.data_root = cfg.data_root
            if classes is None:
                classes = _read_classes(root / dataset.ann_file)
            dataset.metainfo = dict(classes=classes)
        for evaluator in _evaluators(cfg, split):
            for key in ('ann_file', 'seg_prefix'):
                path = Path(evaluator.get(key) or '')
                if evaluator.get(key) and path.is_relative_to(old):
                    evaluator[key] = str(root / path.relative_to(old))
    if classes is not None and not _set_num_classes(cfg.model, len(classes)):
        raise UsageError(f'--data-root cannot tell a {cfg.model.get("type")} its number of classes')


def datasets(node: dict | list | None) -> Iterator[ConfigDict]:
    """The data sets in a dataloader's config that read files, out of their wrappers."""
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from datasets(item)
    elif isinstance(node, dict):
        if 'ann_file' in node:
            yield node
        else:
            for key in ('dataset', 'datasets'):
                yield from datasets(node.get(key))


def _evaluators(cfg: Config, split: str) -> list[ConfigDict]:
    evaluators = cfg.get(f'{split}_evaluator') or []
    return [evaluators] if isinstance(evaluators, dict) else evaluators


def _read_classes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise UsageError(f'annotations not found: {path}')
    try:
        return tuple(category['name'] for category in json.loads(path.read_text())['categories'])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f'not COCO annotations: {path} ({first_line(error)})') from error


def _set_num_classes(node: dict | list, number: int) -> int:
    """Set every ``num_classes`` below ``node``; returns how many there were."""
    found = 0
    if isinstance(node, dict):
        if 'num_classes' in node:
            node['num_classes'] = number
            found += 1
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        found += sum(_set_num_classes(value, number) for value in node)
    return found


def first_line(error: Exception) -> str:
    """An error's kind and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__

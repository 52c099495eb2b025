"""Checkpoints that a tool is given: reading them, and models with their weights."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.model import is_model_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from ..engine.checkpoint import COUNTER, check_fits, maxq_part
from ..engine.compact import load_any
from ..utils.errors import InputError
from .data import some

# What mmengine needs to resume; a folded checkpoint or a bare state dict does not have it.
_RESUME_KEYS = ('meta', 'state_dict', 'message_hub', 'optimizer')


def read_checkpoint(path: str | Path, mapped: bool = False) -> dict:
    """A checkpoint's content, of a compact file, too.

    ``mapped`` is for a look into it: see :func:`maxq_mm.utils.files.load_file`.

    Raises:
        InputError: it cannot be read, or its parts are not of the types that they have to be.
    """
    try:
        checkpoint = load_any(path, mapped)
    except FileNotFoundError as error:
        raise InputError(str(error)) from error
    _check_parts(checkpoint, path)
    return checkpoint


def _check_parts(checkpoint: dict, path: str | Path) -> None:
    """InputError unless the parts that tools look at are of the types that mmengine writes."""
    for key in ('state_dict', 'meta', 'message_hub', 'optimizer'):
        _check_mapping(checkpoint, key, path)
    for key, value in checkpoint.get('state_dict', checkpoint).items():
        if not isinstance(key, str):
            raise InputError(f'not a checkpoint: {path} has the key {key!r}, which is no name')
        if 'state_dict' in checkpoint and not (
                isinstance(value, Tensor) or key.endswith('_extra_state')):  # of any type
            raise InputError(f'not a checkpoint: {path} has a {type(value).__name__} '
                             f'in place of the weight {key}')
    if checkpoint.get('meta', {}).get('dataset_meta') is not None:
        _check_mapping(checkpoint['meta'], 'dataset_meta', path, 'meta.')
    hub = checkpoint.get('message_hub', {})
    _check_mapping(hub, 'log_scalars', path, 'message_hub.')
    for name, history in hub.get('log_scalars', {}).items():
        if not isinstance(history, HistoryBuffer):
            raise InputError(f'not a checkpoint: {path} has a {type(history).__name__} in place of '
                             f'the history of {name}')
    try:
        maxq_part(checkpoint)
    except InputError as error:
        raise InputError(f'{path}: {error}') from error


def _check_mapping(parts: Mapping, key: str, path: str | Path, prefix: str = '') -> None:
    if not isinstance(parts.get(key, {}), Mapping):
        raise InputError(f'not a checkpoint: {path} has a {type(parts[key]).__name__} as its '
                         f'{prefix}{key}')


def check_resumable(checkpoint: dict, path: str | Path) -> None:
    """InputError unless training can go on from the checkpoint."""
    missing = [key for key in _RESUME_KEYS if key not in checkpoint]
    missing += [f'meta.{key}' for key in ('epoch', 'iter')
                if not isinstance(checkpoint.get('meta', {}).get(key), int)]
    if 'log_scalars' not in checkpoint.get('message_hub', {}):
        missing.append('message_hub.log_scalars')
    if missing:
        raise InputError(f'cannot resume from {path}: it has no {missing[0]}')


def trained_classes(checkpoint: dict) -> tuple[str, ...]:
    """What the checkpoint was trained to find; empty if it does not say."""
    meta = checkpoint.get('meta', {}).get('dataset_meta')
    meta = meta if isinstance(meta, Mapping) else {}
    return tuple(meta.get('classes') or meta.get('CLASSES') or ())


def check_classes(trained: Sequence[str], path: str | Path, dataset) -> None:
    """InputError if the file ``path`` was trained to find other classes than the data set has.

    Their order counts: a label is a place in it. Where either is unknown, nothing is wrong.
    """
    trained, found = tuple(trained), tuple(dataset.metainfo.get('classes') or ())
    if trained and found and trained != found:
        how = 'in another order: ' if sorted(trained) == sorted(found) else ''
        raise InputError(f'{path} finds the classes {some(trained)}, the data has {how}'
                         f'{some(found)}')


def load_model(cfg: Config, checkpoint: dict, path: str | Path) -> nn.Module:
    """The detector of ``cfg`` with the checkpoint's weights, ready to test."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = MODELS.build(cfg.model).eval()
    load_weights(model, checkpoint, path)
    return model


def load_weights(model: nn.Module, checkpoint: dict, path: str | Path) -> None:
    """Load the checkpoint; InputError unless it has every weight of the model, in its shape."""
    model = model.module if is_model_wrapper(model) else model
    stored = _weights(checkpoint)
    wanted = model.state_dict()
    unlike = [key for key, value in wanted.items() if key in stored
              and getattr(stored[key], 'shape', None) != value.shape]
    fitting = OrderedDict((key, value) for key, value in stored.items() if key not in unlike)
    fitting._metadata = getattr(checkpoint.get('state_dict', checkpoint), '_metadata', None)
    # Loading is what tells: some of mmdet's modules rename keys of older checkpoints then.
    missing = [key for key in model.load_state_dict(fitting, strict=False).missing_keys
               if key not in unlike and not key.endswith(COUNTER)]
    problems = [f'{len(keys)} of {len(wanted)} weights {what}, such as {keys[0]}'
                for keys, what in ((missing, 'missing'), (unlike, 'of another shape')) if keys]
    if problems:
        raise InputError(f'checkpoint {path} does not fit the config: ' + '; '.join(problems))


def check_start(model: nn.Module, checkpoint: dict, path: str | Path) -> None:
    """InputError if training from the checkpoint would start from random weights."""
    try:
        check_fits(checkpoint, model.module if is_model_wrapper(model) else model)
    except InputError as error:
        raise InputError(f'{path}: {error}') from error


def _weights(checkpoint: dict) -> dict:
    """The stored weights by the model's names for them."""
    state = checkpoint.get('state_dict', checkpoint)
    return {key.removeprefix('module.'): value for key, value in state.items()}

"""Checkpoints that a tool is given: reading them, and models with their weights."""

from collections import OrderedDict
from pathlib import Path

from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from ..engine.compact import load_any
from ..utils.errors import InputError

# What mmengine needs to resume; a folded checkpoint or a bare state dict does not have it.
_RESUME_KEYS = ('meta', 'state_dict', 'message_hub', 'optimizer')


def read_checkpoint(path: str | Path) -> dict:
    """A checkpoint's content, of a compact file, too; InputError if it cannot be read."""
    try:
        return load_any(path)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(str(error)) from error


def check_resumable(checkpoint: dict, path: str | Path) -> None:
    """InputError unless training can go on from the checkpoint."""
    missing = [key for key in _RESUME_KEYS if key not in checkpoint]
    if missing:
        raise InputError(f'cannot resume from {path}: it has no {missing[0]}')


def load_model(cfg: Config, checkpoint: dict, path: str | Path) -> nn.Module:
    """The detector of ``cfg`` with the checkpoint's weights, ready to test."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = MODELS.build(cfg.model).eval()
    load_weights(model, checkpoint, path)
    return model


def load_weights(model: nn.Module, checkpoint: dict, path: str | Path) -> None:
    """Load the checkpoint; InputError unless it has every weight of the model, in its shape."""
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
        raise InputError(f'checkpoint {path} does not fit the config: ' + '; '.join(problems))

"""Checkpoints that any mmdet tool can use, and that training can resume from.

``state_dict`` holds effective weights under the usual keys, and says so (:mod:`maxq_mm.nn.stored`).
Beside it, ``maxq`` holds::

    version         1
    settings        of each MaxQHook, in their order
    ramp            that of the first hook
    dense_fraction  of the first hook's ramp when it was written
    layers          {module name: settings of its mask}
    raw             {state-dict key: raw weight}

A folded checkpoint carries ``version``, ``layers`` and ``ramp`` under the same key, nothing else.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor, nn

from ..functional.ramp import Ramp
from ..nn.fold import folded_weight
from ..nn.sparsify import SparsityHandle
from ..nn.stored import mark_effective
from ..utils.errors import InputError

KEY = 'maxq'
VERSION = 1
# Every batch norm has one: it tells no network from another, and torch does without.
COUNTER = 'num_batches_tracked'
# What a checkpoint for inference consists of.
_INFERENCE_KEYS = ('meta', 'state_dict')
_FOLDED_KEYS = ('version', 'layers', 'ramp')
_PARTS = {'settings': list, 'ramp': dict, 'layers': dict, 'raw': dict}


@torch.no_grad()
def store_effective(checkpoint: dict, handle: SparsityHandle) -> None:
    """Put effective weights into ``checkpoint['state_dict']`` and the raw ones beside it.

    They are computed from the state dict's own weights (averaged ones under EMA), on the layers'
    device, so that validation and the checkpoint agree to the last bit. Each hook adds its own.
    """
    state = checkpoint['state_dict']
    part = checkpoint.setdefault(KEY, dict(
        version=VERSION, settings=[], ramp=asdict(handle.ramp),
        dense_fraction=handle.dense_fraction, layers={}, raw={}))
    part['settings'].append(handle.settings.as_dict())
    active = set(handle.active.values())
    for name, layer in handle.names.items():
        if layer not in active:  # folded since
            continue
        key = f'{name}.weight'
        raw = state[key]
        part['raw'][key], part['layers'][name] = raw, layer.settings.as_dict()
        state[key] = layer.apply_mask(raw.to(layer.weight.device)).to(raw.device)
    mark_effective(state)


def raw_weights(checkpoint: dict) -> dict[str, Tensor]:
    """Raw weights by state-dict key; empty for a checkpoint without any.

    Raises:
        InputError: written by a newer version, or of another layout.
    """
    return maxq_part(checkpoint).get('raw', {})


def layer_patterns(checkpoint: dict) -> dict[str, str]:
    """Pattern by module name, of a training or a folded checkpoint; empty for any other.

    Raises:
        InputError: written by a newer version, or of another layout.
    """
    layers = maxq_part(checkpoint).get('layers', {})
    return {name: settings['pattern'] for name, settings in layers.items()}


def trained_ramp(checkpoint: dict) -> Ramp | None:
    """The ramp of a training or a folded checkpoint (the first, of several); None of any other.

    Raises:
        InputError: written by a newer version, or of another layout.
    """
    ramp = maxq_part(checkpoint).get('ramp')
    return None if ramp is None else Ramp.parse(ramp)


def trained_settings(checkpoint: dict) -> list[dict]:
    """Settings of each hook that a training checkpoint was written with; empty for any other.

    Raises:
        InputError: written by a newer version, or of another layout.
    """
    return maxq_part(checkpoint).get('settings', [])


def maxq_part(checkpoint: dict) -> dict:
    """What stands under ``maxq``, of the types that it has to be; empty for any other checkpoint.

    Raises:
        InputError: written by a newer version, or of another layout.
    """
    maxq = checkpoint.get(KEY, {})
    if not isinstance(maxq, dict) or maxq.get('version', VERSION) != VERSION:
        raise InputError(f"the checkpoint's {KEY!r} part is not of version {VERSION}")
    for name, kind in _PARTS.items():
        if name in maxq and not isinstance(maxq[name], kind):
            raise InputError(f"the checkpoint's {KEY}.{name} is a {type(maxq[name]).__name__}, no "
                             f'{kind.__name__}')
    for name, settings in maxq.get('layers', {}).items():
        if not isinstance(settings, dict) or not isinstance(settings.get('pattern'), str):
            raise InputError(f"the checkpoint's {KEY}.layers has no pattern for {name!r}")
    for key, weight in maxq.get('raw', {}).items():
        if not isinstance(weight, Tensor):
            raise InputError(f"the checkpoint's {KEY}.raw[{key!r}] is a "
                             f'{type(weight).__name__}, no tensor')
    for settings in maxq.get('settings', []):
        if not isinstance(settings, dict) or not isinstance(settings.get('ramp'), dict):
            raise InputError(f"the checkpoint's {KEY}.settings has an entry without a ramp")
    return maxq


def fold_checkpoint(checkpoint: dict) -> dict:
    """What inference needs of a checkpoint, which stays as it is: meta, patterns and weights.

    The weights are those of :func:`maxq_mm.fold`, so that files made in different ways are equal.

    Raises:
        InputError: no MaxQ checkpoint.
    """
    maxq = maxq_part(checkpoint)
    if not maxq.get('layers'):
        raise InputError(f'no MaxQ checkpoint: it has no {KEY!r} part')
    kept = {key: maxq[key] for key in _FOLDED_KEYS if key in maxq}
    folded = {key: checkpoint[key] for key in _INFERENCE_KEYS if key in checkpoint}
    if isinstance(folded.get('state_dict'), Mapping):
        state = copy.copy(folded['state_dict'])  # with its _metadata, unlike its own copy()
        for key in (f'{name}.weight' for name in maxq['layers']):
            if isinstance(state.get(key), Tensor):
                state[key] = folded_weight(state[key])
        folded['state_dict'] = state
    return {**folded, KEY: kept}


def check_fits(checkpoint: dict, model: nn.Module) -> None:
    """Raises InputError if ``model`` would take none of the checkpoint's weights."""
    state = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, Mapping):
        raise InputError(f"the checkpoint's state_dict is a {type(state).__name__}, no dict")
    stored = {key.removeprefix('module.'): value for key, value in state.items()
              if isinstance(value, Tensor) and not key.endswith(COUNTER)}
    wanted = model.state_dict()
    if any(stored[key].shape == wanted[key].shape for key in stored.keys() & wanted.keys()):
        return
    first = next(iter(stored), None)
    raise InputError(f'none of the {len(stored)} weights of the checkpoint fits the model: '
                     f'{"it has none" if first is None else f"it has such as {first}"}, the model '
                     f'such as {next(iter(wanted), None)}')

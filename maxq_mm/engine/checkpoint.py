"""Checkpoints that any mmdet tool can use, and that training can resume from.

``state_dict`` holds effective weights under the usual keys. Beside it, ``maxq`` holds::

    version         1
    dense_fraction  of the ramp when it was written
    ramp            its settings
    layers          {module name: settings of its mask}
    raw             {state-dict key: raw weight}

A folded checkpoint carries ``version``, ``layers`` and ``ramp`` under the same key, nothing else.
"""

from dataclasses import asdict

import torch

from ..functional.ramp import Ramp
from ..nn.layers import STORED_EFFECTIVE, STORED_KEY
from ..nn.sparsify import SparsityHandle
from ..utils.errors import InputError

KEY = 'maxq'
VERSION = 1
# What a checkpoint for inference consists of.
_INFERENCE_KEYS = ('meta', 'state_dict')
_FOLDED_KEYS = ('version', 'layers', 'ramp')


@torch.no_grad()
def store_effective(checkpoint: dict, handle: SparsityHandle) -> None:
    """Put effective weights into ``checkpoint['state_dict']`` and the raw ones beside it.

    They are computed from the state dict's own weights (averaged ones under EMA), on the layers'
    device, so that validation and the checkpoint agree to the last bit.
    """
    state = checkpoint['state_dict']
    raw = {}
    for name, layer in handle.names.items():
        key = f'{name}.weight'
        raw[key] = state[key]
        state[key] = layer.apply_mask(raw[key].to(layer.weight.device)).to(raw[key].device)
        state._metadata[name][STORED_KEY] = STORED_EFFECTIVE
    checkpoint[KEY] = dict(
        version=VERSION, dense_fraction=handle.dense_fraction, ramp=asdict(handle.ramp), raw=raw,
        layers={name: layer.settings.as_dict() for name, layer in handle.names.items()})


def raw_weights(checkpoint: dict) -> dict[str, torch.Tensor]:
    """Raw weights by state-dict key; empty for a checkpoint without any.

    Raises:
        InputError: written by a newer version, or of another layout.
    """
    return _maxq(checkpoint).get('raw', {})


def layer_patterns(checkpoint: dict) -> dict[str, str]:
    """Pattern by module name, of a training or a folded checkpoint; empty for any other.

    Raises:
        InputError: written by a newer version, or of another layout.
    """
    layers = _maxq(checkpoint).get('layers', {})
    return {name: settings['pattern'] for name, settings in layers.items()}


def trained_ramp(checkpoint: dict) -> Ramp | None:
    """The ramp of a training or a folded checkpoint; None of any other.

    Raises:
        InputError: written by a newer version, or of another layout.
    """
    ramp = _maxq(checkpoint).get('ramp')
    return None if ramp is None else Ramp.parse(ramp)


def _maxq(checkpoint: dict) -> dict:
    maxq = checkpoint.get(KEY, {})
    if not isinstance(maxq, dict) or maxq.get('version', VERSION) != VERSION:
        raise InputError(f"the checkpoint's {KEY!r} part is not of version {VERSION}")
    return maxq


def fold_checkpoint(checkpoint: dict) -> dict:
    """What inference needs of a checkpoint: effective weights, meta, and the layers' patterns.

    Raises:
        InputError: no MaxQ checkpoint.
    """
    maxq = _maxq(checkpoint)
    if not maxq.get('layers'):
        raise InputError(f'no MaxQ checkpoint: it has no {KEY!r} part')
    kept = {key: maxq[key] for key in _FOLDED_KEYS if key in maxq}
    folded = {key: checkpoint[key] for key in _INFERENCE_KEYS if key in checkpoint}
    return {**folded, KEY: kept}

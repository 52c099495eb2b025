"""Checkpoints that any mmdet tool can use, and that training can resume from.

``state_dict`` holds effective weights under the usual keys. Beside it, ``maxq`` holds::

    version         1
    dense_fraction  of the ramp when it was written
    ramp            its settings
    layers          {module name: settings of its mask}
    raw             {state-dict key: raw weight}

A folded checkpoint carries ``version``, ``layers`` and ``ramp`` under the same key, nothing else.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import torch

from ..functional.ramp import Ramp
from ..nn.layers import STORED_EFFECTIVE, STORED_KEY
from ..nn.sparsify import SparsityHandle

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
        ValueError: written by a newer version, or of another layout.
    """
    return _maxq(checkpoint).get('raw', {})


def layer_patterns(checkpoint: dict) -> dict[str, str]:
    """Pattern by module name, of a training or a folded checkpoint; empty for any other.

    Raises:
        ValueError: written by a newer version, or of another layout.
    """
    layers = _maxq(checkpoint).get('layers', {})
    return {name: settings['pattern'] for name, settings in layers.items()}


def trained_ramp(checkpoint: dict) -> Ramp | None:
    """The ramp of a training or a folded checkpoint; None of any other.

    Raises:
        ValueError: written by a newer version, or of another layout.
    """
    ramp = _maxq(checkpoint).get('ramp')
    return None if ramp is None else Ramp.parse(ramp)


def _maxq(checkpoint: dict) -> dict:
    maxq = checkpoint.get(KEY, {})
    if not isinstance(maxq, dict) or maxq.get('version', VERSION) != VERSION:
        raise ValueError(f"the checkpoint's {KEY!r} part is not of version {VERSION}")
    return maxq


def fold_checkpoint(checkpoint: dict) -> dict:
    """What inference needs of a checkpoint: effective weights, meta, and the layers' patterns.

    Raises:
        ValueError: no MaxQ checkpoint.
    """
    maxq = _maxq(checkpoint)
    if not maxq.get('layers'):
        raise ValueError(f'no MaxQ checkpoint: it has no {KEY!r} part')
    kept = {key: maxq[key] for key in _FOLDED_KEYS if key in maxq}
    folded = {key: checkpoint[key] for key in _INFERENCE_KEYS if key in checkpoint}
    return {**folded, KEY: kept}


def load_file(path: str | Path) -> dict:
    """Read a checkpoint with torch's safe loader, onto the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, cut short, or holding what the safe loader refuses.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint not found: {path}')
    # torch < 2.6 cannot be told of mmengine's classes; there mmengine reads files like this, too.
    safe = torch.__version__ >= '2.6'
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=safe)
    except Exception as error:  # torch raises many kinds, from pickle to zip
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f'not a readable checkpoint: {path} ({reason})') from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'not a checkpoint: {path} holds a {type(checkpoint).__name__}')
    return checkpoint


def save_file(checkpoint: dict, path: str | Path) -> None:
    """Write beside ``path``, then rename: what stood there is replaced whole or not at all."""
    with written_whole(path) as file:
        torch.save(checkpoint, file)


def save_text(text: str, path: str | Path) -> None:
    """The same for a text."""
    with written_whole(path) as file:
        file.write(text.encode())


@contextmanager
def written_whole(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of ``path`` at the end, if nothing went wrong."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    beside = Path(name)
    try:
        with os.fdopen(handle, 'wb') as file:
            yield file
        beside.chmod(0o644)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise

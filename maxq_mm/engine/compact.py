"""Folded checkpoints without their zeros, in a file of about N/M of the size.

The file is a dict that torch's safe loader reads::

    maxq_compact  1, the version
    sha256        of ``content``
    content       uint8: what torch.save makes of dict(checkpoint, packed)
    state_dict    a sentence: tools that do not know the format fail on it

``checkpoint`` is the folded checkpoint with None in place of each packed weight, and ``packed`` has
these by state-dict key, with the fields of :class:`~maxq_mm.functional.compact.Compact`. mmengine
(``load_from``, ``init_detector``) reads such a file by the name ``compact:PATH``.
"""

import copy
import hashlib
import io
from pathlib import Path

import torch
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from ..functional.compact import Compact, compact, expand
from ..utils.errors import InputError, first_line
from ..utils.files import load_file, save_file
from .checkpoint import fold_checkpoint, layer_patterns

KEY = 'maxq_compact'
VERSION = 1
PREFIX = 'compact:'
_HINT = 'a compact file of maxq_mm: read it with maxq_mm.load_compact'
# About what torch.save adds to a tensor; a small layer's indices are not worth a tensor.
_TENSOR_OVERHEAD = 512


def save_compact(checkpoint: dict, path: str | Path) -> None:
    """Fold a MaxQ checkpoint and write it compact, in place of ``path`` whole or not at all.

    Raises:
        InputError: no MaxQ checkpoint, or a layer that is missing or does not satisfy its pattern.
    """
    save_file(to_compact(checkpoint), path)


def load_compact(path: str | Path) -> dict:
    """The folded checkpoint that :func:`save_compact` wrote, bit for bit, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        InputError: no compact file, one of another version, or a damaged one.
    """
    stored = load_file(path)
    if KEY not in stored:
        raise InputError(f'not a compact file: {path}')
    return _from_compact(stored, path)


def load_any(path: str | Path, mapped: bool = False) -> dict:
    """A checkpoint that may be compact, also as ``compact:PATH``; errors: :func:`load_compact`.

    ``mapped`` as for :func:`~maxq_mm.utils.files.load_file`; a compact file is read whole.
    """
    path = str(path).removeprefix(PREFIX)
    stored = load_file(path, mapped)
    return _from_compact(stored, path) if KEY in stored else stored


def name_for_mmengine(path: str) -> str:
    """How mmengine reads this checkpoint: ``compact:PATH`` for a compact file, else ``path``.

    Raises:
        InputError: a file, but not a readable checkpoint.
    """
    if Path(path).is_file() and KEY in load_file(path, mapped=True):
        return f'{PREFIX}{path}'
    return path


@CheckpointLoader.register_scheme(prefixes=PREFIX)
def load_from_compact(filename: str, map_location=None) -> dict:
    """mmengine's loader of ``compact:PATH``; always onto the CPU, models copy from there."""
    return load_compact(filename.removeprefix(PREFIX))


def to_compact(checkpoint: dict) -> dict:
    """What :func:`save_compact` writes of a checkpoint, which stays as it is; same errors."""
    folded = fold_checkpoint(checkpoint)
    state = copy.copy(folded.get('state_dict', {}))  # with its _metadata, unlike its own copy()
    packed = {}
    for name, pattern in layer_patterns(folded).items():
        key = f'{name}.weight'
        weight = state.get(key)
        if not isinstance(weight, Tensor):
            raise InputError(f'the checkpoint has no {key}')
        try:
            entry = _entry(weight, pattern)
        except InputError as error:
            raise InputError(f'{key}: {error}') from error
        if entry is not None:
            packed[key], state[key] = entry, None
    buffer = io.BytesIO()
    torch.save(dict(checkpoint={**folded, 'state_dict': state}, packed=packed), buffer)
    content = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
    return {KEY: VERSION, 'sha256': _sha256(content), 'content': content, 'state_dict': _HINT}


def _entry(weight: Tensor, pattern: str) -> dict | None:
    """The packed weight as plain values; None if that is no smaller."""
    packed = compact(weight, pattern)
    extra = 1 + (packed.signs.numel() > 0)
    if packed.nbytes + extra * _TENSOR_OVERHEAD >= weight.nbytes:
        return None
    return {**packed._asdict(), 'pattern': str(packed.pattern)}


def _from_compact(stored: dict, path: str | Path) -> dict:
    version, content = stored[KEY], stored.get('content')
    if type(version) is not int or version != VERSION:
        found = version if type(version) is int else f'of type {type(version).__name__}'
        raise InputError(f'{path} is a compact file of another version than {VERSION}: {found}')
    if not isinstance(content, Tensor) or content.dtype != torch.uint8 or content.dim() != 1:
        raise InputError(f'{path} is a compact file without content')
    if stored.get('sha256') != _sha256(content):
        raise InputError(f'{path} is damaged: its content does not have its checksum')
    try:
        # a folded checkpoint needs none of mmengine's classes, so any torch reads it safely
        inner = torch.load(io.BytesIO(content.numpy()), map_location='cpu', weights_only=True)
        return _expanded(inner)
    except Exception as error:  # torch raises many kinds
        raise InputError(
            f'{path} is not a sound compact file: {first_line(error)}') from error


def _expanded(inner: dict) -> dict:
    checkpoint, packed = _part(inner, 'checkpoint'), _part(inner, 'packed')
    state = _part(checkpoint, 'state_dict')
    for key, entry in packed.items():
        if not isinstance(entry, dict) or entry.keys() != set(Compact._fields):
            raise InputError(f'{key} must have {", ".join(Compact._fields)}')
        if state.get(key, key) is not None:
            raise InputError(f'{key} is packed, but has no free place in the state dict')
        try:
            state[key] = expand(Compact(**entry))
        except InputError as error:
            raise InputError(f'{key}: {error}') from error
    empty = next((key for key, value in state.items() if value is None), None)
    if empty is not None:
        raise InputError(f'{empty} is missing')
    return checkpoint


def _part(parts: dict, name: str) -> dict:
    part = parts.get(name) if isinstance(parts, dict) else None
    if not isinstance(part, dict):
        raise InputError(f'it has no {name}')
    return part


def _sha256(content: Tensor) -> str:
    return hashlib.sha256(content.contiguous().numpy()).hexdigest()

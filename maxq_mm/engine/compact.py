"""Folded checkpoints without their zeros, in a file of about N/M of the size.

It is one with a checksum (:mod:`maxq_mm.utils.sealed`) of dict(checkpoint, packed): ``checkpoint``
is the folded checkpoint with None in place of each packed weight, and ``packed`` has these by
state-dict key, with the fields of :class:`~maxq_mm.functional.compact.Compact`. mmengine
(``load_from``, ``init_detector``) reads such a file by the name ``compact:PATH``.
"""

import copy
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from ..functional.compact import Compact, compact, expand
from ..functional.pattern import Pattern
from ..utils.errors import InputError
from ..utils.files import load_file, save_file
from ..utils.sealed import Format, other_format
from .checkpoint import fold_checkpoint, layer_patterns

FORMAT = Format('maxq_compact', 1, 'a compact file', 'read it with maxq_mm.load_compact')
PREFIX = 'compact:'
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
    if FORMAT.key not in stored:
        raise InputError(f'not a compact file: {path}')
    return _from_compact(stored, path)


def load_any(path: str | Path, mapped: bool = False) -> dict:
    """A checkpoint that may be compact, also as ``compact:PATH``; errors: :func:`load_compact`.

    ``mapped`` as for :func:`~maxq_mm.utils.files.load_file`; a compact file is read whole. Other
    files of maxq_mm are no checkpoints, and refused.
    """
    path = str(path).removeprefix(PREFIX)
    stored = load_file(path, mapped)
    if FORMAT.key in stored:
        return _from_compact(stored, path)
    other = other_format(stored)
    if other is not None:
        raise InputError(f'no checkpoint: {path} is {other}')
    return stored


def name_for_mmengine(path: str) -> str:
    """How mmengine reads this checkpoint: ``compact:PATH`` for a compact file, else ``path``.

    Raises:
        InputError: a file, but not a readable checkpoint.
    """
    if Path(path).is_file() and FORMAT.key in load_file(path, mapped=True):
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
    patterns = {f'{name}.weight': pattern for name, pattern in layer_patterns(folded).items()}
    packed = pack_state(state, patterns)
    return FORMAT.seal(dict(checkpoint={**folded, 'state_dict': state}, packed=packed))


def pack_state(state: MutableMapping[str, Tensor | None], patterns: Mapping[str, str | Pattern]
               ) -> dict[str, dict]:
    """Take the weights that are smaller compact out of a state dict, which gets None for each.

    ``patterns`` by state-dict key. Returns each weight's fields by key; :func:`unpack_state` puts
    them back.

    Raises:
        InputError: a weight that is missing or does not satisfy its pattern.
    """
    packed = {}
    for key, pattern in patterns.items():
        weight = state.get(key)
        if not isinstance(weight, Tensor):
            raise InputError(f'the checkpoint has no {key}')
        try:
            entry = _entry(weight, pattern)
        except InputError as error:
            raise InputError(f'{key}: {error}') from error
        if entry is not None:
            packed[key], state[key] = entry, None
    return packed


def _entry(weight: Tensor, pattern: str | Pattern) -> dict | None:
    """The packed weight as plain values; None if that is no smaller."""
    packed = compact(weight, pattern)
    extra = 1 + (packed.signs.numel() > 0)
    if packed.nbytes + extra * _TENSOR_OVERHEAD >= weight.nbytes:
        return None
    return {**packed._asdict(), 'pattern': str(packed.pattern)}


def _from_compact(stored: dict, path: str | Path) -> dict:
    inner = FORMAT.open(stored, path)
    try:
        checkpoint = part_of(inner, 'checkpoint')
        unpack_state(part_of(checkpoint, 'state_dict'), part_of(inner, 'packed'))
    except Exception as error:  # what is in a dict can be anything
        raise FORMAT.unsound(path, error) from error
    return checkpoint


def unpack_state(state: MutableMapping[str, Tensor | None], packed: Mapping[str, dict]) -> None:
    """Put the weights back that :func:`pack_state` took out of ``state``, bit for bit.

    Raises:
        InputError: they are damaged, or not those that ``state`` lacks.
    """
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


def part_of(parts: dict, name: str) -> dict:
    """A dict in the dict that a file holds; InputError if there is none."""
    part = parts.get(name) if isinstance(parts, dict) else None
    if not isinstance(part, dict):
        raise InputError(f'it has no {name}')
    return part

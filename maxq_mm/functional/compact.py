"""N:M weights without their zeros: values, and where in its block each of them stands.

Shapes: weight ``(O, I, *K)``; B blocks of M in the order of :mod:`.pattern`, N slots in each. A
compact weight is::

    values   (B, N)   of the weight's dtype, in block order
    indices  (bytes)  uint8: B * N positions in [0, M), increasing in each block, ceil(log2 M) bits
    signs    (bytes)  uint8: one bit for each of the B * (M - N) zeros outside of the slots, set
                      for -0.0; empty where there is none

Numbers follow each other without gaps, the lowest bit first, across bytes; the last byte is filled
up with zeros. Values are moved as bits, never computed with: NaNs and denormals stay as they are.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.errors import InputError
from .pattern import Pattern, check_blocks, from_blocks, to_blocks

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Compact(NamedTuple):
    """What :func:`compact` makes of a weight of ``shape``; the header says what is in it."""

    pattern: Pattern
    shape: tuple[int, ...]
    values: Tensor
    indices: Tensor
    signs: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(part.nbytes for part in (self.values, self.indices, self.signs))


def compact_bytes(shape: tuple[int, ...], pattern: str | Pattern, dtype: torch.dtype,
                  signs: bool = False) -> int:
    """How many bytes a compact weight of ``shape`` ``(O, I, *K)`` takes.

    ``signs``: with the signs of the zeros outside of the slots, which are needed if one is -0.0.

    Raises:
        InputError: bad pattern, or I no multiple of M.
    """
    pattern = Pattern.parse(pattern)
    blocks = _block_count(shape, pattern)
    slots = blocks * pattern.n
    return (slots * dtype.itemsize + _byte_count(slots * _width(pattern))
            + (_byte_count(blocks * (pattern.m - pattern.n)) if signs else 0))


@torch.no_grad()
def compact(weight: Tensor, pattern: str | Pattern) -> Compact:
    """The N:M weight ``(O, I, *K)`` without zeros; :func:`expand` gives the same bits.

    A block with fewer than N non-zeros fills its slots with zeros: -0.0 first, then the first ones.

    Raises:
        InputError: bad pattern, I no multiple of M, a weight that is neither floating-point nor
            int8, or one with more than N non-zeros in a block.
    """
    pattern = Pattern.parse(pattern)
    n, m = pattern
    check_blocks(weight.shape, m)
    _check_dtype(weight.dtype)
    nonzero = to_blocks(weight != 0, m)
    over = int((nonzero.sum(dim=1) > n).sum())
    if over:
        raise InputError(f'the weight does not satisfy {pattern}: {over} of '
                         f'{weight.numel() // m} blocks have more than {n} non-zeros')
    blocks = to_blocks(weight.view(_BITS[weight.dtype.itemsize]), m)
    # The larger, the earlier in the slots: 2 for a non-zero, 1 for -0.0, 0 for 0.0.
    rank = nonzero.to(torch.int8) + (blocks != 0)
    slots = rank.argsort(dim=1, descending=True, stable=True)[:, :n].sort(dim=1).values
    negative = blocks[_outside(slots, m)] != 0
    return Compact(
        pattern, tuple(weight.shape),
        values=blocks.gather(1, slots).view(weight.dtype),
        indices=_join_bits(slots.flatten(), _width(pattern)),
        signs=_join_bits(negative, 1 if negative.any() else 0))


@torch.no_grad()
def expand(packed: Compact) -> Tensor:
    """The weight ``(O, I, *K)`` that :func:`compact` was given, contiguous.

    Raises:
        InputError: bad pattern or shape, parts that are not of the types and sizes that these ask
            for, or positions that are no increasing ones in [0, M).
    """
    pattern = Pattern.parse(packed.pattern)
    n, m = pattern
    shape = packed.shape
    if not isinstance(shape, (tuple, list)) or not all(type(s) is int and s >= 0 for s in shape):
        raise InputError(f'shape must be whole numbers, got {shape!r}')
    count = _block_count(shape, pattern)
    _check_part('values', packed.values, (count, n))
    _check_dtype(packed.values.dtype)
    width, outside = _width(pattern), count * (m - n)
    _check_part('indices', packed.indices, (_byte_count(count * n * width),), torch.uint8)
    signed = isinstance(packed.signs, Tensor) and packed.signs.numel() > 0
    _check_part('signs', packed.signs, (_byte_count(outside) if signed else 0,), torch.uint8)
    slots = _split_bits(packed.indices, width, count * n).view(count, n)
    if (slots >= m).any() or (slots.diff(dim=1) <= 0).any():
        raise InputError(f'indices must increase in each block and be below {m}')
    bits = packed.values.view(_BITS[packed.values.dtype.itemsize])
    blocks = bits.new_zeros(count, m).scatter_(1, slots, bits)
    if signed:
        negative = _split_bits(packed.signs, 1, outside).to(bits.dtype)
        blocks[_outside(slots, m)] = negative * torch.iinfo(bits.dtype).min
    return from_blocks(blocks.view(packed.values.dtype), shape).contiguous()


def _width(pattern: Pattern) -> int:
    """Bits of a position in a block: ceil(log2 M)."""
    return (pattern.m - 1).bit_length()


def _byte_count(bits: int) -> int:
    return (bits + 7) // 8


def _block_count(shape: tuple[int, ...], pattern: Pattern) -> int:
    check_blocks(shape, pattern.m)
    return math.prod(shape) // pattern.m


def _check_dtype(dtype: torch.dtype) -> None:
    if not dtype.is_floating_point and dtype != torch.int8:
        raise InputError(f'the weight must be of a floating-point type or int8, got {dtype}')


def _check_part(name: str, part: Tensor, shape: tuple[int, ...],
                dtype: torch.dtype | None = None) -> None:
    if not isinstance(part, Tensor) or part.layout != torch.strided:
        raise InputError(f'{name} must be a tensor, got a {type(part).__name__}')
    if part.shape != shape or part.dtype != (dtype or part.dtype):
        wanted = shape if dtype is None else f'{shape} and {dtype}'
        raise InputError(f'{name} must be of shape {wanted}, '
                         f'got {tuple(part.shape)} and {part.dtype}')


def _outside(slots: Tensor, m: int) -> Tensor:
    """Bool ``(B, M)``: False at the positions in ``slots`` ``(B, N)``."""
    outside = torch.ones(len(slots), m, dtype=torch.bool, device=slots.device)
    return outside.scatter_(1, slots, False)


def _join_bits(numbers: Tensor, width: int) -> Tensor:
    """The lowest ``width`` bits of each of ``numbers`` ``(C,)``, one after another, as uint8."""
    count = len(numbers) * width
    bits = torch.zeros(_byte_count(count) * 8, dtype=torch.uint8, device=numbers.device)
    fields = bits[:count].view(len(numbers), width)
    for place in range(width):
        fields[:, place] = (numbers.to(torch.int64) >> place) & 1
    octets = bits.view(-1, 8)
    return sum((octets[:, place] << place for place in range(1, 8)), octets[:, 0].clone())


def _split_bits(octets: Tensor, width: int, count: int) -> Tensor:
    """Inverse of :func:`_join_bits`: ``count`` numbers in [0, 2^width), int64."""
    bits = torch.stack([(octets >> place) & 1 for place in range(8)], dim=1).flatten()
    fields = bits[:count * width].view(count, width)
    numbers = torch.zeros(count, dtype=torch.int64, device=octets.device)
    for place in range(width):
        numbers |= fields[:, place].to(torch.int64) << place
    return numbers

"""The order in which kernels read int8 weights; see :mod:`.arrange` for shapes.

- Pixels in lanes: the P * I inputs of an output, positions first, are cut into blocks;
  [block][output][weight], rows uint16: byte offset of the weight's row in its block. An output's
  weights in a block are padded to a multiple of four with zeros, as the kernel takes four at a
  time, two pairs. Sparse ones are in any order: those of the largest magnitude are paired with
  those of the least, so that the sums of pairs are small. Dense ones are in the order of the rows.
- Outputs in lanes: [group][position][64 channels][step][G][4], rows uint8: the channel among those;
  dense: [group][position][4 channels][G][4], channels padded to 64. Those of at most 4 channels are
  dense; a position is a row of the kernel there, its channels are 4 of each column. A group is 64
  outputs, in the order of csrc/bytes.h.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional.pattern import Pattern
from .arrange import Arranged, kept
from .library import Library

# Inputs that are worked on at a time: three quarters of a first-level cache of 32 KiB. Quantized
# weights hang on it, so it is the same everywhere.
_BLOCK = 768
_TOGETHER = 4
_ROW = 32  # bytes
NARROW = 4  # values of so few channels have no vectors of their own where outputs are in lanes


class Part(NamedTuple):
    """What outputs have in one block: ``(O, K)``, K a multiple of four."""

    values: Tensor
    rows: Tensor  # places in the block


class Blocks(NamedTuple):
    """Weights in the order in which they are paired."""

    rows: int  # inputs of a block but the last
    steps: int  # weights of an output among them
    parts: list[Part]


def by_position(weight: Tensor) -> Tensor:
    """``(O, I, Kh, Kw)`` or ``(O, I)`` as ``(O, P, I)``."""
    weight = weight.unsqueeze(2) if weight.ndim == 2 else weight.flatten(2)
    return weight.transpose(1, 2)


def blocks_of(weight: Tensor, pattern: Pattern | None) -> Blocks:
    """Of ``(O, P, I)``, any type."""
    n, m = pattern or (_TOGETHER, _TOGETHER)
    weight = weight.flatten(1)
    inputs = weight.shape[1]
    groups = F.pad(weight, (0, -inputs % m)).unflatten(1, (-1, m))
    count = -(-groups.shape[1] // -(-inputs // max(m, _BLOCK)))  # groups of a block
    parts = []
    for part in groups.split(count, 1):
        columns = kept(part, n) if pattern else torch.arange(m).expand(part.shape)
        rows = (columns + torch.arange(part.shape[1])[:, None] * m).flatten(1)
        values = part.gather(2, columns).flatten(1)
        padding = (0, -rows.shape[1] % _TOGETHER)
        parts.append(Part(F.pad(values, padding), F.pad(rows, padding)))
    if pattern:
        parts = [_paired(part) for part in parts]
    return Blocks(count * m, count * n, parts)


def _paired(part: Part) -> Part:
    order = part.values.abs().argsort(dim=1, stable=True)
    half = order.shape[1] // 2
    order = torch.stack([order[:, half:].flip(1), order[:, :half]], 2).flatten(1)
    return Part(part.values.gather(1, order), part.rows.gather(1, order))


def arranged_int8(weight: Tensor, pattern: Pattern | None, dilation: tuple[int, int],
                  library: Library) -> Arranged:
    """int8 weights in the order of the library's kernels; ``pattern`` None: dense."""
    positions = by_position(weight)
    if library.kernels.lanes_are == 'pixels':
        return _for_pixels(positions, pattern)
    kernel = (1, 1) if weight.ndim == 2 else tuple(weight.shape[2:])
    return _for_outputs(positions, pattern, kernel, dilation[1], library)


def _for_pixels(weight: Tensor, pattern: Pattern | None) -> Arranged:
    blocks = blocks_of(weight, pattern)
    values = torch.cat([part.values.flatten() for part in blocks.parts])
    rows = torch.cat([part.rows.flatten() for part in blocks.parts]) * _ROW
    return Arranged(blocks.rows, blocks.steps, values,
                    rows.to(torch.uint16) if pattern else torch.empty(0))


def _for_outputs(weight: Tensor, pattern: Pattern | None, kernel: tuple[int, int], dilation: int,
                 library: Library) -> Arranged:
    weight = in_lanes(weight, library)
    if pattern is None or weight.shape[2] <= NARROW:
        return _dense_for_outputs(weight, kernel, dilation, library)
    size = _TOGETHER * library.lanes
    together = F.pad(weight, (0, -weight.shape[2] % size)).unflatten(2, (-1, size))
    # N / M of them where M divides them, else what the fullest needs.
    steps = max(1, -(-int((together != 0).sum(-1).max()) // _TOGETHER))
    columns = kept(together, steps * _TOGETHER)

    def ordered(weights: Tensor) -> Tensor:
        groups = weights.unflatten(0, (-1, library.int8_outputs)).unflatten(4, (-1, _TOGETHER))
        return groups.permute(0, 2, 3, 4, 1, 5).flatten()

    return Arranged(size, steps, ordered(together.gather(3, columns)), ordered(columns.byte()))


def _dense_for_outputs(weight: Tensor, kernel: tuple[int, int], dilation: int, library: Library
                       ) -> Arranged:
    if weight.shape[2] <= NARROW:  # a row of the kernel as channels
        weight = F.pad(weight, (0, _TOGETHER - weight.shape[2])).unflatten(1, kernel)
        row = weight.new_zeros(len(weight), kernel[0], (kernel[1] - 1) * dilation + 1, _TOGETHER)
        row[:, :, ::dilation] = weight
        weight = row.flatten(2)
    quads = -(-weight.shape[2] // _TOGETHER)
    weight = F.pad(weight, (0, -weight.shape[2] % (_TOGETHER * library.lanes)))
    groups = weight.unflatten(0, (-1, library.int8_outputs)).unflatten(3, (-1, _TOGETHER))
    values = groups.permute(0, 2, 3, 1, 4).flatten()
    return Arranged(quads, values.numel() // (weight.shape[1] * len(weight) * _TOGETHER), values,
                    torch.empty(0))


def in_lanes(values: Tensor, library: Library) -> Tensor:
    """``(O, ...)`` with zeros up to whole groups, in the order in which a kernel has outputs."""
    values = F.pad(values, (*(0, 0) * (values.ndim - 1), 0, -len(values) % library.int8_outputs))
    if library.kernels.lanes_are == 'pixels':
        return values
    lanes = library.lanes // _TOGETHER
    return values.unflatten(0, (-1, lanes, _TOGETHER, _TOGETHER)).transpose(1, 2).flatten(0, 3)

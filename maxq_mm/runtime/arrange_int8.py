"""The order in which kernels read int8 weights; see :mod:`.arrange` for shapes.

- Pixels in lanes: the P * I inputs of an output, positions first, are cut into blocks;
  [block][output][weight], rows uint16: byte offset of the weight's row in its block. An output's
  weights in a block are padded to a multiple of four with zeros, as the kernel takes four at a
  time, two pairs. Sparse ones are in any order: those of the largest magnitude are paired with
  those of the least, so that the sums of pairs are small. Dense ones are in the order of the rows.
- Outputs in lanes: [group][position][64 channels][step][G][4], rows uint8: the channel among those;
  dense: [group][position][4 channels][G][4].
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


def arranged_int8(weight: Tensor, pattern: Pattern | None, library: Library) -> Arranged:
    """int8 weights in the order of the library's kernels; ``pattern`` None: dense."""
    arrange = _for_pixels if library.kernels.lanes_are == 'pixels' else _for_outputs
    return arrange(by_position(weight), pattern, library)


def _for_pixels(weight: Tensor, pattern: Pattern | None, library: Library) -> Arranged:
    blocks = blocks_of(weight, pattern)
    values = torch.cat([part.values.flatten() for part in blocks.parts])
    rows = torch.cat([part.rows.flatten() for part in blocks.parts]) * _ROW
    return Arranged(blocks.rows, blocks.steps, values,
                    rows.to(torch.uint16) if pattern else torch.empty(0))


def _for_outputs(weight: Tensor, pattern: Pattern | None, library: Library) -> Arranged:
    size = _TOGETHER * (library.lanes if pattern else 1)
    padding = (0, -weight.shape[2] % size, 0, 0, 0, -len(weight) % library.int8_outputs)
    together = F.pad(weight, padding).unflatten(2, (-1, size))
    # N / M of them where M divides them, else what the fullest needs.
    steps = max(1, -(-int((together != 0).sum(-1).max()) // _TOGETHER)) if pattern else 1
    columns = kept(together, steps * _TOGETHER)

    def ordered(weights: Tensor) -> Tensor:
        groups = weights.unflatten(0, (-1, library.int8_outputs)).unflatten(4, (-1, _TOGETHER))
        return groups.permute(0, 2, 3, 4, 1, 5).flatten()

    return Arranged(size, steps, ordered(together.gather(3, columns)),
                    ordered(columns.byte()) if pattern else torch.empty(0))

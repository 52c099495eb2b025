"""The order in which kernels read weights.

Shapes: a weight is ``(O, I, Kh, Kw)`` or ``(O, I)``; P = Kh * Kw kernel positions. Outputs are
padded with zeros to whole groups of G, those that a kernel computes side by side.

- Pixels in lanes: the P * I inputs of an output, positions first, are cut into blocks of whole
  M's; [block][group][weight][G], rows int16: the weight's place in its block.
- Outputs in lanes: [group][position][channels that are permuted as one][step][G], rows uint8: the
  channel among those.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional.pattern import Pattern
from .library import Library

# Inputs of a tile that are worked on at a time, by lanes: three quarters of the first-level cache.
_BLOCK = {8: 192, 16: 144}


class Arranged(NamedTuple):
    """Weights as kernels read them."""

    block_rows: int  # inputs of a block, or channels that are permuted as one
    steps: int  # weights of an output among them
    values: Tensor
    rows: Tensor


def arranged(weight: Tensor, pattern: Pattern | None, library: Library) -> Arranged:
    """Weights in the order of the library's kernels; ``pattern`` None: dense."""
    weight = weight.unsqueeze(2) if weight.ndim == 2 else weight.flatten(2)
    weight = F.pad(weight.transpose(1, 2), (0, 0, 0, 0, 0, -len(weight) % library.outputs))
    arrange = _for_pixels if library.kernels.lanes_are == 'pixels' else _for_outputs
    return arrange(weight, pattern, library)


def _for_pixels(weight: Tensor, pattern: Pattern | None, library: Library) -> Arranged:
    """Of ``(O, P, I)``."""
    n, m = pattern or (1, 1)
    blocks = weight.reshape(len(weight), -1, m)
    inputs = blocks.shape[1] * m
    parts = -(-inputs // max(m, _BLOCK[library.lanes]))
    step = -(-inputs // (parts * m))  # blocks of m
    columns = kept(blocks, n)
    starts = torch.arange(blocks.shape[1]) % step * m

    def ordered(weights: Tensor) -> Tensor:
        groups = weights.unflatten(0, (-1, library.outputs))
        return torch.cat([part.flatten(2).transpose(1, 2).flatten()
                          for part in groups.split(step, 2)])

    rows = ordered((columns + starts[:, None]).short()) if pattern else torch.empty(0).short()
    return Arranged(step * m, step * n, ordered(blocks.gather(2, columns)), rows)


def _for_outputs(weight: Tensor, pattern: Pattern | None, library: Library) -> Arranged:
    """Of ``(O, P, I)``."""
    if pattern is None:
        values = weight.unflatten(0, (-1, library.outputs)).permute(0, 2, 3, 1)
        return Arranged(1, 1, values.contiguous().flatten(), torch.empty(0).byte())
    size = library.lanes * (2 if pattern.m % (2 * library.lanes) == 0 else 1)
    together = F.pad(weight, (0, -weight.shape[2] % size)).unflatten(2, (-1, size))
    # N / M of them where M divides them, else what the fullest needs.
    steps = max(1, int((together != 0).sum(-1).max()))
    columns = kept(together, steps)

    def ordered(weights: Tensor) -> Tensor:
        return weights.unflatten(0, (-1, library.outputs)).permute(0, 2, 3, 4, 1).flatten()

    return Arranged(size, steps, ordered(together.gather(3, columns)), ordered(columns.byte()))


def kept(blocks: Tensor, n: int) -> Tensor:
    """Columns of n weights of each block (the last axis), with all that are not 0; ascending."""
    return (blocks == 0).byte().argsort(dim=-1, stable=True)[..., :n].sort(-1).values

"""Which N:M pattern a folded layer has, by its zeros.

Shapes: weight ``(O, I, *K)``; a block is M consecutive input channels at one output channel and
one kernel position.
"""

import torch
from torch import Tensor

from ..functional.pattern import Pattern, to_blocks

# What the CPU kernels take; other patterns satisfy one of these, too, if I is a multiple of its M:
# 1:3 is 6:16 at worst, 1:64 is 1:32.
BLOCKS = (2, 4, 8, 16, 32)


def sparsest(weight: Tensor, blocks: tuple[int, ...] = BLOCKS) -> Pattern | None:
    """The pattern of the least N/M that ``weight`` ``(O, I, *K)`` satisfies; None if it is dense.

    M is one of ``blocks``; of patterns of one share, that of the smallest M, which says most.
    """
    found = []
    for m in sorted(blocks):
        if weight.ndim > 1 and weight.shape[1] and weight.shape[1] % m == 0 and len(weight):
            n = int(torch.count_nonzero(to_blocks(weight, m), dim=1).max())
            if n < m:
                found.append(Pattern(max(n, 1), m))
    return min(found, key=lambda pattern: pattern.n / pattern.m, default=None)


def any_pattern(weight: Tensor) -> Pattern | None:
    """The same over every M that divides I, kernels or not."""
    channels = weight.shape[1] if weight.ndim > 1 else 0
    return sparsest(weight, tuple(m for m in range(2, channels + 1) if channels % m == 0))

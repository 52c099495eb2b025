"""The raw weight that a given N:M weight is the effective one of.

A network that is N:M already has its kept weights as they count; as raw ones they would be
multiplied by 1 + their queries, up to 3 at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .masks import soft_mask
from .pattern import Pattern

# Each step leaves at most about a third of the error: so many are never needed.
_MAX_STEPS = 100
_PRECISION = 1e-6


@torch.no_grad()
def unscaled(effective: Tensor, pattern: Pattern, axes: Sequence[str],
             temperature: float) -> Tensor | None:
    """Raw weight like ``effective`` ``(O, I, *K)`` whose product with its soft mask is that.

    ``effective`` satisfies ``pattern``; so does the raw weight, and it is as long at most. Found by
    dividing by the soft mask until that changes no more, which it soon does: of an N:M weight,
    thresholds lie at half the smallest kept magnitude, and a soft mask grows with its weight, but
    less than in proportion. None if it does not come to rest (numbers that are not finite).
    """
    raw = effective
    for _ in range(_MAX_STEPS):
        mask = soft_mask(raw, pattern, 0., axes, temperature)
        before, raw = raw, effective / mask.masked_fill_(mask == 0, 1.)
        if bool(((raw - before).abs() <= _PRECISION * raw.abs()).all()):
            return raw
    return None

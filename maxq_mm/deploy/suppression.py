"""Whether what non-maximum suppression has kept is what it must keep.

Two correct suppressions of the same boxes may differ where an overlap or two scores are equal but
for rounding, and one such box decides about others. So they are not compared: what is kept is held
to the definition, in which each box stands for itself. A box is kept if and only if its score is
above the threshold and no better kept box overlaps it by more than the other threshold.

Shapes: n boxes ``(x1, y1, x2, y2)`` of one class or pyramid level; k are kept.
"""

from collections import Counter

import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from ..utils.errors import InputError

# Rounding of an overlap in float32: a dozen operations on coordinates.
_OVERLAP = 64 * torch.finfo(torch.float32).eps


def check_kept(boxes: Tensor, scores: Tensor, kept: Tensor, most: int, iou: float,
               score: float) -> None:
    """Hold ``kept`` ``(k, )``, indices of ``boxes`` ``(n, 4)`` with ``scores`` ``(n, )``, to what
    suppression means: at most ``most`` with a score above ``score``, none of which overlaps a
    better one by more than ``iou``, and none of the others could be added.

    Raises:
        InputError: it breaks one of these rules, by more than rounding.
    """
    if len(kept.unique()) != len(kept) or len(kept) > most:
        raise InputError(f'keeps {len(kept)} boxes, {len(kept.unique())} of them different ones, '
                         f'where it may keep {most}')
    if (scores[kept] <= score).any():
        raise InputError(f'keeps a box with score {scores[kept].min():.3g}, where more than '
                         f'{score:.3g} is asked for')
    own = boxes[kept].double()
    overlaps = bbox_overlaps(own, own).triu(diagonal=1)
    if (overlaps > iou + _OVERLAP).any():
        raise InputError(f'keeps two boxes that overlap by {overlaps.max():.3f}, more than {iou}')
    left = torch.ones(len(boxes), dtype=torch.bool)
    left[kept] = False
    left &= scores > score
    if len(kept) == most:  # there was no room for worse ones
        left &= scores > scores[kept].min()
    rivals = bbox_overlaps(boxes[left].double(), own)
    rivals[scores[left][:, None] > scores[kept]] = 0.
    alone = (rivals <= iou - _OVERLAP).all(dim=1)
    if alone.any():
        raise InputError(f'leaves out {int(alone.sum())} boxes with scores up to '
                         f'{scores[left][alone].max():.3g} which no better box overlaps by more '
                         f'than {iou}')


def check_best(rows: Tensor, candidates: Tensor, scores: Tensor, most: int) -> None:
    """Hold ``rows`` ``(k, *)`` to be the best ``most`` of ``candidates`` ``(n, *)`` by their
    ``scores`` ``(n, )``, in any order; of equal scores, any.

    Raises:
        InputError: they are not.
    """
    wanted = min(most, len(candidates))
    if len(rows) != wanted:
        raise InputError(f'gives {len(rows)} boxes of {len(candidates)}, not {wanted}')
    best = candidates[scores >= scores.sort(descending=True)[0][wanted - 1]] if wanted else rows
    strangers = Counter(map(tuple, rows.tolist())) - Counter(map(tuple, best.tolist()))
    if strangers:
        raise InputError(f'gives {strangers.total()} boxes that are not the best {wanted} of '
                         f'{len(candidates)}')

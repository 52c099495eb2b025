"""Suppression of many boxes where few are wanted: only as many as that takes are looked at.

Which boxes of a class are kept is decided from the highest score down, so that the first ones of
all are the first ones of the boxes with the highest scores. Shapes: boxes ``(R, C * 4)`` or
``(R, 4)`` for all classes, scores ``(R, C + 1)``, the last being the background's.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

# With fewer boxes above the threshold than this there is nothing to gain.
MANY = 2000
_FIRST = 4  # so many times what is wanted is tried first


def can_select(settings: Mapping) -> bool:
    """Whether a detector's test settings ask for plain suppression and a number of boxes."""
    nms = settings.get('nms') or {}
    return (settings.get('max_per_img', -1) > 0 and {*nms} <= {'type', 'iou_threshold'}
            and nms.get('type') == 'nms' and 'iou_threshold' in nms)


def suppress(boxes: Tensor, scores: Tensor, settings: Mapping) -> tuple[Tensor, Tensor]:
    """What mmdet's ``multiclass_nms`` gives: boxes with scores ``(K, 5)``, and labels ``(K,)``.

    Of equal scores the order, which mmdet leaves to chance, is that of the boxes.
    """
    from mmcv.ops import nms
    from mmdet.models.layers import multiclass_nms

    classes = scores.shape[1] - 1
    each = scores[:, :-1].reshape(-1)
    above = each > settings['score_thr']
    count, wanted = int(above.sum()), settings['max_per_img']
    if count < max(MANY, 2 * _FIRST * wanted):
        return multiclass_nms(boxes, scores, settings['score_thr'], settings['nms'], wanted)
    places = torch.arange(len(each)) if boxes.shape[1] > 4 else (
        torch.arange(len(boxes)).repeat_interleave(classes))
    boxes = boxes.reshape(-1, 4)
    # Classes are shifted away from each other, by what mmdet shifts them: sums round.
    reach = torch.where(above, boxes.amax(1)[places], -torch.inf).max() + 1
    tried = _FIRST * wanted
    while True:
        least = each.topk(min(tried, count)).values[-1]
        found = (above & (each >= least)).nonzero().flatten()
        labels = found % classes
        chosen = boxes[places[found]]
        _, kept = nms(chosen + (labels.to(boxes) * reach)[:, None], each[found],
                      settings['nms']['iou_threshold'])
        if len(kept) >= wanted or len(found) == count:
            kept = kept[:wanted]
            return torch.cat([chosen, each[found, None]], 1)[kept], labels[kept]
        tried *= _FIRST

"""Suppression of boxes, on all threads; where few of many are wanted, of as many as that takes.

How boxes are compared stands in csrc/suppress.cpp.
Which boxes of a class are kept is decided from the highest score down, so that the first ones of
all are the first ones of the boxes with the highest scores. Shapes: boxes ``(R, C * 4)`` or
``(R, 4)`` for all classes, scores ``(R, C + 1)``, the last being the background's.
"""

import ctypes
import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from .library import library

# With fewer boxes above the threshold than this there is nothing to gain.
MANY = 2000
_FIRST = 4  # so many times what is wanted is tried first


def is_plain(settings: Mapping) -> bool:
    """Whether a detector's test settings ask for plain suppression."""
    nms = settings.get('nms') or {}
    return ({*nms} <= {'type', 'iou_threshold'} and nms.get('type') == 'nms'
            and 'iou_threshold' in nms)


def can_select(settings: Mapping) -> bool:
    """Whether a detector's test settings ask for plain suppression and a number of boxes."""
    return settings.get('max_per_img', -1) > 0 and is_plain(settings)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """What ``mmcv.ops.nms`` gives, to the bit: kept boxes and scores ``(K, 5)``, and their places.

    It is asked where there is no kernel: for other types than float32 on the CPU, numbers that are
    not finite, a threshold below 0.
    """
    from mmcv import ops

    plain = (library() is not None and boxes.dtype == scores.dtype == torch.float32
             and boxes.device.type == scores.device.type == 'cpu' and iou_threshold >= 0
             and bool(boxes.isfinite().all()))
    if not plain:
        return ops.nms(boxes, scores, iou_threshold)
    order = scores.detach().sort(0, descending=True).indices  # as mmcv does
    ordered = boxes.detach()[order].contiguous()
    keep = torch.empty(len(order), dtype=torch.bool)
    _function()(ordered.data_ptr(), len(ordered), iou_threshold, keep.data_ptr(),
                torch.get_num_threads())
    kept = order[keep]
    return torch.cat([boxes[kept], scores[kept, None]], 1), kept


@functools.cache
def _function() -> ctypes._CFuncPtr:
    function = library().functions.maxq_suppress
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p,
                         ctypes.c_int64]
    return function


def suppress(boxes: Tensor, scores: Tensor, settings: Mapping) -> tuple[Tensor, Tensor]:
    """What mmdet's ``multiclass_nms`` gives: boxes with scores ``(K, 5)``, and labels ``(K,)``.

    Of equal scores the order, which mmdet leaves to chance, is that of the boxes.
    """
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

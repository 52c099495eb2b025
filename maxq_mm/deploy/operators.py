"""mmcv's operators that ONNX has under another signature: traced as the standard ones.

Shapes: B batches of n boxes ``(x1, y1, x2, y2)``; k is how many come out; R regions.
"""

import torch
from mmcv.ops import nms, roi_align
from mmcv.ops.roi_align import RoIAlign
from torch import Tensor
from torch.autograd import Function


class _NonMaxSuppression(Function):

    @staticmethod
    def forward(ctx, boxes: Tensor, scores: Tensor, most: int, iou: float, score: float) -> Tensor:
        found = [torch.zeros(0, 3, dtype=torch.long)]
        for batch, (candidates, row) in enumerate(zip(boxes, scores[:, 0], strict=True)):
            above = (row > score).nonzero()[:, 0]
            _, kept = nms(candidates[above], row[above], iou, max_num=most)
            index = above[kept]
            found.append(torch.stack(
                [torch.full_like(index, batch), torch.zeros_like(index), index], dim=1))
        return torch.cat(found)

    @staticmethod
    def symbolic(g, boxes, scores, most: int, iou: float, score: float):
        most, iou, score = (
            g.op('Constant', value_t=torch.tensor([value], dtype=dtype))
            for value, dtype in ((most, torch.long), (iou, torch.float), (score, torch.float)))
        return g.op('NonMaxSuppression', boxes, scores, most, iou, score)


def non_max_suppression(boxes: Tensor, scores: Tensor, most: int, iou: float,
                        score: float) -> tuple[Tensor, Tensor]:
    """Batch and box, ``(k, )`` each, of what is kept of ``boxes`` ``(B, n, 4)``, ``scores``
    ``(B, n)``.

    In each batch for itself: at most ``most`` boxes with a score above ``score``, none of which
    overlaps a better one by more than ``iou``.
    """
    kept = _NonMaxSuppression.apply(boxes, scores[:, None], most, float(iou), float(score))
    return kept[:, 0], kept[:, 2]


class _RoIAlign(Function):

    @staticmethod
    def forward(ctx, features: Tensor, boxes: Tensor, batch: Tensor, size: tuple[int, int],
                scale: float, ratio: int, aligned: bool) -> Tensor:
        rois = torch.cat([batch[:, None].to(boxes), boxes], dim=1)
        return roi_align(features, rois, size, scale, ratio, 'avg', aligned)

    @staticmethod
    def symbolic(g, features, boxes, batch, size: tuple[int, int], scale: float, ratio: int,
                 aligned: bool):
        return g.op(
            'RoiAlign', features, boxes, batch, mode_s='avg', output_height_i=size[0],
            output_width_i=size[1], spatial_scale_f=scale, sampling_ratio_i=ratio,
            coordinate_transformation_mode_s='half_pixel' if aligned else 'output_half_pixel')


def align_regions(layer: RoIAlign, features: Tensor, boxes: Tensor) -> Tensor:
    """What ``layer`` pools from ``features`` ``(1, C, H, W)`` in ``boxes`` ``(R, 4)``:
    ``(R, C, *layer.output_size)``."""
    batch = torch.zeros_like(boxes[:, 0], dtype=torch.long)
    return _RoIAlign.apply(features, boxes, batch, layer.output_size, layer.spatial_scale,
                           max(layer.sampling_ratio, 0), layer.aligned)

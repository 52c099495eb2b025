"""Two-stage detectors of mmdet as one traceable function of an image.

Source: the ``predict`` paths of mmdet's TwoStageDetector, RPNHead, StandardRoIHead, CascadeRoIHead
and their heads, for one image, without branches that depend on its content. Deviations: non-maximum
suppression runs for each class (and pyramid level) by itself instead of on boxes shifted apart;
masks stay as the head predicts them instead of being pasted into the image.

Shapes: image ``(1, 3, H, W)``; C classes; L pyramid levels; A anchors of a level; R regions; k
detections; boxes ``(x1, y1, x2, y2)`` in pixels of the image.
"""

import torch
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import delta2bbox
from torch import Tensor, nn

from .operators import align_regions, non_max_suppression


def prepare(preprocessor: nn.Module, image: Tensor, size: Tensor) -> Tensor:
    """What mmdet's DetDataPreprocessor makes of ``image``, float with values 0 to 255.

    ``size`` ``(2, )``, int64, is height and width of the image's part that is no padding; the rest
    gets the preprocessor's padding, whatever it holds.
    """
    height, width = image.shape[-2:]
    if preprocessor._channel_conversion:
        image = image[:, [2, 1, 0]]
    if preprocessor._enable_normalize:
        image = (image - preprocessor.mean) / preprocessor.std
    inside = ((torch.arange(height) < size[0])[:, None] & (torch.arange(width) < size[1])[None])
    return torch.where(inside, image, torch.tensor(float(preprocessor.pad_value)))


def features(model: nn.Module, image: Tensor, size: Tensor) -> tuple[Tensor, ...]:
    """Feature maps that backbone and neck of any detector make of ``image``."""
    inputs = prepare(model.data_preprocessor, image, size)
    found = model.extract_feat(inputs.to(_precision(model.backbone)))
    return tuple(map_.float() for map_ in (
        found if isinstance(found, (tuple, list)) else (found, )))


def detect(model: nn.Module, image: Tensor, size: Tensor,
           dynamic: bool = False) -> tuple[Tensor, ...]:
    """Labels ``(k, )``, boxes ``(k, 4)``, scores ``(k, )`` and, of a model with a mask head,
    masks ``(k, h, w)`` of the boxes' classes in [0, 1], best scores first.

    ``dynamic``: what is traced serves images of other sizes, too.
    """
    maps = features(model, image, size)
    limit = size.flip(0).repeat(2).to(image)
    boxes = _proposals(model.rpn_head, maps, limit, dynamic)
    labels, boxes, scores = _boxes(model.roi_head, maps, boxes, limit)
    if not model.roi_head.with_mask:
        return labels, boxes, scores
    return labels, boxes, scores, _masks(model.roi_head, maps, boxes, labels)


def _precision(module: nn.Module) -> torch.dtype:
    """What ``module`` computes in; all between the modules is float32."""
    return next(module.parameters()).dtype


def as_list(module: nn.Module) -> list[nn.Module]:
    """A cascade's stages, or the one of any other RoI head."""
    return list(module) if isinstance(module, nn.ModuleList) else [module]


def _decode(coder: DeltaXYWHBBoxCoder, boxes: Tensor, deltas: Tensor, limit: Tensor) -> Tensor:
    """Boxes like ``deltas`` ``(R, *)``, which move ``boxes`` ``(R, 4)``, within the image."""
    decoded = delta2bbox(boxes, deltas, coder.means, coder.stds, add_ctr_clamp=coder.add_ctr_clamp,
                         ctr_clamp=coder.ctr_clamp)
    if not coder.clip_border:
        return decoded
    return torch.minimum(decoded.clamp(min=0).reshape(-1, 4), limit).reshape(decoded.shape)


def _proposals(head: nn.Module, maps: tuple[Tensor, ...], limit: Tensor,
               dynamic: bool) -> Tensor:
    """The RPN's boxes ``(R, 4)``, best first."""
    cfg = head.test_cfg
    precision = _precision(head)
    logits, deltas = head(tuple(map_.to(precision) for map_ in maps))
    anchors = head.prior_generator.grid_priors([level.shape[-2:] for level in logits],
                                               dtype=maps[0].dtype, device=maps[0].device)
    found = []
    for level in zip(logits, deltas, anchors, strict=True):
        boxes, scores = _candidates(head, *level, limit, dynamic)
        _, kept = non_max_suppression(boxes[None], scores[None], cfg.max_per_img,
                                      cfg.nms.iou_threshold, 0.)
        found.append((boxes[kept], scores[kept]))
    boxes, scores = (torch.cat(part) for part in zip(*found, strict=True))
    return boxes[_best(scores, cfg.max_per_img)]


def _candidates(head: nn.Module, logits: Tensor, deltas: Tensor, anchors: Tensor,
                limit: Tensor, dynamic: bool) -> tuple[Tensor, Tensor]:
    """Boxes ``(n, 4)`` and scores ``(n, )`` of the best anchors ``(A, 4)`` of a level; boxes that
    are too small have score -1."""
    logits = logits[0].float().permute(1, 2, 0).reshape(-1, head.cls_out_channels)
    scores = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]
    scores = scores.reshape(-1)
    deltas = deltas[0].float().permute(1, 2, 0).reshape(-1, 4)
    most = head.test_cfg.get('nms_pre', -1)
    if 0 < most < len(scores) or dynamic:
        if dynamic:
            number = torch._shape_as_tensor(scores)[0]
            most = number.clamp(max=most) if most > 0 else number
        scores, best = scores.topk(most)
        deltas, anchors = deltas[best], anchors[best]
    boxes = _decode(head.bbox_coder, anchors, deltas, limit)
    smallest = head.test_cfg.get('min_bbox_size', -1)
    if smallest >= 0:
        large = (boxes[:, 2:] - boxes[:, :2] > smallest).all(dim=1)
        scores = torch.where(large, scores, torch.tensor(-1.))
    return boxes, scores


def _boxes(head: nn.Module, maps: tuple[Tensor, ...], boxes: Tensor,
           limit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, boxes and scores of the detections that the box heads make of ``boxes``
    ``(R, 4)``."""
    cfg = head.test_cfg
    logits = []
    stages = list(zip(as_list(head.bbox_roi_extractor), as_list(head.bbox_head), strict=True))
    for extractor, stage in stages:
        found, deltas = stage(_pool(head, extractor, maps, boxes))
        logits.append(found.float())
        deltas = deltas.float()
        if len(logits) < len(stages):
            if not stage.reg_class_agnostic:
                label = logits[-1][:, :-1].argmax(dim=1)
                deltas = deltas.reshape(-1, stage.num_classes, 4)[_rows(label), label]
            boxes = _decode(stage.bbox_coder, boxes, deltas, limit)
    # (C, R) and (C, R, 4)
    scores = (sum(logits) / len(logits)).softmax(-1)[:, :-1].t()
    decoded = _decode(stage.bbox_coder, boxes, deltas, limit)
    classes = 1 if stage.reg_class_agnostic else stage.num_classes
    decoded = decoded.reshape(-1, classes, 4).transpose(0, 1)
    if stage.reg_class_agnostic:
        decoded = decoded.expand(stage.num_classes, -1, -1)
    most = cfg.max_per_img if cfg.max_per_img > 0 else torch.iinfo(torch.int32).max
    label, region = non_max_suppression(decoded, scores, most, cfg.nms.iou_threshold,
                                        cfg.score_thr)
    scores = scores[label, region]
    best = _best(scores, most)
    label, region = label[best], region[best]
    return label, decoded[label, region], scores[best]


def _masks(head: nn.Module, maps: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
    """Masks ``(k, h, w)`` in [0, 1] of ``boxes`` ``(k, 4)``: the mean of the stages'."""
    stages = list(zip(as_list(head.mask_roi_extractor), as_list(head.mask_head), strict=True))
    masks = []
    for extractor, stage in stages:
        found = stage(_pool(head, extractor, maps, boxes)).float().sigmoid()
        masks.append(found[:, 0] if stage.class_agnostic else found[_rows(labels), labels])
    return sum(masks) / len(masks)


def _pool(head: nn.Module, extractor: nn.Module, maps: tuple[Tensor, ...],
          boxes: Tensor) -> Tensor:
    """Features ``(R, C, h, w)`` of ``boxes`` ``(R, 4)``, each from the level that fits its size,
    in the precision of ``head``."""
    layers = extractor.roi_layers
    if len(layers) == 1:
        pooled = align_regions(layers[0], maps[0], boxes)
    else:
        rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
        level = extractor.map_roi_levels(rois, len(layers))
        chosen = [(level == i).nonzero()[:, 0] for i in range(len(layers))]
        pooled = torch.cat([align_regions(layer, map_, boxes[rows]) for layer, map_, rows
                            in zip(layers, maps, chosen, strict=False)])
        pooled = pooled[torch.cat(chosen).argsort()]
    pooled = pooled.to(_precision(head))
    return head.shared_head(pooled) if head.with_shared_head else pooled


def _rows(values: Tensor) -> Tensor:
    """0, 1, ... for each of ``values``, of however many an image has."""
    return torch.arange(values.shape[0])


def _best(scores: Tensor, most: int) -> Tensor:
    """Indices of the highest ``most`` of ``scores``, or of all where there are fewer."""
    return scores.sort(descending=True)[1][:most]

"""Two-stage detectors of mmdet as one traceable function of an image.

Source: the ``predict`` paths of mmdet's TwoStageDetector, RPNHead, StandardRoIHead, CascadeRoIHead
and their heads, for one image, without branches that depend on its content. Deviations: non-maximum
suppression runs for each class (and pyramid level) by itself instead of on boxes shifted apart;
masks stay as the head predicts them instead of being pasted into the image.

Shapes: image ``(1, 3, H, W)``; C classes; L pyramid levels; A anchors of a level; R regions; k
detections; boxes ``(x1, y1, x2, y2)`` in pixels of the image.
"""

from collections.abc import Iterable

import torch
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import delta2bbox
from torch import Tensor, nn

from .operators import align_regions, non_max_suppression

OUTPUTS = ('labels', 'boxes', 'scores', 'masks')


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


def features(model: nn.Module, image: Tensor, size: Tensor) -> dict[str, Tensor]:
    """Feature maps that backbone and neck of any detector make of ``image``, by name:
    ``features_0``, ``features_1``, ..."""
    inputs = prepare(model.data_preprocessor, image, size)
    found = model.extract_feat(inputs.to(_precision(model.backbone)))
    maps = found if isinstance(found, (tuple, list)) else (found, )
    return numbered('features', [map_.float() for map_ in maps])


def detect(model: nn.Module, image: Tensor, size: Tensor,
           dynamic: bool = False) -> tuple[Tensor, ...]:
    """Labels ``(k, )``, boxes ``(k, 4)``, scores ``(k, )`` and, of a model with a mask head,
    masks ``(k, h, w)`` of the boxes' classes in [0, 1], best scores first.

    ``dynamic``: what is traced serves images of other sizes, too.
    """
    found = stages(model, image, size, dynamic)
    return tuple(found[name] for name in OUTPUTS if name in found)


def stages(model: nn.Module, image: Tensor, size: Tensor,
           dynamic: bool = False) -> dict[str, Tensor]:
    """What :func:`detect` gives and all that stands between its stages, by name.

    For a level l: ``features_l``; ``rpn_logits_l`` ``(1, A, h, w)`` and ``rpn_deltas_l``; of the
    best n anchors ``rpn_index_l``, ``rpn_scores_l`` ``(n, )``, ``rpn_boxes_l`` ``(n, 4)``, and
    ``rpn_kept_l``, which of the n suppression leaves. For a stage s of a cascade, 0 of others:
    ``regions_s`` ``(R, 4)`` (0: the RPN's proposals), ``class_logits_s`` ``(R, C + 1)``,
    ``box_deltas_s`` ``(R, 4 C)`` or ``(R, 4)``. Of the last stage ``class_scores`` ``(C, R)``,
    ``class_boxes`` ``(C, R, 4)``, and ``kept_labels``, ``kept_regions``, what suppression leaves of
    them. ``mask_logits_s`` ``(k, C, h, w)`` or ``(k, 1, h, w)``.
    """
    found = features(model, image, size)
    maps, limit = tuple(found.values()), size.flip(0).repeat(2).to(image)
    found |= _proposals(model.rpn_head, maps, limit, dynamic)
    found |= _boxes(model.roi_head, maps, found['regions_0'], limit)
    if model.roi_head.with_mask:
        found |= _masks(model.roi_head, maps, found['boxes'], found['labels'])
    return found


def numbered(name: str, values: Iterable[Tensor]) -> dict[str, Tensor]:
    """``name_0``, ``name_1``, ..."""
    return {f'{name}_{number}': value for number, value in enumerate(values)}


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
               dynamic: bool) -> dict[str, Tensor]:
    """The RPN's boxes ``(R, 4)``, best first, and what leads to them."""
    cfg = head.test_cfg
    precision = _precision(head)
    logits, deltas = ([map_.float() for map_ in found] for found in head(
        tuple(map_.to(precision) for map_ in maps)))
    found = numbered('rpn_logits', logits) | numbered('rpn_deltas', deltas)
    anchors = head.prior_generator.grid_priors([level.shape[-2:] for level in logits],
                                               dtype=maps[0].dtype, device=maps[0].device)
    proposed = []
    for number, level in enumerate(zip(logits, deltas, anchors, strict=True)):
        index, boxes, scores = _candidates(head, *level, limit, dynamic)
        _, kept = non_max_suppression(boxes[None], scores[None], cfg.max_per_img,
                                      cfg.nms.iou_threshold, 0.)
        proposed.append((boxes[kept], scores[kept]))
        found |= {f'rpn_index_{number}': index, f'rpn_boxes_{number}': boxes,
                  f'rpn_scores_{number}': scores, f'rpn_kept_{number}': kept}
    boxes, scores = (torch.cat(part) for part in zip(*proposed, strict=True))
    return found | dict(regions_0=boxes[_best(scores, cfg.max_per_img)])


def _candidates(head: nn.Module, logits: Tensor, deltas: Tensor, anchors: Tensor, limit: Tensor,
                dynamic: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Which of the anchors ``(A, 4)`` of a level are the best, ``(n, )``, their boxes ``(n, 4)``
    and scores ``(n, )``; boxes that are too small have score -1."""
    logits = logits[0].permute(1, 2, 0).reshape(-1, head.cls_out_channels)
    scores = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]
    scores = scores.reshape(-1)
    number = torch._shape_as_tensor(scores)[0] if dynamic else len(scores)
    most = head.test_cfg.get('nms_pre', -1)
    if most > 0:
        number = number.clamp(max=most) if dynamic else min(number, most)
    scores, best = scores.topk(number)
    deltas = deltas[0].permute(1, 2, 0).reshape(-1, 4)[best]
    boxes = _decode(head.bbox_coder, anchors[best], deltas, limit)
    smallest = head.test_cfg.get('min_bbox_size', -1)
    if smallest >= 0:
        large = (boxes[:, 2:] - boxes[:, :2] > smallest).all(dim=1)
        scores = torch.where(large, scores, torch.tensor(-1.))
    return best, boxes, scores


def _boxes(head: nn.Module, maps: tuple[Tensor, ...], regions: Tensor,
           limit: Tensor) -> dict[str, Tensor]:
    """Labels, boxes and scores of the detections that the box heads make of ``regions``
    ``(R, 4)``, and what leads to them."""
    cfg = head.test_cfg
    found, logits = {}, []
    stages = list(zip(as_list(head.bbox_roi_extractor), as_list(head.bbox_head), strict=True))
    for number, (extractor, stage) in enumerate(stages):
        own, deltas = (value.float() for value in stage(_pool(head, extractor, maps, regions)))
        logits.append(own)
        found |= {f'class_logits_{number}': own, f'box_deltas_{number}': deltas}
        if len(logits) < len(stages):
            if not stage.reg_class_agnostic:
                label = own[:, :-1].argmax(dim=1)
                deltas = deltas.reshape(-1, stage.num_classes, 4)[_rows(label), label]
            regions = _decode(stage.bbox_coder, regions, deltas, limit)
            found[f'regions_{number + 1}'] = regions
    # (C, R) and (C, R, 4)
    scores = (sum(logits) / len(logits)).softmax(-1)[:, :-1].t()
    decoded = _decode(stage.bbox_coder, regions, deltas, limit)
    classes = 1 if stage.reg_class_agnostic else stage.num_classes
    decoded = decoded.reshape(-1, classes, 4).transpose(0, 1)
    if stage.reg_class_agnostic:
        decoded = decoded.expand(stage.num_classes, -1, -1)
    most = cfg.max_per_img if cfg.max_per_img > 0 else torch.iinfo(torch.int32).max
    label, region = non_max_suppression(decoded, scores, most, cfg.nms.iou_threshold,
                                        cfg.score_thr)
    found |= dict(class_scores=scores, class_boxes=decoded, kept_labels=label, kept_regions=region)
    boxes, scores = decoded[label, region], scores[label, region]
    best = _best(scores, most)
    return found | dict(labels=label[best], boxes=boxes[best], scores=scores[best])


def _masks(head: nn.Module, maps: tuple[Tensor, ...], boxes: Tensor,
           labels: Tensor) -> dict[str, Tensor]:
    """Masks ``(k, h, w)`` in [0, 1] of ``boxes`` ``(k, 4)``: the mean of the stages'; and the
    stages' logits of all classes."""
    stages = list(zip(as_list(head.mask_roi_extractor), as_list(head.mask_head), strict=True))
    logits, masks = [], []
    for extractor, stage in stages:
        logits.append(stage(_pool(head, extractor, maps, boxes)).float())
        found = logits[-1].sigmoid()
        masks.append(found[:, 0] if stage.class_agnostic else found[_rows(labels), labels])
    return numbered('mask_logits', logits) | dict(masks=sum(masks) / len(masks))


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

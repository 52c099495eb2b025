"""What a detector says at the places that matter: its detections and hard negatives.

The places are chosen once, by the dense detector: the anchors (or points) with the highest scores,
the proposals with the highest foreground scores, the boxes it detects. What any pruned network
says at the same places can then be compared with it, number by number.

Shapes: L levels of a pyramid; A anchors of a position; P priors, the positions of all levels times
A, levels one after another; R regions; k places; C classes.
"""

from dataclasses import dataclass, field

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import BBoxHead, FCNMaskHead, StandardRoIHead
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn

from ..utils.errors import InputError

PRIORS, REGIONS, MASKS = 200, 64, 16
# What an output is called starts with one of these.
CONFIDENCE, LOCALISATION = 'confidence', 'localisation'


@dataclass
class Places:
    """Where one image is looked at.

    Attributes:
        inputs: what the network takes, ``(1, 3, H, W)``.
        samples: the image's one data sample.
        priors: rows of the priors, ``(k, )``; ``levels`` their levels.
        rois: regions ``(R, 5)`` of two-stage detectors, whose best classes are ``classes``.
        mask_rois: boxes ``(R, 5)`` of detections, whose classes are ``mask_classes``.
        said: the dense detector's outputs there, as :func:`outputs` gives them.
    """

    inputs: Tensor
    samples: list[DetDataSample]
    priors: Tensor | None = None
    levels: Tensor | None = None
    rois: Tensor | None = None
    classes: Tensor | None = None
    mask_rois: Tensor | None = None
    mask_classes: Tensor | None = None
    said: dict[str, Tensor] = field(default_factory=dict)


def check_detector(model: nn.Module) -> None:
    """Raises InputError for a detector whose outputs cannot be read here."""
    kind, reason = type(model).__name__, None
    if isinstance(model, TwoStageDetector):
        head = model.roi_head
        if not model.with_rpn:
            reason = 'it has no RPN'
        elif not isinstance(head, StandardRoIHead) or not isinstance(head.bbox_head, BBoxHead):
            reason = f'its RoI head is a {type(head).__name__}'
        elif head.with_mask and not isinstance(head.mask_head, FCNMaskHead):
            reason = f'its mask head is a {type(head.mask_head).__name__}'
    elif not isinstance(model, SingleStageDetector):
        reason = 'it is neither of one nor of two stages'
    elif not isinstance(getattr(model, 'bbox_head', None), BaseDenseHead):
        reason = f'its head is a {type(getattr(model, "bbox_head", None)).__name__}'
    if reason is not None:
        raise InputError(f'{kind} cannot be allocated or pruned here ({reason}): Faster and Mask '
                         'R-CNN can, and single-stage detectors with maps of classes and boxes')


@torch.no_grad()
def choose(model: nn.Module, inputs: Tensor, samples: list[DetDataSample]) -> Places:
    """The places of one image that matter to the dense detector ``model``, in evaluation mode.

    Raises:
        InputError: a head whose outputs are no maps of classes and boxes.
    """
    places = Places(inputs, samples)
    features = model.extract_feat(inputs)
    head = model.rpn_head if isinstance(model, TwoStageDetector) else model.bbox_head
    maps = _maps(head, features)
    logits, levels = _rows(head, maps[0])
    score = _foreground(head, logits)
    for extra in maps[2:]:  # centerness, objectness
        score = score * _rows(head, extra)[0].sigmoid().squeeze(1)
    places.priors = score.topk(min(PRIORS, len(score))).indices
    places.levels = levels[places.priors]
    if isinstance(model, TwoStageDetector):
        _choose_regions(model, features, places)
    places.said = outputs(model, places)
    return places


def _choose_regions(model: nn.Module, features: tuple[Tensor, ...], places: Places) -> None:
    proposals = model.rpn_head.predict(features, places.samples, rescale=False)
    head = model.roi_head
    rois = bbox2roi([found.bboxes for found in proposals])
    if not len(rois):
        return
    score, best = _softmax(head.bbox_head, head._bbox_forward(features, rois)['cls_score'])
    best_rows = score.topk(min(REGIONS, len(score))).indices
    places.rois, places.classes = rois[best_rows], best[best_rows]
    if head.with_mask:
        metas = [sample.metainfo for sample in places.samples]
        found = head.predict_bbox(features, metas, proposals, head.test_cfg, rescale=False)
        if len(found[0]):
            places.mask_rois = bbox2roi([found[0].bboxes[:MASKS]])
            places.mask_classes = found[0].labels[:MASKS]


def outputs(model: nn.Module, places: Places) -> dict[str, Tensor]:
    """What ``model`` says at ``places``, differentiable: tensors ``(k, *)`` by name.

    Confidence is logits (of softmax heads less their mean over classes, which changes nothing of
    the scores), localisation what the box heads predict, for the best class where there is one a
    class.
    """
    features = model.extract_feat(places.inputs)
    if not isinstance(model, TwoStageDetector):
        return _at_priors(model.bbox_head, features, places, '')
    said = _at_priors(model.rpn_head, features, places, ' of anchors')
    head = model.roi_head
    if places.rois is not None:
        found = head._bbox_forward(features, places.rois)
        said[f'{CONFIDENCE} of regions'] = _centred(head.bbox_head, found['cls_score'])
        if head.bbox_head.with_reg:
            said[f'{LOCALISATION} of regions'] = _of_class(found['bbox_pred'], places.classes, 4)
    if places.mask_rois is not None:
        masks = head._mask_forward(features, places.mask_rois)['mask_preds']
        said[f'{CONFIDENCE} of masks'] = _of_class(
            masks.flatten(1), places.mask_classes, masks[0, 0].numel())
    return said


def _at_priors(head: nn.Module, features: tuple[Tensor, ...], places: Places,
               where: str) -> dict[str, Tensor]:
    maps = _maps(head, features)
    rows = [_rows(head, level)[0][places.priors] for level in maps]
    said = {f'{CONFIDENCE}{where}': rows[0], f'{LOCALISATION}{where}': rows[1]}
    for number, extra in enumerate(rows[2:]):
        said[f'{CONFIDENCE}{where}, further {number}'] = extra
    return said


def _maps(head: nn.Module, features: tuple[Tensor, ...]) -> tuple[list[Tensor], ...]:
    """The head's maps ``(1, A * *, H, W)``: classes, boxes and what else it has, by level."""
    maps = head(features)
    if not isinstance(maps, (tuple, list)) or len(maps) < 2 or not all(
            isinstance(levels, (tuple, list)) and all(
                isinstance(level, Tensor) and level.ndim == 4 for level in levels)
            for levels in maps):
        raise InputError(f'{type(head).__name__} cannot be read: its outputs are no maps of '
                         'classes and boxes by level')
    # Some heads say more of the same in training (coarse boxes, ...): those of a prior count.
    return tuple(levels for levels in maps if len(levels) == len(maps[0]))


def _rows(head: nn.Module, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Maps as a row a prior ``(P, *)``, and each one's level ``(P, )``."""
    rows, numbers = [], []
    for number, level in enumerate(levels):
        anchors = getattr(head, 'num_base_priors', 1)
        anchors = anchors[number] if isinstance(anchors, (list, tuple)) else anchors
        if level.shape[1] % anchors:
            raise InputError(f'{type(head).__name__} cannot be read: {level.shape[1]} channels '
                             f'for {anchors} anchors')
        flat = level[0].permute(1, 2, 0).reshape(-1, level.shape[1] // anchors)
        rows.append(flat)
        numbers.append(torch.full((len(flat), ), number, device=flat.device))
    return torch.cat(rows), torch.cat(numbers)


def _foreground(head: nn.Module, logits: Tensor) -> Tensor:
    """Highest score ``(P, )`` of a class in ``logits`` ``(P, C)``."""
    if getattr(head, 'use_sigmoid_cls', True):
        return logits.sigmoid().amax(dim=1)
    return logits.softmax(dim=1)[:, :-1].amax(dim=1)


def _softmax(head: nn.Module, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Score and number ``(R, )`` of the best class in a box head's ``logits`` ``(R, C + 1)``."""
    if getattr(head, 'custom_cls_channels', False):
        logits = head.loss_cls.get_activation(logits)
        return logits[:, :head.num_classes].max(dim=1)
    return logits.softmax(dim=1)[:, :-1].max(dim=1)


def _centred(head: nn.Module, logits: Tensor) -> Tensor:
    if getattr(head, 'custom_cls_channels', False):
        return logits
    return logits - logits.mean(dim=1, keepdim=True)


def _of_class(rows: Tensor, classes: Tensor, width: int) -> Tensor:
    """Of rows ``(R, C * width)``, those ``width`` of each one's class; all, if there is but one."""
    if rows.shape[1] == width:
        return rows
    picked = rows.reshape(len(rows), -1, width)
    return picked[torch.arange(len(rows), device=rows.device), classes]

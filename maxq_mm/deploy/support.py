"""Which detectors can be exported as a whole, and why another cannot."""

from collections.abc import Iterator

from mmcv.ops import RoIAlign
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.dense_heads import RPNHead
from mmdet.models.detectors import TwoStageDetector
from mmdet.models.roi_heads import (
    BBoxHead,
    CascadeRoIHead,
    DynamicRoIHead,
    FCNMaskHead,
    PISARoIHead,
    SingleRoIExtractor,
    StandardRoIHead,
)
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from torch import nn

from ..utils.errors import InputError
from .detectors import as_list

WHOLE = 'Faster, Mask and Cascade R-CNN'
# What these do at test time is what their base does.
_ROI_HEADS = StandardRoIHead, CascadeRoIHead, DynamicRoIHead, PISARoIHead


def check_whole(model: nn.Module) -> None:
    """Raises InputError unless :func:`.detectors.detect` computes what ``model`` predicts."""
    check_features(model)
    reason = why_not_whole(model)
    if reason is not None:
        raise InputError(f'{reason}: {WHOLE} can; --features exports backbone and neck of any '
                         'detector')


def why_not_whole(model: nn.Module) -> str | None:
    """Why the stages of ``model`` cannot be exported; None if they can."""
    reason = next(_reasons(model), None)
    return reason and f'{type(model).__name__} cannot be exported as a whole ({reason})'


def check_features(model: nn.Module) -> None:
    """Raises InputError unless :func:`.detectors.features` computes ``model``'s feature maps."""
    if type(model.data_preprocessor) is not DetDataPreprocessor:
        raise InputError(f'{type(model).__name__} cannot be exported: its data preprocessor is a '
                         f'{type(model.data_preprocessor).__name__}, no DetDataPreprocessor')


def _reasons(model: nn.Module) -> Iterator[str]:
    if not isinstance(model, TwoStageDetector) or (
            type(model).predict is not TwoStageDetector.predict):
        yield 'not of two stages like these'
        return
    yield from _unlike(model, 'rpn_head', (RPNHead, ))
    yield from _unlike(model, 'roi_head', _ROI_HEADS)
    yield from _coder(model.rpn_head)
    yield from _nms(model.rpn_head.test_cfg, 'rpn')
    head = model.roi_head
    yield from _nms(head.test_cfg, 'rcnn')
    for box_head in as_list(head.bbox_head):
        yield from _overridden(box_head, BBoxHead)
        yield from _coder(box_head)
        if box_head.custom_cls_channels or not (box_head.with_cls and box_head.with_reg):
            yield f'{type(box_head).__name__} without plain classes and boxes'
    extractors = as_list(head.bbox_roi_extractor)
    if head.with_mask:
        extractors += as_list(head.mask_roi_extractor)
        for mask_head in as_list(head.mask_head):
            yield from _overridden(mask_head, FCNMaskHead)
    for extractor in extractors:
        yield from _pooling(extractor)


def _unlike(owner: nn.Module, name: str, kinds: tuple[type, ...]) -> Iterator[str]:
    kind = type(getattr(owner, name))
    if kind not in kinds:
        yield kind.__name__


def _overridden(head: nn.Module, base: type) -> Iterator[str]:
    """A head that turns its outputs into predictions in another way than ``base``."""
    methods = 'predict_by_feat', '_predict_by_feat_single'
    if not isinstance(head, base) or any(
            getattr(type(head), method) is not getattr(base, method) for method in methods):
        yield type(head).__name__


def _coder(head: nn.Module) -> Iterator[str]:
    if type(head.bbox_coder) is not DeltaXYWHBBoxCoder:
        yield type(head.bbox_coder).__name__


def _nms(cfg: dict, name: str) -> Iterator[str]:
    """Suppression that ONNX's operator does not do."""
    nms = cfg.get('nms') or {}
    known = {'type', 'iou_threshold', 'split_thr', 'class_agnostic'}
    if nms.get('type') != 'nms' or 'iou_threshold' not in nms or nms.get('class_agnostic'):
        yield f'test_cfg.{name}.nms={dict(nms)}'
    elif not set(nms) <= known:
        yield f'test_cfg.{name}.nms.{sorted(set(nms) - known)[0]}'


def _pooling(extractor: nn.Module) -> Iterator[str]:
    if type(extractor) is not SingleRoIExtractor:
        yield type(extractor).__name__
        return
    for layer in extractor.roi_layers:
        if type(layer) is not RoIAlign or layer.pool_mode != 'avg' or layer.use_torchvision:
            yield f'{type(layer).__name__} (pool_mode={getattr(layer, "pool_mode", None)!r})'

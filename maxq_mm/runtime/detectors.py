"""What surrounds the layers of mmdet's detectors, put onto kernels: instances change, no class.

A method is replaced where the module has mmdet's or mmcv's own, and falls back to that one where
its kernel does not fit.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from .calls import takes_images
from .install import Accelerated, become
from .library import library
from .masks import can_paste, paste
from .regions import RoiAlign, has_pixels_kernel
from .suppression import can_select, is_plain, nms, suppress


class _Regions(Accelerated):
    """``mmcv.ops.RoIAlign``."""

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        align = _roi_align([self])
        if align is not None and align.takes([input], rois):
            return align([input], rois)
        return super().forward(input.contiguous(), rois)  # it does not ask for strides


class _Extractor(Accelerated):
    """mmdet's ``SingleRoIExtractor``: all levels in one call."""

    def forward(self, feats: Sequence[Tensor], rois: Tensor,
                roi_scale_factor: float | None = None) -> Tensor:
        align = _roi_align(self.roi_layers[:len(feats)])
        if align is None or not align.takes(feats, rois):
            return super().forward([x.contiguous() for x in feats], rois, roi_scale_factor)
        if len(feats) == 1:
            return align(feats, rois)
        level = self.map_roi_levels(rois, len(feats))
        if roi_scale_factor is not None:
            rois = self.roi_rescale(rois, roi_scale_factor)
        return align(feats, rois, level)


class _Masks(Accelerated):
    """mmdet's ``FCNMaskHead``: the pixels of each box, and the mask of its class alone."""

    def _predict_by_feat_single(self, mask_preds: Tensor, bboxes: Tensor, labels: Tensor,
                                img_meta: dict, rcnn_test_cfg: dict, rescale: bool = False,
                                activate_map: bool = False) -> Tensor:
        threshold = rcnn_test_cfg.mask_thr_binary
        size, scale = img_meta['ori_shape'][:2], img_meta['scale_factor']
        factors = bboxes.new_tensor(scale).repeat(1, 2)
        boxes = bboxes / factors if rescale else bboxes
        if not rescale:
            size = [round(length * float(factor))
                    for length, factor in zip(size, factors[0, [1, 0]], strict=True)]
        # Of several stages, they may be an array, of probabilities.
        given = torch.as_tensor(mask_preds)
        pasted = None
        if threshold >= 0 and can_paste(given, boxes, size):
            masks = given[:, 0] if self.class_agnostic else given[range(len(labels)), labels]
            pasted = paste(masks if activate_map else masks.sigmoid(), boxes, tuple(size),
                           threshold)
        if pasted is None:
            return super()._predict_by_feat_single(mask_preds, bboxes, labels, img_meta,
                                                   rcnn_test_cfg, rescale, activate_map)
        if rescale:
            bboxes.copy_(boxes)  # as mmdet does, for its caller
        return pasted


class _Boxes(Accelerated):
    """mmdet's ``BBoxHead``: of many boxes, those that are looked at."""

    def _predict_by_feat_single(self, roi: Tensor, cls_score: Tensor, bbox_pred: Tensor,
                                img_meta: dict, rescale: bool = False,
                                rcnn_test_cfg: dict | None = None):
        own = super()._predict_by_feat_single
        if not (len(roi) and rcnn_test_cfg is not None and can_select(rcnn_test_cfg)
                and self.predict_box_type == 'hbox'):
            return own(roi, cls_score, bbox_pred, img_meta, rescale, rcnn_test_cfg)
        results = own(roi, cls_score, bbox_pred, img_meta, rescale)  # all, with all their scores
        found, labels = suppress(results.bboxes, results.scores, rcnn_test_cfg)
        results = type(results)()
        results.bboxes, results.scores, results.labels = found[:, :4], found[:, 4], labels
        return results


class _Proposals(Accelerated):
    """mmdet's ``RPNHead``: suppression on all threads, the levels apart."""

    def _bbox_post_process(self, results, cfg: Mapping, *args, **kwargs):
        if is_plain(cfg):
            cfg = type(cfg)({**cfg, 'nms': {**cfg['nms'], 'type': nms}})
        return super()._bbox_post_process(results, cfg, *args, **kwargs)


def _roi_align(layers: Sequence[nn.Module]) -> RoiAlign | None:
    """What mmcv's layers compute, one for each level; None if they differ, or have no kernel."""
    from mmcv.ops import RoIAlign

    if not all(isinstance(layer, RoIAlign) and layer.pool_mode == 'avg'
               and not layer.use_torchvision for layer in layers):
        return None
    alike = {(layer.output_size, layer.sampling_ratio, layer.aligned) for layer in layers}
    if len(alike) != 1:
        return None
    (size, sampling, aligned), = alike
    return RoiAlign(size, tuple(layer.spatial_scale for layer in layers), sampling, aligned)


def install_around(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Put what surrounds the layers of a detector of mmdet onto kernels, in place.

    Returns the names of the modules that changed, and what of each.
    """
    # A detector of mmdet has imported it, and nothing else is to.
    if library() is None or not takes_images(model) or 'mmdet.models' not in sys.modules:
        return ()
    found = list(_replaceable(model))
    for _, _, module, mixin in found:
        become(module, mixin)
    return tuple((name, what) for name, what, _, _ in found)


def reads_pixels(model: nn.Module) -> bool:
    """Whether features and the first head's outputs may be channels-last, and better are.

    That is where kernels read the features, and nothing of mmcv's, which takes them for planes.
    """
    if not takes_images(model) or 'mmdet.models' not in sys.modules:
        return False
    from mmdet.models.detectors import TwoStageDetector
    from mmdet.models.roi_heads import StandardRoIHead

    head = getattr(model, 'roi_head', None)
    return (isinstance(model, TwoStageDetector) and type(head) is StandardRoIHead
            and not head.with_shared_head
            and all(isinstance(module, _Extractor) and has_pixels_kernel(module.out_channels)
                    for name, module in head.named_children() if name.endswith('roi_extractor')))


def _replaceable(model: nn.Module) -> Iterator[tuple[str, str, nn.Module, type]]:
    from mmcv.ops import RoIAlign
    from mmdet.models.dense_heads import RPNHead
    from mmdet.models.roi_heads.bbox_heads import BBoxHead
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    kinds = ((SingleRoIExtractor, 'forward', 'RoIAlign of all levels', _Extractor),
             (RoIAlign, 'forward', 'RoIAlign', _Regions),
             (BBoxHead, '_predict_by_feat_single', 'suppression', _Boxes),
             (FCNMaskHead, '_predict_by_feat_single', 'pasting', _Masks),
             (RPNHead, '_bbox_post_process', 'suppression', _Proposals))
    inside = set()
    for name, module in model.named_modules():
        for kind, method, what, mixin in kinds:
            if (module not in inside and isinstance(module, kind) and _has_kernel(module)
                    and getattr(type(module), method) is getattr(kind, method)):
                inside |= {*module.modules()}  # an extractor does not call its layers
                yield name, what, module, mixin


def _has_kernel(module: nn.Module) -> bool:
    """False for modules whose layers compute something else than RoIAlign's means."""
    from mmcv.ops import RoIAlign

    layers = [module] if isinstance(module, RoIAlign) else getattr(module, 'roi_layers', None)
    return layers is None or _roi_align(layers) is not None

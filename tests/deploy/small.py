"""Small two-stage detectors with 2:4 layers that find something in noise, without training."""

import importlib
from pathlib import Path

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch import Tensor, nn

import maxq_mm
from maxq_mm.deploy.detectors import as_list
from maxq_mm.deploy.metadata import Metadata

ROOT = Path(__file__).parents[2]
SIZE = (64, 96)
TINY = {
    'backbone.base_channels': 8, 'neck.in_channels': [8, 16, 32, 64], 'neck.out_channels': 16,
    'rpn_head.in_channels': 16, 'rpn_head.feat_channels': 16,
    'roi_head.bbox_roi_extractor.out_channels': 16, 'roi_head.bbox_head.in_channels': 16,
    'roi_head.bbox_head.fc_out_channels': 32, 'test_cfg.rpn.nms_pre': 60,
    'test_cfg.rpn.max_per_img': 50, 'test_cfg.rcnn.max_per_img': 30}
TINY_MASKS = {
    'roi_head.mask_roi_extractor.out_channels': 16, 'roi_head.mask_head.in_channels': 16,
    'roi_head.mask_head.conv_out_channels': 16}
NO_MASKS = {'type': 'FasterRCNN', 'roi_head.mask_roi_extractor': None, 'roi_head.mask_head': None}


def model_config(**changes) -> dict:
    """The quickstart's Mask R-CNN, smaller still; ``changes`` by dotted name."""
    cfg = Config.fromfile(ROOT / 'configs/quickstart_mask_rcnn_r18.py')
    cfg.merge_from_dict({f'model.{key}': value for key, value in (
        TINY | TINY_MASKS | changes).items()})
    return cfg.model


def cascade_config() -> dict:
    """A Cascade Mask R-CNN on the same backbone."""
    cfg = model_config(type='CascadeRCNN')
    head = cfg.roi_head
    head.update(type='CascadeRoIHead', num_stages=2, stage_loss_weights=[1, 0.5],
                bbox_head=[dict(head.bbox_head, reg_class_agnostic=agnostic)
                           for agnostic in (True, False)])
    cfg.train_cfg.rcnn = [cfg.train_cfg.rcnn] * 2
    return cfg


@torch.no_grad()
def build(cfg: dict) -> tuple[nn.Module, dict[str, str]]:
    """The model, ready to test, and the patterns of its sparse layers (the backbone's)."""
    importlib.import_module('mmdet.models')
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.1)
        norm.momentum = None  # statistics of the one batch below
    handle = maxq_mm.sparsify(model, '2:4', include=('backbone', ))
    patterns = dict.fromkeys(handle.names, '2:4')
    maxq_mm.fold(model.train())
    noise_batch = model.data_preprocessor(dict(inputs=torch.stack([noise(seed=i) for i in (1, 2)])))
    model.extract_feat(noise_batch['inputs'])
    _spread(model.eval())
    return model, patterns


def _spread(model: nn.Module) -> None:
    """Scale the heads' last layers so that scores and boxes differ from region to region."""
    data = model.data_preprocessor(batch(noise()))
    maps, samples = model.extract_feat(data['inputs']), data['data_samples']
    logits, deltas = model.rpn_head(maps)
    model.rpn_head.rpn_cls.weight /= torch.cat([level.flatten() for level in logits]).std()
    model.rpn_head.rpn_reg.weight *= 0.3 / torch.cat([level.flatten() for level in deltas]).std()
    rois = bbox2roi([model.rpn_head.predict(maps, samples, rescale=False)[0].bboxes])
    head = model.roi_head
    for extractor, stage in zip(as_list(head.bbox_roi_extractor), as_list(head.bbox_head),
                                strict=True):
        logits, deltas = stage(extractor(maps, rois))
        stage.fc_cls.weight *= 2 / logits.std()
        stage.fc_reg.weight *= 0.5 / deltas.std()


def noise(height: int = SIZE[0], width: int = SIZE[1], seed: int = 0) -> Tensor:
    """An image ``(3, height, width)``, uint8, of soft patches."""
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(coarse, (height, width), mode='bilinear')[0] * 255).byte()


def batch(image: Tensor, **meta) -> dict:
    """What mmdet's dataloader gives of ``image``; results in its own pixels unless ``meta``."""
    size = tuple(image.shape[-2:])
    sample = DetDataSample(metainfo=dict(
        dict(img_shape=size, ori_shape=size, scale_factor=(1., 1.)), **meta))
    return pseudo_collate([dict(inputs=image, data_samples=sample)])


def about(kind: str = 'detector', size: tuple[int, int] | None = SIZE, **fields) -> Metadata:
    return Metadata(**{**dict(kind=kind, config='small.py', classes=('a', 'b', 'c'), size=size,
                              divisor=32, mask_threshold=0.5), **fields})

"""Small dense detectors with random weights, and images of noise."""

import importlib
from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from maxq_mm.allocation.images import look

from ..deploy import small

CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'
NARROW = {
    'backbone.depth': 18, 'backbone.base_channels': 8, 'backbone.norm_eval': False,
    'backbone.frozen_stages': -1, 'neck.in_channels': [8, 16, 32, 64], 'neck.out_channels': 16,
    'bbox_head.in_channels': 16, 'bbox_head.feat_channels': 16, 'bbox_head.stacked_convs': 1,
    'bbox_head.num_classes': 3, 'bbox_head.norm_cfg': dict(type='GN', num_groups=4)}


def of_one_stage(name: str) -> dict:
    cfg = Config.fromfile(CONFIGS / f'{name}.py').model
    cfg.backbone.init_cfg = None  # no download
    wrapped = Config(dict(model=cfg))
    wrapped.merge_from_dict({f'model.{key}': value for key, value in NARROW.items()})
    return wrapped.model


DETECTORS = {
    'Mask R-CNN': small.model_config,
    'Faster R-CNN': lambda: small.model_config(**small.NO_MASKS),
    'RetinaNet': lambda: of_one_stage('retinanet/retinanet_r18_fpn_1x_coco'),
    'FCOS': lambda: of_one_stage('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco'),
    'ATSS': lambda: of_one_stage('atss/atss_r50_fpn_1x_coco'),
}


def build(cfg: dict) -> torch.nn.Module:
    """The detector, with heads that say something else at each place."""
    importlib.import_module('mmdet.models')
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm | torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return model


def images(count: int = 2) -> list[dict]:
    found = []
    for seed in range(count):
        batch = small.batch(small.noise(seed=seed))
        found.append(dict(inputs=batch['inputs'][0], data_samples=batch['data_samples'][0]))
    return found


@pytest.fixture(params=DETECTORS)
def detector(request) -> torch.nn.Module:
    return build(DETECTORS[request.param]())


@pytest.fixture
def mask_rcnn() -> torch.nn.Module:
    return build(DETECTORS['Mask R-CNN']())


@pytest.fixture
def seen(mask_rcnn):
    """Places of two images."""
    return look(mask_rcnn, images())

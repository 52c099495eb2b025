"""MaxQ in the detectors that mmdet ships: every layer sparse or left dense for a true reason."""

import importlib
import re
from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing._utils import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from maxq_mm import fold, satisfies, sparsify
from maxq_mm.nn.select import sparse_type

from ..nested import flat_tensors

CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'
R18 = {'backbone.depth': 18, 'neck.in_channels': [64, 128, 256, 512]}
# config: (what shrinks its model, kinds of reasons that it must show beside channels and frozen)
DETECTORS = {
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco': (R18, ()),
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco': (R18, ()),
    'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco': (R18, ()),
    'retinanet/retinanet_r18_fpn_1x_coco': ({}, ()),
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco': (R18, ()),
    'atss/atss_r50_fpn_1x_coco': (R18, ()),
    'solov2/solov2-light_r18_fpn_ms-3x_coco': ({}, ()),
    'yolox/yolox_tiny_8xb8-300e_coco': ({}, ()),
    'rtmdet/rtmdet_tiny_8xb32-300e_coco': ({}, ()),
    'detr/detr_r18_8xb2-500e_coco': (
        {'encoder.num_layers': 1, 'decoder.num_layers': 1}, ('in-projection', )),
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco': (
        {'encoder.num_layers': 1, 'decoder.num_layers': 1}, ('in-projection', 'Embedding')),
    'dino/dino-4scale_r50_8xb2-12e_coco': (
        {'encoder.num_layers': 1, 'decoder.num_layers': 1, 'num_queries': 50},
        ('in-projection', 'Embedding')),
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco': (
        {'panoptic_head.pixel_decoder.encoder.num_layers': 1,
         'panoptic_head.transformer_decoder.num_layers': 1,
         'panoptic_head.num_transformer_feat_level': 3}, ('in-projection', 'Embedding')),
    'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco': ({'backbone.depths': [1, 1, 1, 1]}, ('WindowMSA', )),
    'faster_rcnn/faster-rcnn_x101-32x4d_fpn_1x_coco': ({'backbone.depth': 50}, ('grouped', )),
    'res2net/faster-rcnn_res2net-101_fpn_2x_coco': ({'backbone.depth': 50}, ()),
    'hrnet/faster-rcnn_hrnetv2p-w18-1x_coco': ({}, ()),
    'regnet/faster-rcnn_regnetx-400MF_fpn_ms-3x_coco': ({}, ('grouped', )),
    'dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco': ({}, ('DeformConv2dPack', )),
}


def build(name: str, shrink: dict) -> nn.Module:
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    importlib.import_module('mmdet.models')
    init_default_scope('mmdet')
    cfg.model.backbone.init_cfg = None  # no download
    cfg.model.data_preprocessor.pop('batch_augments', None)
    cfg.merge_from_dict({f'model.{key}': value for key, value in shrink.items()})
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def check_reason(module: nn.Module, reason: str) -> None:
    """The reason is true of the module."""
    if found := re.fullmatch(r'(\d+) input channels, not divisible by 4', reason):
        assert module.weight.shape[1] == int(found[1])
        assert int(found[1]) % 4
    elif found := re.fullmatch(r'grouped \((\d+) groups\)', reason):
        assert module.groups == int(found[1]) > 1
    elif reason == 'frozen':
        assert not module.weight.requires_grad
    elif reason.startswith('in-projection'):
        assert isinstance(module, nn.MultiheadAttention)
    else:
        found = re.fullmatch(r'(\w+) computes with its weight in its own way', reason)
        assert found, reason
        assert type(module).__name__ == found[1]
        assert sparse_type(module) is None


@pytest.mark.parametrize('name', DETECTORS)
def test_train_and_fold(name):
    shrink, reasons = DETECTORS[name]
    model = build(name, shrink).train()
    handle = sparsify(model, '2:4')
    for layer, reason in handle.skipped.items():
        check_reason(model.get_submodule(layer), reason)
    for reason in reasons:
        assert any(reason in text for text in handle.skipped.values()), handle.skipped
    matrices = {layer for layer, module in model.named_modules()
                if any(p.ndim >= 2 for p in module.parameters(recurse=False))}
    assert matrices == {*handle.layers, *handle.skipped}

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    handle.attach(optimizer)
    data = demo_mm_inputs(2, [[3, 96, 96], [3, 96, 96]], num_classes=80,
                          with_mask=re.search('mask|solo', name) is not None)
    data = model.data_preprocessor(data, True)
    before = {layer: module.weight.detach().clone() for layer, module in handle.layers.items()}
    for _ in range(3):
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned = [layer for layer, module in handle.layers.items()
               if not torch.equal(module.weight, before[layer])]
    assert len(learned) > 0.9 * len(handle.layers)

    handle.refresh()
    model.eval()
    with torch.no_grad():
        sparse = flat_tensors(model(**data, mode='tensor'))
        fold(model)
        folded = flat_tensors(model(**data, mode='tensor'))
    assert len(sparse) > 0
    for a, b in zip(sparse, folded, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-5)
    assert all(satisfies(model.get_submodule(layer).weight, '2:4') for layer in handle.layers)

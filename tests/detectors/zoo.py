"""Detectors that mmdet ships, shrunk: less deep, and without their checkpoints."""

import importlib
from pathlib import Path
from typing import NamedTuple

import mmdet
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'
PATTERN = '2:4'


class Detector(NamedTuple):
    """``config`` of mmdet; ``shrink`` changes its model; ``reasons`` it must show for dense layers
    (all but those of input channels); ``trains``: its loss needs nothing that mmdet
    does not install (PAA's needs scikit-learn)."""

    config: str
    shrink: dict
    reasons: tuple[str, ...] = ('frozen', )
    trains: bool = True


R18 = {'backbone.depth': 18, 'neck.in_channels': [64, 128, 256, 512]}
R50 = {'backbone.depth': 50}
ONE_LAYER = {'encoder.num_layers': 1, 'decoder.num_layers': 1}
ATTENTION = 'in-projection', 'NonDynamicallyQuantizableLinear', 'Embedding'

DETECTORS = {
    'Faster R-CNN': Detector('faster_rcnn/faster-rcnn_r50_fpn_1x_coco', R18),
    'Mask R-CNN': Detector(
        'mask_rcnn/mask-rcnn_r50_fpn_1x_coco', R18, ('frozen', 'ConvTranspose2d')),
    'Cascade R-CNN': Detector('cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco', R18),
    'RetinaNet': Detector('retinanet/retinanet_r18_fpn_1x_coco', {}),
    'FCOS': Detector('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', R18),
    'ATSS': Detector('atss/atss_r50_fpn_1x_coco', R18),
    'TOOD': Detector('tood/tood_r50_fpn_1x_coco', R18, ('frozen', 'TaskDecomposition')),
    'PAA': Detector('paa/paa_r50_fpn_1x_coco', R18, trains=False),
    'VFNet': Detector('vfnet/vfnet_r50_fpn_1x_coco', R18, ('frozen', 'DeformConv2d')),
    'DDOD': Detector('ddod/ddod_r50_fpn_1x_coco', {**R18, 'bbox_head.use_dcn': False}),
    'SOLOv2': Detector('solov2/solov2-light_r18_fpn_ms-3x_coco', {}),
    'YOLOX': Detector('yolox/yolox_tiny_8xb8-300e_coco', {}, ()),
    'RTMDet': Detector('rtmdet/rtmdet_tiny_8xb32-300e_coco', {}, ('grouped', )),
    'DETR': Detector('detr/detr_r18_8xb2-500e_coco', ONE_LAYER, ('frozen', *ATTENTION)),
    'Deformable DETR': Detector(
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco', ONE_LAYER, ('frozen', *ATTENTION)),
    'DINO': Detector('dino/dino-4scale_r50_8xb2-12e_coco', {**ONE_LAYER, 'num_queries': 50},
                     ('frozen', *ATTENTION)),
    'Mask2Former': Detector(
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco',
        {'panoptic_head.pixel_decoder.encoder.num_layers': 1,
         'panoptic_head.transformer_decoder.num_layers': 1,
         'panoptic_head.num_transformer_feat_level': 3}, ATTENTION),
    'Mask R-CNN, Swin': Detector(
        'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco', {'backbone.depths': [1, 1, 1, 1]},
        ('WindowMSA', 'ConvTranspose2d')),
    'Mask R-CNN, ConvNeXt': Detector(
        'mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
        {'backbone': dict(_delete_=True, type='SmallConvNeXt', depths=(1, 1, 1, 1),
                          channels=(48, 96, 192, 384)),
         'neck.in_channels': [48, 96, 192, 384]}, ('grouped', 'ConvTranspose2d')),
    'Faster R-CNN, ResNeXt': Detector(
        'faster_rcnn/faster-rcnn_x101-32x4d_fpn_1x_coco', R50, ('frozen', 'grouped')),
    'Faster R-CNN, Res2Net': Detector('res2net/faster-rcnn_res2net-101_fpn_2x_coco', R50),
    'Faster R-CNN, HRNet': Detector('hrnet/faster-rcnn_hrnetv2p-w18-1x_coco', {}, ()),
    'Faster R-CNN, RegNet': Detector(
        'regnet/faster-rcnn_regnetx-400MF_fpn_ms-3x_coco', {}, ('frozen', 'grouped')),
    'Faster R-CNN, DCNv2': Detector(
        'dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco', {}, ('frozen', 'DeformConv2dPack')),
}


def build(detector: Detector) -> nn.Module:
    """The model in training mode, where the stages that its config freezes are frozen."""
    cfg = Config.fromfile(CONFIGS / f'{detector.config}.py')
    importlib.import_module('mmdet.models')
    importlib.import_module('tests.detectors.convnext')
    init_default_scope('mmdet')
    cfg.model.backbone.init_cfg = None  # no download
    cfg.model.data_preprocessor.pop('batch_augments', None)
    cfg.merge_from_dict({f'model.{key}': value for key, value in detector.shrink.items()})
    return MODELS.build(cfg.model).train()

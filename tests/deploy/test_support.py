import copy

import pytest
from mmdet.models.data_preprocessors import DetDataPreprocessor

from maxq_mm.deploy import support

from ..detectors import zoo
from . import small

SOFT = dict(type='soft_nms', iou_threshold=0.5)


def test_these_can(detector):
    support.check_whole(detector[0])


@pytest.mark.parametrize(('changes', 'reason'), [
    ({'test_cfg.rcnn.nms': SOFT}, 'test_cfg.rcnn.nms=.*soft_nms'),
    ({'test_cfg.rpn.nms': dict(SOFT, class_agnostic=True)}, 'test_cfg.rpn.nms=.*class_agnostic'),
    ({'test_cfg.rcnn.nms.max_num': 9}, 'test_cfg.rcnn.nms.max_num'),
    ({'roi_head.bbox_roi_extractor.roi_layer.pool_mode': 'max'}, r"RoIAlign \(pool_mode='max'\)"),
    ({'roi_head.bbox_roi_extractor.type': 'GenericRoIExtractor'}, 'GenericRoIExtractor'),
    ({'rpn_head.bbox_coder.type': 'DeltaXYWHBBoxCoderForGLIP'}, 'DeltaXYWHBBoxCoderForGLIP'),
    ({'roi_head.type': 'MaskScoringRoIHead'}, 'MaskScoringRoIHead'),
])
def test_these_cannot(changes, reason):
    config = small.model_config(**changes)
    if 'Scoring' in reason:
        config.roi_head.mask_iou_head = dict(
            type='MaskIoUHead', num_convs=1, num_fcs=1, roi_feat_size=14, in_channels=16,
            conv_out_channels=16, fc_out_channels=16, num_classes=3)
    model, _ = small.build(config)
    with pytest.raises(ValueError, match=rf'MaskRCNN cannot .* whole \({reason}.*\): .*--features'):
        support.check_whole(model)


@pytest.mark.parametrize('name', ['FCOS', 'DETR'])
def test_detectors_of_another_kind_have_feature_maps_only(name):
    model = zoo.build(zoo.DETECTORS[name])
    support.check_features(model)
    with pytest.raises(ValueError, match=f'{name} cannot be exported as a whole'):
        support.check_whole(model)


def test_another_preprocessor(mask_rcnn):
    class Other(DetDataPreprocessor):
        pass

    model = copy.deepcopy(mask_rcnn[0])
    model.data_preprocessor = Other()
    with pytest.raises(ValueError, match='is a Other, no DetDataPreprocessor'):
        support.check_features(model)

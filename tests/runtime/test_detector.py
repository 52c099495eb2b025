"""An accelerated detector of mmdet, used as any of its detectors."""

import copy

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from maxq_mm import accelerate

from ..running import ROOT
from .test_accelerate import sparse


def detections(model, images):
    size = tuple(images.shape[2:])
    samples = [DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size,
                                           batch_input_shape=size, scale_factor=(1., 1.)))
               for _ in images]
    with torch.no_grad():
        return [sample.pred_instances for sample in model(images, samples, mode='predict')]


def assert_same_detections(model, expected, images):
    for found, wanted in zip(detections(model, images), detections(expected, images), strict=True):
        assert len(found) == len(wanted) > 0
        torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.bboxes.sum(0), wanted.bboxes.sum(0), rtol=1e-2, atol=1.)


def small_mask_rcnn():
    """Folded, of random weights, and it finds something in anything."""
    init_default_scope('mmdet')
    cfg = Config.fromfile(ROOT / 'configs/quickstart_mask_rcnn_r18.py')
    cfg.model.test_cfg.rcnn.score_thr = 0.
    cfg.model.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
    torch.manual_seed(0)
    return sparse(MODELS.build(cfg.model), '1:4')


@pytest.fixture(scope='module')
def folded():
    return small_mask_rcnn()


@pytest.fixture(scope='module')
def accelerated(folded):
    model = copy.deepcopy(folded)
    return model, accelerate(model, torch.randn(1, 3, 64, 64))


def test_all_parts_are_programs(accelerated):
    model, report = accelerated
    assert report.traced == ('extract_feat and rpn_head', 'roi_head.bbox_head',
                             'roi_head.mask_head')
    assert report.untraced == ()
    called = {row.name for row in report.layers if row.reason != 'not called'}
    assert called == {row.name for row in report.layers}
    assert type(model).__name__ == 'AcceleratedMaskRCNN'


@pytest.mark.parametrize('size', [(1, 64, 64), (2, 96, 128)])
def test_detections(folded, accelerated, size):
    batch, *size = size
    images = torch.randn(batch, 3, *size)
    assert_same_detections(accelerated[0], folded, images)
    assert_same_detections(copy.deepcopy(accelerated[0]), folded, images)


def test_the_head_only_answers_for_its_own_features(folded, accelerated):
    """What the features' program computed of one image is not taken for another's."""
    model = accelerated[0]
    first, second = torch.randn(2, 1, 3, 64, 64)
    with torch.no_grad():
        features = model.extract_feat(first)
        others = model.extract_feat(second)
        for x in (features, others, others):
            for results, wanted in zip(model.rpn_head(x), folded.rpn_head(x), strict=True):
                for a, b in zip(results, wanted, strict=True):
                    assert float((a - b).abs().max()) <= 1e-4 * float(b.max() - b.min())
    with pytest.raises(ValueError, match='accelerated'):
        model.rpn_head.train()

"""An accelerated detector of mmdet, used as any of its detectors."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from maxq_mm import accelerate
from maxq_mm.runtime import kernels
from maxq_mm.runtime.detectors import reads_pixels
from maxq_mm.runtime.regions import has_pixels_kernel

from ..deploy import small
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


@pytest.mark.parametrize(('config', 'stages'), [(small.model_config, ('', )),
                                                (small.cascade_config, ('.0', '.1'))])
def test_what_surrounds_the_layers(config, stages):
    """Replaced in each stage; copies and threads find what the model does, masks included."""
    expected, _ = small.build(config())
    model = copy.deepcopy(expected)
    images = torch.randn(3, 1, 3, 64, 96)
    report = accelerate(model, images[0])
    extractor = 'RoIAlign of all levels'
    replaced = {f'roi_head.{name}{stage}': what for stage in stages for name, what in (
        ('bbox_roi_extractor', extractor), ('bbox_head', 'suppression'),
        ('mask_roi_extractor', extractor), ('mask_head', 'pasting'))}
    replaced['rpn_head'] = 'suppression'
    assert dict(report.replaced) == (replaced if kernels.instruction_set() else {})
    assert report.as_dict()['replaced'] == [list(pair) for pair in report.replaced]
    # Features may be channels-last where kernels alone read them, and nowhere else.
    in_pixels = stages == ('', ) and has_pixels_kernel(model.neck.out_channels)
    assert reads_pixels(model) == in_pixels
    if not in_pixels:
        with torch.no_grad():
            assert all(x.is_contiguous() for x in model.extract_feat(images[0]))
    wanted = [detections(expected, x)[0] for x in images]
    assert any(theirs.masks.any() for theirs in wanted)
    for one in (model, copy.deepcopy(model)):
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda x, one=one: detections(one, x)[0], images))
        for ours, theirs in zip(found, wanted, strict=True):
            assert len(ours) == len(theirs) > 0
            torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(ours.bboxes, theirs.bboxes, rtol=1e-3, atol=1e-1)
            assert float((ours.masks != theirs.masks).float().mean()) < 1e-3

"""Detectors in int8, from calibration images to detections."""

import copy

import pytest
import torch
from torch import nn

from maxq_mm import accelerate
from maxq_mm.nn.accelerated import is_accelerated
from maxq_mm.runtime import calibrate, choose
from maxq_mm.runtime.calibrate import images
from maxq_mm.runtime.library import library
from maxq_mm.runtime.partition import DENSE, DENSE_INT8, INT8, SPARSE, TORCH
from maxq_mm.utils.errors import InputError

from ..detectors.zoo import DETECTORS, build
from .test_detector import detections, small_mask_rcnn

pytestmark = pytest.mark.skipif(library(int8=True) is None, reason='no int8 kernels here')
ORDER = (INT8, DENSE_INT8, SPARSE, DENSE, TORCH)


@pytest.fixture(scope='module', autouse=True)
def int8_is_fastest():
    """Wherever it is possible, whatever this machine measures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, '_measure', lambda trials, calls, ways: {
            layer: {way: float(ORDER.index(way)) for way in found}
            for layer, found in ways.items()})
        patch.setattr(choose, '_fastest', lambda candidates, calls: candidates[0])
        yield


def pictures(count: int) -> list[dict]:
    """As mmdet's data sets give them."""
    return [dict(inputs=torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8), data_samples=None)
            for _ in range(count)]


def decibels(found, expected) -> float:
    pairs = zip(torch.utils._pytree.tree_leaves(found),
                torch.utils._pytree.tree_leaves(expected), strict=True)
    return min(float(10 * (b.square().sum() / (a - b).square().sum()).log10()) for a, b in pairs)


@pytest.fixture(scope='module')
def mask_rcnn():
    expected = small_mask_rcnn()
    model = copy.deepcopy(expected)
    report = accelerate(model, torch.randn(1, 3, 64, 96), 'int8', pictures(4))
    return model, expected, report


def test_mask_rcnn_layers(mask_rcnn):
    rows = {row.name: row for row in mask_rcnn[2].layers}
    floats = {name: row.reason.rsplit(': ')[-1] for name, row in rows.items()
              if row.precision == 'float32'}
    predictors = {'rpn_head.rpn_cls', 'rpn_head.rpn_reg', 'roi_head.bbox_head.fc_cls',
                  'roi_head.bbox_head.fc_reg', 'roi_head.mask_head.conv_logits'}
    assert floats == dict.fromkeys(predictors, 'predicts')
    assert rows['backbone.conv1'].reason.endswith("the image's bytes by channels")
    assert all(row.used == (row.pattern is not None) for row in rows.values())


def test_mask_rcnn_is_near(mask_rcnn):
    model, expected, report = mask_rcnn
    assert [part.part for part in report.rounding] == [
        'extract_feat and rpn_head', 'roi_head.bbox_head', 'roi_head.mask_head']
    assert all(part.decibels > 10 for part in report.rounding)
    assert 'signal to noise at least' in str(report)
    for size in ((1, 3, 64, 96), (2, 3, 128, 64)):
        x = torch.randn(size)
        with torch.no_grad():
            features = expected.extract_feat(x)
            assert decibels(model.extract_feat(x), features) > 10
            assert decibels(model.rpn_head(features), expected.rpn_head(features)) > 10
        for found in detections(copy.deepcopy(model), x):
            assert len(found) > 0
            assert found.scores.isfinite().all()
            assert found.bboxes.isfinite().all()
            assert 0 <= found.scores.min() <= found.scores.max() <= 1


@pytest.mark.parametrize('item', [
    dict(inputs=torch.zeros(2, 64, 96, dtype=torch.uint8)), dict(inputs=['image.png']),
    dict(inputs=None), dict(images=torch.zeros(3, 64, 96)), torch.zeros(3, 64, 96)])
def test_bad_calibration(mask_rcnn, item):
    with pytest.raises(InputError, match=r'calibration\[1\]: ') as error:
        list(images(mask_rcnn[1], (torch.randn(1, 3, 64, 96), ), [*pictures(1), item]))
    assert '\n' not in str(error.value)


def test_a_head_that_was_never_called_stays_float(mask_rcnn):
    """Nothing is found in the calibration images: nothing is known of the mask head's values."""
    model = copy.deepcopy(mask_rcnn[1])
    model.roi_head.test_cfg.score_thr = 2.
    report = accelerate(model, torch.randn(1, 3, 64, 96), 'int8', pictures(1))
    rows = {row.name: row for row in report.layers}
    row = rows['roi_head.mask_head.convs.0.conv']
    assert row.precision == 'float32'
    assert row.reason.endswith('no range: not called on calibration images')
    assert rows['roi_head.bbox_head.shared_fcs.0'].precision == 'int8'


def test_retinanet():
    """A dense one is quantized, too."""
    torch.manual_seed(0)
    expected = build(DETECTORS['RetinaNet'])
    expected.eval()
    model = copy.deepcopy(expected)
    x = torch.randn(1, 3, 64, 96)
    report = accelerate(model, x, 'int8', [x, torch.randn(2, 3, 64, 64)])
    rows = {row.name: row for row in report.layers}
    assert {name for name, row in rows.items() if row.precision == 'float32'} == {
        'bbox_head.retina_cls', 'bbox_head.retina_reg'}
    assert report.used == ()
    with torch.no_grad():
        features = expected.extract_feat(x)
        assert decibels(model.extract_feat(x), features) > 10
        assert decibels(model.bbox_head(features), expected.bbox_head(features)) > 10


def test_a_wrong_program_is_refused(monkeypatch):
    """Ranges that hold nothing of the values; no calibration gives such."""
    monkeypatch.setattr(calibrate, 'mean_range', lambda rows: (0., 1e-4))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.ReLU()).eval()
    x = torch.randn(1, 3, 16, 16)
    with pytest.raises(RuntimeError, match='Sequential: the signal to noise .* program is wrong'):
        accelerate(model, x, 'int8', [x])
    assert type(model) is nn.Sequential
    assert not is_accelerated(model)

"""Whole detectors in the engines that are compared."""

import argparse

import numpy as np
import pytest
import torch

from maxq_mm.cli import detector_engines, engine_bench, timing
from maxq_mm.cli import engines as engines_of_this_cpu
from maxq_mm.cli.engines import detection_difference, sessions
from maxq_mm.utils.errors import InputError

from ..deploy import small
from ..detectors import zoo

# Boxes, scores and labels of three detections.
FOUND = np.array([[0, 0, 10, 10, 0.9, 1], [5, 5, 20, 20, 0.5, 0], [0, 0, 10, 10, 0.1, 2]],
                 dtype=np.float32)


def images() -> torch.Tensor:
    """Two, of a size that is no multiple of the strides."""
    return torch.randn(2, 3, 66, 90, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope='module')
def engines():
    """Of a Mask R-CNN."""
    model, _ = small.build(small.model_config())
    return detector_engines.detector_engines(model, images(), 1)


def test_all_find_what_the_detector_finds(engines):
    assert engines.keys() == {'torch', *sessions()}
    expected = engines['torch'](images())
    assert [found.shape for found in expected] == [(30, 6)] * 2, 'as many as the config allows'
    for name, engine in engines.items():
        difference = detection_difference(expected, engine(images()))
        assert difference < 1e-3 or 'float32' not in name, (name, difference)
        assert difference > 0 or name == 'torch', name


def test_masks_are_pasted_into_the_image(engines, monkeypatch):
    seen = []
    monkeypatch.setattr(detector_engines, 'detections', seen.extend)
    engines['onnxruntime float32'](images())
    assert [sample.pred_instances.masks.shape for sample in seen] == [(30, 66, 90)] * 2


def test_scores_that_are_alike_stand_in_any_order():
    assert detection_difference([FOUND], [FOUND[[1, 0, 2]]]) == 0


@pytest.mark.parametrize(('row', 'column', 'value', 'expected'), [
    (1, 0, 7, 0.1),  # 2 of 20 pixels
    (0, 4, 0.7, 0.25),  # 0.2 of 0.8
    (0, 5, 0, 1.),
])
def test_difference_by_hand(row, column, value, expected):
    found = FOUND.copy()
    found[row, column] = value
    assert detection_difference([FOUND], [found]) == pytest.approx(expected)


def test_another_number_is_all_the_difference():
    assert detection_difference([FOUND], [FOUND[:2]]) == 1
    assert detection_difference([FOUND[:0]], [FOUND[:0]]) == 0


def test_the_exporter_does_not_take_it():
    model = zoo.build(zoo.DETECTORS['RetinaNet'])
    with pytest.raises(InputError, match=r'RetinaNet cannot be exported as a whole \(not of two '):
        detector_engines.detector_engines(model, torch.randn(1, 3, 64, 64), 1)


def bench(**changes) -> tuple[list[dict], dict]:
    """Rows of a Faster R-CNN, and what else is told."""
    def measure(variants, description, baseline):
        return timing.summarize(timing.alternate(variants, 1, torch.device('cpu')), baseline)

    args = argparse.Namespace(scope='detector', batch=1, size=(66, 90), pattern=['1:4'],
                              precision=['float32'])
    model, _ = small.build(small.model_config(**small.NO_MASKS, **changes))
    return engine_bench.bench_engines(args, lambda: model, measure)


def test_the_table_has_them_beside_accelerated_ones(monkeypatch):
    alone = {'onnxruntime float32': sessions()['onnxruntime float32']}
    monkeypatch.setattr(engines_of_this_cpu, 'sessions', lambda: alone)
    rows, about = bench()
    assert [row['variant'] for row in rows] == ['torch', 'onnxruntime float32', 'maxq_mm 1:4']
    assert all(row['difference'] < 1e-3 for row in rows)
    dense = {row['name'] for row in about['layers']['1:4'] if not row['pattern']}
    assert dense >= {'roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg', 'rpn_head.rpn_cls'}
    assert 'left out' not in engine_bench.show_engines(rows, about)


def test_the_table_says_who_is_left_out():
    rows, about = bench(**{'test_cfg.rcnn.nms': dict(type='soft_nms', iou_threshold=0.5)})
    assert [row['variant'] for row in rows] == ['torch', 'maxq_mm 1:4']
    lines = engine_bench.show_engines(rows, about).splitlines()
    line, = (line for line in lines if 'left out' in line)
    assert line.startswith('  other engines are left out: FasterRCNN cannot be exported as a whole '
                           '(test_cfg.rcnn.nms=')

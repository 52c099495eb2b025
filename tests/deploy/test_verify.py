import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from maxq_mm.deploy.verify import (
    TOLERANCES,
    Differences,
    check_features,
    compare,
    feature_difference,
)

LIMITS = TOLERANCES['float32']
TEST_CFG = ConfigDict(score_thr=0.05, max_per_img=5, nms=dict(type='nms', iou_threshold=0.5))


def found(*rows, masks=None) -> InstanceData:
    """Detections of rows ``(label, score, x1, y1, x2, y2)``."""
    values = torch.tensor(rows, dtype=torch.float).reshape(-1, 6)
    instances = InstanceData(labels=values[:, 0].long(), scores=values[:, 1],
                             bboxes=values[:, 2:])
    if masks is not None:
        instances.masks = masks
    return instances


FIRST = (0, 0.9, 0, 0, 10, 10)
SECOND = (1, 0.8, 20, 0, 30, 10)


def test_pairs_are_found_in_any_order():
    moved = (0, 0.9005, 0, 0.02, 10, 10)
    result = compare(found(FIRST, SECOND), found(SECOND, moved), LIMITS, TEST_CFG)
    assert (result.pairs, result.borderline, result.unexplained) == (2, 0, 0)
    assert result.box == pytest.approx(0.02)
    assert result.score == pytest.approx(5e-4, rel=1e-3)
    result.check(LIMITS)


@pytest.mark.parametrize('other', [
    (1, 0.9, 0, 0, 10, 10), (0, 0.88, 0, 0, 10, 10), (0, 0.9, 0, 0.2, 10, 10)],
    ids=['label', 'score', 'box'])
def test_what_differs_is_no_pair(other):
    result = compare(found(FIRST, SECOND), found(other, SECOND), LIMITS, TEST_CFG)
    assert (result.pairs, result.unexplained) == (1, 2)
    with pytest.raises(ValueError, match='2 of 3 detections have no partner within 0.05 px'):
        result.check(LIMITS)


@pytest.mark.parametrize(('alone', 'all_of_other'), [
    ((0, 0.0505, 50, 0, 60, 10), [FIRST]),  # at the score threshold
    ((0, 0.9, 0, 5 - 1e-3, 10, 15), [FIRST]),  # overlaps the first by a third
    ((0, 0.3, 70, 0, 80, 10), [(0, 0.3, x, 50, x + 9, 59) for x in range(0, 50, 10)]),  # the last
    ((0, 0.7, 0, 10 / 3, 10, 40 / 3), [FIRST]),  # overlaps the first by half
])
def test_borderline(alone, all_of_other):
    expected = found(*all_of_other)
    result = compare(expected, found(*all_of_other, alone), LIMITS, TEST_CFG)
    explained = alone[1] < 0.9
    assert result.pairs == len(all_of_other)
    assert (result.borderline, result.unexplained) == (explained, not explained)
    mirrored = compare(found(*all_of_other, alone), expected, LIMITS, TEST_CFG)
    assert (mirrored.borderline, mirrored.unexplained) == (explained, not explained)


def test_nothing_found_by_either_or_one():
    none = found(masks=torch.zeros(0, 9, 9, dtype=torch.bool))
    assert compare(none, none, LIMITS, TEST_CFG) == Differences()
    one = found(FIRST, masks=torch.ones(1, 9, 9, dtype=torch.bool))
    assert compare(none, one, LIMITS, TEST_CFG).unexplained == 1
    assert compare(one, none, LIMITS, TEST_CFG).unexplained == 1


def test_masks_are_compared_by_their_pixels():
    masks = torch.zeros(1, 10, 10, dtype=torch.bool)
    masks[:, :5] = True
    other = masks.clone()
    other[0, 5, 0] = True
    result = compare(found(FIRST, masks=masks), found(FIRST, masks=other), LIMITS, TEST_CFG)
    assert result.mask_pixels == (1, 51)
    with pytest.raises(ValueError, match='1.96% of the pixels'):
        result.check(LIMITS)
    result.check(TOLERANCES['float16'])


def test_sum_over_images():
    total = Differences(3, 0.01, 1e-4, (1, 100), 1, 0)
    total.add(Differences(4, 0.02, 1e-5, (0, 100), 0, 1))
    assert total == Differences(7, 0.02, 1e-4, (1, 200), 1, 1)
    assert '7 detections in both, boxes within 2.0e-02 px' in str(total)
    assert 'in one only: 2' in str(total)


def test_many_borderline_ones_are_an_error():
    Differences(pairs=80, borderline=8).check(LIMITS)
    with pytest.raises(ValueError, match='20 of 100 detections'):
        Differences(pairs=80, borderline=20).check(LIMITS)


def test_feature_maps():
    maps = [torch.ones(1, 2, 3), 100 * torch.ones(1, 2)]
    assert feature_difference(maps, [m.numpy() for m in maps]) == 0
    other = [maps[0].numpy(), np.full((1, 2), 101., dtype=np.float32)]
    assert feature_difference(maps, other) == pytest.approx(0.01)
    check_features(1e-5, LIMITS)
    for bad in (1e-3, float('nan')):
        with pytest.raises(ValueError, match='feature maps differ by'):
            check_features(bad, LIMITS)

"""What is kept is held to the definition of suppression; where rounding decides, both ways pass."""

import pytest
import torch

from maxq_mm.deploy.suppression import check_best, check_kept
from maxq_mm.utils.errors import InputError

# Two boxes that overlap by 0.6, and one apart from them.
BOXES = torch.tensor([[0., 0., 8., 8.], [0., 2., 8., 10.], [20., 20., 30., 30.]])


def check(kept, scores=(0.9, 0.8, 0.7), most=10, iou=0.5, score=0.1):
    check_kept(BOXES, torch.tensor(scores), torch.tensor(kept, dtype=torch.long), most, iou, score)


@pytest.mark.parametrize('arguments', [
    dict(kept=[0, 2]), dict(kept=[2, 0]), dict(kept=[0, 1, 2], iou=0.6),
    dict(kept=[0, 2], iou=0.6),  # an overlap at the threshold may fall on either side
    dict(kept=[0, 2], scores=(0.8, 0.8, 0.7)), dict(kept=[1, 2], scores=(0.8, 0.8, 0.7)),
    dict(kept=[0], most=1), dict(kept=[0], score=0.7), dict(kept=[], score=0.9)])
def test_right(arguments):
    check(**arguments)


@pytest.mark.parametrize(('arguments', 'complaint'), [
    (dict(kept=[0, 1, 2]), 'keeps two boxes that overlap by 0.600, more than 0.5'),
    (dict(kept=[1, 2]), 'leaves out 1 boxes with scores up to 0.9'),
    (dict(kept=[0]), 'leaves out 1 boxes with scores up to 0.7'),
    (dict(kept=[2], most=1), 'leaves out 2 boxes with scores up to 0.9'),
    (dict(kept=[0, 2], iou=0.61), 'leaves out 1 boxes with scores up to 0.8'),
    (dict(kept=[0, 2], score=0.75), 'keeps a box with score 0.7'),
    (dict(kept=[0, 2], most=1), 'keeps 2 boxes, 2 of them different ones, where it may keep 1'),
    (dict(kept=[0, 0]), 'keeps 2 boxes, 1 of them different ones')])
def test_wrong(arguments, complaint):
    with pytest.raises(InputError, match=complaint):
        check(**arguments)


def test_the_best():
    scores = torch.tensor([0.5, 0.9, 0.5])
    for best in ([1], [1, 0], [2, 1], [0, 1, 2]):  # of equal scores, any
        check_best(BOXES[best], BOXES, scores, len(best))
    for wrong, most, complaint in (([0], 1, 'that are not the best 1'),
                                   ([1, 1], 2, 'that are not the best 2'),
                                   ([1], 2, 'gives 1 boxes of 3, not 2')):
        with pytest.raises(InputError, match=complaint):
            check_best(BOXES[wrong], BOXES, scores, most)

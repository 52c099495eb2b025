import pytest
import torch

from maxq_mm.functional.calibration import is_named, mean_range


def test_the_range_of_a_map_is_the_mean_of_the_images():
    assert mean_range([(-1, 4, 1000), (-3, 8, 1000), (-8, 0, 1000)]) == (-4, 4)


def test_of_few_values_all_must_fit():
    assert mean_range([(-1, 4, 999), (-3, 8, 1000)]) == (-3, 8)


def test_empty_images_do_not_count():
    rows = torch.tensor([[0., 0., 0.], [1., 2., 2000.], [-torch.inf, 1., 0.], [3., 6., 2000.]])
    assert mean_range(rows) == (2, 4)
    assert mean_range(rows[:1]) is None
    assert mean_range([]) is None


@pytest.mark.parametrize(('path', 'found'), [
    ('rpn_head.rpn_cls', True), ('rpn_cls', True), ('head.rpn_cls.weight', True),
    ('head.rpn_cls2', False), ('head.my_rpn_cls', False), ('a.b', True), ('x.a.b.y', True),
    ('a.x.b', False)])
def test_names_are_parts_of_paths(path, found):
    assert is_named(path, ('rpn_cls', 'a.b')) == found

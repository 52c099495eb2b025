import math

import pytest

from maxq_mm import dense_fraction
from maxq_mm.functional.ramp import Ramp

TYPES = ('linear', 'cubic', 'cosine', 'exponential')
GOLDEN_TYPES = dict(linear='linear', cubic='cubic', cos='cosine', exp='exponential')


def test_golden(golden):
    for case in golden.masks:
        fraction = dense_fraction(case['epoch'], case['ramp_start'], case['ramp_end'],
                                  GOLDEN_TYPES[case['schedule']])
        assert fraction == pytest.approx(case['dense_fraction'], abs=1e-12), case


def test_values():
    assert dense_fraction(4, 2, 10, 'linear') == 0.75
    assert dense_fraction(4, 2, 10, 'cubic') == 0.75**3
    assert dense_fraction(4, 2, 10, 'cosine') == pytest.approx(math.cos(math.pi / 8))
    s = [1 - math.exp(-0.05 * k) for k in (2, 7)]
    assert dense_fraction(4, 2, 10, 'exponential') == pytest.approx(1 - s[0] / s[1])


@pytest.mark.parametrize('type', TYPES)
def test_falls_from_one_to_zero(type):
    values = [dense_fraction(step / 4, 3, 9, type) for step in range(50)]
    assert all(value == 1 for value in values[:13])  # up to the begin, at step 12 / 4
    assert all(value == 0 for value in values[36:])
    assert all(a >= b for a, b in zip(values, values[1:], strict=False))


@pytest.mark.parametrize('type', TYPES)
def test_short_ramps(type):
    assert dense_fraction(0, 5, 5, type) == 0  # an empty ramp is no ramp, before it too
    assert dense_fraction(5, 5, 6, type) == 1
    assert dense_fraction(6, 5, 6, type) == 0


@pytest.mark.parametrize(('arguments', 'named'), [
    ((0, 0, 5, 'cos'), 'cos'), ((0, -1, 5), 'begin=-1'), ((0, 5, 4), 'end=4'),
])
def test_bad_arguments(arguments, named):
    with pytest.raises(ValueError, match=named):
        dense_fraction(*arguments)


@pytest.mark.parametrize(('value', 'named'), [
    (dict(type='step'), 'step'), (dict(start=0), 'start'), (dict(begin='0'), "begin.*'0'"),
    (dict(end=None), 'end.*None'), (dict(begin=3, end=2), 'begin=3'), (3, 'got 3'),
    (dict(by_epoch=1), 'by_epoch'),
    (dict(fade=0.5), 'fade.*0.5'), (dict(type=['linear']), 'linear'),
])
def test_bad_config(value, named):
    with pytest.raises(ValueError, match=named):
        Ramp.parse(value)


def test_no_ramp():
    assert [Ramp.parse(None)(step) for step in (0, 1, 100)] == [0, 0, 0]

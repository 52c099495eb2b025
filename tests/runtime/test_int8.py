"""The int8 kernels against integers in float64."""

import pytest

from maxq_mm.runtime.library import library

from .int8_cases import check

needs_int8 = pytest.mark.skipif(library(int8=True) is None, reason='no int8 kernels here')


@needs_int8
@pytest.mark.parametrize('seed', range(3))
def test_any_layer(seed):
    check(seed, 60, 20)

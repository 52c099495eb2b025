import pytest
import torch

from maxq_mm.functional import selection
from maxq_mm.functional.selection import split_smallest


@pytest.mark.parametrize('paths', ['numpy', 'torch'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('kind', ['random', 'ties', 'zeros', 'denormal', 'outlier'])
def test_equals_a_stable_sort(monkeypatch, paths, dtype, kind):
    if paths == 'torch':
        monkeypatch.setattr(selection, '_NUMPY_DTYPES', ())
    values = torch.rand(7, 60, dtype=dtype)
    if kind == 'ties':
        values = (values * 4).round()
    elif kind == 'zeros':
        values.zero_()
    elif kind == 'denormal':
        values *= 1e-41 if dtype is torch.float32 else 1e-310
    elif kind == 'outlier':
        values[:, 3] = 1e30
    for k in (1, 30, 59):
        rest, threshold = split_smallest(values, k)
        ordered, order = values.sort(dim=1, stable=True)
        expected = torch.ones_like(rest).scatter(1, order[:, :k], False)
        assert torch.equal(rest, expected)
        assert torch.equal(threshold, (ordered[:, k - 1:k] + ordered[:, k:k + 1]) / 2)


def test_leaves_its_input_alone():
    values = torch.rand(3, 20)
    before = values.clone()
    split_smallest(values, 5)
    assert torch.equal(values, before)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    values = torch.rand(3, 64).to(dtype)
    rest, _ = split_smallest(values, 48)
    assert rest.sum(dim=1).tolist() == [16, 16, 16]

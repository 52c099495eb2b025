"""2:4 on sparse tensor cores."""

import copy

import pytest
import torch

from maxq_mm import accelerate, fold, sparsify
from maxq_mm.runtime.cusparselt import least_shape
from maxq_mm.runtime.semi_structured import convert

from ..runtime.test_semi_structured import Net, timer


@pytest.fixture
def tensor_cores(gpu) -> torch.device:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip('needs a GPU of compute capability 8.0')
    return gpu


@pytest.fixture
def model():
    model = Net()
    sparsify(model, '2:4')
    return fold(model).eval()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_on_the_gpu(tensor_cores, model, dtype):
    model, x = model.to(tensor_cores, dtype), torch.randn(2, 8, 12, 12).to(tensor_cores, dtype)
    before = model(x)
    measured = accelerate(copy.deepcopy(model), x)
    assert any(row.sparse_ms for row in measured.layers)
    forced = convert(model, (x, ), torch.sparse.to_sparse_semi_structured, timer(faster=True),
                     least=least_shape())
    assert forced.used == ('one', 'strided', 'linear')
    assert torch.allclose(model(x), before, atol=0.05)
    assert model.linear(x.new_zeros(0, 64)).shape == (0, 32)


def test_float32_is_refused(tensor_cores, model):
    with pytest.raises(RuntimeError, match='float16 and bfloat16'):
        accelerate(model.float().to(tensor_cores), torch.randn(2, 8, 12, 12, device=tensor_cores))

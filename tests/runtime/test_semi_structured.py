"""Everything but the kernels: what is chosen, what is computed, and what is refused."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from maxq_mm import fold, sparsify
from maxq_mm.runtime.cusparselt import check_gpu
from maxq_mm.runtime.packed_layers import PackedConv2d, PackedLinear, packed
from maxq_mm.runtime.semi_structured import accelerate_on_gpu, convert


def pack(weight):
    """Torch's compression there and back: fails unless each row has 2:4 along its columns."""
    kept = sparse_semi_structured_to_dense_cutlass(
        *sparse_semi_structured_from_dense_cutlass((weight != 0).bfloat16()))
    return weight * kept.to(weight.dtype)


def timer(faster: bool):
    """Dense takes 2 ms, sparse 1 ms or 3 ms."""
    return lambda calls: (2., 1. if faster else 3.)


class Net(nn.Module):
    """One layer of each kind; the first convolution and ``half`` are called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, 32, 3, padding=1)
        self.one = nn.Conv2d(32, 32, 1)
        self.strided = nn.Conv2d(32, 64, 1, stride=(2, 3), bias=False)
        self.grouped = nn.Conv2d(64, 64, 1, groups=2)
        self.padded = nn.Conv2d(64, 64, 1, padding=1)
        self.linear = nn.Linear(64, 32)
        self.narrow = nn.Linear(32, 6)
        self.unused = nn.Linear(32, 32)

    def forward(self, x):
        x = self.one(self.one(self.stem(x)).relu())
        x = self.padded(self.grouped(self.strided(x)))
        return self.narrow(input=self.linear(x.movedim(1, -1)))


@pytest.fixture
def model():
    model = Net()
    sparsify(model, '2:4')
    return fold(model).eval().bfloat16()


@pytest.fixture
def x():
    return torch.randn(2, 8, 12, 12, dtype=torch.bfloat16)


@pytest.mark.parametrize('stride', [1, 2, (2, 3)])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_convolution_is_a_product(stride, bias, memory_format):
    conv = fold(sparse_of(nn.Conv2d(64, 32, 1, stride=stride, bias=bias)))
    twin = packed(conv, pack)
    assert type(conv) is nn.Conv2d
    assert isinstance(twin, PackedConv2d)
    assert twin.weight.shape == (32, 64)
    assert twin.bias is conv.bias
    assert (twin.stride, twin.kernel_size, twin.in_channels) == (conv.stride, (1, 1), 64)
    for shape in ((3, 64, 7, 10), (1, 64, 1, 1), (0, 64, 5, 5), (64, 7, 10)):
        x = torch.randn(shape)
        if x.dim() == 4:
            x = x.to(memory_format=memory_format)
        result = twin(x)
        assert result.shape == conv(x).shape
        assert torch.allclose(result, conv(x), atol=1e-5)
    assert twin(torch.randn(2, 64, 7, 10)).is_contiguous(memory_format=torch.channels_last)


def test_linear_on_any_rows():
    linear = fold(sparse_of(nn.Linear(64, 32)))
    twin = packed(linear, pack)
    assert isinstance(twin, PackedLinear)
    for x in (torch.randn(64), torch.randn(0, 64), torch.randn(2, 3, 5, 64),
              torch.randn(64, 9).t(), torch.randn(4, 128)[:, ::2], torch.randn(2, 0, 64)):
        assert twin(x).shape == linear(x).shape
        assert torch.allclose(twin(x), linear(x), atol=1e-5)


def sparse_of(layer):
    model = nn.Sequential(layer)
    sparsify(model, '2:4')
    return model[0]


def test_only_faster_layers_are_turned(model, x):
    before = model(x)
    layers = dict(model.named_children())
    result = convert(model, (x, ), pack, timer(faster=True), least=(16, 16))
    assert dict(model.named_children()) == layers
    assert result.used == ('one', 'strided', 'linear')
    assert [type(layers[name]) for name in result.used] == [
        PackedConv2d, PackedConv2d, PackedLinear]
    assert {r.name: r.reason for r in result.layers if not r.used} == {
        'stem': '3x3 kernel, no matrix product', 'grouped': 'grouped (2 groups)',
        'padded': 'padded', 'unused': 'not called',
        'narrow': '6 x 32 channels, no multiples of 16 x 16'}
    assert torch.allclose(model(x), before, atol=0.05)
    assert not any(module._forward_hooks for module in model.modules())

    again = convert(model, (x, ), pack, timer(faster=True), least=(16, 16))
    assert {r.name: r.reason for r in again.layers}['one'] == 'packed already'


def test_slower_layers_stay_dense(model, x):
    before, outputs = copy.deepcopy(model), model(x)
    result = convert(model, (x, ), pack, timer(faster=False))
    assert result.used == ()
    assert {r.reason for r in result.layers} >= {'slower'}
    assert torch.equal(model(x), outputs)
    assert {type(m) for m in model.modules()} == {type(m) for m in before.modules()}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(),
                                                 strict=True))


def test_times_are_those_of_all_calls(model, x):
    """A layer called twice on one shape is measured once and counts twice."""
    timed = []

    def milliseconds(calls):
        timed.append([call() for call in calls])
        return 2., 1.

    result = convert(model, (x, ), pack, milliseconds)
    rows = {row.name: row for row in result.layers}
    assert (rows['one'].dense_ms, rows['one'].sparse_ms) == (4., 2.)
    assert (rows['strided'].dense_ms, rows['strided'].sparse_ms) == (2., 1.)
    assert rows['padded'].dense_ms is None
    assert len(timed) == len(result.used) == 3  # torch packs no 6 rows
    for dense, sparse in timed:
        assert torch.allclose(dense, sparse, atol=0.05)
    assert json.loads(json.dumps(result.as_dict()))['used'] == [
        'one', 'strided', 'linear']
    assert 'strided' in str(result)
    assert '8.000      4.000' in str(result)


def test_a_kernel_that_is_wrong_or_fails_is_not_used(model, x):
    result = convert(model, (x, ), lambda weight: weight.roll(1, 1), timer(faster=True))
    assert result.used == ()
    assert 'outputs differ by' in {r.name: r.reason for r in result.layers}['one']

    def refuse(weight):
        raise RuntimeError('no plan\nfor this size')

    result = convert(model, (x, ), refuse, timer(faster=True))
    assert result.used == ()
    assert {r.name: r.reason for r in result.layers}['one'] == 'the sparse kernel fails: no plan'


def test_what_the_hooks_of_a_layer_do_is_done_once(model, x):
    calls = []
    model.linear.register_forward_pre_hook(lambda module, args: calls.append(1))
    convert(model, (x, ), pack, timer(faster=True))
    assert calls == [1]
    model(x)
    assert calls == [1, 1]


def test_rarer_patterns_and_other_layers():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(2 * x)

    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32), Own(32, 32))
    sparsify(model, '1:16', exclude=('1', ), overrides={'2': '4:8'})
    fold(model).half().eval()
    result = convert(model, (torch.zeros(4, 32).half(), ), pack, timer(faster=True))
    assert result.used == ('0', )
    assert [row.reason for row in result.layers[1:3]] == ['not 2:4', 'not 2:4']
    assert 'in its own way' in result.layers[3].reason
    model.float()
    assert result.layers[0].shape == (32, 32)


def test_layers_that_are_read_without_a_call():
    model = nn.TransformerEncoderLayer(32, 4, dim_feedforward=64, batch_first=True)
    for layer in (model.linear1, model.linear2):
        layer.weight.data[:, ::2] = 0
    model.bfloat16().eval()
    x = torch.randn(2, 5, 32, dtype=torch.bfloat16)
    before = model(x)
    result = convert(model, (x, ), pack, timer(faster=True))
    assert result.used == ()
    assert {row.reason for row in result.layers} == {
        'its TransformerEncoderLayer reads the weight',
        'NonDynamicallyQuantizableLinear computes with its weight in its own way'}
    assert torch.equal(model(x), before)


def test_float32_layers_stay(x):
    model = fold(nn.Sequential(sparse_of(nn.Conv2d(8, 8, 1)))).eval()
    [row] = convert(model, (x.float(), ), pack, timer(faster=True)).layers
    assert row.reason == 'torch.float32 weight'


def test_refusals(model, x, monkeypatch):
    with pytest.raises(ValueError, match='no convolution or linear layer of the model is 2:4'):
        accelerate_on_gpu(Net().eval(), (x, ))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(RuntimeError, match='needs an NVIDIA GPU of compute capability 8.0'):
        accelerate_on_gpu(model, (x, ))


def test_what_a_gpu_must_be(monkeypatch):
    gpu = torch.device('cuda:0')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'T4')
    with pytest.raises(RuntimeError, match=r'got 7.5 \(T4\)'):
        check_gpu(gpu)
    with pytest.raises(RuntimeError, match='the model is on cpu'):
        check_gpu(torch.device('cpu'))
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (8, 6))
    monkeypatch.setattr(torch.backends.cusparselt, 'is_available', lambda: False)
    with pytest.raises(RuntimeError, match='cuSPARSELt'):
        check_gpu(gpu)
    monkeypatch.setattr(torch.backends.cusparselt, 'is_available', lambda: True)
    check_gpu(gpu)

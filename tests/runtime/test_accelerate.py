"""accelerate: same results at any size, in threads and copies; what it refuses and reports."""

import copy
import json
import re
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import maxq_mm
from maxq_mm import accelerate, fold, sparsify
from maxq_mm.functional.masks import satisfies
from maxq_mm.functional.pattern import Pattern
from maxq_mm.runtime import choose, kernels
from maxq_mm.runtime.partition import DENSE, SPARSE, TORCH
from maxq_mm.runtime.patterns import any_pattern, sparsest
from maxq_mm.runtime.program import Program
from maxq_mm.utils.errors import InputError


class Block(nn.Module):
    """A residual block; its first sum is after the batch norm of the other branch."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 2, dilation=2)
        self.bn2 = nn.BatchNorm2d(out, affine=False)
        self.down = nn.Sequential(nn.Conv2d(channels, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += self.down(x)
        return F.relu(y, inplace=True)


class Net(nn.Module):
    """What detectors have: stem, pooling, blocks, a pyramid, a shared head, groups, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, 2, 3)
        self.blocks = nn.ModuleList([Block(32, 32, 1), Block(32, 64, 2)])
        self.lateral = nn.ModuleList([nn.Conv2d(32, 32, 1), nn.Conv2d(64, 32, 1)])
        self.head = nn.Conv2d(32, 32, 3, padding=1)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(4, 32)
        self.last = nn.Conv2d(32, 6, 1)
        self.fc = nn.Linear(32, 16)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        low, high = (lateral(x) for lateral, x in zip(self.lateral, features, strict=True))
        low = low + F.interpolate(high, size=low.shape[2:], mode='nearest')
        heads = [self.last(F.silu(self.norm(self.grouped(F.relu(self.head(x))))))
                 for x in (low, high)]
        pooled = low.mean((2, 3))
        return {'maps': heads, 'scores': F.relu(self.fc(pooled)),
                'tokens': self.fc(high.flatten(2).transpose(1, 2))}


def sparse(model: nn.Module, pattern: str, **options) -> nn.Module:
    """Folded, with batch norms that do something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, -2, 2)
                nn.init.uniform_(module.bias, -1, 1)
    sparsify(model, pattern, **options)
    return fold(model).eval()


@pytest.fixture(scope='module')
def folded():
    torch.manual_seed(0)
    return sparse(Net(), '1:4')


@pytest.fixture(scope='module')
def accelerated(folded):
    model = copy.deepcopy(folded)
    return model, accelerate(model, torch.randn(1, 3, 64, 96))


def leaves(results) -> list[torch.Tensor]:
    return torch.utils._pytree.tree_leaves(results)


@torch.no_grad()
def assert_alike(model, expected, x):
    results, wanted = model(x), expected(x)
    assert torch.utils._pytree.tree_structure(results) == torch.utils._pytree.tree_structure(wanted)
    for a, b in zip(leaves(results), leaves(wanted), strict=True):
        assert a.shape == b.shape
        if b.numel():
            assert float((a - b).abs().max()) <= 1e-4 * float(b.max() - b.min())


@pytest.mark.parametrize('size', [(1, 3, 64, 96), (3, 3, 65, 127), (2, 3, 256, 32), (1, 3, 16, 16),
                                  (0, 3, 64, 64)])
def test_outputs_at_any_size(folded, accelerated, size):
    """Also where a map has one pixel, where the traced graph does not hold."""
    x = torch.randn(size)
    assert_alike(accelerated[0], folded, x)
    assert_alike(accelerated[0], folded, x.to(memory_format=torch.channels_last))


def force(monkeypatch, way):
    """Whatever is measured, one way is the fastest, where it is there."""
    monkeypatch.setattr(choose, '_measure', lambda trials, calls, ways: {
        layer: {w: float(w != way) for w in found} for layer, found in ways.items()})
    monkeypatch.setattr(choose, '_fastest', lambda candidates, calls: candidates[0])


@pytest.mark.parametrize(('way', 'pattern'), [
    (SPARSE, '2:4'), (SPARSE, '1:8'), (SPARSE, '3:16'), (DENSE, '2:4'), (TORCH, '2:4')])
def test_each_way_gives_the_same(monkeypatch, way, pattern):
    """Sums in layers, cuts between programs, each layer by each kernel."""
    model = sparse(Net(), pattern)
    expected = copy.deepcopy(model)
    force(monkeypatch, way)
    report = accelerate(model, torch.randn(2, 3, 64, 64))
    has_kernels = kernels.instruction_set() is not None
    sparse_layers = {name for name, module in expected.named_modules()
                     if isinstance(module, (nn.Conv2d, nn.Linear))
                     and name not in ('stem', 'grouped')}
    assert set(report.used) == (sparse_layers if way == SPARSE and has_kernels else set())
    for size in ((2, 3, 64, 64), (1, 3, 96, 160)):
        assert_alike(model, expected, torch.randn(size))


class Mixture:
    """Takes so many seconds of a clock, one call after another; the last ones for ever."""

    def __init__(self, clock: list[float], *seconds: float) -> None:
        self.clock, self.seconds, self.runs = clock, [*seconds], 0

    def run(self, tensors) -> None:
        self.clock[0] += self.seconds[min(self.runs, len(self.seconds) - 1)]
        self.runs += 1


def test_a_slow_first_run_loses_nothing(monkeypatch):
    clock = [0.]
    monkeypatch.setattr(choose.time, 'perf_counter', lambda: clock[0])
    slow_start, steady, hopeless = (Mixture(clock, 9., 1.), Mixture(clock, 2.), Mixture(clock, 4.))
    mixtures = [(mixture, {number: ''}) for number, mixture in
                enumerate((slow_start, steady, hopeless))]
    assert choose._fastest(mixtures, [None])[0] is slow_start
    assert hopeless.runs == 2, 'it takes part until all are warm'


def test_report(folded, accelerated):
    report = accelerated[1]
    rows = {row.name: row for row in report.layers}
    assert list(rows) == [name for name, module in folded.named_modules()
                          if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert rows['stem'].pattern is None
    assert rows['stem'].reason == 'not N:M'
    assert rows['head'].pattern == '1:4'
    assert rows['head'].shape == (32, 32, 3, 3)
    assert report.traced == ('Net', )
    assert report.untraced == ()
    if kernels.instruction_set() is None:
        assert report.used == ()
    else:
        assert rows['head'].sparse_ms > 0
        assert rows['head'].used == ('head' in report.used)
    assert json.loads(json.dumps(report.as_dict()))['used'] == list(report.used)
    assert 'blocks.1.conv2' in str(report)
    assert 'traced: Net' in str(report)


@pytest.mark.skipif(kernels.instruction_set() is None, reason='no kernels here')
def test_a_layer_has_the_time_of_its_operator(monkeypatch):
    timings = Program.timings

    def by_outputs(*args, **kwargs):
        *operators, rest = timings(*args, **kwargs)
        return [*((name, float(name.split()[1].split('x')[0])) for name, _ in operators), rest]

    monkeypatch.setattr(Program, 'timings', by_outputs)
    model = sparse(nn.Sequential(nn.Conv2d(16, 8, 1), nn.Conv2d(8, 24, 1)), '1:4')
    report = accelerate(model, torch.randn(1, 16, 8, 8))
    assert [row.sparse_ms for row in report.layers] == [8., 24.]


def test_without_kernels_layers_stay_dense(folded, monkeypatch):
    monkeypatch.setattr(kernels, 'refusal', lambda *args: 'no instruction set')
    model = copy.deepcopy(folded)
    report = accelerate(model, torch.randn(1, 3, 64, 64))
    assert report.used == ()
    assert {row.name: row.reason for row in report.layers}['head'] == 'no instruction set'
    assert_alike(model, folded, torch.randn(2, 3, 32, 96))


def test_a_copy_is_its_own(folded, accelerated):
    model = accelerated[0]
    twin = copy.deepcopy(model)
    assert_alike(twin, folded, torch.randn(1, 3, 64, 64))
    programs = [id(step) for part in (model, twin) for step in vars(part)['_compiled'].steps]
    assert len(set(programs)) == len(programs)
    with torch.no_grad():  # its kernels have weights of their own
        for parameter in twin.parameters():
            parameter.zero_()
    assert_alike(model, folded, torch.randn(1, 3, 64, 64))


def test_threads_of_one_process(folded, accelerated):
    """Each with its own memory: nothing that one computes shows in another."""
    images = [torch.randn(1, 3, size, 64) for size in (64, 96, 64, 128)]
    with torch.no_grad():
        expected = [leaves(folded(x)) for x in images]
    off = [float('inf')] * len(images)

    def serve(number):
        with torch.no_grad():
            for _ in range(5):
                results = leaves(accelerated[0](images[number]))
                off[number] = max(float((a - b).abs().max())
                                  for a, b in zip(results, expected[number], strict=True))

    threads = [threading.Thread(target=serve, args=(number, )) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(off) < 1e-3


def test_results_are_not_overwritten(accelerated):
    with torch.no_grad():
        first = leaves(accelerated[0](torch.ones(1, 3, 64, 64)))
        kept = [x.clone() for x in first]
        accelerated[0](torch.randn(1, 3, 64, 64))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_refuses_what_would_be_wrong(folded, accelerated):
    model = accelerated[0]
    for change in (model.train, model.half, model.double,
                   lambda: model.load_state_dict(folded.state_dict())):
        with pytest.raises(InputError, match='accelerated'):
            change()
    with pytest.raises(InputError, match='accelerated already'):
        accelerate(model, torch.randn(1, 3, 64, 64))
    assert not any(module.training for module in model.modules())
    assert model.eval() is model
    assert model.state_dict().keys() == folded.state_dict().keys()
    assert model.to('cpu') is model


class Dynamic(nn.Module):
    """Control flow that depends on values, around a part that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.linear = nn.Linear(16, 16)
        self.unused = nn.Linear(16, 16)

    def forward(self, x):
        x = self.body(x)
        if x.mean() > 10:
            x = -x
        return self.linear(x[0, :, 0][:, x[0, 0, 0] > 0].t())


def test_what_cannot_be_traced_is_replaced_part_by_part():
    model = sparse(Dynamic(), '1:16')
    expected = copy.deepcopy(model)
    report = accelerate(model, torch.randn(1, 16, 12, 12))
    assert report.traced == ('body', 'linear')
    assert [name for name, _ in report.untraced] == ['Dynamic']
    assert {row.name: row.reason for row in report.layers}['unused'] == 'not called'
    for scale in (1, 100):
        assert_alike(model, expected, scale * torch.randn(1, 16, 20, 12))


def refused(model, inputs, match, **options):
    """One clear line, and the model is what it was."""
    before = {name: (type(module), module.training, set(vars(module)))
              for name, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=match) as error:
        accelerate(model, inputs, **options)
    assert '\n' not in str(error.value)
    assert before == {name: (type(module), module.training, set(vars(module)))
                      for name, module in model.named_modules()}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_bad_input(folded):
    x = torch.randn(1, 3, 64, 64)
    refused(folded, x, "precision must be one of float32, int8, got 'int7'", precision='int7')
    refused(folded, [x], 'inputs must be a tensor or the tuple of arguments .* got list')
    refused(folded, x.double(), 'inputs are torch.float64, the weights are torch.float32')
    refused(folded, x.to('meta'), 'inputs are on meta, the model is on cpu')
    refused(Net().eval(), x, 'no convolution or linear layer of the model is N:M')
    refused(copy.deepcopy(folded).train(), x, 'the model is in training mode')
    part = copy.deepcopy(folded)
    part.blocks.train()
    refused(part, x, r'the model \(blocks\) is in training mode')
    raw = Net().eval()
    sparsify(raw, '2:4')
    refused(raw, x, '11 layers are MaxQ layers, such as blocks.0.conv1: fold the model')
    refused(copy.deepcopy(folded).bfloat16(), x.bfloat16(), 'asks for float32 weights')
    odd = nn.Sequential(sparse(nn.Sequential(nn.Linear(21, 8)), '1:7')).eval()
    refused(odd, torch.randn(2, 21), 'no kernel takes the pattern 1:7 of 0.0')
    with pytest.raises(InputError, match='must be a torch.nn.Module, got dict'):
        accelerate({}, x)


def test_a_failing_model_is_unchanged(folded):
    model = copy.deepcopy(folded)
    with pytest.raises(RuntimeError):
        accelerate(model, torch.randn(1, 5, 64, 64))
    assert not any(module._forward_hooks for module in model.modules())
    assert type(model) is Net


@pytest.mark.parametrize(('kept', 'found'), [
    ('1:4', '1:4'), ('2:4', '2:4'), ('1:16', '1:16'), ('1:32', '1:32'), ('3:8', '3:8'),
    ('2:8', '2:8'), ('1:64', '1:32'), ('1:3', '6:16')])
def test_patterns_are_found_by_the_zeros(kept, found):
    weight = torch.randn(24, 192, 3, 3)
    weight *= maxq_mm.keep_mask(weight, kept)
    assert satisfies(weight, found)
    pattern = sparsest(weight)
    assert pattern.n / pattern.m <= Pattern.parse(found).n / Pattern.parse(found).m
    if kept == found:
        assert str(pattern) == found


def test_patterns_of_odd_weights():
    assert sparsest(torch.randn(8, 16)) is None
    assert str(sparsest(torch.zeros(8, 16))) == '1:16'
    assert sparsest(torch.zeros(0, 16)) is None
    assert sparsest(torch.zeros(4, 3, 7, 7)) is None
    assert re.fullmatch('1:3', str(any_pattern(torch.zeros(4, 3, 7, 7))))


class OfNumbers(nn.Module):
    """Takes whole numbers, for which there are no programs; what is in it takes tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 16)
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x):
        return self.body(self.embedding(x))


def test_a_part_of_other_inputs_falls_into_its_children():
    model = sparse(OfNumbers(), '1:4')
    expected = copy.deepcopy(model)
    x = torch.randint(10, (6, 5))
    report = accelerate(model, x)
    assert report.traced == ('body', )
    assert report.untraced == (('OfNumbers', 'takes a torch.int64, not only float32 tensors'), )
    if kernels.instruction_set() is not None:  # layers of tokens are measured, too
        assert all(row.sparse_ms > 0 for row in report.layers)
    assert_alike(model, expected, x)

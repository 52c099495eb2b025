"""Traced graphs as plain values: the same graph again, and nothing else is taken for one."""

import copy

import pytest
import torch
from torch import nn

from maxq_mm.runtime.compiled import Compiled
from maxq_mm.runtime.fuse import fuse, layers_of
from maxq_mm.runtime.graphs import Guards, NotPlain, from_plain, to_plain
from maxq_mm.runtime.partition import TORCH
from maxq_mm.runtime.trace import trace
from maxq_mm.utils.errors import InputError


class Mixed(nn.Module):
    """Sizes in arguments, numbers computed of sizes, settings, two arguments, nested results."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.fc = nn.Linear(8, 3)

    def forward(self, x, rows, scale=None):
        y = self.norm(self.conv(x)).relu()
        z = nn.functional.interpolate(y, size=(y.shape[2] * 3 + 1, y.shape[3]))
        return {'maps': [self.up(y), z, z.flatten(2).mean(2, dtype=torch.float32)],
                'rows': (self.fc(rows) * scale, y.flatten(1).softmax(-1))}


@pytest.fixture(scope='module')
def traced():
    """A model, its arguments, and the trace of it, not fused."""
    torch.manual_seed(0)
    model = Mixed().eval()
    args = torch.randn(2, 4, 9, 12), torch.randn(5, 8), torch.randn(5, 3)
    return model, args, trace(model, model.forward, args[:2], dict(scale=args[2]))


def test_the_same_graph(traced):
    model, args, found = traced
    plain = to_plain(found, model)
    twin = copy.deepcopy(model)
    again = from_plain(copy.deepcopy(plain), twin)
    fused = trace(model, model.forward, args[:2], dict(scale=args[2]))
    fuse(fused)
    assert again.fingerprint == fused.fingerprint
    assert again.stored == plain
    assert again.results == found.results
    assert [node.meta for node in again.graph.nodes] == [node.meta for node in fused.graph.nodes]
    names = dict(twin.named_parameters()) | dict(twin.named_buffers())
    assert again.tensors.keys() == found.tensors.keys()
    assert all(names[key.removeprefix('model.')] is value for key, value in again.tensors.items())
    with torch.no_grad():
        tensors = torch.randn(3, 4, 15, 8), torch.randn(4, 8), torch.randn(4, 3)
        results, expected = (Compiled(one, dict.fromkeys(layers_of(one), TORCH), None).run(tensors)
                             for one in (again, fused))
        assert len(results) == 5
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_guards_say_what_torch_checks(traced):
    model, args, found = traced
    guards = from_plain(to_plain(found, model), model).guards
    assert 'tensors_0.size()[1] == 4' in guards.comparisons

    def holds(check, tensors):
        try:
            check(*tensors)
        except AssertionError:
            return False
        return True

    answers = set()
    for x in ((2, 4, 9, 12), (1, 4, 64, 64), (2, 3, 9, 12), (2, 4, 1, 1), (2, 4, 2, 9)):
        for rows in ((5, 8), (5, 7), (1, 8)):
            tensors = torch.zeros(x), torch.zeros(rows), torch.zeros(rows[0], 3)
            answer = holds(guards, tensors)
            assert answer == holds(found.guards, tensors), (x, rows)
            answers.add(answer)
    assert answers == {True, False}


@pytest.mark.parametrize('comparison', [
    'tensors_0.size()[9] == 1', '__import__("os").getcwd()', 'tensors_0.data_ptr() == 1',
    'tensors_0.size()[0] == "a"', '(lambda: 1)() == 1', 'tensors_0.__class__ == 1', '1 if 1 else 2',
    'other_0.size()[1] == 1', '[1][0] == 1', '1 ==',
    '1 % (7 - tensors_0.size()[0]) == 1'])
def test_other_code_is_no_guard(traced, comparison):
    with pytest.raises(NotPlain):
        Guards.parse([comparison])
    model, _, found = traced
    plain = to_plain(found, model)
    plain['guards'].append(comparison)
    with pytest.raises(InputError, match='its graph is not sound'):
        from_plain(plain, model)


def changed(plain, index, **changes):
    keys = ('name', 'op', 'target', 'args', 'kwargs', 'value')
    row = dict(zip(keys, plain['nodes'][index], strict=True)) | changes
    plain['nodes'][index] = tuple(row[key] for key in keys)


@pytest.mark.parametrize('change', [
    dict(target='aten.from_file.default', args=('/etc/passwd', )),
    dict(target='aten.relu_.default'), dict(target='aten.add.out'), dict(target='aten.relu'),
    dict(target='aten.relu.__class__'), dict(target='os.system', args=('true', )),
    dict(target='operator.methodcaller'), dict(target='prims.add.default'),
    dict(target='aten._ops.default'), dict(op='call_module'),
    dict(op='call_method', target='data_ptr'), dict(args=({'node': 10000}, )),
    dict(args=({'module': 'os'}, )), dict(args=({}, )),
    dict(op='get_attr', target='model.__class__'), dict(name='tensors_0'),
    dict(value=('torch.load', (1, ), None))],
    ids=lambda change: ' '.join(map(str, change.values())))
def test_other_values_are_no_graph(traced, change):
    model, _, found = traced
    plain = to_plain(found, model)
    index = next(i for i, node in enumerate(plain['nodes']) if node[2] == 'aten.relu.default')
    changed(plain, index, **change)
    with pytest.raises(InputError, match='its graph is not sound'):
        from_plain(plain, model)


def test_a_graph_of_another_model(traced):
    model, _, found = traced
    plain = to_plain(found, model)
    with pytest.raises(InputError, match='its graph is not sound'):
        from_plain(plain, nn.Linear(2, 2))
    with pytest.raises(InputError, match='its graph is not sound'):
        from_plain({**plain, 'nodes': plain['nodes'][:-1]}, model)
    with pytest.raises(InputError, match='its graph is not sound'):
        from_plain({**plain, 'results': '[1, {}]'}, model)


class OfConstants(nn.Module):
    def forward(self, x):
        return x + torch.tensor([1., 2., 3.])


class OfOthers(nn.Module):
    def forward(self, x):
        return torch.linalg.vector_norm(x, dim=0).digamma()


@pytest.mark.parametrize('kind', [OfConstants, OfOthers])
def test_what_has_no_plain_form(kind):
    """Constants that the model does not have, operators that are not on the list."""
    model = kind().eval()
    found = trace(model, model.forward, (torch.ones(4, 3), ), {})
    assert to_plain(found, model) is None

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maxq_mm import fold, keep_mask, satisfies, soft_mask, sparsify


class GoldenNet(nn.Module):

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.bn2(self.conv2(x)).relu().mean(dim=(2, 3)))


@pytest.mark.parametrize('run', ['maxq', 'srste'])
def test_golden_run(golden, run):
    settings = golden.runs[run]
    model = GoldenNet().double()
    model.load_state_dict(golden.tensors(f'{run}.init.'), strict=False)
    axes = ('filter', 'kernel') if run == 'maxq' else ()
    ramp = dict(type='linear', begin=settings['ramp_start'], end=settings['ramp_end'])
    pattern = f'{settings["n"]}:{settings["m"]}'
    handle = sparsify(model, pattern, include=('conv1', 'conv2'), ramp=ramp, axes=axes,
                      decay=settings['decay'])
    optimizer = torch.optim.SGD(model.parameters(), lr=settings['lr'],
                                momentum=settings['momentum'],
                                weight_decay=settings['weight_decay'])
    handle.attach(optimizer)
    inputs, labels = golden.tensor(f'{run}.x'), golden.tensor(f'{run}.y')
    losses = []
    for epoch in range(settings['epochs']):
        handle.set_progress(epoch)
        for x, y in zip(inputs[epoch], labels[epoch], strict=True):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses == pytest.approx(golden.tensor(f'{run}.loss').tolist(), rel=0, abs=1e-9)
    state = model.state_dict()
    for name, weight in golden.tensors(f'{run}.final.').items():
        assert torch.allclose(state[name], weight, rtol=0, atol=1e-9), name
    for name, mask in golden.tensors(f'{run}.mask.').items():
        layer = handle.layers[name]
        assert torch.allclose(layer.effective, mask * state[f'{name}.weight'], rtol=0, atol=1e-9)


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1),
                         nn.Flatten(), nn.Linear(256, 8))


def test_turns_layers_in_place(model):
    modules, parameters = list(model), list(model.parameters())
    weights = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 8, 4, 4)
    handle = sparsify(model, '2:4', overrides={'2': '1:4'})
    assert list(model) == modules
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    assert list(handle.layers) == ['0', '2', '4']
    patterns = [str(layer.settings.pattern) for layer in handle.layers.values()]
    assert patterns == ['2:4', '1:4', '2:4']
    masked = copy.deepcopy(model)
    for name, pattern in (('0', '2:4'), ('2', '1:4'), ('4', '2:4')):
        weight = weights[f'{name}.weight']
        layer = masked[int(name)]
        layer.to_dense(layer.effective).weight.data = weight * soft_mask(weight, pattern)
    assert torch.equal(model(x), masked(x))


def test_progress_and_sparsity(model):
    handle = sparsify(model, '1:4', ramp=dict(type='linear', begin=2, end=6))
    for step, fraction in ((0, 1.), (3, 0.75), (6, 0.)):
        handle.set_progress(step)
        assert handle.dense_fraction == fraction
        zeros = sum(int((layer.effective == 0).sum()) for layer in handle.layers.values())
        weights = sum(layer.weight.numel() for layer in handle.layers.values())
        assert handle.sparsity == zeros / weights
    assert handle.sparsity == 0.75
    assert all(satisfies(layer.effective, '1:4') for layer in handle.layers.values())


def test_pruned_weights_fade_out(model):
    """They count less and less, learn as before, and decay once they count no more."""
    handle = sparsify(model, '1:4', ramp=dict(type='linear', begin=2, end=6, fade=True), decay=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.)
    handle.attach(optimizer)
    for step, factor in ((0, 1.), (2, 1.), (3, 0.75), (5, 0.25), (6, 0.)):
        handle.set_progress(step)
        assert handle.dense_fraction == factor
        assert handle.sparsity == (0. if factor else 0.75)
        for layer in handle.layers.values():
            weight = layer.weight.detach().clone()
            keep = keep_mask(weight, '1:4')
            as_dense = weight * soft_mask(weight, '1:4', 1.)
            assert torch.allclose(layer.effective, torch.where(keep, 1., factor) * as_dense)
            assert satisfies(layer.effective, '1:4') == (factor == 0)
            layer._weight_for_forward().sum().backward()
            assert torch.equal(layer.weight.grad, torch.ones_like(weight))
            optimizer.step()
            learned = weight - 1
            assert torch.allclose(layer.weight, learned if factor else torch.where(
                keep, learned, learned - 0.5 * weight))
            optimizer.zero_grad()
            with torch.no_grad():
                layer.weight.copy_(weight)
    fold(model)
    assert all(satisfies(model[place].weight, '1:4') for place in (0, 2, 4))


def test_an_average_of_the_model_follows_its_ramp(model):
    """What a deep copy is evaluated with, and folded to: the mask of the moment."""
    handle = sparsify(model, '2:4', ramp=dict(end=4))
    snapshot = torch.optim.swa_utils.AveragedModel(model)
    average = torch.optim.swa_utils.AveragedModel(model)
    handle.set_progress(1)
    handle.follow(average)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle.attach(optimizer)
    for step in range(1, 5):
        handle.set_progress(step)
        model(torch.randn(2, 8, 4, 4)).square().mean().backward()
        optimizer.step()
        average.update_parameters(model)
        snapshot.update_parameters(model)
        layer, weight = average.module[0], average.module[0].weight
        expected = weight * soft_mask(weight, '2:4', 1 - step / 4)
        assert torch.equal(layer.effective, expected)
        assert snapshot.module[0].dense_fraction == 1  # nobody steers it
    before = average.module[0].effective.clone()
    assert satisfies(before, '2:4')
    fold(average)
    assert torch.equal(average.module[0].weight, before)
    handle.set_progress(0)  # what is folded has no ramp any more
    with pytest.raises(ValueError, match='Sequential has no copies of sparse layers'):
        handle.follow(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match='has no copies'):
        handle.follow(model)


def test_another_ramp_may_end_the_fading(model):
    sparsify(model, '2:4', ramp=dict(end=4, fade=True))
    again = sparsify(model, '2:4', ramp=dict(end=4))
    again.set_progress(2)
    for layer in again.layers.values():
        assert torch.equal(layer.effective, layer.weight * soft_mask(layer.weight, '2:4', 0.5))


def test_decay_pulls_pruned_weights_only(model):
    handle = sparsify(model, '2:4', include=('0', ), decay=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.)
    hooks = handle.attach(optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    pruned = ~keep_mask(before[0], '2:4')
    assert torch.allclose(model[0].weight, before[0] * (1 - 0.1 * pruned.float()))
    assert all(torch.equal(a, b) for a, b in zip(before[1:], list(model.parameters())[1:],
                                                 strict=True))
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    after = model[0].weight.detach().clone()
    optimizer.step()
    assert torch.equal(model[0].weight, after)


def test_decay_uses_the_masks_of_the_forward_pass(model):
    # at dense fraction 1 nothing is pruned, so nothing decays
    handle = sparsify(model, '2:4', ramp=dict(type='linear', begin=5, end=9), decay=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.)
    handle.attach(optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_decay_of_a_shared_parameter_acts_once():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    handle = sparsify(model, '2:4', decay=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.)
    handle.attach(optimizer)
    before = model[0].weight.detach().clone()
    model[0].weight.grad = torch.zeros_like(before)
    optimizer.step()
    assert torch.allclose(model[0].weight, before * (1 - 0.1 * ~keep_mask(before, '2:4')))


@pytest.mark.parametrize('fused', [False, True])
def test_decay_acts_on_unscaled_gradients(model, fused):
    handle = sparsify(model, '2:4', include=('0', ), decay=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1., fused=fused)
    handle.attach(optimizer)
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.)
    before = model[0].weight.detach().clone()
    scaler.scale(model[0].weight.sum() * 0).backward()
    scaler.step(optimizer)
    expected = before * (1 - 0.1 * ~keep_mask(before, '2:4'))
    assert torch.allclose(model[0].weight, expected)
    after = model[0].weight.detach().clone()
    model.zero_grad()
    scaler.update()
    scaler.scale(model[0].weight.sum() * float('inf')).backward()
    scaler.step(optimizer)
    assert torch.equal(model[0].weight, after), 'a skipped step changed the weights'


def test_an_optimizer_that_writes_past_torchs_counters(model):
    class Rude(torch.optim.Optimizer):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group['params']:
                    p.data.mul_(-1)

    handle = sparsify(model, '2:4', order='smallest')
    optimizer = Rude(model.parameters(), {})
    handle.attach(optimizer)
    before = [layer.effective.clone() for layer in handle.layers.values()]
    optimizer.step()
    assert all(torch.equal(-a, layer.effective)
               for a, layer in zip(before, handle.layers.values(), strict=True))


def test_layers_built_sparse_keep_their_settings():
    from maxq_mm import MaxQLinear
    model = nn.Sequential(MaxQLinear(16, 16, pattern='1:8', axes=()), nn.Linear(16, 4))
    handle = sparsify(model, '2:4', ramp=dict(type='linear', begin=0, end=2))
    assert [str(layer.settings.pattern) for layer in handle.layers.values()] == ['1:8', '2:4']
    assert handle.layers['0'].settings.axes == ()
    assert handle.layers['0'].dense_fraction == 1


def test_training_goes_on_after_fold(model):
    handle = sparsify(model, '2:4')
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle.attach(optimizer)
    fold(model)
    model(torch.randn(2, 8, 4, 4)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize(('arguments', 'named'), [
    (dict(decay=-1), 'decay.*-1'), (dict(decay='x'), 'decay'), (dict(decay=float('inf')), 'decay'),
    (dict(fixed=True, ramp=dict(begin=0, end=3)), 'fixed'), (dict(ramp=dict(end=-1)), 'end=-1'),
    (dict(axes=('x', )), 'axes'), (dict(order='x'), 'order'), (dict(pattern='0:4'), '0:4'),
])
def test_bad_arguments_change_nothing(model, arguments, named):
    with pytest.raises(ValueError, match=named):
        sparsify(model, **{'pattern': '2:4', **arguments})
    assert type(model[0]) is nn.Conv2d


def test_a_step_with_a_closure_is_refused():
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsify(model, '2:4').attach(optimizer)
    for call in (lambda: optimizer.step(lambda: None), lambda: optimizer.step(closure=int)):
        with pytest.raises(ValueError, match='closure'):
            call()
    optimizer.step(None)


def test_parameters_added_to_the_optimizer_later_decay():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=1.)
    handle = sparsify(model, '2:4', decay=0.5)
    handle.attach(optimizer)
    optimizer.add_param_group(dict(params=model[1].parameters()))
    before = model[1].weight.detach().clone()
    pruned = model[1].effective == 0
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(model[1].weight, before * (1 - 0.5 * pruned.float()))


def test_a_second_call_is_honoured(model):
    first = sparsify(model, '2:4', ramp=dict(end=4), decay=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.)
    first.attach(optimizer)
    second = sparsify(model, '1:4', include=('0', '4'), decay=0.)
    second.attach(optimizer)
    assert {name: str(model.get_submodule(name).settings.pattern) for name in ('0', '2', '4')} == {
        '0': '1:4', '2': '2:4', '4': '1:4'}
    assert second.skipped == {'2': 'not in include'}
    assert satisfies(model[0].effective, '1:4')
    first.set_progress(0)
    assert [model[i].dense_fraction for i in (0, 2, 4)] == [0., 1., 0.]
    first.set_progress(4)
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    pruned = ~keep_mask(before[2], '2:4')
    assert torch.equal(model[0].weight, before[0]), 'decayed by the handle that lost it'
    assert torch.allclose(model[2].weight, before[2] * (1 - 0.1 * pruned.float()))


def test_a_fixed_mask_is_chosen_anew_for_other_settings(model):
    sparsify(model, '2:4', fixed=True, axes=())
    sparsify(model, '1:4', fixed=True, axes=())
    assert all(satisfies(model[i].weight, '1:4') for i in (0, 2, 4))


def test_a_fixed_mask_is_chosen_anew_by_a_second_call(model):
    settings = dict(pattern='2:4', fixed=True, axes=())
    sparsify(model, **settings)
    with torch.no_grad():
        model[2].weight.normal_()
    weight = model[2].weight.detach().clone()
    sparsify(model, **settings)
    assert torch.equal(model[2].weight, weight * keep_mask(weight, '2:4'))


def test_a_handle_without_layers_says_so(model):
    handle = sparsify(model, '2:4')
    fold(model)
    for call in (lambda: handle.set_progress(1), handle.refresh, lambda: handle.sparsity,
                 lambda: handle.dense_fraction,
                 lambda: handle.attach(torch.optim.SGD(model.parameters(), lr=0.1))):
        with pytest.raises(RuntimeError, match='the model was folded'):
            call()
    handle.invalidate()
    handle.detach()


def test_a_model_folded_in_part_is_steered_in_part(model):
    handle = sparsify(model, '1:4', ramp=dict(end=2))
    fold(model[0])
    handle.set_progress(2)
    assert list(handle.active) == ['2', '4']
    assert handle.sparsity == 0.75


def built(pattern: str = '2:4') -> nn.Module:
    from maxq_mm import MaxQLinear
    return nn.ModuleDict({name: MaxQLinear(32, 32, pattern=pattern) for name in 'abc'})


def test_layers_built_sparse_follow_include_exclude_and_overrides():
    model = built()
    handle = sparsify(model, '1:8', include=('a', 'b'), exclude=('b', ))
    assert list(handle.layers) == ['a']
    assert handle.skipped == {'b': 'in exclude', 'c': 'not in include'}
    assert torch.equal(model['b'].effective, model['b'].weight)
    assert satisfies(model['a'].effective, '2:4'), 'a pattern of its own'
    handle = sparsify(model, '1:8', overrides={'a': '1:4', 'b': None})
    assert handle.skipped == {'b': 'dense by overrides'}
    assert satisfies(model['a'].effective, '1:4')
    assert torch.equal(model['b'].effective, model['b'].weight)
    assert satisfies(model['c'].effective, '2:4')
    assert not satisfies(model['c'].effective, '1:4')


def test_two_handles_share_a_model_of_built_layers():
    model = built()
    first = sparsify(model, '2:4', include=('a', ), ramp=dict(end=2))
    second = sparsify(model, '2:4', include=('b', ))
    assert [list(first.active), list(second.active)] == [['a'], ['b']]
    assert [model[name].is_sparse for name in 'abc'] == [True, True, False]
    assert (first.dense_fraction, second.dense_fraction) == (1., 0.)


@pytest.mark.parametrize('leave', [lambda model: model, copy.deepcopy])
def test_layers_stay_sparse_when_their_handle_is_gone(model, leave):
    sparsify(model, '2:4', include=('0', ))
    gc.collect()
    model = leave(model)
    second = sparsify(model, '1:4', include=('4', ))
    assert second.skipped == {'0': 'not in include', '2': 'not in include'}
    assert satisfies(model[0].effective, '2:4')
    assert satisfies(model[4].effective, '1:4')


def test_decay_goes_on_when_the_handle_is_dropped(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.)
    sparsify(model, '2:4', decay=0.1).attach(optimizer)
    gc.collect()
    before = model[0].weight.detach().clone()
    model[0].weight.grad = torch.zeros_like(before)
    optimizer.step()
    assert torch.allclose(model[0].weight, before * (1 - 0.1 * ~keep_mask(before, '2:4')))


def test_an_optimizer_is_joined_once(model):
    handle = sparsify(model, '2:4', decay=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.)
    hooks = handle.attach(optimizer)
    with pytest.raises(ValueError, match='attached to this SGD already'):
        handle.attach(optimizer)
    handle.attach(torch.optim.SGD(model.parameters(), lr=1.))
    for hook in hooks:
        hook.remove()
    handle.attach(optimizer)
    handle.detach()
    handle.attach(optimizer)
    assert len(optimizer._optimizer_step_pre_hooks) == 1

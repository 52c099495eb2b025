import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import nn

from maxq_mm import MaxQConv2d, MaxQLinear, soft_mask
from maxq_mm.nn.stored import mark_effective

LAYERS = {
    'conv': (lambda **kw: MaxQConv2d(16, 8, 3, padding=1, **kw), (2, 16, 6, 6)),
    'linear': (lambda **kw: MaxQLinear(16, 8, **kw), (2, 16)),
}


def dense_output(layer, x, weight):
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    return F.conv2d(x, weight, layer.bias, padding=1)


@pytest.fixture(params=LAYERS)
def layer_and_input(request):
    make, shape = LAYERS[request.param]
    return make(pattern='2:4'), torch.randn(shape)


@pytest.mark.parametrize('training', [True, False])
def test_forward_uses_the_effective_weight(layer_and_input, training):
    layer, x = layer_and_input
    layer.train(training)
    weight = layer.weight.detach()
    expected = dense_output(layer, x, weight * soft_mask(weight, '2:4'))
    assert torch.equal(layer(x), expected)
    with torch.inference_mode():
        assert torch.equal(layer(x), expected)
    layer.train()(x).sum().backward()  # what inference mode computed does not stand in the way


def test_gradient_passes_straight_through(layer_and_input):
    layer, x = layer_and_input
    weight = layer.weight.detach()
    effective = (weight * soft_mask(weight, '2:4')).requires_grad_()
    dense_output(layer, x, effective).square().sum().backward()
    layer(x).square().sum().backward()
    assert torch.equal(layer.weight.grad, effective.grad)
    assert (layer.weight.grad[layer.effective == 0] != 0).any()


def test_fixed_mask_keeps_its_choice_and_masks_the_gradient(layer_and_input):
    make, _ = LAYERS['linear' if isinstance(layer_and_input[0], nn.Linear) else 'conv']
    layer, x = make(pattern='2:4', fixed=True, axes=()), layer_and_input[1]
    original = layer.weight.detach().clone()
    kept = soft_mask(original, '2:4', axes=()) != 0
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
    assert torch.equal(layer.weight != 0, kept)
    assert torch.equal(layer.effective, layer.weight)
    assert not torch.equal(layer.weight[kept], original[kept])


def test_a_fixed_mask_is_that_of_the_loaded_weights(layer_and_input):
    make, _ = LAYERS['linear' if isinstance(layer_and_input[0], nn.Linear) else 'conv']
    layer, x = make(pattern='2:4', fixed=True, axes=()), layer_and_input[1]
    layer(x)
    weight = torch.randn_like(layer.weight)
    layer.load_state_dict({**layer.state_dict(), 'weight': weight})
    layer(x)
    assert torch.equal(layer.effective, weight * soft_mask(weight, '2:4', axes=()))


def test_a_layer_made_in_inference_mode_follows_its_weight():
    with torch.inference_mode():
        layer = MaxQLinear(8, 8, pattern='2:4')
        layer(torch.zeros(1, 8))
        layer.weight.mul_(2)
        assert torch.equal(layer.effective, layer.weight * soft_mask(layer.weight, '2:4'))


def test_state_dict_is_that_of_a_plain_layer(layer_and_input):
    layer, x = layer_and_input
    layer(x)
    plain = nn.Linear(16, 8) if isinstance(layer, nn.Linear) else nn.Conv2d(16, 8, 3)
    assert list(layer.state_dict()) == list(plain.state_dict())
    assert torch.equal(layer.state_dict()['weight'], layer.weight)
    assert layer.state_dict()['weight'].data_ptr() == layer.weight.data_ptr()
    assert not list(layer.buffers())


def effective_of(layer):
    return layer.weight.detach() * soft_mask(layer.weight, '2:4', layer.dense_fraction)


def test_follows_every_change_of_the_raw_weight(layer_and_input):
    layer, x = layer_and_input
    layer(x)
    before = layer.maxq.effective
    layer(x)
    assert layer.maxq.effective is before, 'computed anew though nothing changed'
    with torch.no_grad():
        layer.weight.mul_(-0.5)
    assert torch.equal(layer.effective, effective_of(layer))
    layer.dense_fraction = 0.5
    assert torch.equal(layer.effective, effective_of(layer))
    layer.load_state_dict({key: value + 1 for key, value in layer.state_dict().items()})
    assert torch.equal(layer.effective, effective_of(layer))
    layer.weight.data = torch.randn_like(layer.weight)
    assert torch.equal(layer.effective, effective_of(layer))
    layer.weight.data.mul_(2)  # torch does not count this one: EMA swaps weights so, between modes
    layer.eval()
    assert torch.equal(layer.effective, effective_of(layer))
    layer.double()
    assert torch.equal(layer.effective, effective_of(layer))


def test_copies_do_not_carry_the_derived_weight(layer_and_input):
    layer, x = layer_and_input
    output = layer(x)
    twin = copy.deepcopy(layer)
    assert twin.maxq.effective is None
    assert torch.equal(twin(x), output)


@pytest.mark.parametrize(('arguments', 'reason'), [
    (dict(in_channels=3), '3 input channels, not divisible by 4'),
    (dict(in_channels=16, groups=4), 'grouped'),
])
def test_shapes_without_a_pattern_stay_dense(arguments, reason):
    layer = MaxQConv2d(out_channels=8, kernel_size=3, pattern='2:4', **arguments)
    x = torch.randn(1, arguments['in_channels'], 5, 5)
    plain = nn.Conv2d(out_channels=8, kernel_size=3, **arguments)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), plain(x))
    assert reason in layer.dense_reason
    assert reason in repr(layer)
    assert layer.zeros == 0


def test_registered():
    assert MODELS.get('MaxQConv2d') is MaxQConv2d
    assert MODELS.get('MaxQLinear') is MaxQLinear


@pytest.mark.parametrize(('arguments', 'named'), [
    (dict(pattern='4:2'), '4:2'), (dict(pattern='2:4', axes=('rows', )), 'rows'),
    (dict(pattern='2:4', order='first'), 'first'), (dict(pattern='2:4', temperature=-1), '-1'),
    (dict(pattern='2:4', fixed=1), 'fixed'),
])
def test_bad_arguments(arguments, named):
    with pytest.raises(ValueError, match=named):
        MaxQLinear(8, 8, **arguments)


def test_a_weight_at_the_address_of_another_is_not_taken_for_it():
    layer = MaxQLinear(64, 64, pattern='2:4', bias=False)
    x = torch.eye(64)
    with torch.no_grad():
        for _ in range(20):  # the allocator gives each the memory of the one before
            weight = layer.weight + torch.randn(64, 64)
            given = torch.func.functional_call(layer, {'weight': weight}, (x, ))
            assert torch.equal(given, layer.apply_mask(weight).T)
            del weight


def test_loading_other_weights_leaves_what_a_layer_holds():
    """A part of a checkpoint, as a head's, does not say what the weights of other layers are."""
    model = nn.Sequential(MaxQLinear(16, 16, pattern='2:4'), nn.Linear(16, 4)).eval()
    stored = model.state_dict()
    stored['0.weight'] = model[0].effective.clone()
    mark_effective(stored)
    model.load_state_dict(stored)
    model.load_state_dict({'1.bias': torch.ones(4)}, strict=False)
    assert torch.equal(model[0].effective, stored['0.weight'])
    model.load_state_dict({'0.weight': stored['0.weight']}, strict=False)
    assert torch.equal(model[0].effective, effective_of(model[0])), 'a raw one, as it says nothing'


def test_loading_other_weights_keeps_a_fixed_mask():
    model = nn.Sequential(MaxQLinear(16, 16, pattern='2:4', fixed=True, axes=()), nn.Linear(16, 4))
    kept = model[0].effective != 0
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(16, 16))
    model.load_state_dict({'1.bias': torch.ones(4)}, strict=False)
    assert torch.equal(model[0].effective != 0, kept)

"""What goes wrong without an error of its own is said."""

import warnings

import pytest
import torch
from torch import nn

from maxq_mm import MaxQLinear, fold, satisfies, sparsify


class Reads(nn.Module):
    """Computes with a layer's weight without calling the layer."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(32, 16, bias=False), nn.Linear(16, 16)

    def forward(self, x):
        return self.last(x @ self.layer.weight.t())


@pytest.mark.parametrize('strict', [False, True])
def test_a_weight_that_is_read_past_its_layer(strict):
    model = Reads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsify(model, '2:4').attach(optimizer, strict=strict)
    before = model.layer.weight.detach().clone()
    model(torch.randn(4, 32)).sum().backward()
    said = 'layer was never called, but its weight has a gradient'
    if strict:
        with pytest.raises(ValueError, match=said):
            optimizer.step()
        assert torch.equal(model.layer.weight, before)
    else:
        with pytest.warns(UserWarning, match=said):
            optimizer.step()


def test_nothing_is_said_of_layers_that_are_called():
    """Shared weights and layers that are never needed included."""
    model = nn.ModuleList([nn.Linear(32, 32) for _ in range(3)])
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsify(model, '2:4').attach(optimizer, strict=True)
    for _ in range(2):
        model[0](torch.randn(4, 32)).sum().backward()
        optimizer.step()


def test_a_forward_of_the_instance_leaves_a_layer_dense():
    """It has the dense forward pass inside, whatever the class becomes."""
    from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing

    model = nn.ModuleDict(dict(a=nn.Linear(32, 32), b=nn.Sequential(nn.Linear(32, 32))))
    turn_on_activation_checkpointing(model, ['a', 'b'])
    handle = sparsify(model, '2:4')
    assert list(handle.layers) == ['b.0']
    assert 'activation_checkpointing' in handle.skipped['a']
    x = torch.randn(4, 32, requires_grad=True)
    output = model['b'](x)
    with torch.no_grad():
        assert torch.equal(output, model['b'][0](x))
        assert satisfies(model['b'][0].effective, '2:4')
    output.sum().backward()
    assert model['b'][0].weight.grad is not None


def test_a_forward_that_wraps_a_sparse_layer_is_masked():
    from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing

    model = nn.ModuleDict(dict(a=MaxQLinear(32, 32, pattern='2:4', bias=False)))
    turn_on_activation_checkpointing(model, ['a'])
    sparsify(model, '2:4')
    x = torch.eye(32, requires_grad=True)
    output = model['a'](x)
    assert satisfies(output.detach().t(), '2:4')
    output.square().sum().backward()
    expected = 2 * (output.detach().t())
    assert torch.allclose(model['a'].weight.grad, expected, atol=1e-6)


@pytest.mark.parametrize(('layer', 'pattern', 'kept'), [
    (nn.Linear(64, 4), '1:16', 4), (nn.Conv2d(16, 4, 1), '1:4', 4), (nn.Linear(64, 4), '1:8', None),
    (nn.Conv2d(16, 4, 3), '1:16', None), (nn.Linear(4, 4), '4:4', None)])
def test_few_weights_for_an_output(layer, pattern, kept):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        sparsify(nn.Sequential(layer), pattern)
    texts = [str(warning.message) for warning in said]
    if kept is None:
        assert texts == []
    else:
        assert len(texts) == 1
        assert ('1 layer keeps fewer than 8 weights for each output, '
                f'at worst {kept} (0, {pattern})') in texts[0]


def test_of_several_layers_with_few_weights_the_worst_is_named():
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 4))
    with pytest.warns(match=r'2 layers keep fewer than 8 .* at worst 2 \(1, 1:16\)'):
        sparsify(model, '1:16')


def test_weights_that_are_sparse_already_are_scaled_again():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        sparsify(model, '2:4')
    fold(model)
    plain = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match='before training.* call unscale'):
        handle = sparsify(model, '2:4')
    x = torch.randn(3, 64)
    once = nn.functional.linear(x, plain['0.weight'], plain['0.bias'])
    assert not torch.allclose(model[0](x), once, rtol=0.1)
    assert handle.unscale(['1']) == ['1']
    assert torch.equal(model[0].weight, plain['0.weight'])
    assert handle.unscale(['0']) == ['0']
    assert torch.allclose(model[0](x), once, rtol=1e-4, atol=1e-6)
    fold(model)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        sparsify(model, '2:4', fixed=True)  # no queries
    fold(model)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        sparsify(model, '2:4', axes=())


def test_training_effective_weights_without_a_handle():
    layer = MaxQLinear(32, 8, pattern='2:4')
    state = layer.state_dict()
    state._metadata['']['maxq'] = 'effective'
    layer.load_state_dict(state)
    layer.eval()(torch.zeros(1, 32))
    with pytest.warns(UserWarning, match='masked a second time'):
        layer.train()(torch.zeros(1, 32))
    layer.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        sparsify(nn.Sequential(layer), '2:4')
        layer(torch.zeros(1, 32))


def test_a_model_that_is_folded_in_part_is_scaled_again():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
    nn.init.zeros_(model[2].weight)
    sparsify(model, '2:4', include=('0', ))
    fold(model)
    with pytest.warns(UserWarning, match='1 of 3 layers, such as 0, satisfy their pattern before'):
        sparsify(model, '2:4')

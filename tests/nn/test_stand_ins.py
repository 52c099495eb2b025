"""Layers that subclass a convolution or a linear layer: sparse as what they are, or left dense."""

import copy

import pytest
import torch
from mmcv.cnn import ConvAWS2d, ConvWS2d
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from mmcv.ops import SAConv2d
from mmcv.ops.deprecated_wrappers import Conv2d_deprecated, Linear_deprecated
from mmdet.models.layers import NormedConv2d, NormedLinear
from torch import nn

from maxq_mm import fold, satisfies, sparsify
from maxq_mm.nn.layers import MaxQLayer
from maxq_mm.nn.stand_ins import sparse_type

from ..reference import reference_soft_mask


class Named(nn.Conv2d):
    """Adds to a convolution what does not touch its forward pass."""

    def doubled(self):
        return 2 * self.weight


class Own(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight + 1, bias)


LAYERS = {
    'plain subclass': lambda: Named(8, 12, 3, padding=1),
    'adaptive padding': lambda: Conv2dAdaptivePadding(8, 12, 3, stride=2),
    'normed conv': lambda: NormedConv2d(8, 12, 3, tempearture=10),
    'normed linear': lambda: NormedLinear(8, 12, tempearture=10),
    'deprecated conv': lambda: Conv2d_deprecated(8, 12, 3),
    'deprecated linear': lambda: Linear_deprecated(8, 12),
}


@pytest.fixture(params=LAYERS)
def dense(request) -> nn.Module:
    torch.manual_seed(0)
    return LAYERS[request.param]()


def batch(layer) -> torch.Tensor:
    return torch.randn(5, 8) if isinstance(layer, nn.Linear) else torch.randn(5, 8, 9, 9)


def assert_close(a, b):
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_forward_backward_and_fold(dense):
    """Against the dense layer given the effective weight, of which the gradient passes on."""
    plain = copy.deepcopy(dense)
    mask = reference_soft_mask(plain.weight.detach(), 2, 4, 0.)
    with torch.no_grad():
        plain.weight.mul_(mask)
    model = nn.Sequential(dense)
    keys = list(model.state_dict())
    sparsify(model, '2:4')
    assert isinstance(dense, (MaxQLayer, type(plain)))
    assert list(model.state_dict()) == keys
    x = batch(plain)
    expected = plain(x)
    assert_close(model(x), expected)
    expected.square().sum().backward()
    model(x).square().sum().backward()
    assert_close(dense.weight.grad, plain.weight.grad)
    assert not satisfies(dense.weight, '2:4'), 'the parameter is the raw weight again'

    again = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
        before = model(x)
        fold(model)
        assert type(model[0]) in (type(plain), *type(plain).__mro__[1:3])
        assert not isinstance(model[0], MaxQLayer)
        assert satisfies(model[0].weight, '2:4')
        assert torch.equal(model(x), before)


def test_its_own_methods_see_the_raw_weight():
    layer = Named(8, 4, 1)
    sparsify(nn.Sequential(layer), '2:4')
    assert torch.equal(layer.doubled(), 2 * dict(layer.named_parameters())['weight'])


def test_an_error_in_forward_leaves_the_parameter_in_place():
    layer = NormedLinear(8, 4)
    sparsify(nn.Sequential(layer), '2:4')
    with pytest.raises(RuntimeError):
        layer(torch.zeros(2, 3))
    assert isinstance(layer.weight, nn.Parameter)


@pytest.mark.parametrize('layer', [
    Own(8, 4, 1), ConvWS2d(8, 4, 1), ConvAWS2d(8, 4, 1), SAConv2d(8, 4, 3, padding=1),
    nn.MultiheadAttention(8, 2).out_proj, nn.LazyLinear(4), nn.Embedding(8, 4),
    nn.ConvTranspose2d(8, 4, 1)], ids=lambda layer: type(layer).__name__)
def test_what_stays_dense(layer):
    """Standardised weights have no zeros; others compute with theirs in ways unknown."""
    assert sparse_type(layer) is None

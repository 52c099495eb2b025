"""Linear layers and 1x1 convolutions as products with a packed 2:4 weight.

A 1x1 convolution is a product of every position's channels with the weight.

Shapes: weight ``(O, I)``, of a convolution ``(O, I, 1, 1)``, with zeros along I; input
``(..., I)``, of a convolution ``(B, I, H, W)``; either is a product of R rows ``(R, I)`` with the
transposed weight.
"""

import copy
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class PackedLinear(nn.Linear):
    """``nn.Linear`` whose ``weight`` is packed; :func:`turn` makes it."""

    def forward(self, x: Tensor) -> Tensor:
        return _product(x, self.weight, self.bias)


class PackedConv2d(nn.Conv2d):
    """1x1 ``nn.Conv2d`` whose ``weight`` is a packed ``(O, I)``; its output is channels-last."""

    def forward(self, x: Tensor) -> Tensor:
        down, right = self.stride
        x = x[..., ::down, ::right].movedim(-3, -1)  # (B, H, W, I): no copy if channels-last
        return _product(x, self.weight, self.bias).movedim(-1, -3)


PACKED_TYPES = {nn.Linear: PackedLinear, nn.Conv2d: PackedConv2d}


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    shape = (*x.shape[:-1], weight.shape[0])
    if x.numel() == 0:  # no regions: the kernels ask for some
        return x.new_zeros(shape)
    return F.linear(x.reshape(-1, x.shape[-1]).contiguous(), weight, bias).view(shape)


def turn(layer: nn.Module, weight: Tensor) -> nn.Module:
    """Give a layer its packed ``weight`` in place, with the forward pass that takes it."""
    kind = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.__class__ = PACKED_TYPES[kind]
    return layer


def packed(layer: nn.Module, pack: Callable[[Tensor], Tensor]) -> nn.Module:
    """A twin of ``layer`` with what ``pack`` makes of its weight, and all else shared."""
    twin = copy.copy(layer)
    twin._parameters = dict(layer._parameters)
    return turn(twin, pack(layer.weight.detach().flatten(1).contiguous()))

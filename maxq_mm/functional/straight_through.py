"""The straight-through estimator that lets a masked weight learn."""

import torch
from torch import Tensor


class StraightThrough(torch.autograd.Function):
    """Use ``effective`` in the forward pass; hand its gradient to ``weight`` unchanged.

    ``weight``, ``effective``: tensors of one shape. Given ``keep``, a bool of that shape, the
    gradient is zeroed where it is False. MaxQ (arXiv 2312.07061) section 3.2.
    """

    @staticmethod
    def forward(ctx, weight: Tensor, effective: Tensor, keep: Tensor | None) -> Tensor:
        ctx.keep = keep
        return effective.view_as(effective)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad if ctx.keep is None else grad * ctx.keep, None, None

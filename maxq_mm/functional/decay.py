"""The pull of pruned weights to zero."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import native
from .batched import CHUNK


@torch.no_grad()
def add_decay_(grad: Tensor, weight: Tensor, effective: Tensor, decay: float,
               scale: Tensor | None = None) -> None:
    """Add decay * weight to ``grad``, in place, wherever ``effective`` is 0.

    All of one shape; ``scale`` is a number that ``grad`` has been multiplied by, if any. SR-STE
    (arXiv 2102.04010), equation 8; a raw weight of 0 that is kept is pulled nowhere, too.
    """
    if scale is None and native.serves_decay(grad, weight, effective):
        native.add_decay_(grad, weight, effective, decay)
        return
    pruned = (effective == 0).to(grad.dtype)
    pull = pruned if scale is None else pruned * scale.to(pruned)
    grad.addcmul_(weight, pull, value=decay)


@torch.no_grad()
def add_decays_(grads: Sequence[Tensor], weights: Sequence[Tensor], effective: Sequence[Tensor],
                decay: float, scale: Tensor | None = None) -> None:
    """:func:`add_decay_` for every layer, on GPUs in few operators.

    These take scratch of the size of a few layers: see :data:`.batched.CHUNK`.
    """
    parts: dict[tuple, list[tuple]] = {}
    sizes: dict[tuple, int] = {}
    for layer in zip(grads, weights, effective, strict=True):
        grad = layer[0]
        if grad.device.type == 'cpu':
            add_decay_(*layer, decay, scale)
            continue
        kind = (grad.device, grad.dtype)
        size = sizes.get(kind, 0)
        sizes[kind] = size + grad.numel()
        parts.setdefault((*kind, size // CHUNK), []).append(layer)
    for part in parts.values():
        _add_decay_together_(*map(list, zip(*part, strict=True)), decay, scale)


def _add_decay_together_(grads: list[Tensor], weights: list[Tensor], effective: list[Tensor],
                         decay: float, scale: Tensor | None) -> None:
    pull = torch._foreach_sign(effective)
    torch._foreach_abs_(pull)  # 1 where kept
    torch._foreach_mul_(pull, weights)
    torch._foreach_sub_(pull, weights)  # minus the pruned weights
    if scale is not None:
        torch._foreach_mul_(pull, scale.to(pull[0]))
    torch._foreach_add_(grads, pull, alpha=-decay)

"""The pull of pruned weights to zero."""

import torch
from torch import Tensor

from . import native


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

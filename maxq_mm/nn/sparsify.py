"""Turn a model's layers sparse in place, and steer them through training."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..functional.decay import add_decays_
from ..functional.masks import AXES
from ..functional.pattern import Pattern
from ..functional.ramp import Ramp
from ..utils.errors import InputError
from .layers import MaskSettings, MaxQLayer
from .refresh import invalidate, refresh
from .select import select
from .types import sparse_type


class SparsityHandle:
    """The sparse layers of one model, and what drives them in training.

    Attributes:
        layers: sparse layer by module name, each once.
        names: sparse layer by every name that the model has for it (shared modules have several).
        skipped: reason by name of each layer left dense.
        ramp: the gradual schedule.
        decay: lambda of SR-STE (arXiv 2102.04010, equation 8), the pull on pruned weights.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], skipped: dict[str, str], ramp: Ramp,
                 decay: float) -> None:
        self.layers = {name: model.get_submodule(name) for name in names}
        sparse = set(self.layers.values())
        self.names = {name: module for name, module in model.named_modules(remove_duplicate=False)
                      if module in sparse}
        self.skipped = skipped
        self.ramp, self.decay = ramp, decay
        for layer in self.layers.values():
            layer.peers = tuple(self.layers.values())
        self.set_progress(0)

    def set_progress(self, step: float) -> None:
        """Move the ramp to an epoch or an iteration, in the unit of its begin and end."""
        fraction = self.ramp(step)
        moved = [layer for layer in self.layers.values() if layer.dense_fraction != fraction]
        for layer in moved:
            layer.dense_fraction = fraction
        invalidate(moved)

    @property
    def dense_fraction(self) -> float:
        """Share of blocks, in [0, 1], that the ramp leaves dense at present."""
        return next(iter(self.layers.values())).dense_fraction

    @property
    def sparsity(self) -> float:
        """Share of the sparse layers' weights, in [0, 1], that the masks prune at present."""
        weights = sum(layer.weight.numel() for layer in self.layers.values())
        return sum(layer.zeros for layer in self.layers.values()) / weights

    def refresh(self) -> None:
        """Compute all effective weights now (layers do it by themselves when they run)."""
        refresh(self.layers.values())

    def invalidate(self) -> None:
        """Raw weights may have changed where torch could not see it (``.data``)."""
        invalidate(layer for layer in self.layers.values()
                   if isinstance(layer, MaxQLayer))  # not folded since

    def attach(self, optimizer: Optimizer) -> tuple[RemovableHandle, RemovableHandle]:
        """Let every step of ``optimizer`` pull the pruned weights to zero.

        decay * weight is added to the gradient of each pruned weight that ``optimizer`` trains,
        inside its ``step``: after unscaling, all-reduce, accumulation and clipping. A step then
        raises ValueError for a closure, whose gradients would come after the decay. Returns the
        handles that take this back.
        """
        for layer in self.layers.values():
            layer.attached = True

        @torch.no_grad()
        def add_decay(_, arguments: tuple, named: dict) -> None:
            if not self.decay:
                return
            # arguments[0] is the optimizer itself
            if any(given is not None for given in (*arguments[1:], named.get('closure'))):
                raise InputError('step(closure) computes gradients after the decay of pruned '
                                 'weights was added: set decay=0 or step without a closure')
            trained = {id(p) for group in optimizer.param_groups for p in group['params']}
            # By parameter, so that one that two layers share decays once.
            layers = {id(layer.weight): layer for layer in self.layers.values()
                      if isinstance(layer, MaxQLayer) and id(layer.weight) in trained}
            # A fused optimizer unscales by itself, inside its step; then the scale is set here.
            scale = getattr(optimizer, 'grad_scale', None)
            pulled = [layer for layer in layers.values() if layer.weight.grad is not None]
            add_decays_([layer.weight.grad for layer in pulled],
                        [layer.weight for layer in pulled],
                        [layer.effective for layer in pulled], self.decay, scale)

        return (optimizer.register_step_pre_hook(add_decay),
                optimizer.register_step_post_hook(lambda *_: self.invalidate()))


def check_training(ramp: Ramp, decay: float, fixed: bool) -> None:
    """Raises InputError for a decay that is no finite number >= 0, or a ramp of a fixed mask."""
    if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < math.inf:
        raise InputError(f'decay must be a number >= 0, got {decay!r}')
    if fixed and ramp.begin != ramp.end:
        raise InputError(f'fixed=True takes no ramp (the mask is chosen once), got {ramp}')


def sparsify(model: nn.Module, pattern: str | Pattern, include: Sequence[str] = (),
             exclude: Sequence[str] = (), overrides: Mapping | None = None,
             ramp: dict | Ramp | None = None, axes: Sequence[str] = AXES,
             temperature: float = 1e-2, decay: float = 2e-4, order: str = 'smallest',
             fixed: bool = False) -> SparsityHandle:
    """Make the chosen layers of ``model`` N:M sparse, in place (MaxQ, arXiv 2312.07061).

    Parameters keep their identity, values and names; from now on the forward pass uses the
    effective weights. See :func:`maxq_mm.nn.select.select` for ``include``, ``exclude`` and
    ``overrides``, :func:`maxq_mm.soft_mask` for ``axes``, ``temperature`` and ``order``,
    :func:`maxq_mm.dense_fraction` for ``ramp`` (``dict(type, begin, end, by_epoch)``), and
    :class:`.layers.MaskSettings` for ``fixed``. Layers built as MaxQ layers keep their settings.

    Raises:
        InputError: a bad argument, named with its value; no layer that can be sparse.
    """
    ramp = Ramp.parse(ramp)
    check_training(ramp, decay, fixed)
    MaskSettings(pattern, axes, temperature, order, fixed)
    selection = select(model, pattern, include, exclude, overrides)
    for name, layer_pattern in selection.sparse.items():
        module = model.get_submodule(name)
        if not isinstance(module, MaxQLayer):
            settings = MaskSettings(layer_pattern, axes, temperature, order, fixed)
            module = sparse_type(module).from_dense(module, settings)
        module.as_stored = False
    for name, reason in selection.skipped.items():
        module = model.get_submodule(name)
        if isinstance(module, MaxQLayer):
            module.dense_reason = reason
    handle = SparsityHandle(model, list(selection.sparse), selection.skipped, ramp, decay)
    handle.refresh()
    return handle

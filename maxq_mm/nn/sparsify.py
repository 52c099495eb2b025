"""Turn a model's layers sparse in place, and steer them through training."""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from weakref import WeakSet, ref

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..functional.decay import add_decays_
from ..functional.masks import AXES, TEMPERATURE
from ..functional.pattern import Pattern
from ..functional.ramp import Ramp
from ..functional.unscale import unscaled
from ..utils.errors import InputError
from .concerns import bypass, few_weights, masked_already, rescaled
from .layers import MaxQLayer
from .refresh import invalidate, refresh
from .select import Selection, select
from .settings import DECAY, ORDER, SparsitySettings
from .stand_ins import sparse_type


class SparsityHandle:
    """The sparse layers of one model, and what drives them in training.

    A layer obeys the handle that made it sparse last, until it is folded. Methods that need layers
    raise RuntimeError when none is left.

    Attributes:
        settings: what the layers were made sparse with.
        layers: sparse layer by module name, each once.
        names: sparse layer by every name that the model has for it (shared modules have several).
        skipped: reason by name of each layer left dense.
    """

    def __init__(self, model: nn.Module, selection: Selection, settings: SparsitySettings) -> None:
        self.settings = settings
        self.layers = {name: model.get_submodule(name) for name in selection.sparse}
        sparse = set(self.layers.values())
        self.names = {name: module for name, module in model.named_modules(remove_duplicate=False)
                      if module in sparse}
        self.skipped = selection.skipped
        self._optimizer_hooks: list[RemovableHandle] = []
        self._copies: WeakSet[MaxQLayer] = WeakSet()
        for layer in sparse:
            layer.maxq.owner, layer.maxq.fade = ref(self), settings.ramp.fade
        self.set_progress(0)

    @property
    def ramp(self) -> Ramp:
        return self.settings.ramp

    @property
    def active(self) -> dict[str, MaxQLayer]:
        """Those of ``layers`` that are still sparse and this handle's."""
        return {name: layer for name, layer in self.layers.items() if isinstance(layer, MaxQLayer)
                and layer.maxq.handle is self}

    def _steered(self) -> dict[str, MaxQLayer]:
        active = self.active
        if not active:
            raise RuntimeError('the handle has no sparse layer left: the model was folded, or made '
                               'sparse anew')
        return active

    def set_progress(self, step: float) -> None:
        """Move the ramp to an epoch or an iteration, in the unit of its begin and end."""
        fraction = self.ramp(step)
        copies = [layer for layer in self._copies if isinstance(layer, MaxQLayer)]
        moved = [layer for layer in (*self._steered().values(), *copies)
                 if layer.dense_fraction != fraction]
        for layer in moved:
            layer.maxq.dense_fraction = fraction
        invalidate(moved)

    def follow(self, copied: nn.Module) -> None:
        """Move the ramp of a deep copy of the model, too, such as an average of it.

        Without this, a copy stays at the dense fraction that it was copied at.

        Raises:
            InputError: ``copied`` has no layer that was copied from a sparse one.
        """
        fraction = self.dense_fraction
        found = [layer for layer in copied.modules() if isinstance(layer, MaxQLayer)
                 and layer.is_sparse and layer.maxq.owner is None]
        if not found:
            raise InputError(f'{type(copied).__name__} has no copies of sparse layers: copy the '
                             'model once it is sparse')
        self._copies.update(found)
        for layer in found:
            layer.dense_fraction = fraction

    @property
    def dense_fraction(self) -> float:
        """Share of blocks, in [0, 1], that the ramp leaves dense at present; of a ramp that
        fades, what pruned weights are multiplied by."""
        return next(iter(self._steered().values())).dense_fraction

    @property
    def sparsity(self) -> float:
        """Share of the sparse layers' weights, in [0, 1], that the masks make zero at present."""
        layers = self._steered().values()
        return sum(layer.zeros for layer in layers) / sum(layer.weight.numel() for layer in layers)

    def refresh(self) -> None:
        """Compute all effective weights now (layers do it by themselves when they run)."""
        refresh(self._steered().values())

    @torch.no_grad()
    def unscale(self, names: Collection[str] | None = None) -> list[str]:
        """Go on from weights that are N:M already, as they are; once, before training.

        Raw weights of layers that satisfy their pattern (of a folded checkpoint, or ASP's) become
        those whose effective weights they were, so that the queries scale nothing at the start.
        Returns the names of these layers; ``names``: of none but these.
        """
        found = []
        for name, layer in masked_already(self._steered()).items():
            if names is not None and name not in names:
                continue
            settings = layer.settings
            raw = unscaled(layer.weight.detach(), settings.pattern, settings.axes,
                           settings.temperature)
            if raw is not None:
                layer.weight.copy_(raw)
                found.append(name)
        return found

    def invalidate(self) -> None:
        """Raw weights may have changed where torch could not see it (``.data``)."""
        # Those that another handle steers by now, too: the optimizer may be attached to this alone.
        invalidate(layer for layer in self.layers.values() if isinstance(layer, MaxQLayer))

    def attach(self, optimizer: Optimizer,
               strict: bool = False) -> tuple[RemovableHandle, RemovableHandle]:
        """Let every step of ``optimizer`` pull the pruned weights to zero.

        decay * weight is added to the gradient of each pruned weight that ``optimizer`` trains,
        inside its ``step``: after unscaling, all-reduce, accumulation and clipping. A step then
        raises InputError for a closure, whose gradients would come after the decay, and warns of a
        layer whose weight has a gradient from past its mask (``strict``: raises InputError).
        Returns the handles that take this back.

        Raises:
            InputError: it is attached to ``optimizer`` already, which would decay twice.
        """
        self._steered()
        if any(hooks is optimizer._optimizer_step_pre_hooks for hooks in self._registered()):
            raise InputError(f'the handle is attached to this {type(optimizer).__name__} already: '
                             'call detach() first')

        @torch.no_grad()
        def add_decay(_, arguments: tuple, named: dict) -> None:
            # arguments[0] is the optimizer itself
            closure = any(given is not None for given in (*arguments[1:], named.get('closure')))
            if closure and self.settings.decay:
                raise InputError('step(closure) computes gradients after the decay of pruned '
                                 'weights was added: set decay=0 or step without a closure')
            bypassed = None if closure else bypass(self.active)
            if bypassed and strict:
                raise InputError(bypassed)
            if bypassed:
                warnings.warn(bypassed, stacklevel=2)
            if not self.settings.decay:
                return
            trained = {id(p) for group in optimizer.param_groups for p in group['params']}
            # By parameter, so that one that two layers share decays once.
            layers = {id(layer.weight): layer for layer in self.active.values()
                      if id(layer.weight) in trained}
            # A fused optimizer unscales by itself, inside its step; then the scale is set here.
            scale = getattr(optimizer, 'grad_scale', None)
            pulled = [layer for layer in layers.values() if layer.weight.grad is not None]
            add_decays_([layer.weight.grad for layer in pulled],
                        [layer.weight for layer in pulled],
                        [layer.effective for layer in pulled], self.settings.decay, scale)

        hooks = (optimizer.register_step_pre_hook(add_decay),
                 optimizer.register_step_post_hook(lambda *_: self.invalidate()))
        self._optimizer_hooks += hooks
        return hooks

    @property
    def attached(self) -> bool:
        """Whether an optimizer tells of its steps (one that is gone makes none unseen)."""
        return any(True for _ in self._registered())

    def _registered(self) -> Iterator[Mapping | None]:
        """Where the hooks are that nobody has removed; None for an optimizer that is gone."""
        for hook in self._optimizer_hooks:
            hooks = hook.hooks_dict_ref()
            if hooks is None or hook.id in hooks:
                yield hooks

    def detach(self) -> None:
        """Leave all optimizers alone again."""
        for hook in self._optimizer_hooks:
            hook.remove()
        self._optimizer_hooks = []


def make_sparse(model: nn.Module, selection: Selection,
                settings: SparsitySettings) -> SparsityHandle:
    """What :func:`sparsify` does with a selection; masks are computed when they are needed."""
    for name, pattern in selection.sparse.items():
        module = model.get_submodule(name)
        if not isinstance(module, MaxQLayer):
            sparse_type(module).from_dense(module, settings.mask(pattern))
        elif module.maxq.built:
            module.renew(replace(module.settings, pattern=pattern))
        else:  # by another call
            module.renew(settings.mask(pattern))
    for name, reason in selection.skipped.items():
        module = model.get_submodule(name)
        # Sparse by its own settings alone; what another call made sparse stays so.
        if isinstance(module, MaxQLayer) and module.maxq.built and module.maxq.owner is None:
            module.maxq.dense_reason = reason
    return SparsityHandle(model, selection, settings)


def sparsify(model: nn.Module, pattern: str | Pattern, include: Sequence[str] = (),
             exclude: Sequence[str] = (), overrides: Mapping | None = None,
             ramp: dict | Ramp | None = None, axes: Sequence[str] = AXES,
             temperature: float = TEMPERATURE, decay: float = DECAY, order: str = ORDER,
             fixed: bool = False, predictors: bool = False) -> SparsityHandle:
    """Make the chosen layers of ``model`` N:M sparse, in place (MaxQ, arXiv 2312.07061).

    Parameters keep their identity, values and names; from now on the forward pass uses the
    effective weights. See :class:`.settings.SparsitySettings` for ``include``, ``exclude``,
    ``overrides``, ``ramp``, ``decay``, ``fixed`` and ``predictors``, and
    :func:`maxq_mm.soft_mask` for ``axes``, ``temperature`` and ``order``. Layers built as MaxQ
    layers keep their settings. A second call makes the layers that it chooses sparse anew; the
    first handle keeps the others.

    Raises:
        InputError: a bad argument, named with its value; no layer that can be sparse.
    """
    settings = SparsitySettings(pattern, axes, temperature, order, fixed, include, exclude,
                                overrides, ramp, decay, predictors)
    handle = make_sparse(model, select(model, settings), settings)
    layers = handle.active
    for concern in (*few_weights(layers), *rescaled(
            masked_already(layers), len(layers), 'call unscale() of the handle first, start from '
            'raw weights (the unfolded checkpoint), or without queries (axes=())')):
        warnings.warn(f'sparsify: {concern}', stacklevel=2)
    handle.refresh()
    return handle

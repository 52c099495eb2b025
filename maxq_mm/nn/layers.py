"""Convolution and linear layers whose forward pass sees the effective weight.

The parameter ``weight`` ``(O, I, *K)`` stays the raw one; the effective weight is derived from it,
kept until the raw weight changes, and is no part of the state dict.
"""

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..functional.masks import AXES, TEMPERATURE, dense_count, keep_mask, mask_weight
from ..functional.pattern import Pattern, laid_out_like
from ..functional.straight_through import StraightThrough
from .refresh import invalidate, refresh
from .settings import ORDER, MaskSettings
from .state import LayerState
from .stored import is_effective


def shape_reason(module: nn.Module, pattern: Pattern) -> str | None:
    """Why a conv or linear layer's shape admits no ``pattern``; None if it does."""
    if getattr(module, 'groups', 1) != 1:
        return f'grouped ({module.groups} groups)'
    channels = module.weight.shape[1]
    if channels % pattern.m:
        return f'{channels} input channels, not divisible by {pattern.m}'
    return None


class MaxQLayer(nn.Module):
    """What the two layers share: the raw weight's mask and when it is computed anew.

    Constructed with the dense layer's arguments and those of :class:`.settings.MaskSettings`. A
    layer whose shape admits no pattern (``dense_reason`` says why) acts as a dense one.
    """

    dense_type: type[nn.Module]
    maxq: LayerState

    def __init__(self, *args, pattern: str, axes: Sequence[str] = AXES,
                 temperature: float = TEMPERATURE, order: str = ORDER, fixed: bool = False,
                 **kwargs) -> None:
        super().__init__(*args, **kwargs)
        settings = MaskSettings(pattern, axes, temperature, order, fixed)
        self.maxq = LayerState(settings, shape_reason(self, settings.pattern), built=True)

    @classmethod
    def from_dense(cls, module: nn.Module, settings: MaskSettings) -> 'MaxQLayer':
        """Turn a dense layer in place: the same module and parameters, with a mask."""
        module.__class__ = cls
        module.maxq = LayerState(settings, shape_reason(module, settings.pattern))
        return module

    def renew(self, settings: MaskSettings) -> None:
        """Be sparse with these settings, and take ``weight`` for the raw one."""
        state = self.maxq
        state.settings, state.keep = settings, None
        state.dense_reason, state.as_stored = None, False
        self.invalidate()

    @torch.no_grad()
    def to_dense(self, weight: Tensor) -> nn.Module:
        """Turn back in place, with this plain ``weight``."""
        self.weight.copy_(weight)
        self.__class__ = self.dense_type
        del self.maxq
        return self

    @property
    def settings(self) -> MaskSettings:
        return self.maxq.settings

    @property
    def dense_reason(self) -> str | None:
        return self.maxq.dense_reason

    @property
    def is_sparse(self) -> bool:
        return self.maxq.dense_reason is None

    @property
    def dense_fraction(self) -> float:
        """Share of blocks, in [0, 1], that are not N:M yet; if they fade, what pruned weights
        are multiplied by."""
        return self.maxq.dense_fraction

    @dense_fraction.setter
    def dense_fraction(self, fraction: float) -> None:
        if fraction != self.maxq.dense_fraction:
            self.maxq.dense_fraction = fraction
            self.invalidate()

    @property
    def attached(self) -> bool:
        """Whether an optimizer tells it of its steps."""
        handle = self.maxq.handle
        return handle is not None and handle.attached

    @property
    def zeros(self) -> int:
        """How many weights the mask makes zero at the present dense fraction."""
        if not self.is_sparse or self.maxq.fade and self.dense_fraction:
            return 0
        n, m = self.settings.pattern
        blocks = self.weight.numel() // m
        dense = 0 if self.settings.fixed else dense_count(self.dense_fraction, blocks)
        return (blocks - dense) * (m - n)

    @torch.no_grad()
    def apply_mask(self, weight: Tensor) -> Tensor:
        """Effective weight of any raw ``weight`` shaped like this layer's, without gradient."""
        if not self.is_sparse:
            return weight.detach()
        settings = self.settings
        if settings.fixed:
            if self.maxq.keep is None:
                self.refresh()
            return laid_out_like(weight, weight.detach() * self.maxq.keep.to(weight.device))
        return mask_weight(weight, settings.pattern, self.dense_fraction, settings.axes,
                           settings.temperature, settings.order, fade=self.maxq.fade)

    @property
    def effective(self) -> Tensor:
        """The effective weight, without gradient; computed anew only if the raw one changed."""
        if not self.is_sparse or self.maxq.as_stored:
            return self.weight.detach()
        if torch.compiler.is_compiling():
            from .compilation import join
            join(self)
        else:
            self.refresh_if_stale()
        return self.maxq.effective

    def refresh_if_stale(self) -> None:
        """Compute the effective weight, unless it is that of the present raw one."""
        if not self._is_current():
            refresh([self, *self._stale_peers()])

    def _stale_peers(self) -> list['MaxQLayer']:
        """What is refreshed along: on GPUs the layers whose forward pass would do it anyway."""
        handle = self.maxq.handle
        if handle is None or self.weight.device.type == 'cpu' or self.weight.is_inference():
            return []
        return [peer for peer in handle.active.values() if peer is not self
                and not (peer.maxq.as_stored or peer.weight.is_inference() or peer._is_current())]

    def _is_current(self) -> bool:
        """Whether the effective weight is that of the present raw one, as far as torch counts."""
        state = self.maxq
        if state.effective is None or state.source is None or self.weight.is_inference():
            return False
        # An alias of the weight it was made of: while it lives, no other has its address.
        alias, version = state.source
        return alias.data_ptr() == self.weight.data_ptr() and version == self.weight._version

    def refresh(self) -> None:
        """Compute the effective weight from the raw one now."""
        if not self.is_sparse:
            return
        state = self.maxq
        # Outside inference mode, so that training can use the result, too.
        with torch.inference_mode(False), torch.no_grad():
            if self.settings.fixed and state.keep is None:
                state.keep = keep_mask(self.weight, self.settings.pattern)
                # Pruned weights stay exactly 0, so that the mask can be found again from them.
                self.weight.mul_(state.keep)
            if state.keep is not None:
                state.keep = state.keep.to(self.weight.device)
            state.effective = None  # never two copies at once
            self.keep_effective(self.apply_mask(self.weight))

    def keep_effective(self, effective: Tensor) -> None:
        """Take ``effective`` for that of the present raw weight."""
        self.maxq.effective = effective
        self.maxq.source = None if self.weight.is_inference() else (
            self.weight.detach(), self.weight._version)

    def invalidate(self) -> None:
        """The raw weight may have changed where torch or compiled code could not see it."""
        invalidate([self])

    def join_compiled(self) -> None:
        """A compiler traces this layer: from now on it refreshes without being called.

        Raises:
            RuntimeError: it is to be trained, and no optimizer would tell it of its steps.
        """
        if self.training and self.weight.requires_grad and not self.attached:
            raise RuntimeError('a MaxQ layer is compiled for training, but its optimizer is not '
                               'attached: call handle.attach(optimizer) first')
        self.maxq.compiled = self.maxq.called = True
        self.refresh_if_stale()

    def train(self, mode: bool = True):
        if mode != self.training:
            self.invalidate()
        return super().train(mode)

    def _weight_for_forward(self) -> Tensor:
        state = self.maxq
        if self.training and state.as_stored:
            state.as_stored = False
            if self.is_sparse:
                warnings.warn(
                    'the weights of a MaxQ layer are effective ones, as a checkpoint holds them, '
                    'and training takes them for raw ones: they are masked a second time. Train '
                    'with MaxQHook, which goes on from the raw weights', stacklevel=3)
        if not self.is_sparse or state.as_stored:
            return self.weight
        if not torch.compiler.is_compiling():
            state.called = True
        effective = self.effective
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return effective
        return StraightThrough.apply(self.weight, effective, state.keep)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if f'{prefix}weight' not in state_dict:
            return
        self.maxq.as_stored = is_effective(local_metadata)
        self.maxq.keep = None  # a fixed mask is that of the loaded weights
        self.invalidate()

    def extra_repr(self) -> str:
        dense = '' if self.is_sparse else f', dense={self.dense_reason!r}'
        return f'{super().extra_repr()}, pattern={self.settings.pattern}{dense}'


@MODELS.register_module()
class MaxQConv2d(MaxQLayer, nn.Conv2d):
    """``nn.Conv2d`` with an N:M weight ``(O, I, Kh, Kw)``; takes the mask's arguments, too.

    Raises:
        InputError: a bad pattern, axis, temperature or order.
    """

    dense_type = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self._weight_for_forward(), self.bias)


@MODELS.register_module()
class MaxQLinear(MaxQLayer, nn.Linear):
    """``nn.Linear`` with an N:M weight ``(O, I)``; takes the mask's arguments, too.

    Raises:
        InputError: a bad pattern, axis, temperature or order.
    """

    dense_type = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight_for_forward(), self.bias)

"""Convolution and linear layers whose forward pass sees the effective weight.

The parameter ``weight`` ``(O, I, *K)`` stays the raw one; the effective weight is derived from it,
kept until the raw weight changes, and is no part of the state dict.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..functional.masks import (
    AXES,
    check_axes,
    check_order,
    check_temperature,
    dense_count,
    effective_weight,
    keep_mask,
)
from ..functional.pattern import Pattern, laid_out_like
from ..functional.straight_through import StraightThrough
from ..utils.errors import InputError
from .refresh import invalidate, refresh

# In the metadata that a state dict carries for each module: which of the two weights it holds.
STORED_KEY, STORED_EFFECTIVE = 'maxq', 'effective'


@dataclass(frozen=True)
class MaskSettings:
    """What a layer's mask is made with; see :func:`maxq_mm.soft_mask`.

    ``fixed``: the keep mask is chosen once, from the weights of that moment, and its gradient is
    masked (ASP, arXiv 2104.08378) instead of straight-through.

    Raises:
        InputError: a bad value, named.
    """

    pattern: Pattern | str
    axes: Sequence[str] = AXES
    temperature: float = 1e-2
    order: str = 'smallest'
    fixed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, 'pattern', Pattern.parse(self.pattern))
        object.__setattr__(self, 'axes', check_axes(self.axes))
        object.__setattr__(self, 'temperature', check_temperature(self.temperature))
        check_order(self.order)
        if not isinstance(self.fixed, bool):
            raise InputError(f'fixed must be True or False, got {self.fixed!r}')

    def as_dict(self) -> dict:
        """Plain values, as they go into a checkpoint."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, 'pattern': str(self.pattern), 'axes': list(self.axes)}


def structural_reason(module: nn.Module, pattern: Pattern) -> str | None:
    """Why a conv or linear layer's shape admits no ``pattern``; None if it does."""
    if getattr(module, 'groups', 1) != 1:
        return f'grouped ({module.groups} groups)'
    channels = module.weight.shape[1]
    if channels % pattern.m:
        return f'{channels} input channels, not divisible by {pattern.m}'
    return None


class MaxQLayer(nn.Module):
    """What the two layers share: the raw weight's mask and when it is computed anew.

    Constructed with the dense layer's arguments and those of :class:`MaskSettings`. A layer whose
    shape admits no pattern (``dense_reason`` says why) acts as a dense one.
    """

    dense_type: type[nn.Module]

    def __init__(self, *args, pattern: str, axes: Sequence[str] = AXES, temperature: float = 1e-2,
                 order: str = 'smallest', fixed: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._init_maxq(MaskSettings(pattern, axes, temperature, order, fixed))

    def _init_maxq(self, settings: MaskSettings) -> None:
        self.settings = settings
        self.dense_reason = structural_reason(self, settings.pattern)
        self.dense_fraction = 0.0
        # True: ``weight`` holds effective values already (a loaded checkpoint), until trained.
        self.as_stored = False
        self._keep: Tensor | None = None
        self._effective: Tensor | None = None
        self._source: tuple | None = None
        # True once torch.compile has traced this layer: compiled code cannot ask whether the raw
        # weight has changed, so that the effective one follows as soon as it is told so.
        self.compiled = False
        # Layers that are refreshed together with this one where that is faster: on GPUs.
        self.peers: Sequence[MaxQLayer] = ()
        # True once an optimizer tells it of its steps.
        self.attached = False

    @classmethod
    def from_dense(cls, module: nn.Module, settings: MaskSettings) -> 'MaxQLayer':
        """Turn a dense layer in place: the same module and parameters, with a mask."""
        module.__class__ = cls
        module._init_maxq(settings)
        return module

    @torch.no_grad()
    def to_dense(self, effective: Tensor) -> nn.Module:
        """Turn back in place, the ``effective`` weight stored as the plain one."""
        self.weight.copy_(effective)
        self.__class__ = self.dense_type
        for name in ('settings', 'dense_reason', 'dense_fraction', 'as_stored', '_keep',
                     '_effective', '_source', 'compiled', 'peers', 'attached'):
            delattr(self, name)
        return self

    @property
    def is_sparse(self) -> bool:
        return self.dense_reason is None

    @property
    def zeros(self) -> int:
        """How many weights the mask prunes at the present dense fraction."""
        if not self.is_sparse:
            return 0
        n, m = self.settings.pattern
        blocks = self.weight.numel() // m
        dense = 0 if self.settings.fixed else dense_count(self.dense_fraction, blocks)
        return (blocks - dense) * (m - n)

    def apply_mask(self, weight: Tensor) -> Tensor:
        """Effective weight of any raw ``weight`` shaped like this layer's, without gradient."""
        if not self.is_sparse:
            return weight.detach()
        settings = self.settings
        if settings.fixed:
            if self._keep is None:
                self.refresh()
            return laid_out_like(weight, weight.detach() * self._keep.to(weight.device))
        return effective_weight(weight, settings.pattern, self.dense_fraction, settings.axes,
                                settings.temperature, settings.order)

    @property
    def effective(self) -> Tensor:
        """The effective weight, without gradient; computed anew only if the raw one changed."""
        if not self.is_sparse or self.as_stored:
            return self.weight.detach()
        if torch.compiler.is_compiling():
            from .compilation import join  # imports torch's compiler, which takes half a second
            join(self)
        else:
            self.refresh_if_stale()
        return self._effective

    def refresh_if_stale(self) -> None:
        """Compute the effective weight, unless it is that of the present raw one."""
        if not self._is_current():
            refresh([self, *self._stale_peers()])

    def _stale_peers(self) -> list['MaxQLayer']:
        """The peers to be refreshed along: on GPUs those whose forward pass would do it anyway."""
        if self.weight.device.type == 'cpu' or self.weight.is_inference():
            return []
        return [peer for peer in self.peers if peer is not self
                and isinstance(peer, MaxQLayer)  # not folded since
                and not (peer.as_stored or peer.weight.is_inference() or peer._is_current())]

    def _is_current(self) -> bool:
        """Whether the effective weight is that of the present raw one, as far as torch counts."""
        if self._effective is None or self._source is None or self.weight.is_inference():
            return False
        # An alias of the weight it was made of: while it lives, no other has its address.
        alias, version, fraction = self._source
        return (alias.data_ptr() == self.weight.data_ptr() and version == self.weight._version
                and fraction == self.dense_fraction)

    def refresh(self) -> None:
        """Compute the effective weight from the raw one now."""
        if not self.is_sparse:
            return
        # Outside inference mode, so that training can use the result, too.
        with torch.inference_mode(False), torch.no_grad():
            if self.settings.fixed and self._keep is None:
                self._keep = keep_mask(self.weight, self.settings.pattern)
                # Pruned weights stay exactly 0, so that the mask can be found again from them.
                self.weight.mul_(self._keep)
            if self._keep is not None:
                self._keep = self._keep.to(self.weight.device)
            self.drop_effective()  # never two copies at once
            self.keep_effective(self.apply_mask(self.weight))

    def drop_effective(self) -> None:
        self._effective = None

    def keep_effective(self, effective: Tensor) -> None:
        """Take ``effective`` for that of the present raw weight."""
        self._effective = effective
        self._source = None if self.weight.is_inference() else (
            self.weight.detach(), self.weight._version, self.dense_fraction)

    def outdate(self) -> None:
        self._source = None

    def invalidate(self) -> None:
        """The raw weight may have changed where torch or compiled code could not see it."""
        invalidate([self])

    def train(self, mode: bool = True):
        if mode != self.training:
            self.invalidate()
        return super().train(mode)

    def _weight_for_forward(self) -> Tensor:
        if self.training:
            self.as_stored = False
        if not self.is_sparse or self.as_stored:
            return self.weight
        effective = self.effective
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return effective
        return StraightThrough.apply(self.weight, effective, self._keep)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        self.as_stored = local_metadata.get(STORED_KEY) == STORED_EFFECTIVE
        self._keep = None  # a fixed mask is that of the loaded weights
        self.invalidate()

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_effective': None, '_source': None, 'peers': ()}

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

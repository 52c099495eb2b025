"""Modules whose computation was replaced for inference, and what they refuse from then on."""

import torch
from torch import nn

from ..utils.errors import InputError


class Accelerated:
    """A mixin of module types: their kernels have copies of the weights, of one type and device."""

    def train(self, mode: bool = True):
        """Raises InputError unless ``mode`` is False."""
        if mode:
            raise InputError('the model is accelerated, for inference alone: train the model that '
                             'it was made of')
        return super().train(mode)

    def _load_from_state_dict(self, *args) -> None:
        raise InputError('the model is accelerated, its kernels have the weights it had then: '
                         'load weights before maxq_mm.accelerate')

    def _apply(self, fn, *args, **kwargs):
        changed = fn(torch.zeros(1))
        if changed.dtype != torch.float32 or changed.device.type != 'cpu':
            raise InputError(f'the model is accelerated for float32 on cpu, not {changed.dtype} on '
                             f'{changed.device}: convert it before maxq_mm.accelerate')
        return super()._apply(fn, *args, **kwargs)


def is_accelerated(model: nn.Module) -> bool:
    """Whether ``model`` or a part of it is."""
    return any(isinstance(module, Accelerated) for module in model.modules())

"""Compute the effective weights of many layers: one by one on CPUs, together on other devices."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from ..functional.batched import chunks, soft_masks

if TYPE_CHECKING:
    from .layers import MaxQLayer


def refresh(layers: Iterable['MaxQLayer']) -> None:
    """Compute the effective weights of ``layers`` from their raw ones now.

    On a GPU, layers alike go through the same operators, so that a refresh takes a few for each.
    """
    together: dict[tuple, list[MaxQLayer]] = {}
    for layer in layers:
        if not layer.is_sparse or layer.settings.fixed or layer.weight.device.type == 'cpu':
            layer.refresh()
        else:
            ramp = layer.dense_fraction, layer.maxq.fade
            together.setdefault((layer.settings, *ramp), []).append(layer)
    for (settings, *ramp), members in together.items():
        for chunk in chunks([layer.weight for layer in members], settings.pattern.m):
            _refresh_chunk([members[index] for index in chunk], settings, *ramp)


def _refresh_chunk(layers: list['MaxQLayer'], settings, fraction: float,
                   fade: bool) -> None:
    for layer in layers:
        layer.maxq.effective = None  # never two copies at once
    # Outside inference mode, so that training can use the result, too.
    with torch.inference_mode(False):
        effective = soft_masks([layer.weight for layer in layers], settings.pattern, fraction,
                               settings.axes, settings.temperature, settings.order,
                               effective=True, fade=fade)
    for layer, weight in zip(layers, effective, strict=True):
        layer.keep_effective(weight)


def invalidate(layers: Iterable['MaxQLayer']) -> None:
    """Raw weights may have changed where torch or compiled code could not see it."""
    layers = list(layers)
    for layer in layers:
        layer.maxq.source = None
    refresh(layer for layer in layers if layer.maxq.compiled)

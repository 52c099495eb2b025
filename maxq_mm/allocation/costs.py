"""What a layer costs at a pattern: kept multiply-accumulates, bytes in a compact file, or time."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..functional.compact import compact_bytes
from ..functional.pattern import Pattern
from ..utils.errors import InputError
from .milliseconds import find_runtime, nanoseconds
from .outputs import Places

KINDS = ('macs', 'bytes', 'ms')
# Images whose predictions are counted: how many regions a head sees depends on the image.
_IMAGES = 8


def check_cost(cost: str) -> str:
    """Raises InputError if ``cost`` is no kind of cost, or none that can be had here."""
    if cost not in KINDS:
        raise InputError(f'cost must be one of {KINDS}, got {cost!r}')
    if cost == 'ms':
        find_runtime()
    return cost


def costs(cost: str, model: nn.Module, images: Sequence[Places],
          candidates: Mapping[str, Sequence[Pattern]]) -> dict[str, list[int]]:
    """Cost of every candidate of every layer, in whole units.

    ``'macs'``: kept multiply-accumulates of an image, the mean over some of ``images``;
    ``'bytes'``: size of the weight in a compact file; ``'ms'``: nanoseconds of the N:M runtime on
    this machine, on the image in which most is detected.

    Raises:
        InputError: an unknown kind of cost, or no runtime here.
    """
    check_cost(cost)
    if cost == 'ms':
        fullest = max(images, key=lambda places: sum(map(torch.numel, places.said.values())))
        return nanoseconds(model, fullest, candidates)
    if cost == 'bytes':
        return {name: [_bytes(model.get_submodule(name).weight, pattern) for pattern in patterns]
                for name, patterns in candidates.items()}
    dense = count_macs(model, images, candidates)
    return {name: [dense[name] * pattern.n // pattern.m for pattern in patterns]
            for name, patterns in candidates.items()}


def _bytes(weight: Tensor, pattern: Pattern) -> int:
    if pattern.is_dense:
        return weight.nbytes
    return min(compact_bytes(weight.shape, pattern, weight.dtype), weight.nbytes)


@torch.no_grad()
def count_macs(model: nn.Module, images: Sequence[Places], names: Sequence[str]) -> dict[str, int]:
    """Dense multiply-accumulates of each layer while ``model`` predicts an image, on average.

    Counted on images and not, as in :func:`maxq_mm.report`, on an empty one, in which nothing is
    detected that a mask head could look at.
    """
    chosen = images[::-(-len(images) // _IMAGES)]
    total = dict.fromkeys(names, 0)
    hooks = []
    for name in names:
        def count(module: nn.Module, _, output: Tensor, name: str = name) -> None:
            total[name] += output.numel() * module.weight[0].numel()

        hooks.append(model.get_submodule(name).register_forward_hook(count))
    try:
        for places in chosen:
            samples = [type(sample)(metainfo=sample.metainfo) for sample in places.samples]
            model.predict(places.inputs, samples, rescale=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: math.ceil(value / len(chosen)) for name, value in total.items()}

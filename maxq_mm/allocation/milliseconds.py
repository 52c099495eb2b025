"""How long each layer takes at each pattern with the N:M runtime of this machine.

Each layer runs by itself on what it sees in one image; variants take turns, so that what slows the
machine slows them alike.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import torch
from torch import Tensor, nn

from ..functional.masks import keep_mask
from ..functional.pattern import Pattern
from ..utils.errors import InputError
from .moments import watching
from .outputs import Places

TURNS = 7


def nanoseconds(model: nn.Module, places: Places, candidates: Mapping[str, Sequence[Pattern]],
                runtime: ModuleType | None = None) -> dict[str, list[int]]:
    """Time of every candidate of every layer in one prediction, the dense ones first.

    Dense is the faster of torch's and the runtime's; a pattern that is slower than that takes as
    long, since the runtime leaves such a layer dense.

    Raises:
        InputError: no runtime, or none for this CPU.
    """
    kernels = runtime or find_runtime()
    layers = {model.get_submodule(name): name for name in candidates}
    seen: dict[str, list[Tensor]] = {name: [] for name in candidates}
    with watching(layers, lambda module, x: seen[layers[module]].append(x)), torch.no_grad():
        samples = [type(sample)(metainfo=sample.metainfo) for sample in places.samples]
        model.predict(places.inputs, samples, rescale=False)
    found = {}
    for module, name in layers.items():
        variants = [module, *(_packed(kernels, module, pattern) for pattern in (
            None, *candidates[name][1:]))]
        times = _alternate([variant for variant in variants if variant], seen[name])
        spent = [next(times) if variant else None for variant in variants]
        dense = min(spent[0], spent[1] or spent[0])
        found[name] = [dense, *(min(dense, value or dense) for value in spent[2:])]
    return {name: found[name] for name in candidates}


def find_runtime() -> ModuleType:
    """The kernels of this machine; InputError without any."""
    try:
        from ..runtime import kernels
    except ImportError as error:
        raise InputError(f"cost='ms' needs the N:M runtime, which cannot be imported ({error}); "
                         "'macs' and 'bytes' need none") from error
    if kernels.instruction_set() is None:
        raise InputError("cost='ms' needs the N:M runtime, which has no kernels for this CPU; "
                         "'macs' and 'bytes' need none")
    return kernels


def _packed(kernels: ModuleType, module: nn.Module,
            pattern: Pattern | None) -> Callable[[Tensor], Tensor] | None:
    """The layer, pruned, as a kernel; None where there is none for it."""
    weight, text = module.weight.detach(), None if pattern is None else str(pattern)
    if pattern is not None:
        weight = torch.where(keep_mask(weight, pattern), weight, 0.)
    settings = {}
    if isinstance(module, nn.Conv2d):
        left, right, top, bottom = module._reversed_padding_repeated_twice
        if left != right or top != bottom or module.padding_mode != 'zeros':
            return None
        settings = dict(stride=module.stride, padding=(top, left), dilation=module.dilation)
    if kernels.refusal(weight, text) is not None:
        return None
    bias = None if module.bias is None else module.bias.detach()
    return kernels.pack(weight, text, bias, **settings)


@torch.no_grad()
def _alternate(variants: Sequence[Callable[[Tensor], Tensor]], inputs: Sequence[Tensor]):
    """Median nanoseconds of each variant on all ``inputs`` together."""
    spent: list[list[int]] = [[] for _ in variants]
    for turn in range(TURNS + 1):
        for number, variant in enumerate(variants):
            start = time.perf_counter_ns()
            for x in inputs:
                variant(x)
            if turn:  # the first warms up
                spent[number].append(time.perf_counter_ns() - start)
    return map(int, map(statistics.median, spent))

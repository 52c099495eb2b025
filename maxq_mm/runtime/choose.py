"""What each layer of a traced part is computed with: the fastest of what was measured."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from ..functional.pattern import Pattern
from . import kernels
from .compiled import Compiled
from .fuse import Layer
from .partition import DENSE, SPARSE, TORCH, Packed
from .trace import Trace

# How often everything is measured, by turns; of the rounds the fastest counts, since what else
# happens on a machine only slows.
ROUNDS = 3
# Repeats within a round, unless one run takes longer than this.
REPEATS, LONG = 3, 0.1


@dataclass(frozen=True)
class Choice:
    """How a layer is computed, and ms of all its calls by each way that was measured."""

    way: str
    pattern: Pattern | None
    refusal: str | None
    times: Mapping[str, float]

    @property
    def dense_ms(self) -> float | None:
        dense = [ms for way, ms in self.times.items() if way != SPARSE]
        return min(dense, default=None)


def layers_of(trace: Trace) -> list[Layer]:
    """The layers of a fused trace, each once, in their order."""
    return list(dict.fromkeys(node.target for node in trace.graph.nodes
                              if isinstance(node.target, Layer)))


def packer(patterns: Mapping[Layer, Pattern]) -> Packed:
    """Gives layers as the kernels read them, each packed once; N:M ones have ``patterns``."""

    @cache
    def packed(layer: Layer, way: str) -> kernels.PackedLayer:
        pattern = str(patterns[layer]) if way == SPARSE else None
        return kernels.pack(layer.weight, pattern, layer.bias, layer.stride, layer.padding,
                            layer.dilation)

    return packed


def possible_ways(layer: Layer, pattern: Pattern | None) -> tuple[list[str], str | None]:
    """How a layer can be computed here, and why not by the N:M kernel, if it is N:M."""
    ways, refusal = [TORCH], None
    if pattern is not None:
        refusal = kernels.refusal(layer.weight, str(pattern), layer.groups)
        if refusal is None:
            ways.append(SPARSE)
    if kernels.refusal(layer.weight, None, layer.groups) is None:
        ways.append(DENSE)
    return ways, refusal


def choose(trace: Trace, calls: Sequence[Sequence[Tensor]], patterns: Mapping[Layer, Pattern]
           ) -> tuple[Compiled, dict[Layer, Choice]]:
    """The compiled part, with what was measured on ``calls``, flat arguments of the part.

    ``patterns`` has the layers that are N:M.
    """
    layers = layers_of(trace)
    packed = packer(patterns)
    ways, refusals = {}, {}
    for layer in layers:
        ways[layer], refusals[layer] = possible_ways(layer, patterns.get(layer))

    def compiled(preference: Sequence[str]) -> Compiled:
        return Compiled(trace, {layer: next(way for way in preference if way in ways[layer])
                                for layer in layers}, packed)

    trials = {SPARSE: compiled((SPARSE, DENSE, TORCH)), DENSE: compiled((DENSE, TORCH)),
              TORCH: compiled((TORCH, ))}
    times = _measure(trials, calls, ways)
    chosen = {layer: min(ways[layer], key=lambda way: times[layer].get(way, float('inf')))
              for layer in layers}
    inside = {layer: min((way for way in ways[layer] if way != TORCH or len(ways[layer]) == 1),
                         key=lambda way: times[layer].get(way, float('inf'))) for layer in layers}
    # Each cut out of a program costs what no single layer shows: so the whole decides.
    plans = [chosen, inside, dict.fromkeys(layers, TORCH)]
    best, plan = _fastest([(Compiled(trace, plan, packed), plan) for plan in plans], calls)
    return best, {layer: Choice(plan[layer], patterns.get(layer), refusals[layer],
                                times[layer]) for layer in layers}


def _measure(trials: Mapping[str, Compiled], calls: Sequence, ways: Mapping
             ) -> dict[Layer, dict[str, float]]:
    times = defaultdict(dict)
    for _ in range(ROUNDS):
        for way, trial in trials.items():
            total = defaultdict(float)
            for tensors in calls:
                start = time.perf_counter()
                trial.run(tensors)
                repeat = 1 if time.perf_counter() - start > LONG else REPEATS
                for layer, ms in trial.milliseconds(tensors, repeat).items():
                    total[layer] += ms
            for layer, ms in total.items():
                if way in ways[layer]:
                    times[layer][way] = min(ms, times[layer].get(way, ms))
    return times


def _fastest(candidates: list[tuple[Compiled, dict]], calls: Sequence) -> tuple[Compiled, dict]:
    unique = [item for i, item in enumerate(candidates)
              if all(item[1] != other[1] for other in candidates[:i])]
    best = [float('inf')] * len(unique)
    if len(unique) > 1:
        for _ in range(ROUNDS + 1):  # the first also warms up
            for i, (compiled, _) in enumerate(unique):
                start = time.perf_counter()
                for tensors in calls:
                    compiled.run(tensors)
                best[i] = min(best[i], time.perf_counter() - start)
    return unique[best.index(min(best))]

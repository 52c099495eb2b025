"""What each layer of a traced part is computed with: the fastest of what was measured."""

import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from torch import Tensor

from ..functional.pattern import Pattern
from . import kernels
from .compiled import Compiled
from .fuse import Layer, layers_of
from .partition import DENSE, DENSE_INT8, INT8, INT8_WAYS, SPARSE, SPARSE_WAYS, TORCH
from .quantization import (
    ChannelQuantization,
    Quantization,
    QuantizedWeight,
    quantize_weight,
)
from .trace import Trace

# How often everything is measured, by turns; of the rounds the fastest counts, since what else
# happens on a machine only slows.
ROUNDS = 3
# Repeats within a round, unless one run takes longer than this.
REPEATS, LONG = 3, 0.1
# Seconds of a way's rounds after which it is not measured again: noise is small against them.
PATIENCE = 1.
# How much slower than the fastest a mixture may be, once warm, to take part in further rounds.
_HOPELESS = 1.5


@dataclass(frozen=True)
class Choice:
    """How a layer is computed, and ms of all its calls by each way that was measured.

    Of an int8 layer, ``scales`` ``(O,)`` are those of its integers, and ``channels`` those of an
    image that it takes.
    """

    way: str
    pattern: Pattern | None
    refusal: str | None
    times: Mapping[str, float]
    scales: Tensor | None = None
    channels: tuple[float, ...] = ()

    def ms(self, *ways: str) -> float | None:
        """The least of ``ways``; None if none of them was measured."""
        return min((self.times[way] for way in ways if way in self.times), default=None)


class Packer:
    """Gives layers as the kernels read them, each packed once; N:M ones have ``patterns``."""

    def __init__(self, patterns: Mapping[Layer, Pattern]) -> None:
        self._patterns = patterns
        self._first: dict[tuple, kernels.PackedLayer] = {}
        self._packed = cache(self._pack)
        self._quantized = cache(self._quantize)

    def __call__(self, layer: Layer, way: str, takes: Quantization | ChannelQuantization | None
                 = None, gives: Quantization | None = None, beside_int8: bool = False
                 ) -> kernels.PackedLayer:
        return self._packed(layer, way, takes, gives, beside_int8)

    def quantized(self, layer: Layer, way: str, takes: Quantization | ChannelQuantization
                  ) -> QuantizedWeight:
        """The weight of an int8 layer in integers."""
        return self._quantized(layer, way, _image(takes))

    def _quantize(self, layer: Layer, way: str, image: ChannelQuantization | None
                  ) -> QuantizedWeight:
        return quantize_weight(layer.weight, self._pattern(layer, way), layer.scales, image)

    def _pattern(self, layer: Layer, way: str) -> str | None:
        return str(self._patterns[layer]) if way in SPARSE_WAYS else None

    def _pack(self, layer: Layer, way: str, takes: Quantization | ChannelQuantization | None,
              gives: Quantization | None, beside_int8: bool) -> kernels.PackedLayer:
        settings = (layer.weight, self._pattern(layer, way), layer.bias, layer.stride,
                    layer.padding, layer.dilation)
        if way not in INT8_WAYS:
            return kernels.pack(*settings, beside_int8=beside_int8)
        found = kernels.pack_int8(*settings, input=takes, output=gives,
                                  quantized=self.quantized(layer, way, takes))
        # The calls of a layer have quantizations of their own, but its weights in common.
        one = self._first.setdefault((layer, way, _image(takes)), found)
        return replace(found, values=one.values, rows=one.rows)


def _image(takes: Quantization | ChannelQuantization | None) -> ChannelQuantization | None:
    return takes if isinstance(takes, ChannelQuantization) else None


def possible_ways(layer: Layer, pattern: Pattern | None, int8: bool
                  ) -> tuple[list[str], str | None]:
    """How a layer can be computed here, and why not by the N:M kernel, if it is N:M.

    ``int8``: whether it may be.
    """
    ways, refusal = [TORCH], None
    if pattern is not None:
        refusal = kernels.refusal(layer.weight, str(pattern), layer.groups)
        if refusal is None:
            ways.append(SPARSE)
        if int8 and kernels.refusal_int8(layer.weight, str(pattern), layer.groups) is None:
            ways.append(INT8)
    if kernels.refusal(layer.weight, None, layer.groups) is None:
        ways.append(DENSE)
    if int8 and kernels.refusal_int8(layer.weight, None, layer.groups) is None:
        ways.append(DENSE_INT8)
    return ways, refusal


def choose(trace: Trace, calls: Sequence[Sequence[Tensor]], patterns: Mapping[Layer, Pattern],
           int8: Collection[Layer] = ()) -> tuple[Compiled, dict[Layer, Choice]]:
    """The compiled part, with what was measured on ``calls``, flat arguments of the part.

    ``patterns`` has the layers that are N:M, ``int8`` those that may be int8.
    """
    layers = layers_of(trace)
    packed = Packer(patterns)
    ways, refusals = {}, {}
    for layer in layers:
        ways[layer], refusals[layer] = possible_ways(layer, patterns.get(layer), layer in int8)

    def compiled(*preference: str) -> Compiled:
        return Compiled(trace, {layer: next(way for way in preference if way in ways[layer])
                                for layer in layers}, packed)

    trials = {SPARSE: compiled(SPARSE, DENSE, TORCH), DENSE: compiled(DENSE, TORCH),
              TORCH: compiled(TORCH)}
    if any({*INT8_WAYS} & {*found} for found in ways.values()):
        trials[INT8] = compiled(INT8, DENSE_INT8, SPARSE, DENSE, TORCH)
        trials[DENSE_INT8] = compiled(DENSE_INT8, SPARSE, DENSE, TORCH)
    times = _measure(trials, calls, ways)

    def fastest(without: Collection[str] = (), first: Collection[str] = ()) -> dict[Layer, str]:
        """Layer by layer, of the ways it has but for ``without``, one of ``first`` if it has it."""
        def rank(layer, way):
            return way in without, way not in first, times[layer].get(way, float('inf'))
        return {layer: min(ways[layer], key=lambda way: rank(layer, way)) for layer in layers}

    # Each cut out of a program and each change between bytes and float32 cost what no single layer
    # shows: so the whole decides.
    plans = [fastest(), fastest((TORCH, )), fastest(INT8_WAYS), fastest((TORCH, *INT8_WAYS)),
             fastest((TORCH, ), INT8_WAYS), dict.fromkeys(layers, TORCH)]
    best, plan = _fastest([(Compiled(trace, plan, packed), plan) for plan in plans], calls)
    takes = {node.target: trace.quantizations.get(node.args[0].name) for node in trace.graph.nodes
             if isinstance(node.target, Layer)}

    def choice(layer: Layer, way: str) -> Choice:
        found = Choice(way, patterns.get(layer), refusals[layer], times[layer])
        if way not in INT8_WAYS:
            return found
        image = _image(takes[layer])
        return replace(found, scales=packed.quantized(layer, way, takes[layer]).scales,
                       channels=image.scales if image else ())

    return best, {layer: choice(layer, way) for layer, way in plan.items()}


def _measure(trials: Mapping[str, Compiled], calls: Sequence, ways: Mapping
             ) -> dict[Layer, dict[str, float]]:
    times = defaultdict(dict)
    spent = dict.fromkeys(trials, 0.)
    for _ in range(ROUNDS):
        for way, trial in trials.items():
            if spent[way] > PATIENCE:
                continue
            begin = time.perf_counter()
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
            spent[way] += time.perf_counter() - begin
    return times


def _fastest(candidates: list[tuple[Compiled, dict]], calls: Sequence) -> tuple[Compiled, dict]:
    unique = [item for i, item in enumerate(candidates)
              if all(item[1] != other[1] for other in candidates[:i])]
    best = [float('inf')] * len(unique)
    if len(unique) > 1:
        # The first run of a mixture says little of the others: it may take seconds until the system
        # has handed out the memory that it needs.
        for turn in range(ROUNDS + 1):
            bar = _HOPELESS * min(best) if turn > 1 else float('inf')
            for i, (compiled, _) in enumerate(unique):
                if best[i] > bar:
                    continue
                start = time.perf_counter()
                for tensors in calls:
                    compiled.run(tensors)
                best[i] = min(best[i], time.perf_counter() - start)
    return unique[best.index(min(best))]

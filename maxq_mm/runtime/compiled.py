"""A traced part of a model, ready to run: programs of the kernels, and torch's operators."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from .fuse import Layer, constant
from .lower import Packed, lower
from .partition import TORCH, Choices, phases
from .program import Program
from .trace import Trace


@dataclass(frozen=True)
class _Ref:
    """A value of the run, by its place."""

    index: int


@dataclass(frozen=True)
class _ProgramStep:
    program: Program
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    layers: tuple[Layer | None, ...]  # that the program's operators are
    memory_format: torch.memory_format = torch.contiguous_format  # of its results

    def __call__(self, values: list) -> None:
        results = self.program(*(values[index] for index in self.inputs),
                               memory_format=self.memory_format)
        for index, result in zip(self.outputs, results, strict=True):
            values[index] = result

    def milliseconds(self, values: list, repeat: int) -> list[tuple[Layer, float]]:
        timings = self.program.timings(*(values[index] for index in self.inputs), repeats=repeat)
        *operators, _ = timings  # the last is what inputs and outputs take
        return [(layer, ms) for layer, (_, ms) in zip(self.layers, operators, strict=True)
                if layer is not None]


@dataclass(frozen=True)
class _OperatorStep:
    target: Callable
    args: tuple
    kwargs: dict
    outputs: tuple[int]
    layer: Layer | None  # that the operator is

    def __call__(self, values: list) -> None:
        index, = self.outputs
        values[index] = self._call(values)

    def _call(self, values: list):
        return self.target(*_filled(self.args, values), **_filled(self.kwargs, values))

    def milliseconds(self, values: list, repeat: int) -> list[tuple[Layer, float]]:
        """Of a layer: its time and that of copying what goes in and out, as programs ask for."""
        if self.layer is None:
            return []
        x = values[self.args[0].index]
        times = []
        for _ in range(repeat):
            start = time.perf_counter()
            result = self._call(values)
            times.append(time.perf_counter() - start)
        start = time.perf_counter()
        if self.target is self.layer:  # a packed one, alone, copies by itself
            x.clone(), result.clone()
        copies = time.perf_counter() - start
        return [(self.layer, 1e3 * (statistics.median(times) + copies))]


def _filled(template, values: list):
    if isinstance(template, _Ref):
        return values[template.index]
    if isinstance(template, list | tuple):
        return type(template)(_filled(item, values) for item in template)
    if isinstance(template, dict):
        return {key: _filled(item, values) for key, item in template.items()}
    return template


class Compiled:
    """Computes what a traced part does; any number of threads may call it at once.

    It takes the flat arguments of the part and returns what the part does.
    """

    def __init__(self, trace: Trace, choices: Choices, packed: Packed) -> None:
        self.guards = trace.guards
        self.results = trace.results
        self._known: dict[tuple, bool] = {}  # whether the guards hold, by sizes
        graph = trace.graph
        places = {node: place for place, node in enumerate(graph.nodes)}
        self.size = len(places)
        self.inputs = [places[node] for node in graph.nodes if node.op == 'placeholder']
        output, = (node for node in graph.nodes if node.op == 'output')
        self.outputs = [places[node] for node in output.args[0]]
        self.steps = _steps(trace, choices, packed, places)
        self.done = _last_uses(self.steps, places, {*self.outputs})

    def __call__(self, tensors: Sequence[Tensor]):
        return pytree.tree_unflatten(self.run(tensors), self.results)

    def make_channels_last(self) -> None:
        """Have what its programs make lie with the channels of a pixel side by side.

        Only for readers that ask for strides: mmcv's operators on CPUs do not.
        """
        self.steps = [replace(step, memory_format=torch.channels_last)
                      if isinstance(step, _ProgramStep) else step for step in self.steps]

    def holds(self, tensors: Sequence) -> bool:
        """Whether the traced graph is what the part computes of these tensors."""
        if len(tensors) != len(self.inputs) or not all(
                isinstance(x, Tensor) and x.dtype == torch.float32 for x in tensors):
            return False
        key = tuple(x.shape for x in tensors)
        if key not in self._known:
            try:
                self.guards(*tensors)
                self._known[key] = True
            except AssertionError:
                self._known[key] = False
        return self._known[key]

    @torch.no_grad()
    def run(self, tensors: Sequence[Tensor],
            watch: Callable[[int, object], None] | None = None) -> list[Tensor]:
        """From the flat arguments to the flat results.

        ``watch`` is called with each value that is made and the place of its node in the graph.
        """
        values = self._start(tensors)
        for step, done in zip(self.steps, self.done, strict=True):
            step(values)
            for index in step.outputs if watch is not None else ():
                watch(index, values[index])
            for index in done:
                values[index] = None
        return [values[index] for index in self.outputs]

    @torch.no_grad()
    def milliseconds(self, tensors: Sequence[Tensor], repeat: int) -> dict[Layer, float]:
        """The time of each layer, all its calls together, medians of ``repeat``."""
        values = self._start(tensors)
        total = defaultdict(float)
        for step in self.steps:
            step(values)
            for layer, ms in step.milliseconds(values, repeat):
                total[layer] += ms
        return dict(total)

    def _start(self, tensors: Sequence[Tensor]) -> list:
        values = [None] * self.size
        for index, x in zip(self.inputs, tensors, strict=True):
            values[index] = x
        return values


def _steps(trace: Trace, choices: Choices, packed: Packed, places: dict) -> list:
    graph = trace.graph
    phase, inside = phases(graph, choices)
    steps = []

    def template(argument):
        def of(node):
            tensor = constant(node, trace)
            return _Ref(places[node]) if tensor is None else tensor
        return fx.node.map_arg(argument, of)

    for number in range(max(phase.values(), default=0) + 1):
        here = [node for node in graph.nodes
                if phase[node] == number and node.op == 'call_function']
        members = [node for node in here if node in inside]
        if members:
            needed = {node for node in members
                      if any(user not in inside or phase[user] != number for user in node.users)}
            lowered = lower(members, choices, packed, needed, trace.quantizations)
            steps.append(_ProgramStep(lowered.program,
                                      tuple(places[node] for node in lowered.inputs),
                                      tuple(places[node] for node in lowered.outputs),
                                      lowered.layers))
        for node in here:
            if node not in inside:
                target = node.target
                layer = target if isinstance(target, Layer) else None
                if layer is not None and choices[layer] != TORCH:
                    target = packed(layer, choices[layer])
                args, kwargs = _plain(template(node.args)), _plain(template(node.kwargs))
                steps.append(_OperatorStep(target, args, kwargs, (places[node], ), layer))
    return steps


def _plain(value):
    """fx's immutable lists and dicts as Python's."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _last_uses(steps: list, places: dict, kept: set[int]) -> list[list[int]]:
    """What may be forgotten after each step."""
    nodes = {place: node for node, place in places.items()}
    made = {}
    for number, step in enumerate(steps):
        for place in step.outputs:
            made[place] = number
    reads = defaultdict(int)
    for number, step in enumerate(steps):
        read = step.inputs if isinstance(step, _ProgramStep) else [
            places[arg] for arg in nodes[step.outputs[0]].all_input_nodes]
        for place in read:
            reads[place] = number
    done = [[] for _ in steps]
    for place, number in made.items():
        if place not in kept:
            done[max(number, reads[place])].append(place)
    return done

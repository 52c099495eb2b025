"""Which operators of a fused graph go into programs of the kernels, and which stay torch's.

Programs run in phases: what a phase's program needs comes from the inputs, earlier programs, and
what torch computed after those. Each phase has one program and, after it, torch's operators.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx

from . import kernels
from .fuse import Layer, same_shape
from .program import Program

aten = torch.ops.aten
# How a layer is computed: by the N:M kernel, by the kernels' own dense one, by torch.
SPARSE, DENSE, TORCH = WAYS = ('sparse', 'dense', 'torch')
Choices = Mapping[Layer, str]
Packed = Callable[[Layer, str], kernels.PackedLayer]


def phases(graph: fx.Graph, choices: Choices) -> tuple[dict[fx.Node, int], set[fx.Node]]:
    """The phase of each operator, and those that go into programs."""
    inside = {node for node in graph.nodes if _fits(node, choices)}
    while True:
        # An upsampling and its sum are one operator of a program.
        inside -= {node for node in inside if node.target is aten.upsample_nearest2d.vec
                   and next(iter(node.users)) not in inside}
        inside -= {node for node in inside if node.target is aten.add.Tensor
                   and any(_upsamples(arg) and arg not in inside for arg in node.args)}
        phase = _phases(graph, inside)
        without = _without_layers(graph, phase, inside)
        if not without:
            return phase, inside
        inside -= without


def _phases(graph: fx.Graph, inside: set[fx.Node]) -> dict[fx.Node, int]:
    phase = {}
    for node in graph.nodes:
        enters = node in inside
        phase[node] = max((phase[arg] + (enters and arg.op == 'call_function'
                                         and arg not in inside)
                           for arg in (_tensors(node) if enters else node.all_input_nodes)),
                          default=0)
    return phase


def _without_layers(graph: fx.Graph, phase: Mapping, inside: set[fx.Node]) -> set[fx.Node]:
    """Operators in programs that hang together with no layer there: entering costs more."""
    group = {}
    for node in graph.nodes:
        if node in inside:
            mine = {node}
            for arg in node.all_input_nodes:
                if arg in inside and phase[arg] == phase[node] and group[arg] is not mine:
                    mine |= group[arg]
            for member in mine:
                group[member] = mine
    return {node for node, members in group.items()
            if not any(isinstance(member.target, Layer) for member in members)}


def _fits(node: fx.Node, choices: Choices) -> bool:
    """Whether a program has this operator."""
    value = node.meta.get('val')
    if node.op != 'call_function' or not isinstance(value, Tensor) or value.ndim not in (2, 4):
        return False
    if value.dtype != torch.float32:
        return False
    if isinstance(node.target, Layer):
        x, residual, _ = node.args
        return (choices[node.target] != TORCH and _ndim(x) == node.target.weight.ndim
                and (residual is None or same_shape(node, residual)))
    if node.target is aten.relu.default:
        return True
    if node.target is aten.max_pool2d.default:
        return len(node.args) < 5 and value.ndim == 4
    if node.target is aten.add.Tensor:
        return (not node.kwargs and len(node.args) == 2
                and all(isinstance(arg, fx.Node) for arg in node.args)
                and same_shape(node, *node.args) and sum(map(_upsamples, node.args)) < 2)
    return _upsamples(node)


def _tensors(node: fx.Node) -> list[fx.Node]:
    """What an operator in a program takes; sizes, as of an upsampling, it finds itself."""
    return [arg for arg in node.all_input_nodes if isinstance(arg.meta.get('val'), Tensor)]


def _ndim(node: fx.Node) -> int:
    return node.meta['val'].ndim


def _upsamples(node: fx.Node) -> bool:
    """Whether this is an upsampling that only goes into a sum, whose other part has its size."""
    if node.target is not aten.upsample_nearest2d.vec or len(node.users) != 1:
        return False
    user = next(iter(node.users))
    return (user.target is aten.add.Tensor and not user.kwargs and len(user.args) == 2
            and all(isinstance(arg, fx.Node) for arg in user.args)
            and user.args[0] is not user.args[1] and same_shape(user, *user.args))


def build(nodes: list[fx.Node], choices: Choices, packed: Packed, results: set[fx.Node]
          ) -> tuple[Program, list[fx.Node], list[fx.Node], list[Layer | None]]:
    """The program of ``nodes``, in order, that gives ``results``.

    Returns it with the nodes of its inputs and of its outputs, and the layers that its operators
    are.
    """
    program, values = Program(), {}
    members = set(nodes)
    inputs = list(dict.fromkeys(arg for node in nodes for arg in _tensors(node)
                                if arg not in members))
    for node in inputs:
        values[node] = program.input(int(node.meta['val'].shape[1]), rows=_ndim(node) == 2)
    layers = []
    for node in nodes:
        if _upsamples(node):
            continue  # with its sum
        layers.append(node.target if isinstance(node.target, Layer) else None)
        values[node] = _add(program, node, values, choices, packed)
    outputs = [node for node in nodes if node in results]
    for node in outputs:
        program.output(values[node])
    return program, inputs, outputs, layers


def _add(program: Program, node: fx.Node, values: dict, choices: Choices, packed: Packed) -> int:
    if isinstance(node.target, Layer):
        x, residual, relu = node.args
        layer = packed(node.target, choices[node.target])
        return program.layer(values[x], layer, None if residual is None else values[residual],
                             relu)
    if node.target is aten.relu.default:
        return program.relu(values[node.args[0]])
    if node.target is aten.max_pool2d.default:
        x, kernel, stride, padding = (*node.args, *(None, None)[:4 - len(node.args)])
        return program.max_pool(values[x], kernel, stride or kernel, padding or 0)
    first, second = node.args
    if _upsamples(first):
        first, second = second, first
    if _upsamples(second):
        return program.upsample_add(values[second.args[0]], values[first])
    return program.add(values[first], values[second])

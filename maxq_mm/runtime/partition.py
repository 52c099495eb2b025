"""Which operators of a fused graph go into programs of the kernels, and which stay torch's.

Programs run in phases: what a phase's program needs comes from the inputs, earlier programs, and
what torch computed after those. Each phase has one program and, after it, torch's operators.
"""

from collections.abc import Mapping

import torch
from torch import fx

from .fuse import Layer, same_shape

aten = torch.ops.aten
# How a layer is computed: by the N:M kernel, by the kernels' own dense one, by torch; by the first
# two of bytes.
SPARSE, DENSE, TORCH, INT8, DENSE_INT8 = WAYS = ('sparse', 'dense', 'torch', 'int8', 'dense int8')
SPARSE_WAYS, INT8_WAYS = (SPARSE, INT8), (INT8, DENSE_INT8)
Choices = Mapping[Layer, str]


def phases(graph: fx.Graph, choices: Choices) -> tuple[dict[fx.Node, int], set[fx.Node]]:
    """The phase of each operator, and those that go into programs."""
    inside = {node for node in graph.nodes if fits(node)
              and not (isinstance(node.target, Layer) and choices[node.target] == TORCH)}
    while True:
        # An upsampling and its sum are one operator of a program.
        inside -= {node for node in inside if node.target is aten.upsample_nearest2d.vec
                   and next(iter(node.users)) not in inside}
        inside -= {node for node in inside if node.target is aten.add.Tensor
                   and any(upsamples(arg) and arg not in inside for arg in node.args)}
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
                           for arg in (tensors(node) if enters else node.all_input_nodes)),
                          default=0)
        if enters:  # an upsampling waits for what it is added to
            phase.update((arg, phase[node]) for arg in node.all_input_nodes
                         if upsamples(arg) and arg in inside)
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


def fits(node: fx.Node) -> bool:
    """Whether a program can have this operator."""
    value = node.meta.get('val')
    if node.op != 'call_function' or value is None or value.ndim not in (2, 4):
        return False
    if value.dtype != torch.float32:
        return False
    if isinstance(node.target, Layer):
        x, residual, _ = node.args
        return (ndim(x) == node.target.weight.ndim
                and (residual is None or same_shape(node, residual)))
    if node.target is aten.relu.default:
        return True
    if node.target is aten.max_pool2d.default:
        return len(node.args) < 5 and value.ndim == 4
    if node.target is aten.add.Tensor:
        return (not node.kwargs and len(node.args) == 2
                and all(isinstance(arg, fx.Node) for arg in node.args)
                and same_shape(node, *node.args) and sum(map(upsamples, node.args)) < 2)
    return upsamples(node)


def tensors(node: fx.Node) -> list[fx.Node]:
    """What an operator in a program takes; sizes, as of an upsampling, it finds itself."""
    return [arg for arg in node.all_input_nodes if 'val' in arg.meta]


def ndim(node: fx.Node) -> int:
    return node.meta['val'].ndim


def upsamples(node: fx.Node) -> bool:
    """Whether this is an upsampling that only goes into a sum, whose other part has its size."""
    if node.target is not aten.upsample_nearest2d.vec or len(node.users) != 1:
        return False
    user = next(iter(node.users))
    return (user.target is aten.add.Tensor and not user.kwargs and len(user.args) == 2
            and all(isinstance(arg, fx.Node) for arg in user.args)
            and user.args[0] is not user.args[1] and same_shape(user, *user.args))

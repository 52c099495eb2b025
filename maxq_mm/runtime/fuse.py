"""Layers of a traced graph as single operators, with what follows them in one.

Shapes: x ``(B, I, H, W)`` or ``(..., I)``; weight ``(O, I, Kh, Kw)`` or ``(O, I)``.

A transposed convolution whose kernel is its stride makes a block of pixels of each one, no two of
which overlap: it is a 1x1 layer of as many times the outputs, whose channels become pixels.
"""

import math
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from .trace import Trace

aten = torch.ops.aten
_BATCH_NORM = aten._native_batch_norm_legit_no_training.default
# What takes the weight from a traced graph: activations need not lie in memory as they did there.
_SAME = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}


@dataclass(eq=False)
class Layer:
    """relu(convolution or linear layer of x, plus bias, plus residual).

    ``source`` is the weight that the model has, which ``weight`` may be a multiple of; ``scales``
    ``(O,)`` are those of its integers, if these were chosen before.

    With ``block`` (high, wide) it is a transposed convolution: ``weight`` is
    ``(high * wide * O, I, 1, 1)``, and row ``(i * wide + j) * O + o`` of it and of ``bias`` is that
    of output ``o`` at pixel ``(i, j)`` of a block. It has no residual.
    """

    source: Tensor = field(repr=False)
    weight: Tensor = field(repr=False)
    bias: Tensor | None = field(repr=False)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    scales: Tensor | None = field(default=None, repr=False)
    block: tuple[int, int] | None = None

    @classmethod
    def transposed(cls, source: Tensor, weight: Tensor, bias: Tensor | None) -> 'Layer':
        """Of a transposed convolution's weight ``(I, O, Kh, Kw)``, of stride Kh and Kw."""
        block = tuple(weight.shape[2:])
        rows = weight.permute(2, 3, 1, 0).reshape(-1, len(weight), 1, 1)
        bias = None if bias is None else bias.repeat(math.prod(block))
        return cls(source, rows, bias, block=block)

    def __call__(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        if self.block is not None:
            rows = self.weight.view(*self.block, -1, x.shape[1])
            bias = None if self.bias is None else self.bias[:rows.shape[2]]
            result = F.conv_transpose2d(x, rows.permute(3, 2, 0, 1), bias, self.block)
        elif self.weight.ndim == 2:
            result = F.linear(x, self.weight, self.bias)
        else:
            result = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation,
                              self.groups)
        if residual is not None:
            result += residual
        return result.relu_() if relu else result

    def scaled(self, scale: Tensor, shift: Tensor) -> 'Layer':
        """The layer with ``scale`` and ``shift`` ``(O,)`` after it; zeros stay zeros."""
        if self.block is not None:
            scale, shift = (x.repeat(math.prod(self.block)) for x in (scale, shift))
        weight = self.weight.double() * scale.view(-1, *[1] * (self.weight.ndim - 1))
        bias = shift if self.bias is None else self.bias.double() * scale + shift
        return replace(self, weight=weight.to(self.weight.dtype), bias=bias.to(self.weight.dtype))


def fuse(trace: Trace) -> None:
    """Make every layer of the graph one operator, a :class:`Layer`, in place.

    Batch norm goes into the weight, additions of a tensor of the same shape and ReLUs into the
    operator. What is computed stays the same but for the order of sums.
    """
    graph = trace.graph
    layers: dict[tuple, Layer] = {}  # one for all calls of a layer
    for node in list(graph.nodes):
        if node.op == 'call_function' and node.target in _SAME:
            node.target = _SAME[node.target]
        layer = _layer(node, trace, layers)
        if layer is not None:
            _absorb(graph, node, layer, trace, layers)
    graph.eliminate_dead_code()


def layers_of(trace: Trace) -> list[Layer]:
    """The layers of a fused trace, each once, in their order."""
    return list(dict.fromkeys(node.target for node in trace.graph.nodes
                              if isinstance(node.target, Layer)))


def constant(node: fx.Node | None, trace: Trace) -> Tensor | None:
    """The tensor of the model that a node stands for."""
    is_one = isinstance(node, fx.Node) and node.op == 'get_attr'
    return trace.tensors[node.target].detach() if is_one else None


def _layer(node: fx.Node, trace: Trace, layers: dict) -> Layer | None:
    if node.op != 'call_function' or node.target not in (
            aten.conv2d.default, aten.linear.default, aten.conv_transpose2d.input):
        return None
    _, weight, bias, *rest = (*node.args, *[None] * (3 - len(node.args)))
    tensor = constant(weight, trace)
    if tensor is None or (bias is not None and constant(bias, trace) is None):
        return None  # a weight that is computed
    settings = [tuple(value) if isinstance(value, list | tuple) else value for value in rest]
    key = (weight.target, *settings)
    if node.target is aten.conv_transpose2d.input:
        if not _tiles(node.args[0], tensor, *settings):
            return None
        if key not in layers:
            layers[key] = Layer.transposed(trace.tensors[weight.target], tensor,
                                           constant(bias, trace))
    elif key not in layers:
        layers[key] = Layer(trace.tensors[weight.target], tensor, constant(bias, trace),
                            *(_pair(value) for value in settings[:3]), *settings[3:])
    return layers[key]


def _tiles(x: fx.Node, weight: Tensor, stride: tuple = (1, 1), padding: tuple = (0, 0),
           output_padding: tuple = (0, 0), groups: int = 1, dilation: tuple = (1, 1)) -> bool:
    """Whether the blocks of a transposed convolution lie side by side, and are all there is."""
    value = x.meta.get('val')
    return (value is not None and value.ndim == 4 and groups == 1
            and _pair(stride) == tuple(weight.shape[2:]) and _pair(dilation) == (1, 1)
            and not any((*padding, *output_padding)))


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return value if len(value) == 2 else value * 2


def _absorb(graph: fx.Graph, node: fx.Node, layer: Layer, trace: Trace, layers: dict) -> None:
    """Replace ``node``, and what of its single user can go with it, by the layer."""
    x, last, residual, relu = node.args[0], node, None, False
    norm = _only_user(last)
    if norm is not None and norm.target is _BATCH_NORM and layer.weight.ndim == 4:
        key = (layer, *norm.args[1:])
        affine = _affine(norm, trace)
        value = next((user for user in norm.users if user.args[1] == 0), None)
        if affine is not None and value is not None:
            if key not in layers:
                layers[key] = layer.scaled(*affine)
            layer, last = layers[key], value
    add = _only_user(last)
    if add is not None and layer.block is None and add.target is aten.add.Tensor and _is_sum(add):
        residual, = (other for other in add.args if other is not last)
        last = add
    after = _only_user(last)
    if after is not None and after.target is aten.relu.default:
        relu, last = True, after
    with graph.inserting_before(last):
        fused = graph.create_node('call_function', layer, (x, residual, relu), name='layer')
    fused.meta = dict(last.meta)
    last.replace_all_uses_with(fused)
    graph.erase_node(last)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_sum(add: fx.Node) -> bool:
    """Whether two different tensors of one shape are added, the other not an upsampled one.

    That is added better by who upsamples it.
    """
    if add.kwargs or len(add.args) != 2 or not all(isinstance(a, fx.Node) for a in add.args):
        return False
    first, second = add.args
    return first is not second and same_shape(first, second) and not any(
        arg.target is aten.upsample_nearest2d.vec for arg in add.args)


def same_shape(*nodes: fx.Node) -> bool:
    """Whether nodes are tensors of one shape and type at any size of the inputs."""
    values = [node.meta.get('val') for node in nodes]
    return None not in values and all(value == values[0] for value in values)


def _affine(norm: fx.Node, trace: Trace) -> tuple[Tensor, Tensor] | None:
    """Scale and shift ``(O,)`` of a batch norm in float64; None if they are not constant."""
    _, weight, bias, mean, var, _, eps = norm.args
    mean, var = constant(mean, trace), constant(var, trace)
    if mean is None or var is None:
        return None
    scale = (var.double() + eps).rsqrt()
    if weight is not None:
        scale = scale * constant(weight, trace)
    shift = -mean * scale
    return scale, shift if bias is None else shift + constant(bias, trace)

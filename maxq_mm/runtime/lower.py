"""A program of the kernels from operators of a fused graph: which values are float32, which bytes.

Layers of INT8_WAYS take bytes. What they give stays bytes, through sums, pooling and upsampling,
where another such layer reads it in the same program; else it is float32. Each value is quantized
or dequantized at most once; what goes in and out of a program is float32.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import fx

from . import kernels
from .fuse import Layer
from .partition import INT8_WAYS, Choices, aten, ndim, tensors, upsamples
from .program import Program
from .quantization import ChannelQuantization, Quantization

# Of a layer and its way; for INT8_WAYS also what its input and its output are, None: float32, for
# others whether int8 layers are in its program.
Packed = Callable[..., kernels.PackedLayer]
Quantizations = Mapping[str, Quantization | ChannelQuantization]  # by names of nodes


@dataclass(frozen=True)
class Lowered:
    """``program`` with the nodes of its inputs and outputs, and what layers its operators are."""

    program: Program
    inputs: list[fx.Node]
    outputs: list[fx.Node]
    layers: tuple[Layer | None, ...]


def lower(nodes: list[fx.Node], choices: Choices, packed: Packed, results: set[fx.Node],
          quantizations: Quantizations) -> Lowered:
    """The program of ``nodes``, in order, that gives ``results``."""
    values = _Values(Program(), quantizations, byte_nodes(nodes, choices, quantizations))
    members = set(nodes)
    inputs = list(dict.fromkeys(arg for node in nodes for arg in tensors(node)
                                if arg not in members))
    for node in inputs:
        # Quantized on the way in where nobody reads it as float32.
        if all(reads_bytes(user, choices) for user in node.users if user in members):
            values.as_bytes.add(node)
        values.set(node, values.program.input(
            node.meta['val'].channels, ndim(node) == 2,
            quantizations[node.name] if node in values.as_bytes else None))
    layers: dict[int, Layer] = {}  # by the operators that they are
    with_int8 = any(reads_bytes(node, choices) for node in nodes)
    for node in nodes:
        if upsamples(node):
            continue  # with its sum
        if isinstance(node.target, Layer):
            layers |= dict.fromkeys(
                _layer(values, node, choices[node.target], packed, with_int8), node.target)
        else:
            _operator(values, node)
    outputs = [node for node in nodes if node in results]
    for node in outputs:
        values.program.output(values.any(node))
    return Lowered(values.program, inputs, outputs, tuple(
        layers.get(value) for value, node in enumerate(values.program.nodes)
        if node.kind != 'import'))


def byte_nodes(nodes: list[fx.Node], choices: Choices, quantizations: Quantizations
               ) -> set[fx.Node]:
    """Those of ``nodes`` whose results are bytes: made of bytes, and read as bytes at last."""
    able = set()
    for node in nodes:
        fits = (reads_bytes(node, choices) if isinstance(node.target, Layer) else
                all(arg in able for arg in tensors(node)))
        if fits and (node.name in quantizations or _keeps(node)):
            able.add(node)
    members, found = set(nodes), set()
    for node in reversed(nodes):
        if node in able and any(user in found or (user in members and reads_bytes(user, choices))
                                for user in node.users):
            found.add(node)
    return found


def reads_bytes(node: fx.Node, choices: Choices) -> bool:
    """Whether this is an int8 layer."""
    return isinstance(node.target, Layer) and choices[node.target] in INT8_WAYS


def _keeps(node: fx.Node) -> bool:
    """Whether bytes go through this operator with the scale they have."""
    return not isinstance(node.target, Layer) and node.target is not aten.add.Tensor


class _Values:
    """What the nodes are in a program: float32, bytes, or both."""

    def __init__(self, program: Program, quantizations: Quantizations, as_bytes: set[fx.Node]
                 ) -> None:
        self.program = program
        self.as_bytes = as_bytes  # that are made as bytes
        self.floats: dict[fx.Node, int] = {}
        self.bytes: dict[fx.Node, int] = {}
        self._measured = quantizations
        self._kept: dict[fx.Node, Quantization] = {}

    def any(self, node: fx.Node) -> int:
        """The value as it was made."""
        return self.bytes[node] if node in self.as_bytes else self.floats[node]

    def of(self, node: fx.Node, as_bytes: bool) -> int:
        """The value as bytes or as float32."""
        there, other = (self.bytes, self.floats) if as_bytes else (self.floats, self.bytes)
        if node not in there:
            there[node] = (self.program.quantize(other[node], self.quantization(node)) if as_bytes
                           else self.program.dequantize(other[node]))
        return there[node]

    def quantization(self, node: fx.Node) -> Quantization | ChannelQuantization:
        """Of the value as bytes."""
        return self._kept.get(node) or self._measured[node.name]

    def keep(self, node: fx.Node, source: fx.Node) -> None:
        """Give a value made of bytes the quantization of ``source``."""
        if node in self.as_bytes:
            self._kept[node] = self.quantization(source)

    def set(self, node: fx.Node, value: int) -> None:
        (self.bytes if node in self.as_bytes else self.floats)[node] = value


def _layer(values: _Values, node: fx.Node, way: str, packed: Packed, beside_int8: bool
           ) -> list[int]:
    """Its operators; the last makes its result."""
    x, residual, relu = node.args
    is_int8 = way in INT8_WAYS
    value = values.of(x, is_int8)
    gives = values.quantization(node) if node in values.as_bytes else None
    layer = (packed(node.target, way, values.quantization(x), gives) if is_int8 else
             packed(node.target, way, beside_int8=beside_int8))
    value = values.program.layer(value, layer,
                                 None if residual is None else values.of(residual, is_int8), relu)
    operators = [value]
    if node.target.block is not None:
        operators.append(values.program.depth_to_space(value, node.target.block))
    values.set(node, operators[-1])
    return operators


def _operator(values: _Values, node: fx.Node) -> None:
    program, as_bytes = values.program, node in values.as_bytes
    first, *rest = node.args
    if node.target is aten.relu.default:
        values.keep(node, first)
        values.set(node, program.relu(values.of(first, as_bytes)))
        return
    if node.target is aten.max_pool2d.default:
        kernel, stride, padding = (*rest, *(None, None)[:3 - len(rest)])
        values.keep(node, first)
        values.set(node, program.max_pool(values.of(first, as_bytes), kernel, stride or kernel,
                                          padding or 0))
        return
    second, = rest
    if upsamples(first):
        first, second = second, first
    options = dict(output=values.quantization(node)) if as_bytes else {}
    if upsamples(second):
        values.set(node, program.upsample_add(values.of(second.args[0], as_bytes),
                                              values.of(first, as_bytes), **options))
    else:
        values.set(node, program.add(values.of(first, as_bytes), values.of(second, as_bytes),
                                     **options))

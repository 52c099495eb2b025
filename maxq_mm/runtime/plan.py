"""Where each value of a program lies in memory, for inputs of one size.

The layout stands in csrc/runtime.h. A value is as wide as its map plus a border of zeros, as many
as the paddings of the layers that read it; those that a convolution of stride 1 reads and writes
have one border, so that pixels correspond one to one.
"""

import ctypes
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.errors import InputError
from .kernels import PackedLayer
from .library import KINDS, Library, Op, View, library
from .quantization import Quantization

_Shape = tuple[int, int, int, int]
_LINE = 64  # bytes that values are aligned to


def _padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


@dataclass(frozen=True)
class Node:
    """An operator and the value that it makes."""

    kind: str
    values: tuple[int, ...]  # that it reads
    channels: int
    relu: bool = False
    rows: bool = False
    like: int | None = None  # value whose height and width it takes
    layer: PackedLayer | None = None
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    quantization: Quantization | None = None  # of a value in uint8; None: float32


class Plan(NamedTuple):
    """What a run of one size needs; read-only."""

    library: Library
    ops: ctypes.Array
    names: list[str]  # '' of inputs and outputs
    bytes: int
    results: list[tuple[int, ...]]  # shapes


def make_plan(nodes: list[Node], outputs: list[int], tensors: tuple[Tensor, ...],
              memory_format: torch.memory_format) -> Plan:
    """Lay out a program for these inputs.

    Raises:
        InputError: inputs of other channels or types, or too small.
        RuntimeError: no kernels on this machine, or layers packed for another.
    """
    found = _library(nodes)
    shapes = _shapes(nodes, tensors)
    is_rows = _rows(nodes)
    views = _views(nodes, shapes, found)
    size = _place(nodes, views, found)
    ops, names = [], []
    inputs = iter(range(len(tensors)))
    results = [_result(shapes[value], is_rows[value]) for value in outputs]
    for value, node in enumerate(nodes):
        op = Op(kind=KINDS[node.kind], relu=node.relu, out=views[value], kernel=node.kernel,
                stride=node.stride, padding=node.padding, dilation=node.dilation)
        if node.kind == 'import':
            op.external = next(inputs)
            op.strides = _strides(tensors[op.external])
        else:
            op.input = views[node.values[0]]
            if len(node.values) == 2:
                op.other = views[node.values[1]]
        if node.layer is not None:
            _fill(op, node.layer)
        _scale(op, node, nodes)
        ops.append(op)
        names.append(_name(node, shapes[value]))
        for number, output in enumerate(outputs):
            if output == value:
                empty = torch.empty(results[number], device='meta')
                if empty.ndim == 4:
                    empty = empty.contiguous(memory_format=memory_format)
                ops.append(Op(kind=KINDS['export'], input=views[value],
                              factor=node.quantization.scale if node.quantization else 1,
                              external=len(tensors) + number, strides=_strides(empty)))
                names.append('')
    return Plan(found, (Op * len(ops))(*ops), names, size, results)


def _library(nodes: list[Node]) -> Library:
    packed_for = {node.layer.instruction_set for node in nodes if node.layer is not None}
    beside = library(int8=True)
    int8 = any(node.quantization is not None for node in nodes) or (
        beside is not None and beside.instruction_set in packed_for)
    found = beside if int8 else library()
    if found is None:
        raise RuntimeError('no kernels for this CPU')
    if packed_for - {found.instruction_set}:
        raise RuntimeError(f'layers were packed for {", ".join(sorted(packed_for))}, this program '
                           f'runs with {found.instruction_set}')
    return found


def _shapes(nodes: list[Node], tensors: tuple[Tensor, ...]) -> list[_Shape]:
    wanted = [node for node in nodes if node.kind == 'import']
    if len(wanted) != len(tensors):
        raise InputError(f'the program takes {len(wanted)} inputs, got {len(tensors)}')
    given = iter(tensors)
    shapes: list[_Shape] = []
    for node in nodes:
        if node.kind == 'import':
            shapes.append(_given(node, next(given)))
            continue
        n, _, *size = shapes[node.values[0]]
        if node.like is not None:
            size = shapes[node.like][2:]
        elif node.kind == 'depth to space':
            size = [s * block for s, block in zip(size, node.stride, strict=True)]
        elif node.kind not in ('add', 'convert'):
            size = [(s + 2 * p - d * (k - 1) - 1) // stride + 1 for s, p, d, k, stride in zip(
                size, node.padding, node.dilation, node.kernel, node.stride, strict=True)]
            if min(size) < 1 and min(shapes[node.values[0]][2:]) > 0:
                raise InputError(f'a map of {shapes[node.values[0]][2:]} is too small for a kernel '
                                 f'of {node.kernel}')
        shape = (n, node.channels, *(max(s, 0) for s in size))
        if len(node.values) == 2 and node.kind != 'import' and shapes[node.values[1]] != shape:
            raise InputError(f'values of {shape} and {shapes[node.values[1]]} cannot be added')
        shapes.append(shape)
    return shapes


def _given(node: Node, tensor: Tensor) -> _Shape:
    if tensor.device.type != 'cpu' or tensor.dtype != torch.float32:
        raise InputError(f'inputs must be float32 on cpu, got {tensor.dtype} on {tensor.device}')
    if tensor.ndim != (2 if node.rows else 4) or tensor.shape[1] != node.channels:
        wanted = f'(B, {node.channels})' if node.rows else f'(N, {node.channels}, H, W)'
        raise InputError(f'an input must be {wanted}, got {tuple(tensor.shape)}')
    return (1, node.channels, 1, len(tensor)) if node.rows else tuple(tensor.shape)


def _rows(nodes: list[Node]) -> list[bool]:
    rows: list[bool] = []
    for node in nodes:
        rows.append(node.rows if node.kind == 'import' else rows[node.values[0]])
    return rows


def _result(shape: _Shape, is_rows: bool) -> tuple[int, ...]:
    return (shape[3], shape[1]) if is_rows else shape


def _strides(tensor: Tensor) -> tuple[int, int, int, int]:
    if tensor.ndim == 2:
        return (0, tensor.stride(1), 0, tensor.stride(0))
    return tensor.stride()


def _views(nodes: list[Node], shapes: list[_Shape], found: Library) -> list[View]:
    """Sizes of all values; where they lie is for :func:`_place`."""
    width = found.width
    leader = list(range(len(nodes)))  # of values that share their border

    def find(value: int) -> int:
        while leader[value] != value:
            value = leader[value]
        return value

    border = [0] * len(nodes)
    for value, node in enumerate(nodes):
        if node.layer is None:
            continue
        source = node.values[0]
        border[source] = max(border[source], *node.padding)
        if node.stride == (1, 1) and shapes[source][2:] == shapes[value][2:]:
            leader[find(source)] = find(value)
        for residual in node.values[1:]:
            leader[find(residual)] = find(value)
    for value in range(len(nodes)):
        border[find(value)] = max(border[find(value)], border[value])
    views = []
    for value, (n, c, h, w) in enumerate(shapes):
        b = border[find(value)]
        pitch = w + b
        reach = b * pitch + b  # pixels before and behind a map that are read as zeros
        tiles = -(-h * pitch // width)
        margin = max(0, -(-(h * pitch + reach) // width) - tiles)
        quantization = nodes[value].quantization
        element = 4 if quantization is None else 1
        size = _padded(c * element, found.unit) * width  # bytes of a tile
        views.append(View(n=n, c=c, h=h, w=w, pitch=pitch, tiles=tiles, margin=margin,
                          image=(tiles + margin) * size, front=-(-reach // width) * size,
                          element=element, zero=0 if quantization is None
                          else quantization.zero_point))
    return views


def _place(nodes: list[Node], views: list[View], found: Library) -> int:
    """Give values that live at the same time memory of their own; returns how many bytes in all."""
    last = list(range(len(nodes)))
    for value, node in enumerate(nodes):
        for read in node.values:
            last[read] = value
    taken: list[tuple[int, int, int]] = []  # begin, end, last reader
    total = 0
    for value, view in enumerate(views):
        taken = [entry for entry in taken if entry[2] >= value]
        size = _padded(view.front + view.n * view.image, _LINE)
        begin = 0
        for start, end, _ in sorted(taken):
            if begin + size <= start:
                break
            begin = max(begin, end)
        taken.append((begin, begin + size, last[value]))
        view.offset = begin + view.front
        total = max(total, begin + size)
    # Whole tiles are read behind a map, at every kernel position; what stands there is masked out.
    behind = max((((node.kernel[0] - 1) * node.dilation[0] * view.pitch + node.kernel[1]
                  * node.dilation[1] + 2 * found.width) * (view.c * view.element + found.unit)
                 for node in nodes for view in (views[value] for value in node.values)), default=0)
    return total + behind


def _fill(op: Op, layer: PackedLayer) -> None:
    op.block_rows, op.steps = layer.block_rows, layer.steps
    op.values = layer.values.data_ptr()
    op.rows = layer.rows.data_ptr()
    op.bias = layer.bias.data_ptr()
    if layer.scales is not None:
        op.scales = layer.scales.data_ptr()


def _scale(op: Op, node: Node, nodes: list[Node]) -> None:
    """Factors between quantized values, or between them and floats; see runtime.h."""
    sources = [nodes[value].quantization for value in node.values]
    scale = node.quantization.scale if node.quantization else 1
    zero_point = node.quantization.zero_point if node.quantization else 0
    factors = [(source.scale if source else 1) / scale for source in sources] or [1 / scale]
    op.factor = factors[0]
    op.offset = zero_point
    if len(sources) == 2:
        op.other_factor = factors[1]
        if node.layer is not None:
            op.offset = -factors[1] * (sources[1].zero_point if sources[1] else 0)
    elif node.layer is not None:
        op.offset = 0


def _name(node: Node, shape: _Shape) -> str:
    if node.kind == 'import':
        return ''
    what = node.kind
    if node.layer is not None:
        what = f'{node.layer.pattern or "dense"} {"x".join(map(str, node.layer.shape))}'
    return f'{what} -> {shape[1]} x {shape[2]} x {shape[3]}'

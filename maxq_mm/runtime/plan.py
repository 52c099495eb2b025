"""What a run of a program needs, for inputs of one size: operators, steps, and where values lie."""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.errors import InputError
from .bands import Operator, make_order
from .kernels import PackedLayer
from .layout import Node, Shape, make_views, place
from .library import KINDS, Library, Op, Step, library
from .quantization import ChannelQuantization, Quantization


class Plan(NamedTuple):
    """What a run of one size needs; read-only."""

    library: Library
    ops: ctypes.Array
    steps: ctypes.Array
    names: list[str]  # '' of inputs and outputs
    bytes: int
    results: list[tuple[int, ...]]  # shapes


def make_plan(nodes: list[Node], outputs: list[int], tensors: tuple[Tensor, ...],
              memory_format: torch.memory_format, threads: int) -> Plan:
    """Lay out a program for these inputs and so many threads.

    Raises:
        InputError: inputs of other channels or types, or too small.
        RuntimeError: no kernels on this machine, or layers packed for another.
    """
    found = _library(nodes)
    shapes = _shapes(nodes, tensors)
    is_rows = _rows(nodes)
    views = make_views(nodes, shapes, found)
    operators = _operators(nodes, outputs)
    plain = [operator for operator, _ in operators]
    order = make_order(plain, views, found, threads)
    size = place(nodes, views, plain, order, found)
    ops, names = [], []
    inputs = iter(range(len(tensors)))
    results = [_result(shapes[value], is_rows[value]) for value in outputs]
    for operator, number in operators:
        if number is not None:
            empty = torch.empty(results[number], device='meta')
            if empty.ndim == 4:
                empty = empty.contiguous(memory_format=memory_format)
            value, = operator.reads
            quantization = nodes[value].quantization
            ops.append(Op(kind=KINDS['export'], input=views[value],
                          factor=quantization.scale if quantization else 1,
                          external=len(tensors) + number, strides=_strides(empty)))
            names.append('')
            continue
        node = nodes[operator.makes]
        op = Op(kind=KINDS[node.kind], relu=node.relu, out=views[operator.makes],
                kernel=node.kernel, stride=node.stride, padding=node.padding,
                dilation=node.dilation)
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
        names.append(_name(node, shapes[operator.makes]))
    return Plan(found, (Op * len(ops))(*ops), (Step * len(order.steps))(*order.steps), names, size,
                results)


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


def _shapes(nodes: list[Node], tensors: tuple[Tensor, ...]) -> list[Shape]:
    wanted = [node for node in nodes if node.kind == 'import']
    if len(wanted) != len(tensors):
        raise InputError(f'the program takes {len(wanted)} inputs, got {len(tensors)}')
    given = iter(tensors)
    shapes: list[Shape] = []
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


def _given(node: Node, tensor: Tensor) -> Shape:
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


def _result(shape: Shape, is_rows: bool) -> tuple[int, ...]:
    return (shape[3], shape[1]) if is_rows else shape


def _strides(tensor: Tensor) -> tuple[int, int, int, int]:
    if tensor.ndim == 2:
        return (0, tensor.stride(1), 0, tensor.stride(0))
    return tensor.stride()


def _operators(nodes: list[Node], outputs: list[int]) -> list[tuple[Operator, int | None]]:
    """Each node's, and behind it those of the results it is, with their numbers."""
    found = []
    for value, node in enumerate(nodes):
        found.append((Operator(node.layer is not None, node.values, value, node.kernel, node.stride,
                               node.padding, node.dilation, node.kind == 'upsample',
                               node.stride[0] if node.kind == 'depth to space' else 1), None))
        found += [(Operator(False, (value, ), None), number)
                  for number, output in enumerate(outputs) if output == value]
    return found


def _fill(op: Op, layer: PackedLayer) -> None:
    op.block_rows, op.steps = layer.block_rows, layer.steps
    op.values = layer.values.data_ptr()
    op.rows = layer.rows.data_ptr()
    op.bias = layer.bias.data_ptr()
    if layer.scales is not None:
        op.scales = layer.scales.data_ptr()


def _scale(op: Op, node: Node, nodes: list[Node]) -> None:
    """Factors between quantized values, or between them and floats; see runtime.h."""
    if isinstance(node.quantization, ChannelQuantization):
        op.scales, op.bias = (values.data_ptr() for values in (node.quantization.factors,
                                                               node.quantization.offsets))
        return
    sources = [nodes[value].quantization for value in node.values]
    scale = node.quantization.scale if node.quantization else 1
    zero_point = node.quantization.zero_point if node.quantization else 0
    # The scales of an image's channels are in the weights.
    factors = [(source.scale if isinstance(source, Quantization) else 1) / scale
               for source in sources] or [1 / scale]
    op.factor = factors[0]
    op.offset = zero_point
    if len(sources) == 2:
        op.other_factor = factors[1]
        if node.layer is not None:
            op.offset = -factors[1] * (sources[1].zero_point if sources[1] else 0)
    elif node.layer is not None:
        op.offset = 0


def _name(node: Node, shape: Shape) -> str:
    if node.kind == 'import':
        return ''
    what = node.kind
    if node.layer is not None:
        what = f'{node.layer.pattern or "dense"} {"x".join(map(str, node.layer.shape))}'
    return f'{what} -> {shape[1]} x {shape[2]} x {shape[3]}'

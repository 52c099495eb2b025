"""Programs with int8 layers in plain torch: what the kernels must compute, one step at a time.

Values that are bytes are kept as whole numbers in float64, which hold every sum exactly.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maxq_mm.runtime.quantization import ChannelQuantization, Quantization, quantize_weight


class Value(NamedTuple):
    """``quantization`` None: float32."""

    data: Tensor
    quantization: Quantization | ChannelQuantization | None = None

    @property
    def real(self) -> Tensor:
        """Of an image without its scales, which weights have."""
        q = self.quantization
        if isinstance(q, ChannelQuantization):
            return self.data - torch.tensor(q.zero_points).double()[:, None, None]
        return self.data if q is None else (self.data - q.zero_point) * q.scale


def quantized(real: Tensor, q: Quantization | ChannelQuantization) -> Value:
    if isinstance(q, ChannelQuantization):
        scales, zeros = (torch.tensor(x).double()[:, None, None] for x in (q.scales, q.zero_points))
        return Value((real / scales + zeros).round().clamp(0, 255), q)
    return Value((real / q.scale).round().add(q.zero_point).clamp(0, 255), q)


class SimulatedLayer(NamedTuple):
    """Weight ``(O, I, *K)``, whole numbers and their scale ``(O,)`` if ``input`` is given."""

    weight: Tensor
    scales: Tensor
    bias: Tensor | None
    settings: tuple  # stride, padding, dilation
    input: Quantization | None = None
    output: Quantization | None = None

    def __call__(self, x: Value | Tensor, residual: Value | None = None,
                 relu: bool = False) -> Value | Tensor:
        """Of tensors a tensor: outside of programs."""
        if isinstance(x, Tensor):
            return self(Value(x.double()), None, relu).data.float()
        assert x.quantization == self.input
        weight = self.weight.double() * self.scales.double().view(-1, *[1] * (self.weight.ndim - 1))
        bias = None if self.bias is None else self.bias.double()
        if isinstance(self.input, ChannelQuantization):
            result = self._of_image(x, weight, bias)
        else:
            result = (F.linear(x.real, weight, bias) if weight.ndim == 2 else
                      F.conv2d(x.real, weight, bias, *self.settings))
        if residual is not None:
            assert (residual.quantization is None) == (self.input is None)
            result = result + residual.real
        result = result.relu() if relu else result
        return Value(result) if self.output is None else quantized(result, self.output)

    def _of_image(self, x: Value, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Its padding is the bytes next to 0."""
        stride, (high, wide), dilation = self.settings
        near = self.input.offsets.round().double()[:, None, None]
        zeros = torch.tensor(self.input.zero_points).double()[:, None, None]
        padded = F.pad(x.data - near, (wide, wide, high, high)) + (near - zeros)
        return F.conv2d(padded, weight, bias, stride, 0, dilation)


class _Operator(NamedTuple):
    kind: str
    compute: Callable[[list[Value] | Tensor], Value]
    source: int | None = None  # of a change between bytes and float32


class SimulatedProgram:
    """Described and called as ``maxq_mm.runtime.program.Program``."""

    def __init__(self) -> None:
        self.nodes: list[_Operator] = []
        self.outputs: list[int] = []

    def _add(self, kind: str, compute: Callable, source: int | None = None) -> int:
        self.nodes.append(_Operator(kind, compute, source))
        return len(self.nodes) - 1

    def input(self, channels, rows=False, quantization=None) -> int:
        return self._add('import', lambda x: Value(x) if quantization is None
                         else quantized(x, quantization))

    def layer(self, x, packed, residual=None, relu=False) -> int:
        return self._add('layer', lambda v: packed(
            v[x], None if residual is None else v[residual], relu))

    def quantize(self, x: int, quantization: Quantization) -> int:
        def compute(v):
            assert v[x].quantization is None
            return quantized(v[x].data, quantization)
        return self._add('quantize', compute, x)

    def dequantize(self, x: int) -> int:
        def compute(v):
            assert v[x].quantization is not None
            return Value(v[x].real)
        return self._add('dequantize', compute, x)

    def max_pool(self, x, kernel, stride, padding=0) -> int:
        return self._add('max pool', lambda v: Value(
            F.max_pool2d(v[x].data, kernel, stride, padding), v[x].quantization))

    def relu(self, x: int) -> int:
        def compute(v):
            q = v[x].quantization
            return Value(v[x].data.clamp(min=0 if q is None else q.zero_point), q)
        return self._add('add', compute)

    def _sum(self, kind: str, summands: Callable, relu: bool, output: Quantization | None) -> int:
        def compute(v):
            a, b = summands(v)
            assert (a.quantization is None) == (b.quantization is None) == (output is None)
            result = a.real + b.real
            result = result.relu() if relu else result
            return Value(result) if output is None else quantized(result, output)
        return self._add(kind, compute)

    def add(self, a, b, relu=False, output=None) -> int:
        return self._sum('add', lambda v: (v[a], v[b]), relu, output)

    def upsample_add(self, x, like, output=None) -> int:
        def summands(v):
            up = F.interpolate(v[x].data, size=v[like].data.shape[2:], mode='nearest')
            return Value(up, v[x].quantization), v[like]
        return self._sum('upsample', summands, False, output)

    def depth_to_space(self, x, block) -> int:
        def compute(v):
            rows = v[x].data.unflatten(1, (*block, -1))  # (N, i, j, C, H, W)
            whole = rows.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)
            return Value(whole, v[x].quantization)
        return self._add('depth to space', compute)

    def output(self, x: int) -> None:
        self.outputs.append(x)

    def values(self, *tensors: Tensor) -> list[Value]:
        """All values, in order."""
        given, found = iter(tensors), []
        for node in self.nodes:
            found.append(node.compute(next(given).double() if node.kind == 'import' else found))
        return found

    def __call__(self, *tensors: Tensor,
                 memory_format: torch.memory_format = torch.contiguous_format
                 ) -> tuple[Tensor, ...]:
        found = self.values(*tensors)
        results = (found[x].real.float() for x in self.outputs)
        return tuple(x.contiguous(memory_format=memory_format) if x.ndim == 4 else x
                     for x in results)

    def timings(self, *tensors: Tensor, repeats: int = 1) -> list[tuple[str, float]]:
        return [*((node.kind, 1.) for node in self.nodes if node.kind != 'import'), ('', 0.)]


def simulated_pack(weight, pattern, bias=None, stride=1, padding=0, dilation=1) -> SimulatedLayer:
    return SimulatedLayer(weight, torch.ones(len(weight)), bias, (stride, padding, dilation))


def simulated_pack_int8(weight, pattern, bias=None, stride=1, padding=0, dilation=1, *, input,
                        output) -> SimulatedLayer:
    integers, scales = quantize_weight(weight, pattern, input=input)
    return SimulatedLayer(integers, scales, bias, (stride, padding, dilation), input, output)

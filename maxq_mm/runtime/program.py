"""Many operators in one call, activations in the library's own layout between them.

A program is described once, without sizes, and runs on inputs of any size:

    program = Program()
    x = program.input(64)
    y = program.layer(x, packed, relu=True)
    program.output(program.max_pool(y, 2, 2, 0))
    result, = program(images)

What an operator returns is the number of a value; shapes are ``(N, C, H, W)``, and rows ``(B, C)``
count as one image of ``C`` channels and ``1 x B`` pixels.
"""

import ctypes

import torch
from torch import Tensor

from ..utils.errors import InputError
from .kernels import PackedLayer, _pair
from .layout import Node
from .memory import empty, result
from .plan import Plan, make_plan
from .quantization import ChannelQuantization, Quantization

# So many sizes of input are remembered.
_PLANS = 32


class Program:
    """A straight list of operators; see the module."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.outputs: list[int] = []
        self._forget()

    def _forget(self) -> None:
        self._plans: dict[tuple, Plan] = {}
        self._memory: list[Tensor] = []  # of runs that have ended

    def __getstate__(self) -> dict:
        return {'nodes': list(self.nodes), 'outputs': list(self.outputs)}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()

    def input(self, channels: int, rows: bool = False,
              quantization: Quantization | ChannelQuantization | None = None) -> int:
        """An input ``(N, channels, H, W)``, or ``(B, channels)`` if it is ``rows``.

        It is float32; with a ``quantization`` the value is made uint8 on its way in. With one for
        each channel only layers take it.
        """
        return self._add(Node('import', (), channels, rows=rows, quantization=quantization))

    def quantize(self, x: int, quantization: Quantization | ChannelQuantization) -> int:
        """A float32 value in uint8."""
        self._check(x, quantized=False)
        return self._add(Node('convert', (x, ), self._node(x).channels, quantization=quantization))

    def dequantize(self, x: int) -> int:
        """A uint8 value in float32."""
        self._check(x, quantized=True)
        return self._add(Node('convert', (x, ), self._node(x).channels))

    def layer(self, x: int, packed: PackedLayer, residual: int | None = None,
              relu: bool = False) -> int:
        """A layer, what is added to it, and a ReLU.

        Of an int8 layer ``x`` and ``residual`` are uint8, and the result is what it was packed for.
        """
        if packed.shape[1] != self._node(x).channels:
            raise InputError(f'a layer of {packed.shape[1]} input channels cannot take a value of '
                             f'{self._node(x).channels}')
        if packed.input != self._node(x).quantization:
            raise InputError(f'a layer of {packed.input or "float32"} cannot take a value of '
                             f'{self._node(x).quantization or "float32"}')
        values = (x, ) if residual is None else (x, residual)
        if residual is not None:
            self._check(residual, packed.input is not None)
        return self._add(Node('layer' if packed.pattern else 'dense layer', values,
                              packed.shape[0], relu, layer=packed, kernel=packed.kernel,
                              stride=packed.stride, padding=packed.padding,
                              dilation=packed.dilation, quantization=packed.output))

    def max_pool(self, x: int, kernel: int | tuple[int, int], stride: int | tuple[int, int],
                 padding: int | tuple[int, int] = 0) -> int:
        """``torch.nn.functional.max_pool2d`` without dilation, sizes rounded down."""
        kernel, padding = _pair('kernel', kernel, 1), _pair('padding', padding, 0)
        if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
            raise InputError(f'padding {padding} is more than half of the kernel {kernel}')
        return self._add(Node('max pool', (x, ), self._node(x).channels, kernel=kernel,
                              stride=_pair('stride', stride, 1), padding=padding,
                              quantization=self._node(x).quantization))

    def add(self, a: int, b: int, relu: bool = False, output: Quantization | None = None) -> int:
        """The sum of two values of one shape, and a ReLU; of uint8 values quantized as ``output``.
        """
        self._check(a, output is not None)
        self._check(b, output is not None)
        return self._add(Node('add', (a, b), self._node(a).channels, relu, quantization=output))

    def relu(self, x: int) -> int:
        """A ReLU by itself."""
        return self._add(Node('add', (x, ), self._node(x).channels, True,
                              quantization=self._node(x).quantization))

    def upsample(self, x: int, like: int) -> int:
        """The nearest pixels of ``x``, as high and wide as ``like``."""
        return self._add(Node('upsample', (x, ), self._node(x).channels, like=like,
                              quantization=self._node(x).quantization))

    def upsample_add(self, x: int, like: int, output: Quantization | None = None) -> int:
        """``like`` plus the nearest pixels of ``x``: a feature pyramid's step.

        Of uint8 values quantized as ``output``.
        """
        self._check(x, output is not None)
        self._check(like, output is not None)
        return self._add(Node('upsample', (x, like), self._node(x).channels, like=like,
                              quantization=output))

    def depth_to_space(self, x: int, block: tuple[int, int]) -> int:
        """Each pixel's channels as ``block`` (high, wide) pixels of fewer channels.

        Channel ``(i * wide + j) * C + c`` becomes channel ``c`` of the block's pixel ``(i, j)``.
        """
        high, wide = block = _pair('block', block, 1)
        node = self._node(x)
        if node.channels % (high * wide):
            raise InputError(f'{node.channels} channels are no multiple of {high} x {wide} pixels')
        return self._add(Node('depth to space', (x, ), node.channels // (high * wide),
                              stride=block, quantization=node.quantization))

    def output(self, x: int) -> None:
        """Make a value one of the results, after those that are."""
        self._check_whole(x)
        self.outputs.append(x)
        self._forget()

    def _node(self, value: int) -> Node:
        if not 0 <= value < len(self.nodes):
            raise InputError(f'{value} is no value of this program')
        return self.nodes[value]

    def _check(self, value: int, quantized: bool) -> None:
        if (self._node(value).quantization is not None) != quantized:
            raise InputError(f'value {value} is {"float32" if quantized else "uint8"}, expected '
                             f'{"uint8" if quantized else "float32"}')

    def _check_whole(self, value: int) -> None:
        if isinstance(self._node(value).quantization, ChannelQuantization):
            raise InputError(f'value {value} has a scale for each channel: only layers take it')

    def _add(self, node: Node) -> int:
        for value in node.values if node.layer is None else node.values[1:]:
            self._check_whole(value)
        if node.like is not None:
            self._node(node.like)
        if isinstance(node.quantization, ChannelQuantization) and (
                len(node.quantization.scales) != node.channels):
            raise InputError(f'{len(node.quantization.scales)} scales for {node.channels} channels')
        if len(node.values) == 2 and self.nodes[node.values[1]].channels != node.channels:
            raise InputError(f'{node.channels} channels and '
                             f'{self.nodes[node.values[1]].channels} cannot be added')
        self.nodes.append(node)
        self._forget()
        return len(self.nodes) - 1

    def __call__(self, *tensors: Tensor,
                 memory_format: torch.memory_format = torch.contiguous_format
                 ) -> tuple[Tensor, ...]:
        """Run on inputs of any size, with ``torch.get_num_threads()`` threads.

        Returns:
            The outputs: ``(N, C, H, W)`` in ``memory_format``, rows ``(B, C)``.

        Raises:
            InputError: inputs of other channels or types, or too small.
            RuntimeError: no kernels on this machine.
        """
        return self._run(tensors, memory_format)

    def timings(self, *tensors: Tensor, repeats: int = 5) -> list[tuple[str, float]]:
        """Milliseconds of each operator in the order they were added, the median of some runs.

        Inputs are not among them: the last entry is what they and the outputs take together.
        """
        plan = self._plan(tensors, torch.contiguous_format)
        times = []
        for _ in range(repeats):
            clock = (ctypes.c_double * len(plan.ops))()
            self._run(tensors, torch.contiguous_format, clock)
            times.append(list(clock))
        medians = (torch.tensor(times).median(0).values / 1e3).tolist()
        found = [(name, ms) for name, ms in zip(plan.names, medians, strict=True) if name]
        return [*found, ('inputs and outputs', sum(medians) - sum(ms for _, ms in found))]

    def _plan(self, tensors: tuple[Tensor, ...], memory_format: torch.memory_format) -> Plan:
        key = (tuple((tensor.shape, tensor.stride()) for tensor in tensors), memory_format,
               torch.get_num_threads())
        plan = self._plans.get(key)
        if plan is None:
            plan = make_plan(self.nodes, self.outputs, tensors, memory_format,
                             torch.get_num_threads())
            while len(self._plans) >= _PLANS:
                self._plans.pop(next(iter(self._plans), None), None)
            self._plans[key] = plan
        return plan

    def _run(self, tensors: tuple[Tensor, ...], memory_format: torch.memory_format,
             clock: ctypes.Array | None = None) -> tuple[Tensor, ...]:
        tensors = tuple(tensor.detach() for tensor in tensors)
        plan = self._plan(tensors, memory_format)
        results = tuple(result(shape, memory_format if len(shape) == 4
                               else torch.contiguous_format) for shape in plan.results)
        try:
            memory = self._memory.pop()
        except IndexError:
            memory = torch.empty(0, dtype=torch.uint8)
        if memory.numel() < plan.bytes:
            memory = empty(plan.bytes, dtype=torch.uint8)
        everything = [tensor.data_ptr() for tensor in (*tensors, *results)]
        plan.library.run(plan.library.kernels.number, plan.ops, plan.steps, len(plan.steps),
                         memory.data_ptr(), (ctypes.c_void_p * len(everything))(*everything),
                         torch.get_num_threads(), clock)
        self._memory.append(memory)
        return results

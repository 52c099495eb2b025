"""N:M convolutions and linear layers on this machine's CPU, one at a time.

Shapes: a weight is ``(O, I, Kh, Kw)`` or ``(O, I)``. How the kernels work stands in csrc/pixels.h
and csrc/outputs.h; :mod:`.program` runs many of them in one call.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional.masks import satisfies
from ..functional.pattern import Pattern
from ..utils.errors import InputError
from .arrange import arranged
from .arrange_int8 import arranged_int8, in_lanes
from .library import library
from .quantization import ChannelQuantization, Quantization, QuantizedWeight, quantize_weight

# Of int8 layers: a block of rows has 16-bit offsets, and 255 * 127 * inputs must fit into an int32.
_MOST_M, _MOST_INPUTS = 1024, 65536


def instruction_set() -> str | None:
    """The instruction set that kernels run with here, a key of ``KERNELS``; None: no kernels.

    Compiles them on first use.

    Raises:
        InputError: ``MAXQ_ISA`` in the environment is none of its values.
    """
    found = library()
    return found and found.instruction_set


def refusal(weight: Tensor, pattern: 'str | Pattern | None', groups: int = 1) -> str | None:
    """Why no kernel takes a layer with this weight and pattern; None if one does."""
    if instruction_set() is None:
        return 'no kernel for this CPU (AVX2 or AVX-512, and a C++ compiler)'
    if weight.device.type != 'cpu' or weight.dtype != torch.float32:
        return f'{weight.dtype} weight on {weight.device}, kernels take float32 on cpu'
    if groups != 1:
        return f'grouped ({groups} groups)'
    if weight.ndim not in (2, 4) or weight.numel() == 0:
        return f'weight of shape {tuple(weight.shape)}'
    if pattern is None:
        return None
    pattern = Pattern.parse(pattern)
    if weight.shape[1] % pattern.m:
        return f'{weight.shape[1]} input channels, no multiple of {pattern.m}'
    return None if satisfies(weight, pattern) else f'not {pattern}'


@dataclass(frozen=True, eq=False)
class PackedLayer:
    """A convolution or linear layer in the form that the kernels read; made by :func:`pack`.

    Read-only: any number of threads may call it.
    """

    shape: tuple[int, ...]  # of the weight
    pattern: Pattern | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    instruction_set: str
    # Of arrange.py.
    block_rows: int
    steps: int
    values: Tensor = field(repr=False)
    rows: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    # Of an int8 layer: what it takes, what it gives (None: float32), and (O,) the factors from its
    # sums to its result; a float32 layer has none.
    input: Quantization | ChannelQuantization | None = None
    output: Quantization | None = None
    scales: Tensor | None = field(default=None, repr=False)

    @property
    def is_linear(self) -> bool:
        """Whether it takes rows ``(B, I)``."""
        return len(self.shape) == 2

    @property
    def kernel(self) -> tuple[int, int]:
        """Kernel size; that of a linear layer is (1, 1)."""
        return (1, 1) if self.is_linear else self.shape[2:]

    def __call__(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """``relu(layer(x) + residual)``.

        Args:
            x: ``(N, I, H, W)``, or ``(..., I)`` for a linear layer; float32 also of an int8 layer,
                which quantizes it.
            residual: what is added before the ReLU, like the result.
            relu: whether there is one.

        Returns:
            ``(N, O, H', W')`` in the memory format of ``x``, or ``(..., O)``.

        Raises:
            InputError: ``x`` or ``residual`` is not float32 on the CPU or of another shape.
        """
        from .program import Program  # which builds upon this

        program = Program()
        result = program.layer(
            program.input(self.shape[1], self.is_linear, self.input), self,
            None if residual is None
            else program.input(self.shape[0], self.is_linear, self.output or self.input), relu)
        program.output(result)
        tensors = [x] if residual is None else [x, residual]
        if not self.is_linear:
            last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
            return program(*tensors, memory_format=torch.channels_last if last
                           else torch.contiguous_format)[0]
        rows, = program(*(tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors))
        return rows.reshape(*x.shape[:-1], self.shape[0])


def pack(weight: Tensor, pattern: 'str | Pattern | None', bias: Tensor | None = None,
         stride: int | tuple[int, int] = 1, padding: int | tuple[int, int] = 0,
         dilation: int | tuple[int, int] = 1, beside_int8: bool = False) -> PackedLayer:
    """Put a layer into the form that the kernels read.

    Args:
        weight: ``(O, I, Kh, Kw)`` or ``(O, I)``, float32 on the CPU; at most N of every M
            consecutive input channels differ from 0.
        pattern: N:M, or None for a dense layer.
        bias: ``(O,)``.
        stride, padding, dilation: of a convolution, per axis or for both.
        beside_int8: it is for programs with int8 layers, for which a machine may have another set.

    Raises:
        InputError: no kernel takes it (see :func:`refusal`), or padding and the like are unfit.
    """
    reason = refusal(weight, pattern)
    if reason is not None:
        raise InputError(f'no kernel takes this layer: {reason}')
    found = library(beside_int8)
    bias = _bias(weight, bias)
    pattern = None if pattern is None else Pattern.parse(pattern)
    return PackedLayer(
        tuple(weight.shape), pattern, _pair('stride', stride, 1), _pair('padding', padding, 0),
        _pair('dilation', dilation, 1), found.instruction_set,
        *arranged(weight.detach(), pattern, found),
        F.pad(bias.float(), (0, -len(bias) % found.outputs)))


def refusal_int8(weight: Tensor, pattern: 'str | Pattern | None', groups: int = 1) -> str | None:
    """Why no kernel takes a layer with this weight and pattern in int8; None if one does."""
    reason = refusal(weight, pattern, groups)
    if reason is not None:
        return reason
    if pattern is not None and Pattern.parse(pattern).m > _MOST_M:
        return f'{pattern}: int8 kernels take M of at most {_MOST_M}'
    if weight[0].numel() > _MOST_INPUTS:
        return f'{weight[0].numel()} inputs of an output, int8 kernels sum at most {_MOST_INPUTS}'
    return None if weight.isfinite().all() else 'a weight that is no number'


def pack_int8(weight: Tensor, pattern: 'str | Pattern | None', bias: Tensor | None = None,
              stride: int | tuple[int, int] = 1, padding: int | tuple[int, int] = 0,
              dilation: int | tuple[int, int] = 1, *,
              input: Quantization | ChannelQuantization, output: Quantization | None,
              quantized: QuantizedWeight | None = None) -> PackedLayer:
    """The same for an int8 layer; weights become what ``quantize_weight`` makes of them.

    The result, of int32 sums over ``x`` less its zero point, is
    ``round(sum * scales + bias / output.scale + output.zero_point)``, clamped to a byte, or
    ``sum * scales + bias``. Padding of an image is its zero points' nearest bytes.

    Args:
        weight, pattern, bias, stride, padding, dilation: see :func:`pack`.
        input: of what it takes.
        output: of what it gives; None: float32.
        quantized: the weight, if that was done already.

    Raises:
        InputError: no kernel takes it (see :func:`refusal_int8`), or padding and the like are
            unfit.
    """
    reason = refusal_int8(weight, pattern)
    if reason is not None:
        raise InputError(f'no kernel takes this layer: {reason}')
    found = library(int8=True)
    integers, scales = quantized or quantize_weight(weight, pattern, input=input)
    # What the kernel sums has the input's zero points in it.
    if isinstance(input, ChannelQuantization):
        channels = integers.reshape(*integers.shape[:2], -1).sum(2, dtype=torch.float64)
        extra = channels @ torch.tensor(input.zero_points, dtype=torch.float64)
    else:
        scales = input.scale * scales
        extra = input.zero_point * integers.flatten(1).sum(1, dtype=torch.int64)
    scales = scales / (output.scale if output else 1)
    bias = _bias(weight, bias).double() / (output.scale if output else 1) - scales * extra
    pattern = None if pattern is None else Pattern.parse(pattern)
    dilation = _pair('dilation', dilation, 1)
    bias, scales = (in_lanes(values.float(), found) for values in (
        bias + (output.zero_point if output else 0), scales))
    return PackedLayer(
        tuple(weight.shape), pattern, _pair('stride', stride, 1), _pair('padding', padding, 0),
        dilation, found.instruction_set, *arranged_int8(integers, pattern, dilation, found),
        bias, input, output, scales)


def _bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().to(weight)
    if bias.shape != (len(weight), ):
        raise InputError(f'bias of shape {tuple(bias.shape)}, expected ({len(weight)},)')
    return bias


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise InputError(f'{name} must be whole numbers of at least {least}, got {value!r}')
    return pair

"""N:M convolutions and linear layers on this machine's CPU, one at a time.

Shapes: a weight is ``(O, I, Kh, Kw)`` or ``(O, I)``; K = Kh * Kw * I inputs of an output, ordered
by kernel position, then channel. How the kernels work stands in csrc/pixels.h; :mod:`.program` runs
many of them in one call.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional.masks import satisfies
from ..functional.pattern import Pattern
from ..utils.errors import InputError
from .library import library

# Inputs of a tile that are worked on at a time, by lanes: three quarters of the first-level cache.
_BLOCK = {8: 192, 16: 144}


def instruction_set() -> str | None:
    """The instruction set that kernels run with here, ``'avx512'`` or ``'avx2'``; None: no kernels.

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
    lanes: int
    block_rows: int
    # By block of rows and group of outputs: (weights of an output there, outputs of the group).
    values: Tensor = field(repr=False)
    rows: Tensor = field(repr=False)  # in the block, as values; int16; none of a dense layer
    bias: Tensor = field(repr=False)  # whole groups

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
            x: ``(N, I, H, W)``, or ``(..., I)`` for a linear layer.
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
            program.input(self.shape[1], self.is_linear), self,
            None if residual is None else program.input(self.shape[0], self.is_linear), relu)
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
         dilation: int | tuple[int, int] = 1) -> PackedLayer:
    """Put a layer into the form that the kernels read.

    Args:
        weight: ``(O, I, Kh, Kw)`` or ``(O, I)``, float32 on the CPU; at most N of every M
            consecutive input channels differ from 0.
        pattern: N:M, or None for a dense layer.
        bias: ``(O,)``.
        stride, padding, dilation: of a convolution, per axis or for both.

    Raises:
        InputError: no kernel takes it (see :func:`refusal`), or padding and the like are unfit.
    """
    reason = refusal(weight, pattern)
    if reason is not None:
        raise InputError(f'no kernel takes this layer: {reason}')
    found = library()
    weight = weight.detach()
    out_channels, in_channels = weight.shape[:2]
    pattern = None if pattern is None else Pattern.parse(pattern)
    m = 1 if pattern is None else pattern.m
    by_block = (weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight).reshape(
        out_channels, -1, m)
    padded = -out_channels % found.outputs
    by_block = F.pad(by_block, (0, 0, 0, 0, 0, padded))
    inputs = by_block.shape[1] * m
    parts = -(-inputs // _BLOCK[found.lanes])
    block_rows = -(-inputs // (parts * m)) * m
    columns = _kept(by_block, m if pattern is None else pattern.n)
    values = by_block.gather(2, columns)
    rows = columns + torch.arange(0, block_rows, m).repeat(parts)[:by_block.shape[1], None]
    step = block_rows // m
    bias = weight.new_zeros(out_channels) if bias is None else bias.detach().to(weight)
    if bias.shape != (out_channels, ):
        raise InputError(f'bias of shape {tuple(bias.shape)}, expected ({out_channels},)')
    return PackedLayer(
        tuple(weight.shape), pattern, _pair('stride', stride, 1), _pair('padding', padding, 0),
        _pair('dilation', dilation, 1), found.lanes, block_rows,
        _arranged(values, step, found.outputs),
        _arranged(rows, step, found.outputs).short() if pattern else torch.empty(0).short(),
        F.pad(bias, (0, padded)))


def _kept(blocks: Tensor, n: int) -> Tensor:
    """Columns of n weights in each block ``(O, B, M)``, with all that are not 0; ascending."""
    return (blocks == 0).byte().argsort(dim=-1, stable=True)[..., :n].sort(-1).values


def _arranged(weights: Tensor, step: int, outputs: int) -> Tensor:
    """``(O, B, N)`` as [step blocks][group of outputs][weight][output], flat."""
    groups = weights.unflatten(0, (-1, outputs))
    return torch.cat([part.flatten(2).transpose(1, 2).flatten()
                      for part in groups.split(step, 2)])


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise InputError(f'{name} must be whole numbers of at least {least}, got {value!r}')
    return pair

"""N:M patterns and the order of their blocks.

Shapes: a weight is ``(O, I, *K)`` with O output channels, I input channels and kernel axes K
(none for a linear layer); a pattern groups I into blocks of M; B = O * prod(K) * I / M.
"""

import re
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.errors import InputError


class Pattern(NamedTuple):
    """N weights kept of every M consecutive input channels."""

    n: int
    m: int

    @classmethod
    def parse(cls, text: 'str | Pattern') -> 'Pattern':
        """Read ``'2:4'`` (a ``Pattern`` passes through).

        Raises:
            InputError: not two whole numbers N:M with 1 <= N <= M.
        """
        if isinstance(text, cls):
            return text
        match = re.fullmatch(r'([0-9]+):([0-9]+)', text) if isinstance(text, str) else None
        if match is None:
            raise InputError(f"pattern must be a string 'N:M' such as '2:4', got {text!r}")
        n, m = int(match[1]), int(match[2])
        if not 1 <= n <= m:
            raise InputError(f'pattern N:M needs 1 <= N <= M, got {text!r}')
        return cls(n, m)

    @property
    def is_dense(self) -> bool:
        """N = M keeps everything."""
        return self.n == self.m

    def smallest(self, count: int) -> int:
        """How many of ``count`` weights the pattern leaves out: floor((M - N) / M * count)."""
        return (self.m - self.n) * count // self.m

    def __str__(self) -> str:
        return f'{self.n}:{self.m}'


def check_blocks(shape: tuple[int, ...], m: int) -> None:
    """Raises InputError unless a weight of this shape has blocks of ``m`` along axis 1."""
    if len(shape) < 2 or shape[1] == 0 or shape[1] % m:
        raise InputError(
            f'weight of shape {tuple(shape)} has no blocks of {m} along axis 1: '
            'its input channels must be a positive multiple of M')


def to_blocks(weight: Tensor, m: int) -> Tensor:
    """Weight ``(O, I, *K)`` as rows of blocks ``(B, M)``, input channels innermost.

    Raises:
        InputError: fewer than two axes, or I is no multiple of ``m``.
    """
    check_blocks(weight.shape, m)
    return weight.movedim(1, -1).reshape(-1, m)


def from_blocks(blocks: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Inverse of :func:`to_blocks` for a weight of the given ``(O, I, *K)`` shape."""
    o, i, *kernel = shape
    return blocks.reshape(o, *kernel, i).movedim(-1, 1)


def laid_out_like(weight: Tensor, result: Tensor) -> Tensor:
    """``result`` with the strides of ``weight``, of the same shape; copied if need be."""
    if result.stride() == weight.stride():
        return result
    if all(size == 1 or mine == its for size, mine, its in
           zip(weight.shape, result.stride(), weight.stride(), strict=True)):
        return result.as_strided(weight.shape, weight.stride())
    return torch.empty_like(weight, dtype=result.dtype).copy_(result)

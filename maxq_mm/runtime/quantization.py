"""Numbers in int8: what an activation's byte stands for, and which integers weights become.

An activation is uint8 with a scale and a zero point, ``real = scale * (q - zero_point)``; a weight
is int8, symmetric, with a scale for each output channel, so that zero stays zero.

AVX2 adds pairs of products in int16, where they must not saturate: a pair of weights that are
multiplied together has ``|a| + |b| <= 128``, so that ``255 * (|a| + |b|) <= 32767``. Which are
paired is chosen so that this costs little (:mod:`.arrange_int8`), and is the same for all
instruction sets: no result depends on the machine.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..functional.pattern import Pattern
from ..utils.errors import InputError
from .arrange_int8 import blocks_of, by_position

# A little less than 128: of two halves only one is rounded up.
_PAIR = 128 * (1 - 2 ** -20)
# Scales, their quotients and their products with weights' are computed in float32.
_LEAST, _MOST = 1e-12, 1e12


@dataclass(frozen=True)
class Quantization:
    """What the bytes of an activation stand for: ``scale * (q - zero_point)``."""

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not _LEAST <= self.scale <= _MOST:
            raise InputError(f'scale must be {_LEAST} to {_MOST}, got {self.scale!r}')
        if self.zero_point not in range(256):
            raise InputError(f'zero_point must be 0 to 255, got {self.zero_point!r}')

    @classmethod
    def of_range(cls, low: float, high: float) -> 'Quantization':
        """That covers a range, which is widened to hold 0.

        Raises:
            InputError: it is no range, or beyond what scales can be.
        """
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise InputError(f'no range: {low!r} to {high!r}')
        low, high = min(low, 0.), max(high, 0.)
        scale = (high - low) / 255
        if scale < _LEAST:  # a constant of 0
            return cls(1., 0)
        return cls(scale, round(-low / scale))


def quantize_weight(weight: Tensor, pattern: 'str | Pattern | None',
                    scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The integers and scales that stand for a weight.

    Args:
        weight: ``(O, I, Kh, Kw)`` or ``(O, I)``, float32, of the pattern.
        pattern: N:M, or None for a dense layer.
        scales: of a weight that is such integers times them already; so they stay the same.

    Returns:
        int8 like ``weight``, and float64 scales ``(O,)``.
    """
    pattern = None if pattern is None else Pattern.parse(pattern)
    scales = _scales(weight, pattern) if scales is None else scales
    shape = (-1, *[1] * (weight.ndim - 1))
    return (weight.detach().double() / scales.reshape(shape)).round().to(torch.int8), scales


def _scales(weight: Tensor, pattern: Pattern | None) -> Tensor:
    blocks = blocks_of(by_position(weight.detach().abs().double()), pattern)
    pairs = torch.cat([part.values.unflatten(1, (-1, 2)) for part in blocks.parts], 1)
    scales = torch.maximum(pairs.amax((1, 2)) / 127, pairs.sum(2).amax(1) / _PAIR)
    return torch.where(scales > 0, scales, 1.)

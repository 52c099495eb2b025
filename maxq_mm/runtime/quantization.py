"""Numbers in int8: what an activation's byte stands for, and which integers weights become.

An activation is uint8 with a scale and a zero point, ``real = scale * (q - zero_point)``; a weight
is int8, symmetric, with a scale for each output channel, so that zero stays zero.

An image has a scale and a zero point for each channel. Its pixels were bytes before they were
normalised, each channel by a mean and a deviation of its own, and so they are the same bytes again:
nothing is lost. The layer that reads them has the scales in its weights, before these are rounded.

AVX2 adds pairs of products in int16, where they must not saturate: a pair of weights that are
multiplied together has ``|a| + |b| <= 128``, so that ``255 * (|a| + |b|) <= 32767``. Which are
paired is chosen so that this costs little (:mod:`.arrange_int8`), and is the same for all
instruction sets: no result depends on the machine.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

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


@dataclass(frozen=True)
class ChannelQuantization:
    """The same of an image, channel by channel: ``scales[c] * (q - zero_points[c])``.

    A zero point may lie between bytes, so that pixels do not; then 0 itself, in padding, is the
    byte next to it.
    """

    scales: tuple[float, ...]
    zero_points: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.scales) != len(self.zero_points):
            raise InputError(f'{len(self.scales)} scales and {len(self.zero_points)} zero points')
        for scale, zero_point in zip(self.scales, self.zero_points, strict=True):
            Quantization(scale, 0)  # says what it must be
            if not 0 <= zero_point <= 255:
                raise InputError(f'zero_points must be 0 to 255, got {zero_point!r}')
        _ = self.factors, self.offsets  # now: plans of several threads point at them

    @classmethod
    def of_ranges(cls, ranges: Iterable[tuple[float, float]]) -> 'ChannelQuantization':
        """That covers a range of each channel; see :meth:`Quantization.of_range`."""
        scales, zero_points = [], []
        for low, high in ranges:
            scale = Quantization.of_range(low, high).scale
            scales.append(scale)
            zero_points.append(min(max(-low / scale, 0.), 255.))
        return cls(tuple(scales), tuple(zero_points))

    @cached_property
    def factors(self) -> Tensor:
        """``(C,)`` float32, of a channel's values to its bytes."""
        return torch.tensor(self.scales, dtype=torch.float64).reciprocal().float()

    @cached_property
    def offsets(self) -> Tensor:
        """``(C,)`` float32, what is added to them then."""
        return torch.tensor(self.zero_points)


class QuantizedWeight(NamedTuple):
    """``weight[o] * input scales = integers[o] * scales[o]``; the input's are 1 but for an image.
    """

    integers: Tensor  # int8 like the weight
    scales: Tensor  # (O,) float64


def quantize_weight(weight: Tensor, pattern: 'str | Pattern | None', scales: Tensor | None = None,
                    input: Quantization | ChannelQuantization | None = None) -> QuantizedWeight:
    """The integers and scales that stand for a weight.

    Args:
        weight: ``(O, I, Kh, Kw)`` or ``(O, I)``, float32, of the pattern.
        pattern: N:M, or None for a dense layer.
        scales: of a weight that is such integers times them already; so they stay the same.
        input: of what the layer takes; scales of its channels go into the weight.
    """
    pattern = None if pattern is None else Pattern.parse(pattern)
    weight = weight.detach().double()
    if isinstance(input, ChannelQuantization):
        channels = torch.tensor(input.scales, dtype=torch.float64)
        weight = weight * channels.view(-1, *[1] * (weight.ndim - 2))
    scales = _scales(weight, pattern) if scales is None else scales
    shape = (-1, *[1] * (weight.ndim - 1))
    return QuantizedWeight((weight / scales.reshape(shape)).round().to(torch.int8), scales)


def _scales(weight: Tensor, pattern: Pattern | None) -> Tensor:
    blocks = blocks_of(by_position(weight.abs()), pattern)
    pairs = torch.cat([part.values.unflatten(1, (-1, 2)) for part in blocks.parts], 1)
    scales = torch.maximum(pairs.amax((1, 2)) / 127, pairs.sum(2).amax(1) / _PAIR)
    return torch.where(scales > 0, scales, 1.)

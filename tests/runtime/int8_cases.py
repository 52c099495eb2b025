"""Random int8 layers and programs, held against integers in float64."""

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from maxq_mm.runtime import kernels
from maxq_mm.runtime.quantization import Quantization, quantize_weight

from .kernel_cases import KERNELS, PATTERNS, sparse


def real(q: Tensor, quantization: Quantization) -> Tensor:
    """What bytes stand for, float64."""
    return quantization.scale * (q.double() - quantization.zero_point)


def random_bytes(shape: tuple[int, ...], choose: random.Random) -> Tensor:
    """All bytes, or those of the extremes."""
    kind = choose.random()
    if kind < 0.1:
        return torch.full(shape, choose.choice((0, 255)), dtype=torch.uint8)
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def random_quantization(choose: random.Random) -> Quantization:
    return Quantization(choose.choice((0.5, 0.013, 3.7)), choose.choice((0, 0, 128, 255, 37)))


def check_result(found: Tensor, expected: Tensor, unit: Tensor, size: Tensor,
                 output: Quantization | None, relu: bool, case: object) -> None:
    """Equal to ``expected``, float64 before the ReLU.

    ``unit``: what 1 in an int32 sum is, ``size``: of the largest number on the way, both in
    the result's unit, which bounds its rounding in float32.
    """
    assert found.shape == expected.shape, (case, found.shape, expected.shape)
    assert found.dtype == torch.float32
    if not found.numel():
        return
    rounding = size * 2. ** -22
    if output is None:
        expected = expected.relu() if relu else expected
        assert ((found - expected).abs() <= 0.25 * unit + rounding).all(), case
        return
    # The bytes, but where rounding in float32 may decide.
    q = expected / output.scale + output.zero_point
    low = output.zero_point if relu else 0
    bytes_ = found.double() / output.scale + output.zero_point
    rounding = rounding / output.scale + 1e-6
    assert ((bytes_ - (q - rounding).round().clamp(low, 255) > -1e-3)
            & (bytes_ - (q + rounding).round().clamp(low, 255) < 1e-3)).all(), case


def random_weight(shape: tuple[int, ...], pattern: str | None, choose: random.Random) -> Tensor:
    weight = sparse(shape, pattern, choose.random() < 0.3)
    if choose.random() < 0.2:  # every product as large as can be
        weight = weight.sign() * choose.choice((1, -1))
    return weight


def check_layer(weight: Tensor, pattern: str | None, q: Tensor, arguments: tuple,
                choose: random.Random) -> None:
    """A layer on bytes ``q``, with any epilogue; ``arguments``: stride, padding, dilation."""
    source, other = random_quantization(choose), random_quantization(choose)
    integers, scales = quantize_weight(weight, pattern)
    channel = (slice(None), *[None] * (q.ndim - 2)) if weight.ndim == 4 else (slice(None), )
    unit = (source.scale * scales)[channel]

    def layer(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(x, w, None, *arguments) if w.ndim == 4 else F.linear(x, w)

    sums = layer(q.double() - source.zero_point, integers.double())
    bias = choose.choice((None, torch.randn(len(weight)) * 20 * unit.mean().float()))
    expected = sums * unit + (0 if bias is None else bias.double()[channel])
    residual = random_bytes(expected.shape, choose) if choose.random() < 0.5 else None
    spread = float(expected.std()) if expected.numel() > 1 else 1.
    other = Quantization(other.scale * max(spread, 1e-3) / 128, other.zero_point)
    output = None if choose.random() < 0.3 else other
    if residual is not None:
        quantization = output or source
        expected = expected + real(residual, quantization)
    relu = choose.random() < 0.5
    packed = kernels.pack_int8(weight, pattern, bias, *arguments, input=source, output=output)
    found = packed(real(q, source).float(),
                   None if residual is None else real(residual, quantization).float(), relu)
    zero_share = source.zero_point * unit * integers.flatten(1).sum(1).abs()[channel]
    size = layer(q.double(), integers.double().abs()) * unit + expected.abs() + zero_share + (
        0 if residual is None else real(residual, quantization).abs() + 255 * quantization.scale)
    check_result(found, expected, unit, size, output, relu,
                 (pattern, weight.shape, q.shape, arguments, source, output, relu,
                  residual is not None))


def check_convolution(choose: random.Random) -> None:
    """One random convolution."""
    pattern = choose.choice(PATTERNS)
    m = int(pattern.split(':')[1]) if pattern else 1
    in_channels = m * choose.randint(1, max(1, 140 // m))
    kernel = choose.choice(KERNELS)
    stride = choose.choice((1, 1, 2, (3, 1)))
    dilation = choose.choice((1, 1, (2, 1)))
    padding = choose.choice((0, (kernel[0] // 2, kernel[1] // 2), (1, 2)))
    reach = (max(kernel) - 1) * 2
    q = random_bytes((choose.choice((0, 1, 1, 2)), in_channels, reach + choose.randint(1, 12),
                      reach + choose.randint(1, 12)), choose)
    weight = random_weight((choose.randint(1, 40), in_channels, *kernel), pattern, choose)
    check_layer(weight, pattern, q, (stride, padding, dilation), choose)


def check_linear(choose: random.Random) -> None:
    """One random linear layer."""
    pattern = choose.choice(PATTERNS)
    m = int(pattern.split(':')[1]) if pattern else 1
    weight = random_weight((choose.randint(1, 70), m * choose.randint(1, max(1, 1700 // m))),
                           pattern, choose)
    q = random_bytes((choose.choice((0, 1, 70)), weight.shape[1]), choose)
    check_layer(weight, pattern, q, (), choose)


def check(seed: int, convolutions: int, linear: int) -> None:
    """Some of both."""
    torch.manual_seed(seed)
    choose = random.Random(seed)
    for _ in range(convolutions):
        check_convolution(choose)
    for _ in range(linear):
        check_linear(choose)

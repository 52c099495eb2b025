"""Random layers that take an image in int8, each channel on a scale of its own, held against
integers in float64 on the very pixels."""

import hashlib
import random

import torch
import torch.nn.functional as F
from torch import Tensor

from maxq_mm.runtime import kernels
from maxq_mm.runtime.program import Program
from maxq_mm.runtime.quantization import ChannelQuantization, Quantization, quantize_weight

from .int8_cases import check_result, random_bytes, random_weight


def normalised(pixels: Tensor, means: Tensor, deviations: Tensor) -> Tensor:
    """As data preprocessors do it, in float32."""
    return ((pixels.float() - means[:, None, None]) / deviations[:, None, None])


def expected(pixels: Tensor, image: ChannelQuantization, integers: Tensor, padding: tuple[int, int],
             *settings) -> Tensor:
    """Sums, float64; padding is the bytes next to 0."""
    zeros = torch.tensor(image.zero_points).double()[:, None, None]
    inside = F.pad(torch.ones_like(pixels), (padding[1], ) * 2 + (padding[0], ) * 2).bool()
    q = F.pad(pixels.double(), (padding[1], ) * 2 + (padding[0], ) * 2)
    border = image.offsets.round().double()[:, None, None]
    return F.conv2d(torch.where(inside, q, border) - zeros, integers.double(), None, *settings)


def check_one(choose: random.Random) -> Tensor:
    """Its result."""
    channels = choose.choice((1, 3, 3, 3, 4, 12))
    pattern = '2:4' if channels % 4 == 0 and choose.random() < 0.5 else None
    kernel = choose.choice(((7, 7), (3, 3), (6, 6), (4, 4), (5, 2), (1, 1), (2, 40)))
    stride = choose.choice((1, 2, 2, (1, 2), (3, 2), 4))
    stride = (stride, stride) if isinstance(stride, int) else stride
    dilation = choose.choice(((1, 1), (1, 1), (2, 3)))
    padding = choose.choice(((0, 0), (kernel[0] // 2, kernel[1] // 2), (3, 1)))
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    pixels = random_bytes((choose.choice((1, 2)), channels, reach[0] + choose.randint(1, 20),
                           reach[1] + choose.choice((1, 5, 40, 64, 97))), choose)
    means, deviations = torch.rand(channels) * 255, torch.rand(channels) * 80 + 1
    means = means * choose.choice((0, 1))
    ends = normalised(torch.tensor([0, 255]).expand(channels, 1, 2), means, deviations)
    image = ChannelQuantization.of_ranges(ends.flatten(1).tolist())
    weight = random_weight((choose.randint(1, 40), channels, *kernel), pattern, choose)
    integers, scales = quantize_weight(weight, pattern, input=image)
    unit = scales[:, None, None]
    wanted = expected(pixels, image, integers, padding, stride, 0, dilation) * unit
    relu = choose.random() < 0.5
    output = choose.choice((None, Quantization(max(float(wanted.std()), 1e-3) / 50, 100)
                            if wanted.numel() > 1 else None))
    packed = kernels.pack_int8(weight, pattern, None, stride, padding, dilation, input=image,
                               output=output)
    x = normalised(pixels, means, deviations)
    if choose.random() < 0.3:
        x = x.contiguous(memory_format=torch.channels_last)
    program = Program()
    if choose.random() < 0.7:
        value = program.input(channels, quantization=image)
    else:
        value = program.quantize(program.input(channels), image)
    program.output(program.layer(value, packed, None, relu))
    for _ in range(2):
        found, = program(x)
        program._memory[0].fill_(choose.choice((0, 255)))  # what was there before does not matter
    size = 255 * integers.double().abs().sum((1, 2, 3))[:, None, None] * 2 * unit + wanted.abs()
    check_result(found, wanted, unit, size, output, relu,
                 (channels, pattern, kernel, stride, padding, dilation, output, relu))
    return found


def check(seed: int, count: int) -> str:
    """So many; a hash of their results."""
    torch.manual_seed(seed)
    choose = random.Random(seed)
    digest = hashlib.sha256()
    for _ in range(count):
        digest.update(check_one(choose).numpy().tobytes())
    return digest.hexdigest()

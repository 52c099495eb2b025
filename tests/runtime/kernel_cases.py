"""Random layers and programs, held against torch in float64; run in other processes, too."""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F

from maxq_mm import keep_mask
from maxq_mm.runtime import kernels
from maxq_mm.runtime.fuse import Layer
from maxq_mm.runtime.program import Program

PATTERNS = ('1:16', '2:4', '1:4', '1:8', '4:16', '1:32', '2:32', '1:64', '3:5', '1:2', '4:4', None)
KERNELS = ((1, 1), (3, 3), (1, 3), (5, 5), (7, 7), (2, 2))


def sparse(shape: tuple[int, ...], pattern: str | None, fewer: bool = False) -> torch.Tensor:
    """A random weight of the pattern; ``fewer``: with some of the kept weights 0, too."""
    weight = torch.randn(shape)
    if pattern is not None:
        weight = torch.where(keep_mask(weight, pattern), weight, 0.)
    return weight * (torch.rand(shape) < 0.7) if fewer else weight


def close(found: torch.Tensor, expected: torch.Tensor, case: object = None) -> None:
    """Same shape, and equal to 1e-5 of the range."""
    assert found.shape == expected.shape, (case, found.shape, expected.shape)
    assert found.dtype == torch.float32
    if expected.numel():
        error = (found - expected).abs().max() / expected.abs().max().clamp(min=1)
        assert error < 1e-5, (case, float(error))


def check_convolution(choose: random.Random) -> None:
    """One random convolution, all epilogues."""
    pattern = choose.choice(PATTERNS)
    m = int(pattern.split(':')[1]) if pattern else 1
    in_channels = m * choose.randint(1, max(1, 70 // m))
    kernel = choose.choice(KERNELS)
    shape = (choose.randint(1, 40), in_channels, *kernel)
    stride = choose.choice((1, 1, 2, (3, 1)))
    dilation = choose.choice((1, 1, (2, 1)))
    padding = choose.choice((0, (kernel[0] // 2, kernel[1] // 2), (1, 2)))
    reach = (max(kernel) - 1) * 2
    x = torch.randn(choose.choice((0, 1, 1, 2)), in_channels, reach + choose.randint(1, 12),
                    reach + choose.randint(1, 12))
    if choose.random() < 0.3:
        x = x.contiguous(memory_format=torch.channels_last)
    if choose.random() < 0.2:
        x = x.transpose(2, 3)
    weight = sparse(shape, pattern, choose.random() < 0.3)
    bias = choose.choice((None, torch.randn(shape[0])))
    relu = choose.random() < 0.5
    expected = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(),
                        stride, padding, dilation)
    residual = torch.randn(expected.shape) if choose.random() < 0.5 else None
    if residual is not None:
        expected = expected + residual
    layer = kernels.pack(weight, pattern, bias, stride, padding, dilation)
    case = (pattern, shape, stride, padding, dilation, x.shape, residual is not None, relu)
    close(layer(x, residual, relu), expected.relu() if relu else expected, case)


def check_linear(choose: random.Random) -> None:
    """One random linear layer on rows of any shape."""
    pattern = choose.choice(PATTERNS)
    m = int(pattern.split(':')[1]) if pattern else 1
    weight = sparse((choose.randint(1, 70), m * choose.randint(1, max(1, 300 // m))), pattern)
    bias = torch.randn(len(weight))
    x = torch.randn(*choose.choice(((), (0, ), (1, ), (150, ), (2, 3))), weight.shape[1])
    close(kernels.pack(weight, pattern, bias)(x, relu=True),
          F.linear(x.double(), weight.double(), bias.double()).relu(), (pattern, weight.shape))


def check_blocks(choose: random.Random) -> None:
    """One random transposed convolution whose kernel is its stride."""
    block = choose.choice(((2, 2), (2, 2), (1, 2), (3, 1), (2, 3), (1, 1)))
    weight = torch.randn(choose.randint(1, 40), choose.randint(1, 40), *block)
    bias = choose.choice((None, torch.randn(weight.shape[1])))
    x = torch.randn(choose.choice((0, 1, 3)), len(weight), choose.randint(1, 20),
                    choose.randint(1, 80))
    layer = Layer.transposed(weight, weight, bias)
    program = Program()
    value = program.layer(program.input(len(weight)),
                          kernels.pack(layer.weight, None, layer.bias), relu=True)
    program.output(program.depth_to_space(value, block))
    for memory in ((), (torch.full((1 << 22, ), 255, dtype=torch.uint8), )):
        program._memory[:] = memory
        found, = program(x)
        close(found, F.conv_transpose2d(x.double(), weight.double(),
                                        None if bias is None else bias.double(), block).relu(),
              (weight.shape, x.shape))
        torch.testing.assert_close(layer(x, relu=True), found, rtol=0, atol=1e-4)


def check(seed: int, convolutions: int, linear: int,
          cases: tuple[Callable, ...] = (check_convolution, check_linear, check_blocks)) -> None:
    """Some of each; of the last as many as linear ones."""
    torch.manual_seed(seed)
    choose = random.Random(seed)
    for case, count in zip(cases, (convolutions, linear, linear), strict=False):
        for _ in range(count):
            case(choose)


def residual_network(pattern: str | None = '2:4') -> tuple[Program, callable]:
    """A stem, two residual blocks and a pyramid; the program, and the same in torch, float64."""
    program, weights = Program(), {}

    def layer(name, x, shape, stride=1, residual=None, relu=True, pattern=pattern):
        if name not in weights:
            weight = sparse(shape, pattern) / (shape[1] * shape[2]) ** 0.5
            weights[name] = (weight, torch.randn(shape[0]), stride, shape[2] // 2)
        packed = kernels.pack(weights[name][0], pattern, *weights[name][1:])
        return program.layer(x, packed, residual, relu)

    x = program.input(3)
    x = program.max_pool(layer('stem', x, (16, 3, 7, 7), 2, pattern=None), 3, 2, 1)
    a = layer('a1', layer('a0', x, (16, 16, 3, 3)), (16, 16, 3, 3), residual=x)
    b = layer('b0', a, (32, 16, 3, 3), 2)
    b = layer('b1', b, (32, 32, 3, 3), residual=layer('skip', a, (32, 16, 1, 1), 2, relu=False))
    top = layer('top', b, (16, 32, 1, 1), relu=False)
    side = layer('side', a, (16, 16, 1, 1), relu=False)
    merged = program.upsample_add(top, side)
    program.output(merged)
    program.output(layer('shared', merged, (24, 16, 3, 3)))
    program.output(layer('shared', top, (24, 16, 3, 3)))
    program.output(program.add(program.upsample(top, a), program.relu(side), relu=True))
    program.output(program.max_pool(top, 1, 2))

    def reference(x):
        def torch_layer(name, x, residual=None, relu=True):
            weight, bias, stride, padding = weights[name]
            x = F.conv2d(x, weight.double(), bias.double(), stride, padding)
            x = x if residual is None else x + residual
            return x.relu() if relu else x

        x = F.max_pool2d(torch_layer('stem', x.double()), 3, 2, 1)
        a = torch_layer('a1', torch_layer('a0', x), x)
        b = torch_layer('b1', torch_layer('b0', a), torch_layer('skip', a, relu=False))
        top, side = torch_layer('top', b, relu=False), torch_layer('side', a, relu=False)
        up = F.interpolate(top, size=a.shape[2:], mode='nearest')
        merged = side + up
        return (merged, torch_layer('shared', merged), torch_layer('shared', top),
                (up + side.relu()).relu(), F.max_pool2d(top, 1, 2))

    return program, reference


def check_network(threads: int) -> None:
    """The network above at several sizes, on memory that holds anything before."""
    torch.manual_seed(0)
    program, reference = residual_network()
    for size in ((1, 3, 32, 48), (2, 3, 41, 27), (1, 3, 32, 48), (1, 3, 8, 8), (0, 3, 16, 16)):
        x = torch.randn(size)
        for memory in program._memory:
            memory.fill_(255)  # as float32: NaN
        for format in (torch.contiguous_format, torch.channels_last):
            torch.set_num_threads(threads)
            results = program(x.contiguous(memory_format=format), memory_format=format)
            torch.set_num_threads(1)  # torch's own threads do not survive a fork
            for found, expected in zip(results, reference(x), strict=True):
                close(found, expected, (size, format))
                assert found.is_contiguous(memory_format=format)

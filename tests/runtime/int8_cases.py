"""Random int8 layers and programs, held against integers in float64."""

import hashlib
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from maxq_mm.runtime import kernels
from maxq_mm.runtime.program import Program
from maxq_mm.runtime.quantization import Quantization, quantize_weight

from . import kernel_cases
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
    kernel_cases.check(seed, convolutions, linear, (check_convolution, check_linear))


def run_one(add: Callable, *inputs: tuple[Tensor, Quantization | None]) -> Tensor:
    """The result of one operator, ``add(program, *values)``."""
    program = Program()
    values = [program.input(x.shape[1], quantization=quantization) for x, quantization in inputs]
    program.output(add(program, *values))
    return program(*(x for x, _ in inputs))[0]


def check_large_results(seed: int) -> None:
    """Results of more than 4 MiB, in planes whose lines begin alike or not, and in pixels."""
    torch.manual_seed(seed)
    choose = random.Random(seed)
    for shape in ((3, 72, 125, 48), (1, 48, 130, 208), (1, 33, 131, 250)):
        quantization = random_quantization(choose)
        q = random_bytes(shape, choose)
        exact = (q.double() - quantization.zero_point).float() * torch.tensor(quantization.scale)
        x = torch.randn(shape)
        program = Program()
        program.output(program.input(shape[1], quantization=quantization))
        program.output(program.relu(program.input(shape[1])))
        for memory_format in (torch.contiguous_format, torch.channels_last):
            found = program(real(q, quantization).float(), x, memory_format=memory_format)
            assert all(y.is_contiguous(memory_format=memory_format) for y in found)
            assert torch.equal(found[0], exact)
            assert torch.equal(found[1], x.relu())


def check_moves(seed: int) -> None:
    """What is not a layer, against torch."""
    torch.manual_seed(seed)
    choose = random.Random(seed)
    a, b, out = (random_quantization(choose) for _ in range(3))
    shape = (2, choose.choice((5, 70)), choose.randint(1, 40), choose.randint(2, 70))
    qa, qb = random_bytes(shape, choose), random_bytes(shape, choose)
    xa, xb = real(qa, a).float(), real(qb, b).float()

    def same(found: Tensor, q: Tensor, quantization: Quantization) -> None:
        exact = (q.double() - quantization.zero_point).float()
        assert torch.equal(found, exact * torch.tensor(quantization.scale))

    same(run_one(lambda p, x: x, (xa, a)), qa, a)
    same(run_one(lambda p, x: p.relu(x), (xa, a)), qa.clamp(min=a.zero_point), a)
    same(run_one(lambda p, x: p.max_pool(x, (3, 2), (2, 1), 1), (xa, a)),
         F.max_pool2d(qa.double(), (3, 2), (2, 1), 1), a)
    cells = torch.stack([*qa.chunk(5, 1)], -1)  # 5 in a row
    same(run_one(lambda p, x: p.depth_to_space(x, (1, 5)), (xa, a)), cells.flatten(3), a)
    small = qb[..., ::3, ::2]
    up = F.interpolate(small.double(), size=shape[2:], mode='nearest')
    pair = ((real(small, b).float(), b), (xa, a))
    same(run_one(lambda p, x, y: p.upsample(x, y), *pair), up, b)
    size = xa.abs() + 255 * (a.scale + b.scale)
    for relu in (False, True):
        found = run_one(lambda p, x, y, relu=relu: p.add(x, y, relu, out), (xa, a), (xb, b))
        check_result(found, real(qa, a) + real(qb, b), size, size, out, relu, (a, b, out))
    check_result(run_one(lambda p, x, y: p.upsample_add(x, y, out), *pair),
                 real(qa, a) + real(up, b), size, size, out, False, (a, b, out))
    x = torch.randn(shape) * 300 * a.scale
    check_result(run_one(lambda p, x: p.quantize(x, a), (x, None)), x.double(), size, size, a,
                 False, a)
    same(run_one(lambda p, x: p.dequantize(x), (xa, a)), qa, a)


def network(pattern: str | None = '2:4') -> tuple[Program, Callable]:
    """A stem in float32, residual blocks in int8, a pyramid; and the same, one operator at a time.
    """
    signed, byte = Quantization(0.03, 120), Quantization(0.02, 0)
    weights = {}

    def layer(p, name, x, shape, stride=1, residual=None, relu=True, input=byte, output=byte):
        if name not in weights:
            weights[name] = (sparse(shape, pattern) / (shape[1] * shape[2]) ** 0.5, pattern,
                             torch.randn(shape[0]), stride, shape[2] // 2)
        packed = kernels.pack_int8(*weights[name], input=input, output=output)
        return p.layer(x, packed, residual, relu)

    # Its sums are exact in float32, so that sets which round differently agree.
    stem = ((torch.randn(16, 3, 7, 7) * 2).round() / 16, None, None, 2, 3)

    def build(p, x):
        x = p.quantize(p.max_pool(p.layer(x, kernels.pack(*stem, beside_int8=True), None, True),
                                  3, 2, 1), byte)
        a = layer(p, 'a1', layer(p, 'a0', x, (16, 16, 3, 3)), (16, 16, 3, 3), residual=x)
        b = layer(p, 'b0', a, (32, 16, 3, 3), 2)
        skip = layer(p, 'skip', a, (32, 16, 1, 1), 2, relu=False, output=signed)
        b = layer(p, 'b1', b, (32, 32, 3, 3), residual=skip)
        top = layer(p, 'top', b, (16, 32, 1, 1), relu=False, output=signed)
        side = layer(p, 'side', a, (16, 16, 1, 1), relu=False, output=signed)
        merged = p.upsample_add(top, side, signed)
        p.output(merged)
        p.output(layer(p, 'shared', merged, (24, 16, 3, 3), input=signed, output=None))
        p.output(p.relu(p.dequantize(layer(p, 'shared', top, (24, 16, 3, 3), input=signed))))
        p.output(p.add(p.upsample(top, a), p.relu(side), True, signed))

    program = Program()
    build(program, program.input(3))

    def steps(x: Tensor) -> list[Tensor]:
        one = _OneByOne()
        build(one, (x, None))
        return one.outputs

    return program, steps


class _OneByOne:
    """Like a program, but every operator runs at once, in one of its own, on float32 tensors."""

    def __init__(self) -> None:
        self.outputs = []

    def output(self, value: tuple) -> None:
        self.outputs.append(value[0])

    def __getattr__(self, name: str) -> Callable:
        def run(*arguments):
            tensors = [a for a in arguments if isinstance(a, tuple) and isinstance(a[0], Tensor)]
            made = []

            def add(program, *values):
                numbers = iter(values)
                made.append(program)
                return getattr(program, name)(*(
                    next(numbers) if any(a is t for t in tensors) else a for a in arguments))

            result = run_one(add, *tensors)
            return result, made[0].nodes[-1].quantization
        return run


def check_network(threads: int) -> str:
    """The network at several sizes, on memory that holds anything before; a hash of its results."""
    torch.manual_seed(0)
    program, steps = network()
    digest = hashlib.sha256()
    for size in ((1, 3, 32, 48), (2, 3, 41, 27), (1, 3, 8, 8), (0, 3, 16, 16)):
        x = (torch.randn(size) * 4).round() / 4
        for memory in program._memory:
            memory.fill_(255)
        torch.set_num_threads(threads)
        results = program(x)
        torch.set_num_threads(1)
        for found, expected in zip(results, steps(x), strict=True):
            assert torch.equal(found, expected), size
            digest.update(found.numpy().tobytes())
    return digest.hexdigest()

"""Random programs, run in bands and one operator after the other; run in other processes, too."""

import random
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from maxq_mm.runtime import bands, kernels
from maxq_mm.runtime.program import Program
from maxq_mm.runtime.quantization import Quantization

from .int8_cases import random_quantization
from .kernel_cases import sparse

KERNELS = ((1, 1), (1, 1), (3, 3), (3, 3), (1, 3), (5, 5), (2, 2))
PATTERNS = ('1:16', '2:4', '1:4', None)


@contextmanager
def in_bands(large: int, band: int):
    """Values of ``large`` bytes go in bands of ``band`` bytes for each thread."""
    before = bands.LARGE, bands.BAND
    bands.LARGE, bands.BAND = large, band
    try:
        yield
    finally:
        bands.LARGE, bands.BAND = before


@dataclass(frozen=True)
class _Value:
    number: int
    channels: int
    size: tuple[int, int]
    quantization: Quantization | None


class _Builder:
    """A program of operators at random; what is read is mostly what was made last."""

    def __init__(self, choose: random.Random, int8: bool, size: tuple[int, int]) -> None:
        self.choose = choose
        self.int8 = int8
        self.program = Program()
        self.values = [_Value(self.program.input(16), 16, size, None)]
        for _ in range(choose.randint(4, 14)):
            self.add()
        for value in {*choose.sample(self.values, min(2, len(self.values))), self.values[-1]}:
            self.program.output(value.number)

    def made(self, number: int, channels: int, size: tuple[int, int],
             quantization: Quantization | None) -> None:
        self.values.append(_Value(number, channels, size, quantization))

    def add(self) -> None:
        choose, program = self.choose, self.program
        x = choose.choice(self.values[-3:])
        alike = [y for y in self.values if y.channels == x.channels and y.size == x.size
                 and (y.quantization is None) == (x.quantization is None)]
        out = None if x.quantization is None else random_quantization(choose)
        kind = choose.choice(('layer', ) * 6 + ('pool', 'add', 'relu', 'upsample', 'convert',
                                                 'depth'))
        if kind == 'layer':
            self.add_layer(x)
        elif kind == 'pool':
            size = self.size(x, (3, 2), (2, 1), (1, 1), (1, 1))
            if min(size) > 0:
                self.made(program.max_pool(x.number, (3, 2), (2, 1), 1), x.channels, size,
                          x.quantization)
        elif kind == 'depth':
            high, wide = choose.choice(((2, 2), (1, 2), (4, 1), (2, 1)))
            if x.channels % (16 * high * wide) == 0:
                self.made(program.depth_to_space(x.number, (high, wide)),
                          x.channels // (high * wide), (x.size[0] * high, x.size[1] * wide),
                          x.quantization)
        elif kind == 'add':
            y = choose.choice(alike)
            number = program.add(x.number, y.number, choose.random() < 0.5, out)
            self.made(number, x.channels, x.size, out)
        elif kind == 'relu':
            self.made(program.relu(x.number), x.channels, x.size, x.quantization)
        elif kind == 'upsample':
            likes = [y for y in self.values if y.channels == x.channels
                     and (y.quantization is None) == (x.quantization is None)]
            y = choose.choice(likes)
            if choose.random() < 0.5:
                self.made(program.upsample(x.number, y.number), x.channels, y.size,
                          x.quantization)
            else:
                self.made(program.upsample_add(x.number, y.number, out), x.channels, y.size, out)
        elif x.quantization is not None:
            self.made(program.dequantize(x.number), x.channels, x.size, None)
        elif self.int8:
            quantization = random_quantization(choose)
            self.made(program.quantize(x.number, quantization), x.channels, x.size, quantization)

    def add_layer(self, x: _Value) -> None:
        choose = self.choose
        kernel = choose.choice(KERNELS)
        stride = choose.choice(((1, 1), (1, 1), (2, 2), (3, 1)))
        padding = choose.choice(((kernel[0] // 2, kernel[1] // 2), (0, 0), (1, 2)))
        dilation = choose.choice(((1, 1), (1, 1), (2, 1)))
        size = self.size(x, kernel, stride, padding, dilation)
        if min(size) < 1:
            return
        pattern = choose.choice(PATTERNS)
        weight = sparse((16 * choose.randint(1, 4), x.channels, *kernel), pattern) / 8
        out = None if choose.random() < 0.2 else random_quantization(choose)
        arguments = (weight, pattern, torch.randn(len(weight)), stride, padding, dilation)
        packed = (kernels.pack(*arguments, beside_int8=self.int8) if x.quantization is None else
                  kernels.pack_int8(*arguments, input=x.quantization, output=out))
        residuals = [y.number for y in self.values
                     if (y.channels, y.size) == (len(weight), size)
                     and (y.quantization is None) == (x.quantization is None)]
        residual = choose.choice(residuals) if residuals and choose.random() < 0.7 else None
        number = self.program.layer(x.number, packed, residual, choose.random() < 0.5)
        self.made(number, len(weight), size, None if x.quantization is None else out)

    def size(self, x: _Value, kernel: tuple[int, int], stride: tuple[int, int],
             padding: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
        return tuple((s + 2 * p - d * (k - 1) - 1) // stride + 1 for s, p, d, k, stride in zip(
            x.size, padding, dilation, kernel, stride, strict=True))


def check(seed: int, programs: int, int8: bool = False) -> None:
    """Each on memory that holds anything before, with some threads and sizes of bands."""
    torch.manual_seed(seed)
    choose = random.Random(seed)
    banded = rings = 0
    for case in range(programs):
        size = choose.randint(9, 60), choose.randint(9, 60)
        program = _Builder(choose, int8, size).program
        x = torch.randn(choose.choice((1, 1, 2, 3)), 16, *size)
        expected = program(x)
        for _ in range(3):
            torch.set_num_threads(choose.choice((1, 3)))
            program._forget()
            band = choose.choice((2, 9, 40))
            with in_bands(choose.choice((1, 20)) << 10, band << 10):
                program(x)
                for memory in program._memory:
                    memory.fill_(255)
                found = program(x)
            plan, = program._plans.values()
            banded += len(plan.steps) > len(plan.ops)
            rings += any(op.out.ring > 0 for op in plan.ops)
            for one, other in zip(found, expected, strict=True):
                assert one.numpy().tobytes() == other.numpy().tobytes(), (seed, case, band)
    assert banded > programs
    assert plan.library.kernels.lanes_are != 'pixels' or rings > programs

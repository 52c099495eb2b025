"""The int8 kernels against integers in float64; other sets of them in test_kernels.py."""

import pytest
import torch

from maxq_mm.functional.pattern import Pattern
from maxq_mm.runtime import kernels
from maxq_mm.runtime.arrange_int8 import blocks_of, by_position
from maxq_mm.runtime.library import library
from maxq_mm.runtime.program import Program
from maxq_mm.runtime.quantization import Quantization, quantize_weight
from maxq_mm.utils.errors import InputError

from .int8_cases import check, check_large_results, check_moves, check_network
from .kernel_cases import PATTERNS, sparse

needs_int8 = pytest.mark.skipif(library(int8=True) is None, reason='no kernels for this CPU')
BYTE = Quantization(0.5, 0)


@needs_int8
@pytest.mark.parametrize('seed', range(3))
def test_any_layer(seed):
    check(seed, 60, 20)


@needs_int8
@pytest.mark.parametrize('seed', range(4))
def test_what_is_no_layer(seed):
    check_moves(seed)


@needs_int8
@pytest.mark.parametrize('threads', [1, 3])
def test_large_results(threads):
    torch.set_num_threads(threads)
    check_large_results(threads)


@needs_int8
@pytest.mark.parametrize('threads', [1, 3])
def test_a_network_is_its_operators(threads):
    check_network(threads)


@needs_int8
@pytest.mark.parametrize('pattern', ['2:4', '1:16', '3:5', None])
def test_the_largest_products_do_not_saturate(pattern):
    """Every byte 255, every weight as large as it can be: sums are exact."""
    weight = sparse((6, 320, 3, 3), pattern).sign()
    integers, scales = quantize_weight(weight, pattern)
    packed = kernels.pack_int8(weight, pattern, None, 1, 1, input=BYTE, output=None)
    found = packed(torch.full((1, 320, 5, 5), 127.5))
    expected = torch.nn.functional.conv2d(torch.full((1, 320, 5, 5), 255.).double(),
                                          integers.double(), padding=1)
    sums = found.double() / (0.5 * scales[:, None, None])
    assert expected.abs().max() > 50_000
    assert (sums - expected).abs().max() < 0.5
    # An output of one weight in a pair has all of its bits.
    assert integers.abs().max() == 64


@pytest.mark.parametrize('pattern', PATTERNS)
def test_quantized_weights(pattern):
    """Zeros stay, the rest is within half a step, and no pair is beyond int16."""
    torch.manual_seed(0)
    m = int(pattern.split(':')[1]) if pattern else 1
    weight = sparse((8, m * (512 // m), 3, 3), pattern)
    weight[0] = 0
    integers, scales = quantize_weight(weight, pattern)
    assert integers.dtype == torch.int8
    assert (integers[weight == 0] == 0).all()
    step = scales[:, None, None, None]
    assert ((integers.double() * step - weight).abs() <= 0.5 * step + 1e-12).all()
    assert scales[0] == 1
    blocks = blocks_of(by_position(integers.int()), pattern and Pattern.parse(pattern))
    pairs = torch.cat([part.values.unflatten(1, (-1, 2)) for part in blocks.parts], 1).abs().sum(2)
    assert sum(int(part.values.abs().sum()) for part in blocks.parts) == integers.int().abs().sum()
    assert pairs.max() <= 128
    # No finer step would do.
    largest = integers.int().abs().flatten(1).amax(1)
    assert ((largest == 127) | (pairs.amax(1) >= 127))[1:].all()
    if pattern == '2:4':  # the largest weights are multiplied beside the smallest
        assert (scales / (weight.abs().flatten(1).amax(1) / 127) < 1.05)[1:].all()


def test_ranges():
    assert Quantization.of_range(0, 255) == Quantization(1., 0)
    assert Quantization.of_range(2, 51) == Quantization(0.2, 0)
    assert Quantization.of_range(-255, -1) == Quantization(1., 255)
    assert Quantization.of_range(-1, 1).zero_point == 128
    assert Quantization.of_range(0, 0) == Quantization(1., 0)
    for arguments in ((1, 0), (float('nan'), 1), (0, float('inf'))):
        with pytest.raises(InputError, match='no range'):
            Quantization.of_range(*arguments)
    assert Quantization.of_range(-1e-30, 1e-30) == Quantization(1., 0)
    with pytest.raises(InputError, match='zero_point'):
        Quantization(1., 256)
    for scale in (0., -1., 1e-40, 1e40, float('nan')):
        with pytest.raises(InputError, match='scale'):
            Quantization(scale, 0)


@needs_int8
def test_numbers_beyond_the_range():
    """Bytes end at 0 and 255, however large a number is."""
    program = Program()
    program.output(program.quantize(program.input(1), Quantization(1., 100)))
    x = torch.tensor([1e30, -1e30, float('inf'), -float('inf'), 200., -200.]).reshape(1, 1, 1, 6)
    assert program(x)[0].flatten().tolist() == [155., -100., 155., -100., 155., -100.]
    weight = torch.tensor([[1.], [-1.]])
    packed = kernels.pack_int8(weight, None, torch.tensor([0., -1e30]), input=BYTE,
                               output=Quantization(1e-9, 3))
    found = packed(torch.tensor([[100.]])) / 1e-9
    assert found.round().tolist() == [[252., -3.]]


@needs_int8
def test_what_is_refused():
    weight = sparse((4, 16, 3, 3), '2:4')
    assert kernels.refusal_int8(weight, '2:4') is None
    assert kernels.refusal_int8(weight, '1:16') == 'not 1:16'
    assert 'float64' in kernels.refusal_int8(weight.double(), '2:4')
    assert 'no number' in kernels.refusal_int8(weight / 0, None)
    assert 'M of at most' in kernels.refusal_int8(torch.zeros(1, 2048), '1:2048')
    assert 'at most 65536' in kernels.refusal_int8(torch.zeros(1, 65537), None)
    with pytest.raises(InputError, match='not 1:16'):
        kernels.pack_int8(weight, '1:16', input=BYTE, output=None)
    layer = kernels.pack_int8(weight, '2:4', input=BYTE, output=BYTE)
    program = Program()
    x, byte = program.input(16), program.input(16, quantization=BYTE)
    other = program.input(16, quantization=Quantization(1., 0))
    for call, said in ((lambda: program.layer(x, layer), 'cannot take a value of float32'),
                       (lambda: program.layer(other, layer), 'cannot take a value of Quant'),
                       (lambda: program.layer(byte, kernels.pack(weight, '2:4')), 'of float32'),
                       (lambda: program.layer(byte, layer, x), 'is float32, expected uint8'),
                       (lambda: program.add(byte, byte), 'is uint8, expected float32'),
                       (lambda: program.add(x, byte), 'expected float32'),
                       (lambda: program.upsample_add(x, byte, BYTE), 'expected uint8'),
                       (lambda: program.quantize(byte, BYTE), 'expected float32'),
                       (lambda: program.dequantize(x), 'expected uint8')):
        with pytest.raises(InputError, match=said):
            call()

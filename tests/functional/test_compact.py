import math

import pytest
import torch

from maxq_mm.functional.compact import Compact, compact, compact_bytes, expand
from maxq_mm.functional.masks import keep_mask

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
PATTERNS = ['1:1', '1:2', '2:4', '1:4', '3:8', '5:7', '4:4', '1:16', '1:64', '3:200', '2:1024']


def bits(weight):
    return weight.contiguous().view(BITS[weight.dtype.itemsize])


def same(a, b):
    """Bit for bit, NaNs and the signs of zeros too."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def sparse(shape, pattern, dtype=torch.float32):
    weight = torch.randn(shape, dtype=torch.float64).to(dtype)
    return torch.where(keep_mask(weight, pattern), weight, torch.zeros((), dtype=dtype))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('kernel', [(), (1, 1), (3, 3), (2, 3, 2)])
@pytest.mark.parametrize('pattern', PATTERNS)
def test_round_trip(pattern, kernel, dtype):
    m = int(pattern.split(':')[1])
    weight = sparse((5, m * (3 if m < 100 else 1), *kernel), pattern, dtype)
    packed = compact(weight, pattern)
    assert same(expand(packed), weight)
    assert packed.nbytes == compact_bytes(weight.shape, pattern, dtype)


def test_bytes_by_hand():
    # (O, I, Kh, Kw) = (1, 8, 1, 2); the blocks go along I, first those of the left position
    left = [0, 1, 0, 2, 0, 0, 3, 0]   # 1 and 3; 2 and, as the first zero, 0
    right = [4, 5, 0, 0, 0, 0, 0, 0]  # 0 and 1; nothing, so 0 and 1
    weight = torch.tensor([left, right], dtype=torch.float32).t().reshape(1, 8, 1, 2)
    packed = compact(weight, '2:4')
    assert packed.values.tolist() == [[1, 2], [0, 3], [4, 5], [0, 0]]
    assert packed.indices.tolist() == [0b10_00_11_01, 0b01_00_01_00]
    assert packed.signs.tolist() == []
    assert compact_bytes((1, 8, 1, 2), '2:4', torch.float32) == 8 * 4 + 2
    # 3 bits each, across bytes: positions 1, 6, 7 and 0, 2, 5
    weight = torch.zeros(1, 16)
    weight[0, [1, 6, 7, 8, 10, 13]] = 1.
    assert compact(weight, '3:8').indices.tolist() == [0b11_110_001, 0b1_010_000_1, 0b10]
    # the zeros outside are at 0, 2, 3 of the first block and at 1, 2, 3 of the second
    packed = compact(torch.tensor([[-0., 1., 0., -0., 2., 0., 0., -0.]]), '1:4')
    assert packed.indices.tolist() == [0b00_01]
    assert packed.signs.tolist() == [0b100_101]


@pytest.mark.parametrize('pattern', ['2:4', '1:4', '3:8', '1:16'])
def test_signs_of_zeros(pattern):
    weight = torch.randn(6, 32, 3, 3)
    weight = weight * keep_mask(weight, pattern)  # every negative one that is pruned is -0.0
    assert (weight.signbit() & (weight == 0)).any()
    packed = compact(weight, pattern)
    assert same(expand(packed), weight)
    assert packed.nbytes == compact_bytes(weight.shape, pattern, weight.dtype, signs=True)


def test_few_negative_zeros_need_no_signs():
    weight = torch.tensor([[0., 0., 3., -0.], [-0., 0., 0., -0.]])
    packed = compact(weight, '2:4')
    assert packed.signs.numel() == 0
    assert packed.values.signbit().tolist() == [[False, True], [True, True]]
    assert same(expand(packed), weight)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_that_no_sum_would_spare(dtype):
    whole = BITS[dtype.itemsize]
    info = torch.finfo(dtype)
    infinity = torch.tensor(math.inf, dtype=dtype).view(whole).item()
    patterns = torch.tensor([infinity + 1, infinity + 5, infinity, 1, torch.iinfo(whole).min + 1,
                             torch.iinfo(whole).min + infinity + 3, -1], dtype=whole)
    special = torch.cat([patterns.view(dtype), torch.tensor([info.max, info.tiny], dtype=dtype)])
    weight = torch.zeros(9, 8, dtype=dtype)
    weight[range(9), [0, 1, 2, 3, 4, 5, 6, 7, 0]] = special
    assert same(expand(compact(weight, '1:4')), weight)
    assert same(expand(compact(weight, '3:8')), weight)


def test_ties_and_blocks_that_are_not_full():
    for weight in (torch.zeros(4, 16), torch.ones(4, 16) * keep_mask(torch.ones(4, 16), '2:4'),
                   sparse((4, 16), '1:4')):
        packed = compact(weight, '2:4')
        assert packed.values.shape == (16, 2)
        assert same(expand(packed), weight)


def test_layouts_do_not_matter():
    weight = sparse((8, 16, 3, 3), '2:4')
    packed = compact(weight, '2:4')
    for other in (weight.to(memory_format=torch.channels_last),
                  weight.transpose(0, 2).contiguous().transpose(0, 2),
                  torch.nn.Parameter(weight)):
        assert all(torch.equal(a, b) for a, b in zip(compact(other, '2:4')[2:], packed[2:],
                                                     strict=True))
        assert expand(compact(other, '2:4')).is_contiguous()


def test_empty_weights():
    weight = torch.zeros(0, 8, 3, 3)
    assert compact(weight, '2:4').nbytes == compact_bytes(weight.shape, '2:4', weight.dtype) == 0
    assert expand(compact(weight, '2:4')).shape == weight.shape


def test_wide_blocks():
    weight = torch.zeros(1, 65536)
    weight[0, 65535] = 7.
    packed = compact(weight, '1:65536')
    assert packed.indices.tolist() == [255, 255]
    assert same(expand(packed), weight)


def test_share_of_the_bytes():
    def share(pattern, dtype, **signs):
        shape = (64, 64, 3, 3)
        return compact_bytes(shape, pattern, dtype, **signs) / (math.prod(shape) * dtype.itemsize)

    assert share('2:4', torch.float32) == 1 / 2 + 1 / 32
    assert share('1:16', torch.float32) == 1 / 16 + 4 / 512
    assert share('2:4', torch.float16) == 1 / 2 + 1 / 16
    assert share('2:4', torch.float32, signs=True) == 1 / 2 + 1 / 32 + 1 / 64


@pytest.mark.parametrize(('weight', 'pattern', 'named'), [
    (torch.ones(2, 8), '2:4', 'does not satisfy 2:4: 4 of 4 blocks have more than 2'),
    (torch.full((1, 4), math.nan), '2:4', 'does not satisfy 2:4'),
    (torch.zeros(2, 6), '2:4', 'input channels'),
    (torch.zeros(8), '2:4', 'input channels'),
    (torch.zeros(2, 8), '5:4', '5:4'),
    (torch.zeros(2, 8, dtype=torch.int32), '2:4', 'torch.int32'),
])
def test_weights_that_cannot_be_packed(weight, pattern, named):
    with pytest.raises(ValueError, match=named):
        compact(weight, pattern)


@pytest.mark.parametrize(('parts', 'named'), [
    (dict(pattern='5:4'), '5:4'),
    (dict(pattern='2:8'), 'values must be of shape'),
    (dict(pattern=None), 'pattern must be'),
    (dict(shape=(4, 6)), 'input channels'),
    (dict(shape=(8, 8)), 'values must be of shape'),
    (dict(shape=(-4, -8)), 'whole numbers'),
    (dict(shape=(4., 8)), 'whole numbers'),
    (dict(shape='ab'), 'whole numbers'),
    (dict(shape=torch.Size([10**9, 4 * 10**9])), 'values must be of shape'),
    (dict(values=torch.zeros(8, 3)), 'values must be of shape'),
    (dict(values=None), 'values must be a tensor'),
    (dict(values=torch.zeros(8, 2, dtype=torch.int32)), 'torch.int32'),
    (dict(indices=torch.zeros(3, dtype=torch.uint8)), 'indices must be of shape'),
    (dict(indices=torch.zeros(4)), 'indices must be of shape'),
    (dict(indices=torch.zeros(4, dtype=torch.uint8)), 'indices must increase'),
    (dict(indices=torch.full((4,), 0b00_01_00_01, dtype=torch.uint8)), 'indices must increase'),
    (dict(signs=torch.zeros(3, dtype=torch.uint8)), 'signs must be of shape'),
    (dict(signs=None), 'signs must be a tensor'),
])
def test_packed_weights_that_are_not_sound(parts, named):
    packed = compact(sparse((4, 8), '2:4'), '2:4')
    with pytest.raises(ValueError, match=named):
        expand(packed._replace(**parts))


def test_positions_beyond_the_block():
    # 3 bits can say 7, of which blocks of 7 have none
    packed = compact(sparse((1, 7), '1:7'), '1:7')
    with pytest.raises(ValueError, match='below 7'):
        expand(packed._replace(indices=torch.tensor([7], dtype=torch.uint8)))
    assert isinstance(packed, Compact)

import pytest
import torch

from maxq_mm.functional.pattern import Pattern, from_blocks, to_blocks


def test_parse():
    assert Pattern.parse('2:4') == (2, 4)
    assert str(Pattern.parse('1:16')) == '1:16'
    assert Pattern.parse(Pattern(4, 4)).is_dense


@pytest.mark.parametrize('bad', ['5:4', '0:4', '2', '2:4:8', '-1:4', ' 2:4', 'a:b', '', 2, None,
                                 (2, 4), 0.5])
def test_parse_names_the_bad_pattern(bad):
    with pytest.raises(ValueError, match='pattern') as error:
        Pattern.parse(bad)
    assert repr(bad) in str(error.value)


@pytest.mark.parametrize('shape', [(3, 8), (5, 4, 1, 1), (2, 8, 3, 5), (2, 12, 3), (1, 4, 2, 3, 2)])
def test_blocks_round_trip(shape):
    weight = torch.randn(shape)
    blocks = to_blocks(weight, 4)
    assert blocks.shape == (weight.numel() // 4, 4)
    assert torch.equal(from_blocks(blocks, weight.shape), weight)


def test_block_order():
    # (O, I, Kh, Kw) = (2, 4, 1, 2): per output channel, per kernel position, along input channels
    weight = torch.arange(16).reshape(2, 4, 1, 2)
    assert to_blocks(weight, 2).tolist() == [[0, 2], [4, 6], [1, 3], [5, 7],
                                             [8, 10], [12, 14], [9, 11], [13, 15]]


@pytest.mark.parametrize('shape', [(4, 6), (4, 3, 7, 7), (8,), (4, 0)])
def test_blocks_need_divisible_channels(shape):
    with pytest.raises(ValueError, match='input channels'):
        to_blocks(torch.zeros(shape), 4)


def test_smallest_is_exact():
    # in floating point 1 - 7/10 of 10 would round below 3
    assert Pattern(7, 10).smallest(10) == 3
    assert Pattern(1, 16).smallest(144) == 135

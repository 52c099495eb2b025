import pytest
import torch

from maxq_mm import keep_mask, satisfies, soft_mask
from maxq_mm.functional import masks

from ..reference import reference_keep_mask, reference_soft_mask

pytestmark = pytest.mark.usefixtures('path')
SHAPES = [(8, 48), (6, 48, 1, 1), (4, 48, 3, 3), (2, 96, 5, 3), (3, 48, 2)]
PATTERNS = [(2, 4), (1, 4), (1, 16), (5, 8), (3, 3), (1, 48), (1, 1), (47, 48)]


def test_golden(golden):
    assert len(golden.masks) == 12
    for index, case in enumerate(golden.masks):
        mask = soft_mask(golden.tensor(f'weight{index}'), f'{case["n"]}:{case["m"]}',
                         case['dense_fraction'])
        assert torch.allclose(mask, golden.tensor(f'mask{index}'), rtol=0, atol=1e-6), case


def test_keep_mask_by_hand():
    weight = torch.tensor([[1., -4., 2., 3., 0., 0., 0., 0.], [-5., 5., 5., -5., 1., 0., 0., -2.]])
    assert keep_mask(weight, '2:4').int().tolist() == [[0, 1, 0, 1, 0, 0, 1, 1],
                                                       [0, 0, 1, 1, 1, 0, 0, 1]]
    # four blocks with norms 10, 0, 20, 3: at one half the two smallest stay dense
    assert keep_mask(weight, '2:4', 0.5).int().tolist() == [[0, 1, 0, 1, 1, 1, 1, 1],
                                                            [0, 0, 1, 1, 1, 1, 1, 1]]
    assert keep_mask(weight, '2:4', 0.5, 'largest').int().tolist() == [[1, 1, 1, 1, 0, 0, 1, 1],
                                                                       [1, 1, 1, 1, 1, 0, 0, 1]]


def test_soft_mask_by_hand():
    # one filter of 4, 2:4: t = (2 + 3) / 2, the queries are sigmoid((|w| - t) / tau)
    weight = torch.tensor([[1., -4., 2., 3.]])
    mask = soft_mask(weight, '2:4', temperature=1.)
    sigmoid = torch.sigmoid(torch.tensor([1.5, 0.5]))
    assert torch.allclose(mask, torch.tensor([[0., 1 + sigmoid[0], 0., 1 + sigmoid[1]]]))


def draw(shape, kind):
    weight = torch.randn(shape) * 0.05
    if kind == 'ties':
        weight = (weight * 40).round() / 40
    elif kind == 'zeros':
        weight = weight * (torch.rand(shape) < 0.2)
    elif kind == 'denormal':
        weight = weight * 1e-40
    elif kind == 'outlier':
        weight.view(-1)[5] = 1e6
    return weight


@pytest.mark.parametrize('kind', ['random', 'ties', 'zeros', 'denormal', 'outlier'])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize(('n', 'm'), PATTERNS)
def test_equals_the_sorted_formulation(shape, n, m, kind):
    weight = draw(shape, kind)
    for fraction in (0., 0.37, 1.):
        keep = keep_mask(weight, f'{n}:{m}', fraction)
        assert keep.dtype == torch.bool
        assert keep.shape == weight.shape
        assert torch.equal(keep, reference_keep_mask(weight, n, m, fraction))
        soft = soft_mask(weight, f'{n}:{m}', fraction)
        if n == m:
            assert torch.equal(soft, torch.ones_like(weight))
        else:
            expected = reference_soft_mask(weight, n, m, fraction)
            assert torch.allclose(soft, expected, rtol=0, atol=1e-6)
            assert torch.equal(soft != 0, keep)
            assert ((soft == 0) | ((soft >= 1) & (soft <= 3))).all()


@pytest.mark.parametrize('axes', [(), ('filter', ), ('kernel', ), ('kernel', 'filter')])
@pytest.mark.parametrize('order', ['smallest', 'largest'])
def test_settings_equal_the_sorted_formulation(axes, order):
    weight = torch.randn(8, 16, 3, 3)
    mask = soft_mask(weight, '2:8', 0.4, axes, 0.3, order)
    assert torch.allclose(mask, reference_soft_mask(weight, 2, 8, 0.4, axes, 0.3, order),
                          rtol=0, atol=1e-6)


def test_both_ways_to_rank_agree(monkeypatch):
    weight = (torch.randn(8, 64, 3, 3) * 3).round()
    pairwise = keep_mask(weight, '3:16')
    monkeypatch.setattr(masks, '_MAX_PAIRWISE_M', 0)
    assert torch.equal(pairwise, keep_mask(weight, '3:16'))


def test_memory_format_does_not_matter():
    weight = torch.randn(8, 16, 3, 3)
    strided = weight.to(memory_format=torch.channels_last)
    assert torch.equal(soft_mask(weight, '2:4', 0.3), soft_mask(strided, '2:4', 0.3))


def test_random_order_is_fixed_and_nested():
    weight = torch.randn(16, 16, 3, 3)
    state = torch.random.get_rng_state()
    dense = [keep_mask(weight, '1:4', f, 'random') for f in (0.2, 0.5, 0.5, 0.8)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(dense[1], dense[2])
    sparse = keep_mask(weight, '1:4')
    counts = [int((mask & ~sparse).sum()) for mask in dense]
    assert counts == [3 * int(f * 576) for f in (0.2, 0.5, 0.5, 0.8)]
    assert (dense[0] <= dense[1]).all()
    assert (dense[1] <= dense[3]).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_random_order_is_that_of_the_number_of_blocks(dtype):
    """Not of the precision, whose numbers end before the blocks do."""
    weight = torch.ones(1024, 260)  # 66,560 blocks
    keep = keep_mask(weight, '1:4', 0.99, 'random')
    assert torch.equal(keep, keep_mask(weight.to(dtype), '1:4', 0.99, 'random'))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_keep_the_pattern(dtype):
    weight = torch.randn(8, 16, 3, 3).to(dtype)
    mask = soft_mask(weight, '2:4')
    assert mask.dtype == dtype
    assert (mask != 0).sum() == weight.numel() // 2
    assert satisfies(weight * mask, '2:4')


def test_satisfies():
    weight = torch.tensor([[1., 0., 0., 1., 0., 0., 0., 1.]])
    assert satisfies(weight, '2:4')
    assert not satisfies(weight, '1:4')
    # never grouped across kernel positions: both non-zeros share a block of input channels
    kernel = torch.zeros(1, 4, 2, 2)
    kernel[0, :2, 0, 0] = 1
    assert satisfies(kernel, '2:4')
    assert not satisfies(kernel, '1:4')
    kernel[0, :2, 0, 0] = torch.tensor([1., 0.])
    kernel[0, 1, 0, 1] = 1
    assert satisfies(kernel, '1:4')


@pytest.mark.parametrize(('arguments', 'named'), [
    (dict(pattern='5:4'), '5:4'), (dict(pattern='2:5'), '5'), (dict(axes=('channel', )), 'channel'),
    (dict(axes='filter'), 'filter'), (dict(axes=('filter', 'filter')), 'distinct'),
    (dict(temperature=0), 'temperature.*0'), (dict(temperature='1'), 'temperature'),
    (dict(order='biggest'), 'biggest'), (dict(dense_fraction=1.5), '1.5'),
])
def test_bad_arguments(arguments, named):
    with pytest.raises(ValueError, match=named):
        soft_mask(torch.randn(4, 16, 3, 3), **{'pattern': '2:4', **arguments})

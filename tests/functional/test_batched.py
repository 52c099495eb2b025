"""Many layers in few operators: the same as one by one, on a device that is never waited for."""

import pytest
import torch

from maxq_mm import keep_mask, soft_mask
from maxq_mm.functional import batched
from maxq_mm.functional.decay import _add_decay_together_, add_decay_, add_decays_
from maxq_mm.functional.masks import AXES, ORDERS
from maxq_mm.functional.pattern import Pattern

from ..simulated import DEVICE, Simulated, resnet50
from .test_native import KERNELS, KINDS, draw

TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 4e-2}


def several(generator, m, dtype=torch.float32):
    """Weights some of which are alike, and some of those channels-last."""
    def choose(options):
        return options[int(torch.randint(len(options), (), generator=generator))]

    weights = []
    for _ in range(6):
        kernel = choose(KERNELS[:4])
        weight = draw(generator, (choose((1, 7, 24)), m * choose((1, 2)), *kernel), choose(KINDS))
        if weight.ndim == 4 and choose((True, False)):
            weight = weight.to(memory_format=torch.channels_last)
        # Sums of two that overflow are the definition's own affair.
        weights.append(weight.clamp(-1e4, 1e4).to(dtype) if dtype is torch.float16
                       else weight.to(dtype))
    return weights


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(('n', 'm'), [(2, 4), (1, 16), (3, 4), (7, 48), (45, 48), (4, 4)])
def test_equals_the_definition(n, m, dtype):
    """Layer by layer as masks.py defines it: choices to the bit, values within rounding."""
    generator = torch.Generator().manual_seed(n)
    for fraction, order in ((0., 'smallest'), (1e-3, 'largest'), (0.37, 'smallest'),
                            (0.5, 'random'), (0.93, 'largest'), (1., 'smallest')):
        weights = several(generator, m, dtype)
        pattern = Pattern(n, m)
        kept = batched.keep_masks(weights, pattern, fraction, order)
        for weight, keep in zip(weights, kept, strict=True):
            assert torch.equal(keep, keep_mask(weight, pattern, fraction, order))
            assert keep.stride() == weight.stride()
        for axes in (AXES, ('kernel', ), ()):
            soft, effective = (batched.soft_masks(weights, pattern, fraction, axes, 1e-2, order,
                                                  times) for times in (False, True))
            for weight, mask, value in zip(weights, soft, effective, strict=True):
                expected = soft_mask(weight, pattern, fraction, axes, 1e-2, order)
                assert torch.allclose(mask, expected, rtol=0, atol=TOLERANCE.get(dtype, 1e-6),
                                      equal_nan=True)
                assert torch.equal(value, mask * weight) or weight.isinf().any()
                assert value.stride() == mask.stride() == weight.stride()


@pytest.mark.parametrize('seed', range(4))
def test_near_ties(seed):
    """Norms that differ in their last bit, by the order of additions; one block a position."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, 8, 3, 3), (1, 8, 3, 3), (1, 8), (4, 8, 3, 3), (4, 8, 3, 3), (8, 64, 1, 1)]
    weights = [1 + torch.randint(0, 3, shape, generator=generator) * 2 ** -23 for shape in shapes]
    for order in ORDERS:
        for weight, keep in zip(weights, batched.keep_masks(weights, Pattern(4, 8), 0.5, order),
                                strict=True):
            assert torch.equal(keep, keep_mask(weight, '4:8', 0.5, order))


def test_chunks_hold_what_is_alike(monkeypatch):
    shapes = [(4, 16), (8, 16), (4, 16), (4, 16, 3, 3), (4, 16, 1, 1), (4, 32)]
    weights = [torch.empty(shape) for shape in shapes] + [torch.empty(4, 16).half()]
    assert sorted(batched.chunks(weights, 4)) == [[0, 2, 1], [3], [4], [5], [6]]
    monkeypatch.setattr(batched, 'CHUNK', 200)
    assert sorted(batched.chunks(weights, 4)) == [[0, 2], [1], [3], [4], [5], [6]]
    parts = batched.keep_masks(weights, Pattern(2, 4))
    assert [part.shape for part in parts] == [weight.shape for weight in weights]


@pytest.mark.parametrize('pattern', ['2:4', '1:4', '1:16', '4:8'])
@pytest.mark.parametrize('fraction', [0.5, 0.])
def test_fewer_than_ten_operators_a_layer(pattern, fraction):
    weights = [torch.empty(shape, device=DEVICE) for shape in resnet50()]
    assert len(weights) == 52
    with Simulated() as simulated:
        batched.soft_masks(weights, Pattern.parse(pattern), fraction, AXES, 1e-2, 'smallest', True)
    assert simulated.count < 10 * len(weights), simulated.operators
    with Simulated() as simulated:
        add_decays_(weights, weights, weights, 2e-4, torch.ones(()))
    assert simulated.count < len(weights)


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.float64])
def test_a_device_is_never_waited_for(order, dtype):
    weight = torch.empty(8, 32, 3, 3, device=DEVICE, dtype=dtype)
    keep_mask(weight, '2:4', 0.5, order)  # the random order goes to the device once
    with Simulated():
        for fraction in (0., 0.5, 1.):
            for pattern in ('2:4', '7:32', '4:4'):
                assert keep_mask(weight, pattern, fraction, 'smallest').device == DEVICE
            assert soft_mask(weight, '2:4', fraction, order=order).device == DEVICE


def test_a_gpu_as_torch_fakes_it():
    """torch's own fake GPU refuses mixed devices and branches on data."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    with FakeTensorMode():
        weights = [torch.empty(8, 32, 3, 3, device='cuda') for _ in range(2)]
        for fraction in (0., 0.5):
            for order in ('smallest', 'largest'):
                mask = soft_mask(weights[0], '2:4', fraction, order=order)
                assert mask.device.type == 'cuda'
        add_decays_(weights, weights, [mask, mask], 2e-4, torch.empty((), device='cuda'))


@pytest.mark.parametrize('wrong', [
    lambda weight: bool((weight > 0).any()), lambda weight: weight.nonzero(),
    lambda weight: weight + torch.ones(8, 32), lambda weight: weight.cpu(),
    lambda weight: torch.ones(8, 32).to(DEVICE)],
    ids=['branch', 'nonzero', 'mixed', 'to the host', 'from the host'])
def test_the_simulation_sees_what_is_wrong(wrong):
    weight = torch.empty(8, 32, device=DEVICE)
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), Simulated():
        wrong(weight)


def test_the_random_order_is_drawn_once(monkeypatch):
    weight = torch.randn(64, 32)
    first = keep_mask(weight, '2:4', 0.5, 'random')
    monkeypatch.setattr(torch, 'randperm', None)
    assert torch.equal(first, keep_mask(weight, '2:4', 0.5, 'random'))
    batched.keep_masks([weight], Pattern(2, 4), 0.3, 'random')


@pytest.mark.parametrize('scale', [None, 1024.])
def test_decay_of_many_equals_that_of_each(scale):
    shapes = [(16, 16, 3, 3), (8, 16), (8, 16)]
    weights = [torch.randn(shape) for shape in shapes]
    effective = [soft_mask(weight, '2:4') * weight for weight in weights]
    grads = [torch.randn(shape) for shape in shapes]
    expected = [grad.clone() for grad in grads]
    scale = None if scale is None else torch.tensor(scale)
    for layer in zip(expected, weights, effective, strict=True):
        add_decay_(*layer, 0.1, scale)
    _add_decay_together_(grads, weights, effective, 0.1, scale)
    for grad, one in zip(grads, expected, strict=True):
        assert torch.allclose(grad, one, rtol=1e-6, atol=1e-6)

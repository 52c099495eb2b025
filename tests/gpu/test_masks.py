"""Masks, decay and refresh on the GPU: as on the CPU, exact, without a wait, in little memory."""

import pytest
import torch
from torch import nn

from maxq_mm import keep_mask, soft_mask, sparsify
from maxq_mm.functional import batched
from maxq_mm.functional.decay import add_decay_, add_decays_
from maxq_mm.functional.masks import AXES
from maxq_mm.functional.pattern import Pattern

from ..simulated import resnet50

SHAPES = [(64, 64, 3, 3), (64, 64, 3, 3), (256, 64, 1, 1), (64, 64, 1, 1), (128, 512), (512, 512)]
PATTERNS = ['2:4', '1:4', '1:16', '3:4', '4:8', '8:16', '63:64']


def weights(device, kind='random', shapes=SHAPES) -> list[torch.Tensor]:
    drawn = [torch.randn(shape) * 0.05 for shape in shapes]
    if kind == 'ties':
        drawn = [(weight * 40).round() / 40 for weight in drawn]
    return [weight.to(device) for weight in drawn]


@pytest.mark.parametrize('kind', ['random', 'ties'])
@pytest.mark.parametrize('pattern', PATTERNS)
def test_equals_the_cpu(device, pattern, kind):
    for fraction, order in ((0., 'smallest'), (0.5, 'random'), (1., 'smallest')):
        for weight in weights(device, kind):
            mask = soft_mask(weight, pattern, fraction, order=order).cpu()
            expected = soft_mask(weight.cpu(), pattern, fraction, order=order)
            assert torch.equal(mask != 0, expected != 0)
            assert torch.allclose(mask, expected, rtol=0, atol=1e-6)
            keep = keep_mask(weight, pattern, fraction, order).cpu()
            assert torch.equal(keep, keep_mask(weight.cpu(), pattern, fraction, order))


@pytest.mark.parametrize('order', ['smallest', 'largest'])
@pytest.mark.parametrize('pattern', PATTERNS)
def test_dense_blocks_equal_the_cpu(device, pattern, order):
    """Norms are sums, whose last bit is the device's own: whole numbers have none."""
    for weight in weights(device):
        weight = (weight * 1000).round()
        keep = keep_mask(weight, pattern, 0.37, order).cpu()
        assert torch.equal(keep, keep_mask(weight.cpu(), pattern, 0.37, order))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('fraction', [0., 0.37])
def test_many_layers_equal_each_alone(device, dtype, fraction):
    """To the bit, so that a checkpoint holds what validation saw."""
    given = [weight.to(dtype) for weight in weights(device)]
    together = batched.soft_masks(given, Pattern(2, 4), fraction, AXES, 1e-2, 'smallest', True)
    for weight, effective in zip(given, together, strict=True):
        alone, = batched.soft_masks([weight], Pattern(2, 4), fraction, AXES, 1e-2, 'smallest', True)
        assert torch.equal(alone, effective)


def test_decay_of_many_equals_that_of_each(device):
    raw = weights(device)
    effective = [soft_mask(weight, '2:4') * weight for weight in raw]
    scale = torch.tensor(1024., device=device)
    grads = [torch.randn_like(weight) for weight in raw]
    expected = [grad.clone() for grad in grads]
    add_decays_(grads, raw, effective, 0.1, scale)
    for grad, one, weight, value in zip(grads, expected, raw, effective, strict=True):
        add_decay_(one, weight, value, 0.1, scale)
        assert torch.allclose(grad, one, rtol=1e-5, atol=1e-4)


def train_step(device):
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)).to(device)
    handle = sparsify(model, '2:4', ramp=dict(type='linear', begin=0, end=4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    handle.attach(optimizer)
    x = torch.randn(2, 8, 12, 12, device=device)

    def step(progress: int) -> torch.Tensor:
        handle.set_progress(progress)
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert 0 <= handle.sparsity <= 0.5
        return loss.detach()

    return step


def test_a_training_step_never_waits(device):
    step = train_step(device)
    step(1)  # what is done once may wait
    if device.type == 'cuda':
        torch.cuda.set_sync_debug_mode('error')
    try:
        losses = [step(progress) for progress in range(1, 5)]
    finally:
        if device.type == 'cuda':
            torch.cuda.set_sync_debug_mode('default')
    assert torch.stack(losses).isfinite().all()


def test_deterministic_algorithms(device):
    """Nothing raises, and two runs give the same bits."""
    torch.use_deterministic_algorithms(True, warn_only=False)
    try:
        runs = [batched.soft_masks(weights(device, 'ties'), Pattern(2, 4), fraction, AXES, 1e-2,
                                   order, True)
                for fraction, order in ((0.37, 'smallest'), (0.5, 'random'), (0., 'largest'))
                for _ in range(2) if torch.manual_seed(0)]
    finally:
        torch.use_deterministic_algorithms(False)
    for one, two in zip(runs[::2], runs[1::2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_scratch_of_a_refresh(gpu):
    """Beside the results, what :data:`.batched.CHUNK` says of one chunk, and some for sorting."""
    given = weights(gpu, shapes=resnet50())
    size = sum(weight.nbytes for weight in given)
    for fraction in (0.5, 0.):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        results = batched.soft_masks(given, Pattern(2, 4), fraction, AXES, 1e-2, 'smallest', True)
        extra = torch.cuda.max_memory_allocated() - before - size
        assert extra < 48 * batched.CHUNK, extra / batched.CHUNK
        del results


def test_channels_last(device):
    torch.manual_seed(0)
    plain, last = (nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 1)).to(
        device, torch.float64) for _ in range(2))
    last.load_state_dict(plain.state_dict())
    last = last.to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 12, 12, device=device, dtype=torch.float64)
    outputs = []
    for model in (plain, last):
        handle = sparsify(model, '2:4', ramp=dict(type='linear', begin=0, end=2))
        handle.set_progress(1)
        outputs.append(model(x.to(memory_format=torch.channels_last)))
        outputs[-1].square().sum().backward()
    assert torch.allclose(*outputs)
    for layer, other in zip(last[::2], plain[::2], strict=True):
        assert torch.equal(layer.effective, other.effective)
        assert layer.effective.stride() == layer.weight.stride()
        assert layer.weight.grad.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(layer.weight.grad, other.weight.grad)

"""Layers on a device other than the CPU: refreshed together, never waited for; memory formats."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from maxq_mm import MaxQConv2d, fold, sparsify
from maxq_mm.engine.checkpoint import store_effective

from ..simulated import DEVICE, Simulated, resnet50


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
                         nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 8))


@pytest.mark.parametrize(('order', 'fixed', 'fade'), [
    ('smallest', False, False), ('random', False, False), ('smallest', True, False),
    ('smallest', False, True)])
def test_training_never_waits_for_the_device(order, fixed, fade):
    """Forward, activation checkpointing, backward, decay, step, ramp and what is stored."""
    model = network().to(DEVICE)
    ramp = None if fixed else dict(type='linear', begin=0, end=4, fade=fade)
    handle = sparsify(model, '2:4', ramp=ramp, order=order, fixed=fixed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    handle.attach(optimizer)
    x = torch.empty(2, 8, 8, 8, device=DEVICE)
    handle.set_progress(2)
    model(x)  # the random order goes to the device once
    with Simulated():
        for step in range(5):
            handle.set_progress(step)
            assert 0 <= handle.sparsity <= 0.5
            out = checkpoint(model, x, use_reentrant=False, preserve_rng_state=False)
            out.sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.)
            optimizer.step()
            optimizer.zero_grad()
        state = dict(state_dict=model.state_dict())
        store_effective(state, handle)
    assert all(value.device == DEVICE for value in state['state_dict'].values())


def test_the_first_layer_that_runs_refreshes_its_peers():
    model = network().to(DEVICE)
    handle = sparsify(model, '2:4')
    handle.invalidate()
    layers = list(handle.layers.values())
    assert len(layers) == 3
    with Simulated() as simulated:
        first = layers[0].effective
        computed = simulated.count
        assert layers[1].effective.shape == layers[1].weight.shape
        assert layers[0].effective is first
        assert simulated.count == computed > 0
    fold(model[0])
    handle.invalidate()
    assert layers[1].effective.shape == layers[1].weight.shape, 'a peer that was folded'


def test_a_refresh_takes_few_operators():
    model = nn.Sequential(*(nn.Conv2d(i, o, k, bias=False, device=DEVICE)
                            for o, i, k, _ in resnet50()))
    handle = sparsify(model, '1:16', ramp=dict(type='linear', begin=0, end=2))
    for step in (1, 2):
        handle.set_progress(step)
        with Simulated() as simulated:
            handle.layers['0'].refresh_if_stale()
            assert 0 < simulated.count < 10 * len(handle.layers)
            before = simulated.count
            assert all(layer.effective.device == DEVICE for layer in handle.layers.values())
            assert simulated.count == before, 'a peer was left out'


def test_copies_leave_their_peers_behind():
    model = network()
    sparsify(model, '2:4')
    alone = copy.deepcopy(model[0])
    assert alone.maxq.handle is None
    assert torch.equal(alone.effective, model[0].effective)


@pytest.mark.parametrize('kernel', [1, 3])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('fixed', [False, True])
def test_channels_last_stays_channels_last(kernel, dtype, fixed):
    torch.manual_seed(0)
    plain = MaxQConv2d(16, 8, kernel, pattern='2:4', fixed=fixed, dtype=dtype)
    layer = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 6, 6, dtype=dtype)
    assert layer.weight.stride()[1] == 1
    for each in (plain, layer):
        each(x.to(memory_format=torch.channels_last)).square().sum().backward()
    assert torch.equal(layer.effective, plain.effective)
    assert torch.allclose(layer.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-4)
    assert layer.effective.stride() == layer.weight.stride()
    assert layer.weight.grad.is_contiguous(memory_format=torch.channels_last)

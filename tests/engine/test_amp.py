"""Mixed precision: masks, decay and weights in float32, and how far from a float32 run."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn

from maxq_mm import satisfies
from maxq_mm.engine.cpu_amp import CPUAmpOptimWrapper
from maxq_mm.utils.files import load_file

from ..reference import reference_soft_mask
from .runs import Classifier, make_runner

CONVS = ('backbone.0.weight', 'backbone.3.weight')
HOOKS = [dict(type='MaxQHook', pattern='2:4', decay=0.05,
              ramp=dict(type='linear', begin=0, end=3)), dict(type='ReseedHook')]
SGD = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-3)


class Record(Hook):
    """What the first optimizer step of a run had at hand."""

    priority = 'VERY_LOW'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 0:
            self.seen = {}
            for name, module in runner.model.named_modules():
                if isinstance(module, nn.Conv2d):
                    module.register_forward_hook(self._see(name))

    def _see(self, name):
        def see(module, inputs, output):
            if module.training:
                self.seen[name] = output.dtype
        return see


def run(work_dir, wrapper, epochs=4, **settings):
    torch.manual_seed(1)
    runner = make_runner(work_dir, HOOKS, model=Classifier(dropout=0.), epochs=epochs,
                         optim_wrapper=dict(type=wrapper, optimizer=SGD), **settings)
    record = Record()
    runner.register_hook(record)
    runner.train()
    return runner, record


def test_close_to_float32(tmp_path):
    """After four epochs, of what was learned most is the same; not equal. A mask or two may differ,
    where 8 bits cannot tell which weight is the smaller one."""
    torch.manual_seed(1)
    start = dict(Classifier(dropout=0.).named_parameters())
    full, _ = run(tmp_path / 'full', 'OptimWrapper')
    mixed, record = run(tmp_path / 'mixed', 'CPUAmpOptimWrapper')
    assert set(record.seen.values()) == {torch.bfloat16}
    for (key, a), b in zip(full.model.named_parameters(), mixed.model.parameters(), strict=True):
        assert b.dtype == torch.float32
        assert not torch.equal(a, b)
        assert torch.linalg.norm(a - b) < 0.3 * torch.linalg.norm(a - start[key]), key
    for key in CONVS:
        stored = load_file(tmp_path / 'mixed/epoch_4.pth')
        raw = stored['maxq']['raw'][key]
        assert raw.dtype == stored['state_dict'][key].dtype == torch.float32
        assert torch.allclose(stored['state_dict'][key], raw * reference_soft_mask(raw, 2, 4, 0.))
        assert satisfies(stored['state_dict'][key], '2:4')


def test_decay_and_step_in_float32(tmp_path):
    """One step by hand: autocast around a plain network with effective weights, float32 decay."""
    torch.manual_seed(1)
    model = Classifier(dropout=0.)
    optimizer = torch.optim.SGD(model.parameters(), **{k: v for k, v in SGD.items() if k != 'type'})
    parameters = dict(model.named_parameters())
    before = {key: parameters[key].detach().clone() for key in CONVS}

    class Batch(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 0:
                self.data = data_batch

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 0:
                self.weights = {k: v.detach().clone() for k, v in runner.model.named_parameters()}

    torch.manual_seed(1)
    batch = Batch()
    runner = make_runner(
        tmp_path, [dict(HOOKS[0], ramp=None)], model=Classifier(dropout=0.), epochs=1,
        optim_wrapper=dict(type='CPUAmpOptimWrapper', optimizer=SGD))
    runner.model.load_state_dict(model.state_dict())
    runner.register_hook(batch)
    runner.train()

    masks = {key: reference_soft_mask(before[key], 2, 4, 0.) for key in CONVS}
    effective = {key: (before[key] * masks[key]).requires_grad_() for key in CONVS}
    merged = {**parameters, **effective}
    with torch.autocast('cpu', torch.bfloat16):
        loss = torch.func.functional_call(model, merged, kwargs=dict(**batch.data, mode='loss'))
    grads = torch.autograd.grad(loss['loss'], list(merged.values()))
    for key, grad in zip(merged, grads, strict=True):
        parameters[key].grad = grad
    for key in CONVS:
        parameters[key].grad += 0.05 * before[key] * (masks[key] == 0)
    optimizer.step()
    for key, value in parameters.items():
        assert torch.allclose(batch.weights[key], value, rtol=1e-5, atol=1e-7), key


def test_resumes_to_the_same_bits(tmp_path):
    whole, _ = run(tmp_path / 'a', 'CPUAmpOptimWrapper')
    resumed, _ = run(tmp_path / 'b', 'CPUAmpOptimWrapper', resume=True,
                     load_from=str(tmp_path / 'a/epoch_2.pth'))
    assert not (tmp_path / 'b/epoch_2.pth').exists(), 'nothing was resumed'
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_pooling_of_regions_runs_in_float32():
    """mmcv's has no bfloat16 on CPUs; what comes out is of the type that went in."""
    ops = pytest.importorskip('mmcv.ops')

    class Pooling(BaseModel):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 8, 1), ops.RoIAlign(2)

        def forward(self, x):
            features = self.conv(x)
            return features, self.pool(features, torch.tensor([[0., 1., 1., 5., 5.]]).to(features))

    model, x = Pooling(), torch.randn(1, 3, 8, 8)
    wrapper = CPUAmpOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with wrapper.optim_context(model):
        features, pooled = model(x)
    assert features.dtype == pooled.dtype == torch.bfloat16
    regions = torch.tensor([[0., 1., 1., 5., 5.]])
    assert torch.equal(pooled, model.pool(features.float(), regions).bfloat16())
    pooled.sum().backward()
    assert model.conv.weight.grad.dtype == torch.float32
    assert not model.pool._forward_hooks
    assert not model.pool._forward_pre_hooks

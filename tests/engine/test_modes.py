"""Ways to train, each against a plain loop that is written without any MaxQ layer.

Where sums are taken in another order, the models are of float64: rounding that turned the mask of
two nearly equal weights would grow step by step.
"""

import copy

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict

from maxq_mm import satisfies, soft_mask
from maxq_mm.engine.checkpoint import fold_checkpoint
from maxq_mm.utils.files import load_file, save_file

from ..reference import reference_soft_mask
from .runs import Classifier, make_runner

CONVS = ('backbone.0.weight', 'backbone.3.weight')
DECAY = 0.05  # large enough to tell a second one, or one too many
HOOK = dict(type='MaxQHook', pattern='2:4', decay=DECAY,
            ramp=dict(type='linear', begin=0, end=3))
OPTIMIZERS = {
    'SGD': dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-2),
    'AdamW': dict(type='AdamW', lr=1e-2, weight_decay=1e-1),
}


class Record(Hook):
    """Keeps the batches of a run, and the model it began with."""

    def __init__(self):
        self.batches, self.model = [], None

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.model is None:
            self.model = copy.deepcopy(runner.model.state_dict())
        self.batches.append((runner.epoch, data_batch))


def plain_loop(record: Record, optimizer: dict, accumulate: int, max_norm: float | None):
    """The same training by hand: masks from the sorted formulation, decay before the step."""
    model = Classifier(dropout=0.).double()
    model.load_state_dict(record.model)
    parameters = dict(model.named_parameters())
    settings = dict(optimizer)
    step = getattr(torch.optim, settings.pop('type'))(model.parameters(), **settings)
    masks = {}
    for count, (epoch, batch) in enumerate(record.batches, 1):
        fraction = max(0., 1 - epoch / 3)
        masks = {key: reference_soft_mask(parameters[key].detach(), 2, 4, fraction)
                 for key in CONVS}
        effective = {key: (parameters[key].detach() * mask).requires_grad_()
                     for key, mask in masks.items()}
        merged = {**parameters, **effective}
        losses = torch.func.functional_call(model, merged, kwargs=dict(**batch, mode='loss'))
        grads = torch.autograd.grad(losses['loss'] / accumulate, list(merged.values()))
        for key, grad in zip(merged, grads, strict=True):
            parameter = parameters[key]
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad
        if count % accumulate == 0:
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            for key, mask in masks.items():
                parameters[key].grad += DECAY * parameters[key].detach() * (mask == 0)
            step.step()
            step.zero_grad()
    return parameters


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize(('accumulate', 'max_norm'), [(1, None), (1, 0.1), (2, None), (4, 0.1)])
def test_accumulation_and_clipping(tmp_path, optimizer, accumulate, max_norm):
    record = Record()
    clip = None if max_norm is None else dict(max_norm=max_norm)
    runner = make_runner(
        tmp_path, [HOOK], model=Classifier(dropout=0.).double(),
        optim_wrapper=dict(type='OptimWrapper', optimizer=OPTIMIZERS[optimizer],
                           accumulative_counts=accumulate, clip_grad=clip))
    runner.register_hook(record)
    runner.train()
    expected = plain_loop(record, OPTIMIZERS[optimizer], accumulate, max_norm)
    for key, parameter in runner.model.named_parameters():
        assert torch.allclose(parameter, expected[key], rtol=1e-7, atol=1e-9), key


def test_activation_checkpointing_changes_nothing(tmp_path):
    states = []
    for with_cp in (False, True):
        torch.manual_seed(1)
        runner = make_runner(tmp_path / str(with_cp), [HOOK, dict(type='ReseedHook')],
                             model=Classifier(with_cp=with_cp))
        runner.train()
        states.append(dict(runner.model.named_parameters()))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_several_optimizers(tmp_path):
    """Each optimizer decays the sparse layers that it trains, and no others."""
    from maxq_mm import sparsify

    model = Classifier()
    handle = sparsify(model, '2:4', include=('backbone', ), decay=DECAY)
    first = torch.optim.SGD(model.backbone[0].parameters(), lr=1.)
    rest = torch.optim.SGD([*model.backbone[3].parameters(), *model.head.parameters()], lr=1.)
    for optimizer in (first, rest):
        handle.attach(optimizer)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    first.step()
    pruned = handle.layers['backbone.0'].apply_mask(before[CONVS[0]]) == 0
    assert torch.allclose(model.backbone[0].weight, before[CONVS[0]] * (1 - DECAY * pruned.float()))
    assert torch.equal(model.backbone[3].weight, before[CONVS[1]])
    rest.step()
    pruned = handle.layers['backbone.3'].apply_mask(before[CONVS[1]]) == 0
    assert torch.allclose(model.backbone[3].weight, before[CONVS[1]] * (1 - DECAY * pruned.float()))


def test_training_twice_decays_once(tmp_path):
    runner = make_runner(tmp_path, [HOOK])
    runner.train()
    hooks = len(runner.optim_wrapper.optimizer._optimizer_step_pre_hooks)
    runner.train()
    assert len(runner.optim_wrapper.optimizer._optimizer_step_pre_hooks) == hooks


class TwoOptimizers(Classifier):
    """Steps one optimizer for its backbone and one for its head, as adversarial models do."""

    def train_step(self, data, optim_wrapper):
        data = self.data_preprocessor(data, True)
        loss, log = self.parse_losses(self(**data, mode='loss'))
        optim_wrapper['backbone'].zero_grad()
        optim_wrapper['head'].zero_grad()
        loss.backward()
        optim_wrapper['backbone'].step()
        optim_wrapper['head'].step()
        return log


def wrappers(model) -> OptimWrapperDict:
    return OptimWrapperDict(**{
        name: OptimWrapper(torch.optim.SGD(model.get_submodule(name).parameters(), lr=0.1,
                                           momentum=0.9, weight_decay=1e-2))
        for name in ('backbone', 'head')})


def test_optim_wrapper_dict(tmp_path):
    """Two optimizers of one kind train what one of them does, and resume."""
    states = {}
    for name, kind in (('one', Classifier), ('two', TwoOptimizers)):
        torch.manual_seed(1)
        model = kind(dropout=0.).double()
        wrapper = wrappers(model) if kind is TwoOptimizers else dict(
            type='OptimWrapper', optimizer=OPTIMIZERS['SGD'])
        runner = make_runner(tmp_path / name, [HOOK], model=model, optim_wrapper=wrapper)
        runner.train()
        states[name] = load_file(tmp_path / name / 'epoch_4.pth')
    for key, value in states['one']['state_dict'].items():
        assert torch.allclose(value, states['two']['state_dict'][key], rtol=1e-7, atol=1e-9), key
    model = TwoOptimizers(dropout=0.).double()
    make_runner(tmp_path / 'three', [HOOK], model=model, optim_wrapper=wrappers(model), resume=True,
                load_from=str(tmp_path / 'two/epoch_2.pth')).train()
    assert not (tmp_path / 'three/epoch_2.pth').exists(), 'nothing was resumed'
    resumed = load_file(tmp_path / 'three/epoch_4.pth')
    for key, value in states['two']['maxq']['raw'].items():
        assert torch.equal(value, resumed['maxq']['raw'][key])


@pytest.mark.parametrize('ema', [False, True])
def test_validation_in_the_middle_of_an_epoch_changes_nothing(tmp_path, ema):
    """Batches are 4 an epoch; validation after every third, or none at all."""
    hooks = [HOOK | dict(ramp=dict(type='linear', begin=0, end=7, by_epoch=False)),
             dict(type='ReseedHook')]
    hooks += [dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.2)] * ema
    states = []
    for interval in (3, 1000):
        make_runner(tmp_path / str(interval), hooks,
                    loop=dict(by_epoch=False, max_iters=8, val_interval=interval),
                    saving=dict(type='CheckpointHook', by_epoch=False, interval=8)).train()
        states.append(load_file(tmp_path / str(interval) / 'iter_8.pth'))
    for part in ('state_dict', *['ema_state_dict'] * ema):
        for key, value in states[0][part].items():
            assert torch.equal(value, states[1][part][key]), key
    assert all(satisfies(states[0]['state_dict'][key], '2:4') for key in CONVS)


def test_load_from_a_folded_checkpoint(tmp_path):
    """It holds no raw weights any more: training starts from raw ones of the same network."""
    make_runner(tmp_path / 'a', [HOOK]).train()
    folded = fold_checkpoint(load_file(tmp_path / 'a/epoch_4.pth'))
    save_file(folded, tmp_path / 'folded.pth')
    record = Record()
    runner = make_runner(tmp_path / 'b', [HOOK], load_from=str(tmp_path / 'folded.pth'))
    runner.register_hook(record)
    warnings = []
    runner.logger.warning = lambda message, *_: warnings.append(message)
    runner.train()
    assert not any('satisfy their pattern' in message for message in warnings)
    for key in CONVS:
        raw, effective = record.model[key], folded['state_dict'][key]
        for fraction in (0., 1.):
            assert torch.allclose(raw * soft_mask(raw, '2:4', fraction), effective, rtol=1e-5)
        assert not torch.allclose(raw, effective, rtol=0.1)
        stored = load_file(tmp_path / 'b/epoch_4.pth')['state_dict'][key]
        assert satisfies(stored, '2:4')
        assert not torch.equal(stored != 0, record.model[key] != 0), 'no pruned weight came back'


@pytest.mark.parametrize('by_epoch', [False, True])
def test_masks_change_between_steps_only(tmp_path, by_epoch, monkeypatch):
    """Once a step and not within one, though batches outnumber steps and epochs cut steps."""
    from maxq_mm.nn.layers import MaxQLayer
    refreshed = []
    refresh = MaxQLayer.refresh
    monkeypatch.setattr(MaxQLayer, 'refresh', lambda self: (refreshed.append(id(self)),
                                                            refresh(self)))

    class Count(Hook):
        def __init__(self):
            self.fractions = []

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            hook = next(h for h in runner.hooks if type(h).__name__ == 'MaxQHook')
            self.fractions.append(hook.handle.dense_fraction)

    count = Count()
    ramp = dict(type='linear', begin=0, end=3 if by_epoch else 14, by_epoch=by_epoch)
    runner = make_runner(
        tmp_path, [HOOK | dict(ramp=ramp)], saving=dict(type='CheckpointHook', interval=100),
        loop=dict(by_epoch=True, max_epochs=4, val_interval=100),
        optim_wrapper=dict(type='OptimWrapper', optimizer=OPTIMIZERS['SGD'],
                           accumulative_counts=3))
    runner.register_hook(count)
    runner.train()
    changes = [i for i in range(1, 16) if count.fractions[i] != count.fractions[i - 1]]
    assert changes
    assert all(i % 3 == 0 for i in changes)
    # two layers: once a step for 16 iterations, once when made sparse, once for the picture
    assert len(refreshed) <= 2 * (16 // 3 + 1 + 1 + 1)


def test_a_run_that_diverges_ends_with_its_picture(tmp_path):
    runner = make_runner(tmp_path, [HOOK], optim_wrapper=dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=1e30)))
    runner.train()
    assert not runner.model.backbone[0].weight.isfinite().all()
    assert (tmp_path / 'maxq.png').is_file()

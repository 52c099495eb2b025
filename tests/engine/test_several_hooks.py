"""Several MaxQHooks share a model: each has its layers, its ramp and its part of a checkpoint."""

import copy

import pytest
import torch
from mmengine.hooks import EMAHook

from maxq_mm import MaxQHook, satisfies, sparsify
from maxq_mm.utils.files import load_file

from .runs import Classifier, make_runner

FIRST = dict(type='MaxQHook', pattern='2:4', include=('backbone.0', ), decay=0.05,
             ramp=dict(type='linear', begin=0, end=3))
SECOND = dict(type='MaxQHook', pattern='1:4', include=('backbone.3', ), decay=0.05, axes=(),
              ramp=dict(type='cubic', begin=4, end=12, by_epoch=False))
HOOKS = [FIRST, SECOND, dict(type='ReseedHook')]
EMA = dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.2)
LAYERS = {'backbone.0': '2:4', 'backbone.3': '1:4'}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope='module', params=[False, True], ids=['plain', 'ema'])
def trained(request, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('trained')
    runner = make_runner(work_dir, HOOKS + [EMA] * request.param)
    torch.manual_seed(1)
    start = copy.deepcopy(runner.model.state_dict())
    runner.train()
    return runner, work_dir, start, request.param


def test_each_has_its_ramp_and_layers(trained):
    runner, work_dir, _, _ = trained
    scalars = {name: runner.message_hub.get_scalar(f'train/{name}/dense_fraction').data[0].tolist()
               for name in ('maxq', 'maxq2')}
    assert scalars['maxq'] == [1.] * 4 + [1 - 1 / 3] * 4 + [1 - 2 / 3] * 4 + [0.] * 4
    assert scalars['maxq2'] == [1.] * 5 + [(1 - k / 8) ** 3 for k in range(1, 8)] + [0.] * 4
    hooks = [hook for hook in runner.hooks if isinstance(hook, MaxQHook)]
    assert [list(hook.handle.active) for hook in hooks] == [['backbone.0'], ['backbone.3']]
    assert (work_dir / 'maxq.png').is_file()
    assert (work_dir / 'maxq2.png').is_file()


def test_one_checkpoint_of_both(trained, tmp_path):
    runner, work_dir, _, ema = trained
    checkpoint = load_file(work_dir / 'epoch_4.pth')
    part = checkpoint['maxq']
    assert {name: layer['pattern'] for name, layer in part['layers'].items()} == LAYERS
    assert [settings['pattern'] for settings in part['settings']] == ['2:4', '1:4']
    averaged = [hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)]
    raw = dict((averaged[0] if ema else runner.model).named_parameters())
    for name, pattern in LAYERS.items():
        key = f'{name}.weight'
        assert torch.equal(part['raw'][key], raw[key])
        assert not satisfies(part['raw'][key], pattern)
        effective = runner.model.get_submodule(name).apply_mask(raw[key])
        assert torch.equal(checkpoint['state_dict'][key], effective)
        assert satisfies(effective, pattern)
    for hooks in (HOOKS, []):
        tester = make_runner(tmp_path / 'test', hooks, load_from=str(work_dir / 'epoch_4.pth'))
        lines = []
        tester.logger.info = lambda message, *_, to=lines: to.append(message)
        assert tester.test()['total'] == runner.message_hub.get_scalar('val/total').data[0][-1]
        assert sum('1 of 1 sparse layers satisfy' in line for line in lines) == 2 * bool(hooks)


def test_resumed_equals_uninterrupted(trained, tmp_path):
    _, work_dir, _, ema = trained
    runner = make_runner(tmp_path, HOOKS + [EMA] * ema, resume=True,
                         load_from=str(work_dir / 'epoch_2.pth'))
    warnings = []
    runner.logger.warning = lambda message, *_: warnings.append(message)
    runner.train()
    assert not [message for message in warnings if 'resumed with' in message]
    whole, resumed = (load_file(folder / 'epoch_4.pth') for folder in (work_dir, tmp_path))
    assert same(whole['state_dict'], resumed['state_dict'])
    assert same(whole['maxq']['raw'], resumed['maxq']['raw'])


def test_trains_what_two_handles_train_by_hand(trained, tmp_path):
    """Decay acts once, and on each layer by its own mask."""
    _, work_dir, start, ema = trained
    if ema:
        pytest.skip('the weights that are trained are the same')
    runner = make_runner(tmp_path, [FIRST, SECOND], model=Classifier(dropout=0.))
    runner.model.load_state_dict(start)
    batches = []
    step = runner.model.train_step
    runner.model.train_step = lambda data, optim_wrapper: (
        batches.append((runner.epoch, runner.iter, data)), step(data, optim_wrapper))[1]
    runner.train()
    model = Classifier(dropout=0.)
    model.load_state_dict(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    handles = [sparsify(model, **{key: value for key, value in hook.items() if key != 'type'})
               for hook in (FIRST, SECOND)]
    for handle in handles:
        handle.attach(optimizer)
    for epoch, iteration, data in batches:
        handles[0].set_progress(epoch)
        handles[1].set_progress(iteration)
        optimizer.zero_grad()
        model(**data, mode='loss')['loss'].backward()
        optimizer.step()
    assert same(dict(model.named_parameters()), dict(runner.model.named_parameters()))


@pytest.mark.parametrize('second', [dict(include=('backbone', )), dict(include=('backbone.0', ))])
def test_a_layer_of_two_hooks_is_refused_before_training(tmp_path, second):
    runner = make_runner(tmp_path, [FIRST, {**SECOND, **second}])
    before = copy.deepcopy(runner.model.state_dict())
    with pytest.raises(ValueError, match='chosen by two MaxQHooks, such as backbone.0'):
        runner.train()
    assert same(before, runner.model.state_dict())


def test_training_twice_decays_once(tmp_path):
    runner = make_runner(tmp_path, HOOKS)
    runner.train()
    hooks = len(runner.optim_wrapper.optimizer._optimizer_step_pre_hooks)
    runner.train()
    assert len(runner.optim_wrapper.optimizer._optimizer_step_pre_hooks) == hooks == 2

"""What a training starts from: checkpoints that do not fit, other settings, layers past masks."""

import functools

import pytest
import torch
from torch import nn

from maxq_mm import MaxQConv2d, satisfies
from maxq_mm.utils.files import load_file

from .runs import Classifier, make_runner

HOOK = dict(type='MaxQHook', pattern='2:4', ramp=dict(type='linear', begin=0, end=1))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('trained')
    make_runner(work_dir, [HOOK], epochs=2).train()
    return work_dir


def warnings_of(runner, words: str = 'resumed with') -> list[str]:
    said = []
    runner.logger.warning = lambda message, *_: said.append(message)
    runner.train()
    return [message for message in said if words in message]


@pytest.mark.parametrize(('change', 'named'), [
    (dict(pattern='1:4'), ['pattern 2:4 -> 1:4']),
    (dict(include=('backbone.0', )), ["include ['backbone'] -> ['backbone.0']"]),
    (dict(order='largest'), ['order smallest -> largest']),
    (dict(ramp={**HOOK['ramp'], 'fade': True}), ["'fade': False", "'fade': True"]),
    (dict(ramp=None, axes=()), ["axes ['filter', 'kernel'] -> []", "'end': 1,", "'end': 0,"]),
    (dict(ramp=None, fixed=True), ['fixed False -> True', 'ramp ']),
    (dict(overrides={'backbone.3': '1:8'}), ["overrides {} -> {'backbone.3': '1:8'}"]),
    (dict(), []),
])
def test_resume_with_other_settings_is_said(trained, tmp_path, change, named):
    runner = make_runner(tmp_path, [{**HOOK, **change}], epochs=3, resume=True,
                         load_from=str(trained / 'epoch_1.pth'))
    said = warnings_of(runner)
    assert len(said) == bool(change)
    assert all(text in said[0] for text in named), said
    assert not change or all(f'{name} ' in said[0] for name in change)


def test_resume_of_a_checkpoint_older_than_a_setting(trained, tmp_path):
    checkpoint = load_file(trained / 'epoch_1.pth')
    settings, = checkpoint['maxq']['settings']
    del settings['predictors'], settings['ramp']['fade']
    torch.save(checkpoint, tmp_path / 'old.pth')
    for change, expected in ((dict(predictors=True), []), (dict(), [
            'MaxQ: resumed with other settings: predictors True -> False'])):
        runner = make_runner(tmp_path / 'work', [{**HOOK, **change}], epochs=2, resume=True,
                             load_from=str(tmp_path / 'old.pth'))
        assert warnings_of(runner) == expected


def test_resume_of_a_dense_training_is_said(tmp_path):
    make_runner(tmp_path / 'dense', [], epochs=2).train()
    for resume, said in ((True, 1), (False, 0)):
        runner = make_runner(tmp_path / 'work', [HOOK], epochs=3, resume=resume,
                             load_from=str(tmp_path / 'dense/epoch_1.pth'))
        warnings = warnings_of(runner)
        assert len(warnings) == said
        assert all('resumed with a MaxQHook (2:4) from a checkpoint of a training without one'
                   in warning for warning in warnings)
    # Nothing there to resume is a first start.
    assert warnings_of(make_runner(tmp_path / 'new', [HOOK], epochs=2, resume=True)) == []


def test_resume_with_another_number_of_hooks_is_said(trained, tmp_path):
    hooks = [{**HOOK, 'include': (name, )} for name in ('backbone.0', 'backbone.3')]
    runner = make_runner(tmp_path, hooks, epochs=3, resume=True,
                         load_from=str(trained / 'epoch_1.pth'))
    assert 'resumed with 2 MaxQHooks from a checkpoint of 1' in warnings_of(runner)[0]


def test_a_layer_that_leaves_sparsity_goes_on_from_what_was_validated(trained, tmp_path):
    """Its raw weight is another one than that of the forward pass."""
    runner = make_runner(tmp_path, [{**HOOK, 'include': ('backbone.0', )}], epochs=3,
                         load_from=str(trained / 'epoch_2.pth'))
    seen = {}
    step = runner.model.train_step
    runner.model.train_step = lambda *args, **named: (
        seen or seen.update({k: v.clone() for k, v in runner.model.state_dict().items()}),
        step(*args, **named))[1]
    runner.train()
    checkpoint = load_file(trained / 'epoch_2.pth')
    assert torch.equal(seen['backbone.0.weight'], checkpoint['maxq']['raw']['backbone.0.weight'])
    assert torch.equal(seen['backbone.3.weight'], checkpoint['state_dict']['backbone.3.weight'])


@pytest.mark.parametrize('fixed', [False, True])
@pytest.mark.parametrize('content', [
    dict(state_dict={'other.weight': torch.zeros(3)}), dict(state_dict={}),
    {'backbone.0.weight': torch.zeros(2, 2)},
    {'backbone.0.weight': torch.zeros(2, 2), 'backbone.1.num_batches_tracked': torch.tensor(1)}],
    ids=['names', 'empty', 'shapes', 'counter'])
def test_a_checkpoint_of_another_model_is_refused(tmp_path, content, fixed):
    torch.save(content, tmp_path / 'other.pth')
    hook = dict(type='MaxQHook', pattern='2:4', fixed=fixed)
    runner = make_runner(tmp_path / 'work', [hook], load_from=str(tmp_path / 'other.pth'))
    with pytest.raises(ValueError, match='of the checkpoint fits the model'):
        runner.train()
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_a_bare_or_prefixed_state_dict_fits(tmp_path):
    state = {f'module.{key}': value for key, value in Classifier().state_dict().items()}
    torch.save(state, tmp_path / 'bare.pth')
    make_runner(tmp_path / 'work', [HOOK], epochs=2, load_from=str(tmp_path / 'bare.pth')).train()
    assert (tmp_path / 'work/epoch_2.pth').is_file()


@pytest.mark.parametrize(('change', 'said'), [
    (dict(), ['MaxQ: 1 layer keeps fewer than 8 weights for each output, at worst 2 (backbone.3, '
              '1:8): consider to exclude such layers']),
    (dict(overrides={'backbone.3': '1:2'}), []), (dict(exclude=('backbone.3', )), [])])
def test_few_weights_for_an_output_are_said(tmp_path, change, said):
    """backbone.0 keeps 9 of an output's 72 weights, backbone.3 keeps 2, or 8, of 16."""
    runner = make_runner(tmp_path, [{**HOOK, 'pattern': '1:8', **change}], epochs=2)
    assert warnings_of(runner, 'fewer than 8') == said


class PastLayer(Classifier):
    def __init__(self):
        super().__init__()
        self.backbone[3] = Past(self.backbone[3])


class Past(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return nn.functional.conv2d(x, self.layer.weight, self.layer.bias)


def test_a_weight_that_is_read_past_its_layer_stops_the_run(tmp_path):
    runner = make_runner(tmp_path, [HOOK], model=PastLayer())
    with pytest.raises(ValueError, match='backbone.3.layer was never called'):
        runner.train()
    hook = {**HOOK, 'exclude': ('backbone.3.layer', )}
    make_runner(tmp_path, [hook], model=PastLayer(), epochs=2).train()


def test_activation_checkpointing_of_a_layer_leaves_it_dense(tmp_path):
    runner = make_runner(tmp_path, [HOOK], epochs=2,
                         cfg=dict(activation_checkpointing=['backbone.3']))
    runner.train()
    checkpoint = load_file(tmp_path / 'epoch_2.pth')
    assert list(checkpoint['maxq']['layers']) == ['backbone.0']
    assert not satisfies(checkpoint['state_dict']['backbone.3.weight'], '2:4')


@pytest.mark.parametrize('hooks', [[HOOK | dict(include=('backbone.0', ))], []])
def test_layers_built_sparse_that_the_hook_leaves_dense_are_tested_so(tmp_path, hooks):
    build = functools.partial(Classifier, functools.partial(MaxQConv2d, pattern='2:4'))
    hook = HOOK | dict(include=('backbone.0', ))
    runner = make_runner(tmp_path / 'a', [hook], model=build(), epochs=2)
    runner.train()
    checkpoint = load_file(tmp_path / 'a/epoch_2.pth')
    assert list(checkpoint['maxq']['layers']) == ['backbone.0']
    assert not satisfies(checkpoint['state_dict']['backbone.3.weight'], '2:4')
    tester = make_runner(tmp_path / 'b', hooks, model=build(),
                         load_from=str(tmp_path / 'a/epoch_2.pth'))
    assert tester.test()['total'] == runner.message_hub.get_scalar('val/total').data[0][-1]

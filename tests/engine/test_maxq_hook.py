import functools

import pytest
import torch
from mmengine.hooks import EMAHook, Hook

from maxq_mm import MaxQConv2d, MaxQHook, accelerate, satisfies, soft_mask
from maxq_mm.utils.files import load_file

from .runs import Classifier, make_runner

RAMP = dict(type='linear', begin=0, end=3)
HOOKS = [dict(type='MaxQHook', pattern='2:4', ramp=RAMP), dict(type='ReseedHook')]
EMA = dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.2)
ADAMW = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01))
CONVS = ('backbone.0.weight', 'backbone.3.weight')


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def scalar(runner, name):
    return runner.message_hub.get_scalar(name).data[0]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('trained')
    runner = make_runner(work_dir, HOOKS)
    runner.train()
    return runner, work_dir


def test_ramp_and_scalars(trained):
    runner, _ = trained
    fractions = scalar(runner, 'train/maxq/dense_fraction')
    assert fractions.tolist() == [1.] * 4 + [1 - 1 / 3] * 4 + [1 - 2 / 3] * 4 + [0.] * 4
    sparsity = scalar(runner, 'train/maxq/sparsity')
    assert sparsity[0] == 0
    assert sparsity[-1] == 0.5
    assert (sparsity[1:] >= sparsity[:-1]).all()


def test_checkpoints_hold_effective_weights(trained):
    runner, work_dir = trained
    checkpoint = load_file(work_dir / 'epoch_4.pth')
    plain = Classifier()
    plain.load_state_dict(checkpoint['state_dict'])  # strict: the usual keys, no more
    runner.model.eval()
    x = torch.randn(5, 8, 6, 6)
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), runner.model(x))
    for key in CONVS:
        assert satisfies(checkpoint['state_dict'][key], '2:4')
        assert torch.equal(checkpoint['maxq']['raw'][key], dict(
            runner.model.named_parameters())[key])
    early = load_file(work_dir / 'epoch_1.pth')
    assert early['maxq']['dense_fraction'] == 1
    assert not satisfies(early['state_dict'][CONVS[0]], '2:4')


@pytest.mark.parametrize('hooks', [HOOKS, []], ids=['with hook', 'without'])
def test_stored_weights_give_the_numbers_of_validation(trained, tmp_path, hooks):
    runner, work_dir = trained
    validated = scalar(runner, 'val/total')
    for epoch in (2, 4):
        tester = make_runner(tmp_path, hooks, load_from=str(work_dir / f'epoch_{epoch}.pth'))
        assert tester.test()['total'] == validated[epoch - 1]
        assert not any(isinstance(m, MaxQConv2d) for m in tester.model.modules())


def variants():
    ramp_by_iter = dict(type='cubic', begin=2, end=11, by_epoch=False)
    by_iter = dict(by_epoch=False, max_iters=16, val_interval=4)
    return {
        'epochs': (dict(), {}),
        'iterations of the ramp': (dict(ramp=ramp_by_iter), {}),
        'adamw': (dict(), dict(optim_wrapper=ADAMW)),
        'ema': (dict(), dict(ema=True)),
        'srste': (dict(axes=(), ramp=None), {}),
        'asp': (dict(axes=(), ramp=None, decay=0., fixed=True), {}),
        'fading': (dict(ramp=dict(RAMP, fade=True)), {}),
        'fading, ema': (dict(ramp=dict(RAMP, fade=True)), dict(ema=True)),
        'random order': (dict(order='random'), {}),
        'iteration-based loop': (dict(ramp=ramp_by_iter), dict(
            loop=by_iter,
            saving=dict(type='CheckpointHook', by_epoch=False, interval=8))),
    }


@pytest.mark.parametrize('variant', variants())
def test_resumed_equals_uninterrupted(tmp_path, variant):
    hook, settings = variants()[variant]
    hooks = [dict(type='MaxQHook', pattern='2:4', **{'ramp': RAMP, **hook}),
             dict(type='ReseedHook')] + ([EMA] if settings.pop('ema', False) else [])
    by_iter = 'loop' in settings
    last, middle = ('iter_16.pth', 'iter_8.pth') if by_iter else ('epoch_4.pth', 'epoch_2.pth')
    make_runner(tmp_path / 'a', hooks, **settings).train()
    make_runner(tmp_path / 'b', hooks, **settings, resume=True,
                load_from=str(tmp_path / 'a' / middle)).train()
    whole, resumed = (load_file(tmp_path / run / last) for run in 'ab')
    assert not (tmp_path / 'b' / middle).exists(), 'nothing was resumed'
    assert_same(whole['state_dict'], resumed['state_dict'])
    assert_same(whole['maxq']['raw'], resumed['maxq']['raw'])
    if 'ema_state_dict' in whole:
        assert_same(whole['ema_state_dict'], resumed['ema_state_dict'])
    for key in CONVS:
        assert satisfies(whole['state_dict'][key], '2:4')


def test_ema_evaluates_and_saves_the_effective_averaged_weight(tmp_path):
    runner = make_runner(tmp_path, [*HOOKS, EMA])
    runner.train()
    checkpoint = load_file(tmp_path / 'epoch_4.pth')
    averaged = next(h for h in runner.hooks if type(h).__name__ == 'EMAHook').ema_model.module
    live = dict(runner.model.named_parameters())
    for (key, parameter) in averaged.named_parameters():
        if key in CONVS:
            assert torch.equal(checkpoint['maxq']['raw'][key], parameter)
            assert not torch.equal(parameter, live[key])
            name = key.removesuffix('.weight')
            layer = runner.model.get_submodule(name)
            assert torch.equal(checkpoint['state_dict'][key], layer.apply_mask(parameter))
            assert torch.equal(checkpoint['ema_state_dict'][f'module.{key}'], live[key])
    tester = make_runner(tmp_path / 'test', [], load_from=str(tmp_path / 'epoch_4.pth'))
    assert tester.test()['total'] == scalar(runner, 'val/total')[-1]


@pytest.mark.parametrize('ema', [False, True])
def test_load_from_starts_from_raw_weights(trained, tmp_path, ema):
    _, work_dir = trained

    class Record(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 0:
                self.weights = {k: v.clone() for k, v in runner.model.state_dict().items()}
                self.averaged = [
                    {k: v.clone() for k, v in h.ema_model.module.state_dict().items()}
                    for h in runner.hooks if isinstance(h, EMAHook)]

    for name, raw_key in (('epoch_4.pth', 'maxq'), ('dense.pth', None)):
        checkpoint = load_file(work_dir / 'epoch_4.pth')
        expected = checkpoint['maxq']['raw'] if raw_key else checkpoint['state_dict']
        if not raw_key:
            del checkpoint['maxq']
            torch.save(checkpoint, work_dir / name)
        runner = make_runner(tmp_path / name, HOOKS + [EMA] * ema, epochs=4,
                             load_from=str(work_dir / name))
        record = Record()
        runner.register_hook(record)
        runner.train()
        for key in CONVS:
            raw = record.weights[key]
            # A plain N:M checkpoint goes on as the network that it is.
            assert torch.equal(raw, expected[key]) if raw_key else torch.allclose(
                raw * soft_mask(raw, '2:4'), expected[key], rtol=1e-5)
            for state in record.averaged:
                assert torch.equal(state[key], raw)


def test_conv_cfg_layers_train_and_test_like_those_of_the_hook(tmp_path, trained):
    runner, work_dir = trained
    conv = functools.partial(MaxQConv2d, pattern='2:4')
    built = make_runner(tmp_path, HOOKS, model=Classifier(conv))
    torch.manual_seed(1)
    built.model.load_state_dict(Classifier().state_dict())
    first = make_runner(tmp_path / 'plain', HOOKS)
    first.model.load_state_dict(built.model.state_dict())
    built.train()
    first.train()
    a, b = load_file(tmp_path / 'epoch_4.pth'), load_file(tmp_path / 'plain/epoch_4.pth')
    assert_same(a['state_dict'], b['state_dict'])
    for hooks in (HOOKS, []):
        tester = make_runner(tmp_path / 'test', hooks, model=Classifier(conv),
                             load_from=str(tmp_path / 'epoch_4.pth'))
        assert tester.test()['total'] == scalar(built, 'val/total')[-1]


@pytest.mark.parametrize(('arguments', 'named'), [
    (dict(pattern='5:4'), '5:4'), (dict(pattern='0:4'), '0:4'), (dict(pattern='2'), "'2'"),
    (dict(axes=('depth', )), 'depth'), (dict(ramp=dict(type='step', end=3)), 'step'),
    (dict(ramp=dict(start=1)), 'start'), (dict(temperature=0), 'temperature'),
    (dict(decay=-1), 'decay'), (dict(include='backbone'), 'include'),
    (dict(overrides={'(': '1:4'}), r"'\('"), (dict(overrides={'x': '4:1'}), '4:1'),
])
def test_bad_arguments(arguments, named):
    with pytest.raises(ValueError, match=named):
        MaxQHook(**{'pattern': '2:4', **arguments})


@pytest.mark.parametrize(('arguments', 'named'), [
    (dict(ramp=dict(type='linear', begin=0, end=5)), 'end=5 is too late.*epoch 3'),
    (dict(ramp=dict(type='linear', begin=0, end=4)), 'end=4 is too late'),
    (dict(ramp=dict(type='cubic', end=17, by_epoch=False)), 'end=17 is too late.*iteration 15'),
    (dict(include=('backbon', )), "include has 'backbon'.*backbone"),
    (dict(overrides={r'backbone\.7': '1:4'}), r"overrides has 'backbone\\.7'.*nearest"),
    (dict(pattern='2:5'), 'no layer can be 2:5'),
])
def test_bad_arguments_stop_the_run_before_any_training(tmp_path, arguments, named):
    runner = make_runner(tmp_path, [dict(type='MaxQHook', **{'pattern': '2:4', **arguments})])
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    with pytest.raises(ValueError, match=named):
        runner.train()
    assert_same(before, runner.model.state_dict())
    assert not list(tmp_path.glob('*.pth'))


def test_exponential_ramp_may_end_with_training(tmp_path):
    # it reaches 0 one epoch before its end
    ramp = dict(type='exponential', begin=0, end=4)
    make_runner(tmp_path, [dict(type='MaxQHook', pattern='2:4', ramp=ramp)]).train()
    assert satisfies(load_file(tmp_path / 'epoch_4.pth')['state_dict'][CONVS[0]], '2:4')


def test_start_logs_one_table(tmp_path):
    runner = make_runner(tmp_path, HOOKS, epochs=4)
    lines = []
    runner.logger.info = lambda message, *_: lines.append(message)
    runner.train()
    table = next(line for line in lines if 'left dense' in line)
    assert 'MaxQ: 2 sparse layers, 1 left dense' in table
    assert 'backbone.3' in table
    assert 'dense: not in include' in table
    assert '16x8x3x3' in table


def test_a_dense_checkpoint_is_tested_as_it_is(tmp_path, trained):
    torch.manual_seed(3)
    model = Classifier()
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'dense.pth')
    results = []
    for hooks in (HOOKS, []):
        tester = make_runner(tmp_path / 'test', hooks, load_from=str(tmp_path / 'dense.pth'))
        warnings = []
        tester.logger.warning = lambda message, *_, to=warnings: to.append(message)
        results.append(tester.test()['total'])
        if hooks:
            assert any('0 of 2 sparse layers satisfy' in message for message in warnings)
    assert results[0] == results[1]


def test_after_training_the_model_is_the_trained_one(tmp_path):
    runner = make_runner(tmp_path, [*HOOKS, EMA])
    runner.train()  # ends with a validation of the averaged weights
    for layer in (runner.model.backbone[0], runner.model.backbone[3]):
        assert torch.equal(layer.effective, layer.apply_mask(layer.weight))


def test_testing_another_checkpoint_after_training(trained, tmp_path):
    runner, work_dir = trained
    again = make_runner(tmp_path, HOOKS)
    again.train()
    for epoch in (1, 4):
        again.load_checkpoint(str(work_dir / f'epoch_{epoch}.pth'))
        assert again.test()['total'] == scalar(runner, 'val/total')[epoch - 1]


@pytest.mark.parametrize('call', ['val', 'load_checkpoint'])
def test_training_starts_from_raw_weights_whatever_was_loaded_first(trained, tmp_path, call):
    _, work_dir = trained
    source = str(work_dir / 'epoch_4.pth')
    expected = make_runner(tmp_path / 'a', HOOKS, load_from=source)
    expected.train()
    runner = make_runner(tmp_path / 'b', HOOKS, load_from=source if call == 'val' else None)
    if call == 'val':
        runner.val()
    else:
        runner.load_checkpoint(source)
    runner.train()
    assert_same(load_file(tmp_path / 'a/epoch_4.pth')['state_dict'],
                load_file(tmp_path / 'b/epoch_4.pth')['state_dict'])


class FreezesLate(Classifier):
    """Freezes its first layer in train(), as many of mmdet's backbones do."""

    def train(self, mode=True):
        super().train(mode)
        self.backbone[0].weight.requires_grad_(False)
        return self


def test_stages_that_freeze_in_train_stay_dense(tmp_path):
    runner = make_runner(tmp_path, HOOKS, model=FreezesLate())
    runner.train()
    hook = next(h for h in runner.hooks if isinstance(h, MaxQHook))
    assert list(hook.handle.layers) == ['backbone.3']
    assert hook.handle.skipped['backbone.0'] == 'frozen'


class SharesLayers(Classifier):
    """Has one convolution under two names, as heads that share convolutions do."""

    def __init__(self):
        super().__init__()
        self.backbone.append(self.backbone[3])


def test_shared_layers_are_sparse_under_every_name(tmp_path):
    runner = make_runner(tmp_path, HOOKS, model=SharesLayers())
    runner.train()
    checkpoint = load_file(tmp_path / 'epoch_4.pth')
    keys = [*CONVS, 'backbone.4.weight']
    assert sorted(checkpoint['maxq']['raw']) == keys
    assert all(satisfies(checkpoint['state_dict'][key], '2:4') for key in keys)
    tester = make_runner(tmp_path / 'test', [], model=SharesLayers(),
                         load_from=str(tmp_path / 'epoch_4.pth'))
    assert tester.test()['total'] == scalar(runner, 'val/total')[-1]
    resumed = make_runner(tmp_path / 'b', HOOKS, model=SharesLayers(), resume=True,
                          load_from=str(tmp_path / 'epoch_2.pth'))
    resumed.train()
    assert_same(load_file(tmp_path / 'b/epoch_4.pth')['state_dict'], checkpoint['state_dict'])


@pytest.mark.parametrize('ema', [False, True])
def test_load_from_a_checkpoint_of_another_shape(trained, tmp_path, ema):
    _, work_dir = trained
    checkpoint = load_file(work_dir / 'epoch_4.pth')
    for part in (checkpoint['state_dict'], checkpoint['maxq']['raw']):
        part['backbone.3.weight'] = torch.zeros(5, 16, 1, 1)
    torch.save(checkpoint, tmp_path / 'other.pth')
    runner = make_runner(tmp_path, HOOKS + [EMA] * ema, load_from=str(tmp_path / 'other.pth'))
    warnings = []
    runner.logger.warning = lambda message, *_: warnings.append(message)
    runner.train()
    assert any('1 raw weights of the checkpoint do not fit' in message for message in warnings)


def test_averaging_that_runs_too_late_is_refused(tmp_path):
    runner = make_runner(tmp_path, [*HOOKS, dict(EMA, priority='VERY_LOW')])
    with pytest.raises(ValueError, match='EMAHook runs after MaxQHook'):
        runner.train()


def test_an_iteration_based_loop_has_no_epochs(tmp_path):
    runner = make_runner(tmp_path, HOOKS, loop=dict(by_epoch=False, max_iters=8, val_interval=8))
    with pytest.raises(ValueError, match='by_epoch=False'):
        runner.train()


def test_an_accelerated_model_is_tested_as_it_is(trained, tmp_path):
    """The hook leaves it in inference mode; it would not go into another."""
    _, work_dir = trained
    checkpoint = load_file(work_dir / 'epoch_4.pth')
    tester = make_runner(tmp_path, HOOKS)
    tester.model.load_state_dict(checkpoint['state_dict'])
    expected = tester.test()['total']
    accelerate(tester.model.eval(), torch.randn(16, 8, 6, 6))
    assert tester.test()['total'] == pytest.approx(expected, rel=1e-4)

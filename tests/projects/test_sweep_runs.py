import json

import pytest
import sweep_runs
import torch
from mmengine.config import Config

from maxq_mm import cli

from ..running import ROOT

NUCLEI = ROOT / 'projects/nuclei/configs'
METHODS = "methods = {'dense': None, 'MaxQ': dict(), 'STE': dict(axes=(), ramp=None, decay=0.)}"
HEAD = f"start = '{NUCLEI / 'dense_mask_rcnn_r18.py'}'\n" \
       f"config = '{NUCLEI / 'maxq_mask_rcnn_r18.py'}'\n"


@pytest.fixture
def write(tmp_path):
    def spec(runs, head=HEAD + METHODS):
        path = tmp_path / 'spec.py'
        path.write_text(f'{head}\nruns = {runs!r}\n')
        return path
    return spec


def test_multiplies_out_in_order(write):
    runs = sweep_runs.read_spec(write([
        dict(methods=['MaxQ', 'dense'], patterns=['2:4', '1:16'], seeds=[0, 1]),
        dict(methods=['STE'], patterns=['2:4'], seeds=[1, 2])]))
    assert [run.name for run in runs] == [
        'start-seed-0', 'maxq-2x4-seed-0', 'maxq-1x16-seed-0', 'dense-seed-0',
        'start-seed-1', 'maxq-2x4-seed-1', 'maxq-1x16-seed-1', 'dense-seed-1',
        'ste-2x4-seed-1', 'start-seed-2', 'ste-2x4-seed-2']
    assert all(run.start == f'start-seed-{run.seed}' for run in runs if run.method != 'start')
    assert all(run.pattern is None for run in runs if run.method in ('start', 'dense'))


@pytest.mark.parametrize('name, number', [
    ('sweep', 52), ('sweep_all_layers', 18), ('sweep_longer', 12), ('learning_rate', 49),
    ('from_scratch', 9), ('ablations', 32), ('fair_rates', 131)])
def test_specs_of_the_project(name, number, tmp_path):
    runs = sweep_runs.read_spec(NUCLEI / f'{name}.py')
    assert len({run.name for run in runs}) == len(runs) == number
    for run in runs:
        cfg = sweep_runs.configure(run, tmp_path, None)
        hooks = [hook for hook in cfg.custom_hooks if hook['type'] == 'MaxQHook']
        assert [hook['pattern'] for hook in hooks] == ([run.pattern] if run.pattern else [])


def test_configures_the_hook_alone(write, tmp_path):
    runs = {run.name: run for run in sweep_runs.read_spec(write([
        dict(methods=['dense', 'STE', 'MaxQ'], patterns=['1:16'], seeds=[3])]))}
    folder = tmp_path / 'start-seed-3'
    folder.mkdir()
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_9.pth'))
    made = {name: sweep_runs.configure(run, tmp_path, None) for name, run in runs.items()}
    maxq, ste, dense = (made[f'{name}-seed-3'] for name in ('maxq-1x16', 'ste-1x16', 'dense'))
    default = Config.fromfile(NUCLEI / 'maxq_mask_rcnn_r18.py').custom_hooks
    assert maxq.custom_hooks == [dict(default[0], pattern='1:16'), default[1]]
    assert ste.custom_hooks == [dict(default[0], pattern='1:16', axes=(), ramp=None, decay=0.),
                                default[1]]
    assert dense.custom_hooks == [default[1]]
    assert made['start-seed-3'].load_from is None
    for cfg in (maxq, ste, dense):
        assert cfg.randomness.seed == 3
        assert cfg.load_from == str(folder / 'epoch_9.pth')
    for key in ('model', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'train_dataloader'):
        assert maxq[key] == ste[key] == dense[key]


def test_options_change_the_config_but_not_that_of_the_start(write, tmp_path):
    runs = {run.name: run for run in sweep_runs.read_spec(write([
        dict(methods=['dense', 'MaxQ'], patterns=['2:4'], seeds=[0],
             options={'optim_wrapper.optimizer.lr': 0.25, 'train_cfg.max_epochs': 3,
                      'train_cfg.val_interval': 3}),
        dict(methods=['STE'], patterns=['2:4'], seeds=[0])]))}
    start, dense, maxq, ste = (runs[name] for name in (
        'start-seed-0', 'dense-seed-0', 'maxq-2x4-seed-0', 'ste-2x4-seed-0'))
    rates = {run.name: sweep_runs.configure(run, tmp_path, None).optim_wrapper.optimizer.lr
             for run in runs.values()}
    assert rates == {start.name: 1e-3, dense.name: 0.25, maxq.name: 0.25, ste.name: 5e-4}
    assert [sweep_runs.epochs_of(run) for run in (start, dense, maxq, ste)] == [20, 3, 3, 8]
    for epoch in (2, 3):  # with the config's own validation every 4, no epoch were missing
        (tmp_path / maxq.name).mkdir(exist_ok=True)
        (tmp_path / maxq.name / f'epoch_{epoch}.pth').touch()
    assert sweep_runs.checkpoint_to_resume(maxq, tmp_path).name == 'epoch_2.pth'


def test_from_scratch(write, tmp_path):
    start, ste, maxq = sweep_runs.read_spec(write([
        dict(methods=['STE'], patterns=['2:4'], seeds=[0], from_scratch=True),
        dict(methods=['MaxQ'], patterns=['2:4'], seeds=[0])]))
    (tmp_path / start.name).mkdir()
    (tmp_path / start.name / 'last_checkpoint').write_text('epoch_9.pth')
    assert sweep_runs.configure(maxq, tmp_path, None).load_from == 'epoch_9.pth'
    assert sweep_runs.configure(ste, tmp_path, None).load_from is None


def test_pruned_first(write, tmp_path):
    *_, run = sweep_runs.read_spec(write([
        dict(methods=['STE'], patterns=['2:4'], seeds=[0], pruned=16)]))
    assert (run.pruned, run.start) == (16, 'start-seed-0')
    loaded = sweep_runs.configure(run, tmp_path, None).load_from
    assert loaded == str(tmp_path / 'ste-2x4-seed-0/pruned.pth')


def test_what_is_known_elsewhere_is_left_out(write):
    runs = sweep_runs.read_spec(write([
        dict(methods=['STE', 'MaxQ'], patterns=['2:4'], seeds=[0, 1])]))
    known = {run.name for run in runs if run.seed == 1 or run.method == 'start'}
    left = [run.name for run in sweep_runs.without(runs, known)]
    assert left == ['start-seed-0', 'ste-2x4-seed-0', 'maxq-2x4-seed-0']
    assert sweep_runs.without(runs, {run.name for run in runs}) == []


def test_a_method_with_two_options(write):
    with pytest.raises(cli.InputError, match='would both be trained in maxq-2x4-seed-0'):
        sweep_runs.read_spec(write([
            dict(methods=['MaxQ'], patterns=['2:4'], seeds=[0]),
            dict(methods=['MaxQ'], patterns=['2:4'], seeds=[0],
                 options={'optim_wrapper.optimizer.lr': 0.25})]))


def test_options_that_do_not_fit(write, tmp_path):
    _, run = sweep_runs.read_spec(write([dict(methods=['MaxQ'], patterns=['2:4'], seeds=[0],
                                          options={'param_scheduler.7.T_max': 3})]))
    with pytest.raises(cli.InputError, match='param_scheduler.7.T_max.* do not fit'):
        sweep_runs.configure(run, tmp_path, None)


@pytest.mark.parametrize('runs, head, words', [
    ([dict(methods=['PQ'], patterns=['2:4'], seeds=[0])], HEAD + METHODS, "'PQ'"),
    ([dict(methods=['MaxQ'], patterns=['5:4'], seeds=[0])], HEAD + METHODS, '5:4'),
    ([dict(methods=['MaxQ'], seeds=[0])], HEAD + METHODS, 'patterns'),
    ([dict(methods=['MaxQ'], patterns=['2:4'], seeds=[0], options=['lr', 3])], HEAD + METHODS,
     "options ['lr', 3]"),
    ([3], HEAD + METHODS, 'an entry is a dict, got 3'),
    ([dict(methods='MaxQ', patterns=['2:4'], seeds=[0])], HEAD + METHODS, "a list, got 'MaxQ'"),
    ([dict(methods=['MaxQ'], patterns='2:4', seeds=[0])], HEAD + METHODS, "a list, got '2:4'"),
    ([dict(methods=['MaxQ'], patterns=['2:4'], seeds=0)], HEAD + METHODS, 'a list, got 0'),
    ([dict(methods=['MaxQ'], patterns=['2:4'], seeds=['x'])], HEAD + METHODS, "got 'x'"),
    ([dict(methods=['MaxQ'], patterns=['2:4'], seeds=[-1])], HEAD + METHODS, 'got -1'),
    ([dict(methods=['MaxQ'], patterns=['2:4'], seeds=[0.5])], HEAD + METHODS, 'got 0.5'),
    ([dict(methods=['MaxQ'], patterns=['2:4'], seeds=[0], pruned=0)], HEAD + METHODS, 'pruned 0'),
    ([dict(methods=['dense'], patterns=[], seeds=[0], pruned=8)], HEAD + METHODS,
     "'dense' has no pattern to be pruned to"),
    ([dict(methods=['MaxQ'], patterns=['2:4'], seeds=[0], pruned=8, from_scratch=True)],
     HEAD + METHODS, 'of runs not from_scratch'),
    ([dict(methods=['MaxQ'], patterns=['2:4'], seeds=[0], option={})], HEAD + METHODS,
     "no 'option'; it takes methods"),
    ([], HEAD + METHODS, 'no run'),
    ([dict(methods=['MaxQ'], patterns=['2:4'], seeds=[0])],
     "start = config = 'gone.py'\n" + METHODS, 'gone.py'),
    ([], 'x = ', 'not a sweep spec'),
], ids=str)
def test_bad_specs(write, runs, head, words):
    with pytest.raises(cli.InputError, match='spec') as error:
        sweep_runs.read_spec(write(runs, head))
    assert words in str(error.value)


def test_settings_that_the_hook_does_not_take(write, tmp_path):
    path = write([dict(methods=['odd'], patterns=['2:4'], seeds=[0])],
                 HEAD + "methods = {'odd': dict(patern='2:4')}")
    *_, run = sweep_runs.read_spec(path)
    with pytest.raises(cli.InputError, match="method 'odd': there is no argument 'patern'"):
        sweep_runs.check_method(run, sweep_runs.configure(run, tmp_path, None))


def test_epochs_that_are_no_number(write):
    *_, run = sweep_runs.read_spec(write([dict(
        methods=['MaxQ'], patterns=['2:4'], seeds=[0], options={'train_cfg.max_epochs': 'x'})]))
    with pytest.raises(cli.InputError, match="max_epochs must be a whole number .* got 'x'"):
        sweep_runs.epochs_of(run)


@pytest.mark.parametrize('methods, words', [
    ("{'SR-STE': dict(), 'SR STE': dict(decay=0.)}", 'would both be trained in sr-ste-2x4-seed-0'),
    ("{'start': None}", "other than 'start'"),
    ("{'MaxQ': 3}", 'got 3'),
], ids=['alike', 'start', 'no settings'])
def test_methods_that_would_be_lost(write, methods, words):
    path = write([], HEAD + f'methods = {methods}')
    path.write_text(path.read_text() + "runs = [dict(methods=list(methods), patterns=['2:4'], "
                    'seeds=[0])]')
    with pytest.raises(cli.InputError) as error:
        sweep_runs.read_spec(path)
    assert words in str(error.value)


def test_settings_are_compared_without_places(write, tmp_path):
    first, run = sweep_runs.read_spec(write([dict(methods=['MaxQ'], patterns=['2:4'], seeds=[0])]))
    out = tmp_path / 'out'
    sweep_runs.keep_config(run, out, None)
    sweep_runs.keep_config(run, tmp_path / 'x/../out', None)
    text = sweep_runs.config_of(run, out).read_text()
    assert "pattern='2:4'" in text
    sweep_runs.config_of(run, out).write_text(text.replace("pattern='2:4'", "pattern='1:4'"))
    with pytest.raises(ValueError, match='other settings'):
        sweep_runs.keep_config(run, out, None)


def log(folder, time, *lines):
    path = folder / time / 'vis_data'
    path.mkdir(parents=True)
    (path / 'scalars.json').write_text('\n'.join(lines))


def test_history_of_a_resumed_run(tmp_path):
    def train(step, loss):
        return json.dumps(dict(loss=loss, step=step, epoch=1))

    def val(step, score):
        return json.dumps({'coco/bbox_mAP': score, 'step': step})

    log(tmp_path, '2', train(15, 4.), train(25, 5.), val(1, 0.6))  # resumed at 10
    log(tmp_path, '1', train(10, 1.), train(20, 2.), val(1, 0.5), train(30, 3.), '{"loss": 2',
        '5', 'null', '{}', '"loss"')
    trained, validated = sweep_runs.history(tmp_path)
    assert [(t['step'], t['loss']) for t in trained] == [(10, 1.), (15, 4.), (25, 5.)]
    assert [(v['step'], v['coco/bbox_mAP']) for v in validated] == [(1, 0.6)]


def test_a_validation_set_without_objects_gives_no_scores(write, tmp_path):
    run = sweep_runs.read_spec(write([dict(methods=['MaxQ'], patterns=['2:4'], seeds=[0])]))[1]
    sweep_runs.keep_config(run, tmp_path, None)
    folder = tmp_path / run.name
    log(folder, '1', json.dumps({'coco/bbox_mAP': -1., 'coco/segm_mAP': 0.5, 'step': 8}))
    with pytest.raises(ValueError, match='no checkpoint of epoch 8'):
        sweep_runs.result(run, tmp_path)
    torch.save(dict(meta=dict(iter=712), state_dict={}), folder / 'epoch_8.pth')
    with pytest.raises(ValueError, match='its validation set has no objects'):
        sweep_runs.result(run, tmp_path)

"""From a dense checkpoint to a plan, to a pruned detector, and to training by the plan."""

import json

import pytest
import torch
from mmengine.config import Config

from maxq_mm.allocation.allocate import PATTERNS
from maxq_mm.allocation.plan import overrides
from maxq_mm.cli.calibration import ImageFolder, evenly_spread
from maxq_mm.engine.checkpoint import layer_patterns
from maxq_mm.functional.masks import satisfies
from maxq_mm.utils.files import load_file, save_file

from ..running import ROOT, run_tool

DENSE = ROOT / 'configs/quickstart_dense_mask_rcnn_r18.py'


@pytest.fixture(scope='module')
def common(shapes) -> list:
    return ['--data-root', shapes, '--images', 3]


@pytest.fixture(scope='module')
def dense(tmp_path_factory, shapes):
    """A dense checkpoint of a short training."""
    folder = tmp_path_factory.mktemp('dense')
    run_tool('tools/train.py', DENSE, '--work-dir', folder, '--data-root', shapes, '--cfg-options',
             'train_cfg.max_epochs=2', 'train_cfg.val_interval=9', 'train_dataloader.batch_size=4',
             'param_scheduler.0.end=2', 'param_scheduler.1.T_max=2')
    return folder / 'epoch_2.pth'


@pytest.fixture(scope='module')
def planned(dense, common):
    """The plan's config, and what the tool printed."""
    out = dense.parent / 'plans/plan.py'
    text = run_tool('tools/allocate.py', DENSE, dense, out, '--budget', '0.25', '--plot',
                    out.with_suffix('.png'), '--json', out.with_suffix('.json'), *common,
                    '--cfg-options', 'train_cfg.max_epochs=2', 'train_cfg.val_interval=2',
                    'param_scheduler.0.end=2', 'param_scheduler.1.T_max=2')
    return out, text


def test_plan(planned, dense):
    out, text = planned
    assert '(budget 25.00%), predicted distortion' in text
    hook = next(h for h in Config.fromfile(out).custom_hooks if h.type == 'MaxQHook')
    assert hook.include == ()
    assert hook.axes == ()
    assert hook.ramp == dict(type='cubic', begin=0, end=1, by_epoch=True, fade=True)
    plan = json.loads(out.with_suffix('.json').read_text())
    assert dict(hook.overrides) == overrides(plan['patterns'])
    assert set(plan['patterns'].values()) <= {None, *PATTERNS}
    assert 0.2 < plan['share'] <= 0.25
    assert plan['share'] == plan['cost'] / plan['dense_cost']
    assert out.with_suffix('.png').read_bytes().startswith(b'\x89PNG')


def test_another_budget_without_measuring(planned, dense, tmp_path):
    file, other = planned[0].with_suffix('.json'), tmp_path / 'half.json'
    text = run_tool('tools/allocate.py', DENSE, dense, tmp_path / 'half.py', '--budget', '0.5',
                    '--measured', file, '--json', other)  # no data
    assert '(budget 50.00%), predicted distortion' in text
    quarter, half = (json.loads(path.read_text()) for path in (file, other))
    assert all(half[key] == quarter[key] for key in ('distortions', 'costs', 'curve', 'kind'))
    assert quarter['share'] < half['share'] <= 0.5
    assert half['distortion'] < quarter['distortion']


def test_measurements_refused(refuse, planned, dense, tmp_path):
    plan = json.loads(planned[0].with_suffix('.json').read_text())
    first = next(iter(plan['patterns']))
    for text, named in (('{}', "not what --json writes ('distortions')"),
                        ('plan', 'not what --json writes (Expecting value'),
                        (json.dumps(plan).replace(first, 'backbone.gone'),
                         'is of another network: no backbone.gone here that can be 1:16'),
                        (json.dumps({**plan, 'checkpoint': '0' * 64}),
                         f'is of other weights than {dense}')):
        file = tmp_path / 'measured.json'
        file.write_text(text)
        assert named in refuse('allocate.py', DENSE, dense, tmp_path / 'plan.py', '--budget', '0.5',
                               '--measured', file)
    for options, named in ((['--cost', 'bytes'], '--cost is what --measured has been measured'),
                           ([], '--measured: file not found: gone.json')):
        assert named in refuse('allocate.py', DENSE, dense, tmp_path / 'plan.py', '--budget', '0.5',
                               '--measured', 'gone.json', *options)
    assert [path.name for path in tmp_path.iterdir()] == ['measured.json']


def test_training_by_the_plan(planned, dense, tmp_path):
    out, _ = planned
    log = run_tool('tools/train.py', out, '--work-dir', tmp_path)
    assert f'Load checkpoint from {dense}' in log
    plan = json.loads(out.with_suffix('.json').read_text())['patterns']
    sparse = {name: pattern for name, pattern in plan.items() if pattern}
    checkpoint = load_file(tmp_path / 'epoch_2.pth')
    assert layer_patterns(checkpoint) == sparse
    assert all(satisfies(checkpoint['state_dict'][f'{name}.weight'], pattern)
               for name, pattern in sparse.items())


def test_pruning_by_the_plan(planned, dense, common, shapes, tmp_path):
    out = tmp_path / 'new/pruned.pth'
    text = run_tool('tools/prune.py', DENSE, dense, out, '--plan', planned[0], *common)
    plan = json.loads(planned[0].with_suffix('.json').read_text())['patterns']
    assert layer_patterns(load_file(out)) == {name: p for name, p in plan.items() if p}
    assert 'layers pruned' in text
    report = run_tool('tools/report.py', DENSE, out, '--data-root', shapes)
    assert 'NO' not in report.split()
    run_tool('tools/test.py', DENSE, out, '--work-dir', tmp_path, '--data-root', shapes)


def test_pruning_by_one_pattern(dense, common, tmp_path):
    out = tmp_path / 'pruned.pth'
    run_tool('tools/prune.py', DENSE, dense, out, '--pattern', '1:4', '--include', 'backbone',
             '--exclude', 'backbone.layer4', '--saliency', 'second-order', '--no-compensation',
             '--no-norms', *common)
    checkpoint, before = load_file(out), load_file(dense)
    patterns = layer_patterns(checkpoint)
    assert set(patterns.values()) == {'1:4'}
    assert all(name.startswith(('backbone.layer1', 'backbone.layer2', 'backbone.layer3'))
               for name in patterns)
    for key, value in checkpoint['state_dict'].items():
        old = before['state_dict'][key]
        if key.removesuffix('.weight') in patterns:
            assert satisfies(value, '1:4')
            assert torch.equal(value, torch.where(value != 0, old, 0.))
        else:
            assert torch.equal(value, old)


def test_folder_of_images_without_annotations(dense, common, shapes, tmp_path):
    cfg = Config.fromfile(DENSE)
    folder = ImageFolder(cfg, shapes / 'val')
    found = list(evenly_spread(folder, 3))
    assert len(folder) == 4
    assert [one['inputs'].shape for one in found] == [(3, 128, 128)] * 3
    assert 'gt_instances' not in found[0]['data_samples'] or not len(
        found[0]['data_samples'].gt_instances)
    out, pruned = tmp_path / 'plan.py', tmp_path / 'new/pruned.pth'
    run_tool('tools/allocate.py', DENSE, dense, out, '--budget', '0.5', '--cost', 'bytes',
             '--patterns', '1:4', '--image-dir', shapes / 'val', '--pruned', pruned, *common)
    cfg = Config.fromfile(out)
    hook = next(h for h in cfg.custom_hooks if h.type == 'MaxQHook')
    assert set(hook.overrides.values()) == {None, '1:4'}
    assert (hook.ramp, cfg.load_from) == (None, str(pruned))
    assert 'axes' not in hook  # MaxQ's own: what is N:M already is not rescaled
    checkpoint = load_file(pruned)
    sparse = layer_patterns(checkpoint)
    assert overrides(sparse) == {key: pattern for key, pattern in hook.overrides.items() if pattern}
    assert all(satisfies(checkpoint['state_dict'][f'{name}.weight'], pattern)
               for name, pattern in sparse.items())


@pytest.mark.parametrize(('arguments', 'named'), [
    (['--budget', '1'], '--budget must be a share in (0, 1), got 1'),
    (['--budget', '0.01'], 'budget 0.01 is too small: with the sparsest patterns'),
    (['--budget', '0.5', '--patterns', '2:5'], 'no layer can be 2:5'),
    (['--budget', '0.5', '--patterns', 'x'], "pattern must be a string 'N:M'"),
    (['--budget', '0.5', '--image-dir', 'nowhere'], 'image folder not found: nowhere'),
    (['--budget', '0.5', '--image-dir', 'tests/engine'], 'no images in tests/engine'),
    (['--budget', '0.5', '--device', 'cuda'], '--device cuda: '),
    (['--budget', '0.5', '--include', 'bone'], "include has 'bone', which matches no layer"),
])
def test_refused_options(refuse, dense, shapes, tmp_path, arguments, named):
    if '--device' in arguments and torch.cuda.is_available():
        pytest.skip('there is a GPU')
    error = refuse('allocate.py', DENSE, dense, tmp_path / 'plan.py', *arguments, '--data-root',
                   shapes, '--images', '1')
    assert named in error
    assert not any(tmp_path.iterdir())


def test_refused_files(refuse, dense, shapes, tmp_path):
    data = ['--data-root', shapes, '--images', '1']
    sparse, name = load_file(dense), 'backbone.layer1.0.conv1'
    sparse['maxq'] = dict(version=1, layers={name: dict(pattern='2:4')})
    save_file(sparse, tmp_path / 'sparse.pth')
    out = tmp_path / 'out.py'
    for tool, arguments in (('allocate.py', [out, '--budget', '0.5']),
                            ('prune.py', [out, '--pattern', '2:4'])):
        assert 'sparse.pth is sparse already (backbone.layer1.0.conv1: 2:4)' in refuse(
            tool, DENSE, tmp_path / 'sparse.pth', *arguments, *data)
        assert 'checkpoint not found: gone.pth' in refuse(tool, DENSE, 'gone.pth', *arguments,
                                                          *data)
    assert 'OUT must end with .py' in refuse('allocate.py', DENSE, dense, tmp_path / 'a.json',
                                             '--budget', '0.5', *data)
    assert 'is the input itself' in refuse('prune.py', DENSE, dense, dense, '--pattern', '2:4',
                                           *data)
    assert f'--plan {DENSE} has no MaxQHook' in refuse('prune.py', DENSE, dense, out, '--plan',
                                                       DENSE, *data)
    assert 'go with --pattern' in refuse('prune.py', DENSE, dense, out, '--plan', DENSE,
                                         '--include', 'backbone', *data)
    assert not out.exists()

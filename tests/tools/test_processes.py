"""Runs in several processes, and runs that are killed: the same weights as one quiet run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maxq_mm import satisfies
from maxq_mm.utils.files import load_file

from ..running import ROOT, run_tool
from .conftest import CONFIG

ENVIRONMENT = {**os.environ, 'PYTHONWARNINGS': 'ignore', 'OMP_NUM_THREADS': '1',
               'PYTHONUNBUFFERED': '1', 'PYTHON': sys.executable}

# Nothing random in it, and losses that are normalised over all processes.
FCOS = """
_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
custom_imports = dict(imports=['maxq_mm'], allow_failed_imports=False)
custom_hooks = [dict(type='MaxQHook', pattern='2:4', include=('backbone', 'neck'), decay=0.05,
                     ramp=dict(type='linear', begin=0, end=2))]
model = dict(backbone=dict(depth=18, base_channels=16, init_cfg=None),
             neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
             bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1))
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(64, 64)), dict(type='PackDetInputs')]
train_dataloader = dict(batch_size={batch_size}, num_workers=0, persistent_workers=False,
                        dataset=dict(pipeline=train_pipeline,
                                     ann_file='annotations/train.json',
                                     data_prefix=dict(img='train/')))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    ann_file='annotations/val.json', data_prefix=dict(img='val/')))
val_evaluator = dict(ann_file='{root}/annotations/val.json')
test_dataloader = val_dataloader
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=3, val_interval=3)
param_scheduler = []
randomness = dict(seed=0)
sync_bn = 'torch'
"""


def launch(script, *arguments, code=0):
    result = subprocess.run([ROOT / 'tools' / script, *map(str, arguments)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                            env=ENVIRONMENT)
    assert result.returncode == code, result.stdout
    return result.stdout


def test_two_processes_train_what_one_does(tmp_path, shapes):
    """tools/dist_train.sh CONFIG 2 against tools/train.py with the doubled batch."""
    arguments = {}
    for processes in (1, 2):
        config = tmp_path / f'{processes}.py'
        config.write_text(FCOS.format(batch_size=4 // processes, root=shapes))
        arguments[processes] = [config, '--data-root', shapes]
    run_tool('tools/train.py', *arguments[1], '--work-dir', tmp_path / 'one')
    config, *rest = arguments[2]
    text = launch('dist_train.sh', config, 2, *rest, '--work-dir', tmp_path / 'two')
    assert 'synchronised batch norm needs GPUs' in text
    one, two = (load_file(tmp_path / run / 'epoch_3.pth') for run in ('one', 'two'))
    assert one['maxq']['layers'] == two['maxq']['layers']
    assert len(one['maxq']['layers']) > 20
    before, one_raw, two_raw = (
        {**checkpoint['state_dict'], **checkpoint['maxq']['raw']}
        for checkpoint in (load_file(tmp_path / 'one/epoch_1.pth'), one, two))
    for key, value in one_raw.items():
        # Sums in another order could turn the mask of two nearly equal weights, and little else.
        difference, way = (torch.linalg.norm((value - other).double())
                           for other in (two_raw[key], before[key]))
        assert difference <= 0.1 * way + 1e-8, key
    kept = [torch.cat([checkpoint['state_dict'][f'{name}.weight'].flatten() != 0
                       for name in one['maxq']['layers']]) for checkpoint in (one, two)]
    assert (kept[0] != kept[1]).float().mean() < 1e-3
    for name in two['maxq']['layers']:
        assert satisfies(two['state_dict'][f'{name}.weight'], '2:4')

    tested = launch('dist_test.sh', config, tmp_path / 'two/epoch_3.pth', 2, *rest,
                    '--work-dir', tmp_path / 'test')
    assert 'sparse layers satisfy their pattern' in tested


def test_number_of_processes(tmp_path):
    for script, files in (('dist_train.sh', ['c.py']), ('dist_test.sh', ['c.py', 'c.pth'])):
        for number in ('0', 'two', '--amp'):
            text = launch(script, *files, number, code=2)
            assert text.startswith('error: ')
            assert f"got '{number}'" in text
        assert "got ''" in launch(script, *files, code=2)


@pytest.fixture(scope='module')
def short(options) -> list[str]:
    return [*options, 'train_cfg.max_epochs=4', 'train_cfg.val_interval=4',
            'custom_hooks.0.ramp.end=3', 'default_hooks.checkpoint.interval=1',
            'default_hooks.checkpoint.max_keep_ckpts=-1', 'default_hooks.logger.interval=1',
            'train_dataloader.batch_size=2']


@pytest.fixture(scope='module')
def quiet(short, tmp_path_factory) -> dict:
    """The last checkpoint of a run that nothing happened to."""
    work_dir = tmp_path_factory.mktemp('quiet')
    run_tool('tools/train.py', CONFIG, '--work-dir', work_dir, *short)
    return load_file(work_dir / 'epoch_4.pth')


@pytest.fixture(scope='module')
def killed(short, tmp_path_factory) -> Path:
    """The work dir of a run killed by SIGKILL in the middle of its third epoch."""
    work_dir = tmp_path_factory.mktemp('killed')
    process = subprocess.Popen(
        [sys.executable, 'tools/train.py', CONFIG, '--work-dir', str(work_dir), *short], cwd=ROOT,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRONMENT)
    for line in process.stdout:
        if 'Epoch(train)' in line and '[3][' in line:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    return work_dir


def test_a_killed_run_resumes_to_the_same_bits(killed, quiet, short):
    assert sorted(path.name for path in killed.glob('*.pth')) == ['epoch_1.pth', 'epoch_2.pth']
    run_tool('tools/train.py', CONFIG, '--work-dir', killed, '--resume', *short)
    resumed = load_file(killed / 'epoch_4.pth')
    for key, value in quiet['state_dict'].items():
        assert torch.equal(value, resumed['state_dict'][key]), key
    for key, value in quiet['maxq']['raw'].items():
        assert torch.equal(value, resumed['maxq']['raw'][key]), key


def test_a_checkpoint_cut_short_is_refused_and_nothing_is_lost(killed, short):
    good = (killed / 'epoch_2.pth').read_bytes()
    last = killed / (killed / 'last_checkpoint').read_text().strip().rsplit('/', 1)[-1]
    last.write_bytes(last.read_bytes()[:1000])
    for how in (['--resume'], ['--resume', last]):
        text = run_tool('tools/train.py', CONFIG, '--work-dir', killed, *how, *short, code=2)
        errors = [line for line in text.splitlines() if line.startswith('error: ')]
        assert len(errors) == 1
        assert f'not a readable checkpoint: {last}' in errors[0]
        assert 'Traceback' not in text
    assert (killed / 'epoch_2.pth').read_bytes() == good
    run_tool('tools/train.py', CONFIG, '--work-dir', killed, '--resume', killed / 'epoch_2.pth',
             *short)
    assert satisfies(load_file(killed / 'epoch_4.pth')['state_dict'][
        'backbone.layer1.0.conv1.weight'], '2:4')

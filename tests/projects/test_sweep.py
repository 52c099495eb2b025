import fcntl
import json

import pytest

from ..running import ROOT, run_tool

TOOL = 'projects/nuclei/sweep.py'

DENSE = f"""
_base_ = {str(ROOT / 'configs/quickstart_dense_mask_rcnn_r18.py')!r}
train_cfg = dict(max_epochs=2, val_interval=1)
param_scheduler = []
default_hooks = dict(logger=dict(interval=1))
train_dataloader = dict(batch_size=4)
"""
MAXQ = """
_base_ = './dense.py'
custom_hooks = [
    dict(type='MaxQHook', pattern='2:4', ramp=dict(type='linear', begin=0, end=1)),
    *_base_.custom_hooks]
"""
SPEC = """
start = 'dense.py'
config = 'maxq.py'
methods = {'MaxQ': dict(), 'too long': dict(ramp=dict(type='linear', begin=0, end=9)),
           'pruned first': dict(ramp=None)}
runs = [dict(methods=['too long', 'MaxQ'], patterns=['1:16'], seeds=[4]),
        dict(methods=['pruned first'], patterns=['1:16'], seeds=[4], pruned=4)]
"""


@pytest.fixture(scope='module')
def spec(tmp_path_factory):
    folder = tmp_path_factory.mktemp('spec')
    for name, text in (('dense', DENSE), ('maxq', MAXQ), ('spec', SPEC)):
        (folder / f'{name}.py').write_text(text)
    return folder / 'spec.py'


def test_sweep_from_start_to_table(spec, shapes, tmp_path):
    out = tmp_path / 'runs'
    command = [TOOL, spec, '--out', out, '--data-root', shapes, '--jobs', 2]
    printed = ' '.join(run_tool(*command, code=1).split())
    assert '4 runs' in printed
    assert '/4] maxq-1x16-seed-4: bbox_mAP' in printed
    assert 'too-long-1x16-seed-4 failed: exit code 2' in printed
    assert 'ramp end=9 is too late' in (out / 'too-long-1x16-seed-4/train.log').read_text()

    result = json.loads((out / 'maxq-1x16-seed-4/result.json').read_text())
    assert (result['method'], result['pattern'], result['seed']) == ('MaxQ', '1:16', 4)
    assert (result['epochs'], result['iterations']) == (2, 4)
    assert result['train']['epoch'] == [0.5, 1., 1.5, 2.]
    assert result['train']['dense_fraction'] == [1., 1., 0., 0.]
    assert result['curve']['epoch'] == [1, 2]
    assert set(result['scores']) == {'bbox_mAP', 'segm_mAP'}
    assert result['hook']['pattern'] == '1:16'
    log = (out / 'maxq-1x16-seed-4/train.log').read_text()
    assert f'Load checkpoint from {out}/start-seed-4/epoch_2.pth' in log
    start = json.loads((out / 'start-seed-4/result.json').read_text())
    assert start['hook'] is None
    assert start['train']['dense_fraction'] == [1.] * 4

    healed = json.loads((out / 'pruned-first-1x16-seed-4/result.json').read_text())
    assert (healed['pruned'], result['pruned']) == (4, None)
    assert healed['train']['dense_fraction'] == [0.] * 4
    pruned = out / 'pruned-first-1x16-seed-4/pruned.pth'
    said = (pruned.parent / 'train.log').read_text()
    assert f'{pruned}: 19 layers pruned, ' in said
    assert f'Load checkpoint from {pruned}' in said

    # What is finished stays, and what ended just before it was remembered.
    folder = out / 'maxq-1x16-seed-4'
    (folder / 'result.json').unlink()
    printed = ' '.join(run_tool(*command, code=1).split())
    assert '2 finished, 2 to train' in printed
    assert json.loads((folder / 'result.json').read_text()) == result
    assert (folder / 'train.log').read_text() == log

    # A run that was killed while it validated goes on from the checkpoint before.
    (folder / 'result.json').unlink()
    scalars = next(folder.glob('*/vis_data/scalars.json'))
    lines = scalars.read_text().splitlines()
    assert 'coco/bbox_mAP' in lines[-1]
    scalars.write_text('\n'.join(lines[:-1]))
    run_tool(*command, code=1)
    assert json.loads((folder / 'result.json').read_text()) == result
    more = (folder / 'train.log').read_text().removeprefix(log)
    assert 'resumed epoch: 1' in more

    # Other settings are another run.
    spec.write_text(SPEC.replace("'MaxQ': dict()", "'MaxQ': dict(decay=0.)"))
    config = out / 'maxq-1x16-seed-4.py'
    assert f'{config} has other settings than the spec now' in run_tool(*command, code=2)


def test_only_one_at_a_time(spec, shapes, refuse, tmp_path):
    spec.write_text(SPEC)
    out = tmp_path / 'runs'
    out.mkdir()
    with (out / '.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        error = refuse(TOOL, spec, '--out', out, '--data-root', shapes)
    assert f'working in {out}' in error
    assert [path.name for path in out.iterdir()] == ['.lock']


def test_refusals(spec, refuse, tmp_path):
    spec.write_text(SPEC)
    assert 'spec not found' in refuse(TOOL, tmp_path / 'x.py', '--out', tmp_path / 'out')
    assert 'annotations not found' in refuse(TOOL, spec, '--out', tmp_path / 'out',
                                             '--data-root', tmp_path)
    assert not (tmp_path / 'out').exists()

"""What a user gets wrong ends in one line that names it, exit code 2, and nothing written."""

import copy
import json
import re

import pytest
import torch

from maxq_mm.utils.files import load_file, save_file

from ..running import ROOT, run_tool
from .conftest import CONFIG


@pytest.fixture
def common(tmp_path, shapes):
    return ['--work-dir', tmp_path / 'work', '--data-root', shapes]


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of another model."""
    path = tmp_path / 'other.pth'
    save_file(dict(meta={}, state_dict={'backbone.conv1.weight': torch.zeros(3)}), path)
    return path


def test_missing_config(refuse, checkpoint):
    assert 'config not found: nowhere.py' in refuse('train.py', 'nowhere.py')
    assert 'config not found: nowhere.py' in refuse('test.py', 'nowhere.py', checkpoint)


def test_broken_config(refuse, tmp_path):
    path = tmp_path / 'broken.py'
    path.write_text('model = dict(')
    assert str(path) in refuse('train.py', path)
    path.write_text("_base_ = 'mmdet::no/such_config.py'")
    assert str(path) in refuse('train.py', path)


def test_missing_data(refuse, tmp_path, shapes):
    assert f'annotations not found: {tmp_path / "annotations/train.json"}' in refuse(
        'train.py', CONFIG, '--data-root', tmp_path)
    gone = ['--work-dir', tmp_path, '--data-root', shapes, '--cfg-options',
            'train_dataloader.dataset.data_prefix.img=gone/']
    assert f'train data not found: {shapes / "gone"}' in refuse('train.py', CONFIG, *gone)
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations/train.json').write_text('{}')
    assert 'not COCO annotations' in refuse('train.py', CONFIG, '--data-root', tmp_path)


def test_missing_data_of_the_config_itself(refuse, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = '{ROOT / 'configs/maxq_mask_rcnn_r50.py'}'\n"
                      "work_dir = '/nowhere'\n")
    error = refuse('train.py', config, '--cfg-options', 'train_dataloader.dataset.data_root=x/')
    assert 'train data not found: x/annotations/instances_train2017.json' in error


@pytest.mark.parametrize('tool', ['test.py', 'report.py'])
def test_missing_and_unreadable_checkpoints(refuse, tmp_path, shapes, tool):
    arguments = ['--data-root', shapes]
    assert 'checkpoint not found: nowhere.pth' in refuse(tool, CONFIG, 'nowhere.pth', *arguments)
    path = tmp_path / 'broken.pth'
    path.write_bytes(b'PK no')
    assert f'not a readable checkpoint: {path}' in refuse(tool, CONFIG, path, *arguments)


def test_resume_and_load_from_checkpoints_that_are_not_there(refuse, common, tmp_path):
    assert 'gone.pth' in refuse('train.py', CONFIG, '--resume', 'gone.pth', *common)
    assert 'gone.pth' in refuse('train.py', CONFIG, *common, '--cfg-options', 'load_from=gone.pth')
    assert not (tmp_path / 'work').exists()


def test_resume_from_an_empty_note_of_the_last_checkpoint(refuse, common, tmp_path):
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work/last_checkpoint').touch()
    assert 'last_checkpoint is empty' in refuse('train.py', CONFIG, '--resume', *common)


def test_checkpoint_of_another_model(refuse, checkpoint, common):
    error = refuse('test.py', CONFIG, checkpoint, *common)
    assert str(checkpoint) in error
    assert 'weights missing, such as backbone.bn1.weight' in error
    assert '1 of' in error
    assert 'of another shape, such as backbone.conv1.weight' in error


def test_flags_that_the_config_cannot_serve(refuse, common, checkpoint, tmp_path):
    assert '.pkl' in refuse('test.py', CONFIG, checkpoint, '--out', 'a.json', *common)
    config = tmp_path / 'c.py'
    config.write_text(f"_base_ = '{ROOT / CONFIG}'\nauto_scale_lr = dict(_delete_=True)\n")
    assert 'auto_scale_lr.base_batch_size' in refuse('train.py', config, '--auto-scale-lr')


@pytest.mark.parametrize(('options', 'named'), [
    (['foo'], 'got foo'), (['custom_hooks.9.pattern=2:4'], 'custom_hooks|9'),
    (['custom_hooks.0.pattern=5:4'], '5:4'),
])
def test_bad_settings(refuse, common, options, named):
    assert re.search(named, refuse('train.py', CONFIG, *common, '--cfg-options', *options))


@pytest.mark.parametrize(('option', 'named'), [
    ('custom_hooks.0.ramp.end=9', 'ramp end=9 is too late'),
    ('custom_hooks.0.include=backbon,', "include has 'backbon', which matches no layer"),
])
def test_settings_that_do_not_fit_the_model_or_the_schedule(common, option, named):
    output = run_tool('tools/train.py', CONFIG, *common, '--cfg-options', option, code=2)
    errors = [line for line in output.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1
    assert errors[0].startswith(f'error: {named}')
    assert 'Traceback' not in output


def test_resume_from_what_is_no_training_checkpoint(refuse, common, checkpoint, folded):
    for path, missing in ((checkpoint, 'message_hub'), (folded, 'message_hub')):
        assert f'cannot resume from {path}: it has no {missing}' in refuse(
            'train.py', CONFIG, '--resume', path, *common)


def test_config_without_a_model(refuse, tmp_path, checkpoint):
    config = tmp_path / 'c.py'
    config.write_text('a = 1')
    for tool in ('train.py', 'test.py', 'report.py'):
        assert 'defines no model' in refuse(tool, config, *[checkpoint] * (tool != 'train.py'))


def test_picture_of_an_unknown_kind(refuse, checkpoint, shapes):
    assert '.png' in refuse('draw.py', CONFIG, checkpoint, 'a.xyz', '--data-root', shapes)


def test_report_that_cannot_be_written(refuse, folded, trained, tmp_path):
    config = trained / 'quickstart_mask_rcnn_r18.py'
    (tmp_path / 'file').write_text('')
    assert 'cannot write' in refuse('report.py', config, folded, '--json', tmp_path / 'file/a.json')
    error = refuse('report.py', config, folded, '--plot', tmp_path / 'a.xyz')
    assert f"no picture of kind 'xyz' can be written: {tmp_path / 'a.xyz'}" in error
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_fold(refuse, checkpoint, trained, tmp_path):
    out = tmp_path / 'out.pth'
    save_file(dict(precious=1), out)
    assert 'no MaxQ checkpoint' in refuse('fold.py', checkpoint, out)
    assert 'nowhere.pth' in refuse('fold.py', 'nowhere.pth', out)
    half_way = trained / 'epoch_20.pth'
    error = refuse('fold.py', half_way, out, '--strict')
    assert '19 of 19 layers do not satisfy their pattern, such as backbone.layer1' in error
    assert 'is the input itself' in refuse('fold.py', half_way, half_way)
    broken = copy.copy(load_file(half_way))
    del broken['state_dict']['backbone.layer1.0.conv1.weight']
    save_file(broken, tmp_path / 'broken.pth')
    assert 'backbone.layer1.0.conv1.weight' in refuse('fold.py', tmp_path / 'broken.pth', out)
    (tmp_path / 'file').write_text('')
    assert 'cannot write' in refuse('fold.py', half_way, tmp_path / 'file/out.pth')
    assert load_file(out) == dict(precious=1)


def test_shapes_that_are_in_the_way(refuse, tmp_path):
    (tmp_path / 'x').write_text(json.dumps({}))
    assert 'there already' in refuse('make_shapes.py', tmp_path)

"""What tools/train.py and tools/test.py see in a checkpoint before they start from it."""

import gc
import json
import logging
import shutil
import subprocess
import sys
import weakref
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import train
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from maxq_mm import cli, sparsify
from maxq_mm.engine.checkpoint import fold_checkpoint
from maxq_mm.engine.compact import to_compact
from maxq_mm.utils.errors import InputError
from maxq_mm.utils.files import save_file

from ..running import ROOT
from .conftest import CONFIG


@pytest.fixture(scope='module')
def checkpoint(shapes, tmp_path_factory):
    """A MaxQ checkpoint of the quickstart's model that nobody trained."""
    cfg = cli.read_config(Namespace(config=ROOT / CONFIG, data_root=shapes, cfg_options=None))
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    raw = {key: value.clone() for key, value in model.state_dict().items()}
    layers = sparsify(model, '2:4', include=('backbone', )).layers
    state = {**raw, **{f'{name}.weight': layer.effective.detach().clone()
                       for name, layer in layers.items()}}
    path = tmp_path_factory.mktemp('start') / 'maxq.pth'
    save_file(dict(
        meta=dict(epoch=1, iter=2, dataset_meta=dict(classes=('disc', 'box', 'triangle'))),
        message_hub=dict(log_scalars={}), optimizer={}, state_dict=state, maxq=dict(
            version=1, dense_fraction=0., ramp=dict(type='linear', begin=0, end=0),
            raw={f'{name}.weight': raw[f'{name}.weight'] for name in layers},
            layers={name: dict(pattern='2:4') for name in layers})), path)
    return path


@pytest.fixture
def start(shapes, tmp_path, request):
    """The config of a training from a checkpoint."""

    def make(path, config=CONFIG, **settings):
        cfg = cli.read_config(Namespace(config=ROOT / config, data_root=shapes, cfg_options=None))
        cfg.update(work_dir=str(tmp_path / 'work'), load_from=str(path), log_level='WARNING',
                   experiment_name=f'{request.node.name}-{len(settings)}', launcher='none',
                   **settings)
        return cfg
    return make


def test_a_checkpoint_is_read_once_and_not_held(start, checkpoint, monkeypatch):
    whole, seen, load = [], [], torch.load

    def watch(path, *args, mmap=None, **kwargs):
        content = load(path, *args, mmap=mmap, **kwargs)
        seen.extend(map(weakref.ref, content['state_dict'].values()))
        whole.append(path) if not mmap else None
        return content

    monkeypatch.setattr(torch, 'load', watch)
    runner = train.build(start(checkpoint))
    assert seen
    assert not whole
    gc.collect()
    assert not any(reference() is not None for reference in seen)
    runner.load_or_resume()
    assert whole == [str(checkpoint)]


def test_a_start_that_matches_no_weight_is_refused(start, tmp_path):
    path = tmp_path / 'other.pth'
    save_file(dict(state_dict={'layer.weight': torch.zeros(3)}), path)
    with pytest.raises(InputError, match=f'{path}: none of .* fits the model: .* such as layer'):
        train.build(start(path))


def test_a_compact_checkpoint_can_be_started_from(start, checkpoint, tmp_path):
    save_file(to_compact(cli.read_checkpoint(checkpoint)), tmp_path / 'small.pth')
    runner = train.build(start(tmp_path / 'small.pth'))
    assert runner._load_from == f'compact:{tmp_path}/small.pth'


@pytest.mark.parametrize('value', [3, [1], ''])
def test_load_from_is_a_path(start, value):
    cfg = start('x')
    cfg.load_from = value
    with pytest.raises(InputError, match='load_from must be the path of a checkpoint, got '):
        train.build(cfg)


@pytest.mark.parametrize(('config', 'warned'), [
    ('configs/quickstart_dense_mask_rcnn_r18.py', True), (CONFIG, False)])
def test_resuming_without_the_hook_is_said(start, checkpoint, config, warned, monkeypatch):
    said = []
    monkeypatch.setattr(logging.Logger, 'warning',
                        lambda self, message, *args, **kwargs: said.append(str(message)))
    train.build(start(checkpoint, config, resume=True))
    found = [line for line in said if 'the config has no MaxQHook' in line]
    assert len(found) == warned


def test_classes_in_another_order_are_refused(refuse, checkpoint, shapes, tmp_path):
    root = Path(shutil.copytree(shapes, tmp_path / 'data'))
    path = root / 'annotations/val.json'
    content = json.loads(path.read_text())
    content['categories'].reverse()
    path.write_text(json.dumps(content))
    (root / 'annotations/train.json').unlink()  # which a test does not need
    for tool, out in (('test.py', ()), ('draw.py', [tmp_path / 'a.png'])):
        work = ['--work-dir', tmp_path / 'work'] if tool == 'test.py' else []
        error = refuse(tool, CONFIG, checkpoint, *out, *work, '--data-root', root)
        assert 'the data has in another order: 3 (triangle, box, disc)' in error


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_a_launcher_that_did_not_start_it(refuse, shapes, tmp_path, launcher, monkeypatch):
    for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_LOCAL_RANK'):
        monkeypatch.delenv(name, raising=False)
    error = refuse('train.py', CONFIG, '--data-root', shapes, '--work-dir', tmp_path / 'work',
                   '--launcher', launcher)
    assert f'--launcher {launcher}: ' in error
    assert 'is not set' in error
    assert not (tmp_path / 'work').exists()


def test_places_that_cannot_be_written_are_found_before(refuse, checkpoint, shapes, tmp_path):
    (tmp_path / 'file').write_text('')
    data = ['--data-root', shapes]
    place = tmp_path / 'file/x'
    for tool, *arguments in (
            ('train.py', '--work-dir', place), ('train.py', '--work-dir', '/proc/x'),
            ('test.py', checkpoint, '--work-dir', place),
            ('test.py', checkpoint, '--out', f'{place}.pkl'),
            ('test.py', checkpoint, '--show-dir', place),
            ('draw.py', checkpoint, f'{place}.png'), ('report.py', checkpoint, '--json', place),
            ('report.py', checkpoint, '--plot', f'{place}.png'),
            ('export_onnx.py', checkpoint, f'{place}.onnx'),
            ('quantize_int8.py', checkpoint, f'{place}.onnx'),
            ('test_onnx.py', checkpoint, '--json', place)):
        assert 'cannot write' in refuse(tool, CONFIG, *arguments, *data), tool
    assert 'cannot write' in refuse('fold.py', checkpoint, place)
    assert 'cannot write' in refuse('import_imagenet.py', checkpoint, place)
    assert 'cannot write' in refuse('make_shapes.py', place)
    assert 'is the input itself' in refuse('report.py', CONFIG, checkpoint, '--json', checkpoint)
    assert 'is the input itself' in refuse('report.py', CONFIG, checkpoint, '--json', CONFIG)


def test_a_device_is_no_file(refuse, checkpoint):
    assert 'cannot write /dev/full: No space left on device' in refuse(
        'fold.py', checkpoint, '/dev/full')
    assert Path('/dev/full').is_char_device()


@pytest.mark.parametrize(('arguments', 'named'), [
    (['--scale', '0.001'], '--scale'), (['--scale', 'nan'], '--scale'),
    (['--scale', '1e9'], '--scale'),
    (['--score', 'nan'], '--score'), (['--device', 'gpu'], '--device gpu')])
def test_odd_arguments_of_draw(refuse, checkpoint, shapes, tmp_path, arguments, named):
    assert named in refuse('draw.py', CONFIG, checkpoint, tmp_path / 'a.png', '--data-root', shapes,
                           *arguments)


def test_odd_arguments_of_make_shapes(refuse, tmp_path):
    assert '--size must be from' in refuse('make_shapes.py', tmp_path / 'a', '--size', '1')
    assert '--size must be from' in refuse('make_shapes.py', tmp_path / 'a', '--size', '1000000')


def test_a_full_disk_ends_a_training_in_one_line(shapes, tmp_path):
    """A limit on the size of a file stands for the disk; a checkpoint of before is named."""
    before = tmp_path / 'epoch_0.pth'
    before.write_text('of another run')
    done = subprocess.run(
        ['bash', '-c', 'ulimit -f 4000; exec "$0" "$@"', sys.executable, 'tools/train.py', CONFIG,
         '--work-dir', tmp_path, '--data-root', shapes, '--cfg-options', 'train_cfg.max_epochs=1',
         'custom_hooks.0.ramp=None', 'default_hooks.checkpoint.interval=1',
         'train_dataloader.batch_size=4'],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 2, done.stdout
    assert 'Traceback' not in done.stdout
    errors = [line for line in done.stdout.splitlines() if line.startswith('error: ')]
    assert errors == [f'error: cannot write in {tmp_path}: File too large; training stops. What '
                      f'came after {before} is lost; --resume {before} goes on from there']
    assert not list(tmp_path.glob('*epoch_1.pth*'))


def test_deployment_needs_no_maxq_mm(checkpoint, shapes, tmp_path):
    """The README's example: the trained config without two entries, and a folded checkpoint."""
    cfg = Config.fromfile(ROOT / CONFIG)
    for key in ('custom_imports', 'custom_hooks'):
        cfg.pop(key)
    cfg.dump(tmp_path / 'plain.py')
    save_file(fold_checkpoint(cli.read_checkpoint(checkpoint)), tmp_path / 'folded.pth')
    code = ("import sys; sys.modules['maxq_mm'] = None; from mmdet.apis import DetInferencer; "
            "found = DetInferencer(*sys.argv[1:3])(sys.argv[3]); "
            "print(sorted(found['predictions'][0]))")
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, tmp_path / 'plain.py',
         tmp_path / 'folded.pth', shapes / 'val/00001.png'],
        cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'bboxes', 'labels', 'masks', 'scores'" in done.stdout

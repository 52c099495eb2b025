"""From training to deployment with the tools: every way to the same numbers."""

import json
import pickle
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config

from maxq_mm import satisfies
from maxq_mm.engine.checkpoint import layer_patterns
from maxq_mm.utils.files import load_file

from ..nested import flat_tensors
from ..running import run_tool
from .conftest import CONFIG


def scores(folder: Path) -> dict:
    """The metrics that the latest run in ``folder`` logged."""
    log = max(folder.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    metrics = json.loads(log.read_text().splitlines()[-1])
    return {name: value for name, value in metrics.items() if name.startswith('coco/')}


@pytest.fixture(scope='module')
def plain_config(trained, options, shapes) -> Path:
    """The config of the run, without hook and custom_imports: plain mmdet."""
    cfg = Config.fromfile(trained / Path(CONFIG).name)
    cfg.pop('custom_hooks')
    cfg.pop('custom_imports')
    path = trained / 'plain.py'
    cfg.dump(path)
    assert 'maxq' not in path.read_text().lower()
    return path


@pytest.fixture(scope='module')
def validated(trained) -> dict:
    """What validation logged at the end of training."""
    log = next(trained.glob('*/vis_data/scalars.json'))
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    row = next(row for row in rows if 'coco/bbox_mAP' in row)
    return {name: value for name, value in row.items() if name.startswith('coco/')}


def test_training_learns_and_reaches_the_pattern(trained):
    log = next(trained.glob('*/vis_data/scalars.json')).read_text()
    losses = [row['loss'] for row in map(json.loads, log.splitlines()) if 'loss' in row]
    assert losses[-1] < losses[0]
    checkpoint = load_file(trained / 'epoch_40.pth')
    patterns = layer_patterns(checkpoint)
    assert len(patterns) == 19
    assert all(satisfies(checkpoint['state_dict'][f'{name}.weight'], pattern)
               for name, pattern in patterns.items())
    half_way = load_file(trained / 'epoch_20.pth')
    assert 0 < half_way['maxq']['dense_fraction'] < 1


def test_scalars_are_logged_beside_the_losses(trained):
    rows = [json.loads(line) for line in
            next(trained.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    rows = [row for row in rows if 'loss' in row]
    assert rows[0]['maxq/dense_fraction'] > rows[-1]['maxq/dense_fraction'] == 0
    assert rows[-1]['maxq/sparsity'] == 0.5


def test_every_way_of_testing_gives_what_validation_printed(
        trained, folded, plain_config, options, validated, tmp_path):
    trained_with = trained / Path(CONFIG).name
    checkpoint = trained / 'epoch_40.pth'
    ways = {'MaxQ config': (trained_with, checkpoint), 'plain config': (plain_config, checkpoint),
            'folded': (plain_config, folded)}
    predictions = {}
    for number, (way, (config, weights)) in enumerate(ways.items()):
        out = tmp_path / f'{number}.pkl'
        text = run_tool('tools/test.py', config, weights, '--work-dir', tmp_path / str(number),
                        '--out', out)
        assert ('19 of 19 sparse layers satisfy' in text) == (way == 'MaxQ config')
        assert scores(tmp_path / str(number)) == validated, way
        predictions[way] = flat_tensors(pickle.loads(out.read_bytes()))
    first, *others = predictions.values()
    assert len(first) > 8
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_mmdets_own_test_tool_reads_the_folded_checkpoint(
        folded, plain_config, validated, tmp_path):
    import mmdet
    tool = Path(mmdet.__file__).parent / '.mim/tools/test.py'
    run_tool(tool, plain_config, folded, '--work-dir', tmp_path)
    assert scores(tmp_path) == validated


def test_half_way_checkpoint_is_not_remasked(trained, plain_config, tmp_path):
    checkpoint = trained / 'epoch_20.pth'
    results = []
    for number, config in enumerate((trained / Path(CONFIG).name, plain_config)):
        run_tool('tools/test.py', config, checkpoint, '--work-dir', tmp_path / str(number))
        results.append(scores(tmp_path / str(number)))
    assert results[0] == results[1]


def test_resumed_run_is_bit_identical(trained, options, tmp_path):
    run_tool('tools/train.py', CONFIG, '--work-dir', tmp_path, '--resume',
             trained / 'epoch_20.pth', *options)
    whole, resumed = (load_file(folder / 'epoch_40.pth') for folder in (trained, tmp_path))
    for part in (lambda c: c['state_dict'], lambda c: c['maxq']['raw']):
        a, b = part(whole), part(resumed)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_fold_leaves_only_what_inference_needs(trained, folded):
    checkpoint, small = load_file(trained / 'epoch_40.pth'), load_file(folded)
    assert set(small) == {'meta', 'state_dict', 'maxq'}
    assert set(small['maxq']) == {'version', 'layers', 'ramp'}
    assert small['state_dict'].keys() == checkpoint['state_dict'].keys()
    assert folded.stat().st_size < 0.4 * (trained / 'epoch_40.pth').stat().st_size


def test_report_and_picture(trained, folded, tmp_path):
    config = trained / Path(CONFIG).name
    text = run_tool('tools/report.py', config, folded, '--size', '64', '64',
                    '--plot', tmp_path / 'new/report.png', '--json', tmp_path / 'report.json')
    written = json.loads((tmp_path / 'report.json').read_text())
    assert written['totals']['satisfied'] == len(written['layers']) == 19
    assert written['totals']['macs'] == 2 * written['totals']['macs_kept'] > 0
    for picture in (tmp_path / 'new/report.png', trained / 'maxq.png'):
        assert cv2.imread(str(picture)).shape[0] >= 700
    assert 'total: 19 layers' in text
    assert '19/19' in text
    assert '50.00%' in text
    assert f"weights: {written['totals']['weights']:,} dense, " in text
    assert 'size: 10.6 MiB dense, 5.7 MiB compact (0.53)' in text
    assert '2.36' in text  # layer1: 32 * 32 * 9 MACs at 16 x 16 positions
    half_way = run_tool('tools/report.py', config, trained / 'epoch_20.pth')
    assert '0/19' in half_way
    assert 'no compact form: 19 of 19 layers do not satisfy their pattern' in half_way
    run_tool('tools/draw.py', config, folded, tmp_path / 'new/picture.png', '--images', '3')
    assert cv2.imread(str(tmp_path / 'new/picture.png')).shape == (256, 512, 3)


def test_show_dir_gets_a_picture_of_each_image(trained, folded, tmp_path):
    run_tool('tools/test.py', trained / Path(CONFIG).name, folded, '--work-dir', tmp_path / 'w',
             '--show-dir', tmp_path / 'shown')
    assert len(list((tmp_path / 'shown').glob('*.png'))) == 8


def test_mixed_precision(options, tmp_path):
    """On CPUs too, regions pooled and all; what is stored is float32 and of the pattern."""
    text = run_tool('tools/train.py', CONFIG, '--amp', '--work-dir', tmp_path, *options,
                    'train_cfg.max_epochs=3', 'train_cfg.val_interval=3',
                    'custom_hooks.0.ramp.end=2', 'default_hooks.checkpoint.interval=3',
                    'optim_wrapper.loss_scale=dynamic')
    assert "type='CPUAmpOptimWrapper'" in text
    checkpoint = load_file(tmp_path / 'epoch_3.pth')
    assert all(value.dtype in (torch.float32, torch.int64) and value.isfinite().all()
               for value in checkpoint['state_dict'].values())
    for name, pattern in layer_patterns(checkpoint).items():
        assert satisfies(checkpoint['state_dict'][f'{name}.weight'], pattern)

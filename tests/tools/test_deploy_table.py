import json

import pytest

from ..running import ROOT, run_tool
from .conftest import CONFIG

# Tested on what it was trained on: the fixture's detector has learned those few images.
TEXT = f"""
_base_ = {str(ROOT / CONFIG)!r}
test_dataloader = dict(
    dataset=dict(ann_file='annotations/train.json', data_prefix=dict(img='train/')))
test_evaluator = dict(ann_file='data/shapes/annotations/train.json')
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'on_train.py'
    path.write_text(TEXT)
    return path


RUNTIMES = ('mmdet', 'onnxruntime int8', 'maxq_mm')


def test_table_of_one_run(config, trained, folded, shapes, tmp_path):
    out, work, picture = (tmp_path / name for name in ('table.json', 'work', 'table.png'))

    def compare(dense, *options, code=0):
        return run_tool(
            'tools/deploy_table.py', config, f'dense={dense}', f'1:4={folded}', '--data-root',
            shapes, '--work-dir', work, '--calib-images', 8, '--images', 2, '--repeat', 2,
            '--threads', 1, '--json', out, '--plot', picture, *options, code=code)

    printed = compare(trained / 'epoch_20.pth', '--runtimes', 'onnxruntime', code=2)
    assert 'export_onnx.py' in printed
    assert 'do not satisfy their pattern' in printed  # epoch 20 is from within the ramp

    compare(trained / 'epoch_40.pth', '--runtimes', *RUNTIMES, '--others', 'maxq_mm',
            'maxq_mm int8')
    written = json.loads(out.read_text())
    rows = {(row['network'], row['runtime']): row for row in written['rows']}
    assert set(rows) == {*(('dense', runtime) for runtime in RUNTIMES), ('1:4', 'maxq_mm'),
                         ('1:4', 'maxq_mm int8')}
    run_tool('tools/test_onnx.py', config, work / 'dense_int8.onnx', '--data-root', shapes,
             '--threads', 1, '--json', tmp_path / 'int8.json')
    alone = json.loads((tmp_path / 'int8.json').read_text())
    for score in ('bbox_mAP', 'segm_mAP'):
        # The two checkpoints hold the same weights.
        assert rows['dense', 'maxq_mm'][score] == rows['1:4', 'maxq_mm'][score] > 0
        assert rows['dense', 'onnxruntime int8'][score] == alone[f'coco/{score}'] > 0
        assert abs(rows['1:4', 'maxq_mm int8'][score] - rows['dense', 'mmdet'][score]) < 0.1
    assert rows['dense', 'mmdet']['ratio'] == 1
    assert all(0 < row['latency_low_ms'] <= row['latency_ms'] <= row['latency_high_ms']
               for row in rows.values())
    assert (rows['dense', 'onnxruntime int8']['size_mib'] < 0.5
            * rows['dense', 'mmdet']['size_mib'])
    assert written['machine']['threads'] == 1
    assert {file.name for file in work.iterdir()} == {
        'dense.pth', 'dense.onnx', 'dense_int8.onnx', 'dense.served', '1-4.pth', '1-4.served',
        '1-4_int8.served'}
    assert picture.stat().st_size > 10_000


def test_bad_networks(config, folded, shapes, refuse, tmp_path):
    common = '--data-root', shapes, '--work-dir', tmp_path
    assert 'file not found: gone.pth' in refuse('deploy_table.py', config, 'a=gone.pth', *common)
    for networks in (['nothing'], [f'a/b={folded}'], [f'a={folded}'] * 2):
        error = refuse('deploy_table.py', config, *networks, *common)
        assert f'{networks[-1]}: not NAME=CHECKPOINT with a name of its own' in error
    error = refuse('deploy_table.py', config, f'a={folded}', '--data-root', tmp_path)
    assert 'annotations not found' in error
    inside = tmp_path / 'maxq.pth'
    inside.write_bytes(folded.read_bytes())
    error = refuse('deploy_table.py', config, f'a={inside}', *common)
    assert 'is in the folder that is to be written' in error
    assert inside.read_bytes() == folded.read_bytes()

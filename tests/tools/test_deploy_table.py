import json
import re

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


def test_table_of_one_run(config, trained, folded, shapes, tmp_path):
    out, work = tmp_path / 'table.json', tmp_path / 'work'
    printed = run_tool(
        'tools/deploy_table.py', '--set', 'shapes', config, trained / 'epoch_20.pth', folded,
        shapes, '--work-dir', work, '--calib-images', 8, '--images', 2, '--repeat', 2,
        '--threads', 1, '--json', out, code=2)
    assert 'export_onnx.py' in printed
    assert 'do not satisfy their pattern' in printed  # epoch 20 is from within the ramp

    run_tool(
        'tools/deploy_table.py', '--set', 'shapes', config, trained / 'epoch_40.pth', folded,
        shapes, '--work-dir', work, '--calib-images', 8, '--images', 2, '--repeat', 2,
        '--threads', 1, '--json', out)
    written = json.loads(out.read_text())
    rows = {(row['network'], row['runtime']): row for row in written['rows']}
    assert set(rows) == {(network, runtime) for network in ('dense', 'MaxQ')
                         for runtime in ('mmdet', 'onnxruntime', 'onnxruntime int8')}
    run_tool('tools/test_onnx.py', config, work / 'shapes/maxq_int8.onnx', '--data-root', shapes,
             '--threads', 1, '--json', tmp_path / 'int8.json')
    alone = json.loads((tmp_path / 'int8.json').read_text())
    for score in ('bbox_mAP', 'segm_mAP'):
        for runtime in ('mmdet', 'onnxruntime', 'onnxruntime int8'):
            # The two checkpoints hold the same weights.
            assert rows['dense', runtime][score] == rows['MaxQ', runtime][score] > 0
        assert rows['MaxQ', 'onnxruntime int8'][score] == alone[f'coco/{score}']
    assert rows['dense', 'mmdet']['ratio'] == 1
    assert all(row['latency_ms'] > 0 for row in rows.values())
    assert (rows['MaxQ', 'onnxruntime int8']['size_mib'] < 0.5
            * rows['MaxQ', 'onnxruntime']['size_mib'])
    assert written['machine']['threads'] == 1
    assert {file.name for file in (work / 'shapes').iterdir()} == {
        f'{network}{end}' for network in ('dense', 'maxq')
        for end in ('.pth', '.onnx', '_int8.onnx')}


def test_missing_file(config, folded, shapes, refuse, tmp_path):
    error = refuse('deploy_table.py', '--set', 'a b', config, 'gone.pth', folded, shapes)
    assert re.search('--set a b: file not found: gone.pth', error)
    error = refuse('deploy_table.py', '--set', 'a', config, folded, folded, tmp_path)
    assert 'annotations not found' in error
    inside = tmp_path / 'a/maxq.pth'
    inside.parent.mkdir()
    inside.write_bytes(folded.read_bytes())
    error = refuse('deploy_table.py', '--set', 'a', config, folded, inside, shapes,
                   '--work-dir', tmp_path)
    assert 'is in the folder that is to be written' in error
    assert inside.read_bytes() == folded.read_bytes()

"""tools/accelerate.py on a small trained detector: as fast as it says, and the same scores."""

import json
import subprocess
import sys

import pytest

from maxq_mm.utils.files import load_file, save_file

from ..running import run_tool
from .conftest import CONFIG


def check_scores(result, text):
    last = text.strip().splitlines()[-1]
    assert last.startswith('detector: ')
    assert last.endswith('the same')
    dense, fast = result['scores']['dense'], result['scores']['accelerated']
    assert dense.keys() == fast.keys()
    assert all(abs(dense[name] - fast[name]) < 0.0005 for name in dense if name.endswith('mAP'))
    assert dense['coco/bbox_mAP'] > 0
    assert [row['variant'] for row in result['rows']] == ['dense', 'accelerated']
    traced = result['report']['traced']
    assert traced == ['extract_feat and rpn_head', 'roi_head.bbox_head', 'roi_head.mask_head'] \
        or traced == ['extract_feat and rpn_head']


@pytest.fixture(scope='module')
def written(folded, options, tmp_path_factory):
    """A file to serve from, evaluated."""
    folder = tmp_path_factory.mktemp('accelerated')
    text = run_tool('tools/accelerate.py', CONFIG, folded, folder / 'served.pth', '--measure',
                    '--work-dir', folder, '--repeat', 2, '--json', folder / 'out.json',
                    '--size', 96, 128, *options)
    result = json.loads((folder / 'out.json').read_text())
    check_scores(result, text)
    assert f'{folder / "served.pth"}: ' in text
    size = (folder / 'served.pth').stat().st_size
    assert result['bytes'] == size < 0.85 * folded.stat().st_size  # only the backbone is 2:4
    return folder / 'served.pth', result['scores']['accelerated']


SERVE = '''
import copy, sys
import numpy as np
from mmdet.apis import DetInferencer, inference_detector
import maxq_mm
model = maxq_mm.load_accelerated(sys.argv[1])
inferencer = DetInferencer(copy.deepcopy(model.cfg), device='cpu')  # it changes what it is given
inferencer.model = model
image = np.random.default_rng(0).integers(0, 255, (90, 70, 3)).astype('uint8')
found = inference_detector(model, image).pred_instances
answer = inferencer(image, no_save_vis=True, return_vis=True)
assert answer['predictions'][0]['scores'] == found.scores.tolist()
assert answer['visualization'][0].shape == image.shape
assert inference_detector(model, image[:1, :1]).pred_instances is not None
print(model.dataset_meta['classes'], type(model).__name__)
'''


def test_a_file_serves_where_nothing_else_is(written, tmp_path):
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', SERVE, written[0]], text=True,
                            capture_output=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert "('disc', 'box', 'triangle') AcceleratedMaskRCNN" in result.stdout


def test_a_file_has_the_scores_of_its_detector(written, options, tmp_path):
    text = run_tool('tools/test.py', CONFIG, written[0], '--work-dir', tmp_path, *options)
    assert 'the model is accelerated; it is tested as it is' in text
    for name in ('bbox', 'segm'):
        assert f'coco/{name}_mAP: {written[1][f"coco/{name}_mAP"]:.4f}' in text


def test_without_a_file_it_measures(folded, options, tmp_path):
    out = tmp_path / 'out.json'
    text = run_tool('tools/accelerate.py', CONFIG, folded, '--work-dir', tmp_path, '--repeat', 2,
                    '--json', out, *options)
    check_scores(json.loads(out.read_text()), text)


def test_another_config(refuse, written, tmp_path, shapes):
    error = refuse('test.py', 'configs/faster_rcnn_r18_not_there.py', written[0])
    assert 'config not found' in error
    error = refuse('test.py', CONFIG, written[0], '--data-root', shapes, '--work-dir', tmp_path,
                   '--cfg-options', 'model.neck.out_channels=32')
    assert f'checkpoint {written[0]} does not fit the config' in error


def test_damaged_files(refuse, written, tmp_path, shapes):
    arguments = ('--data-root', shapes, '--work-dir', tmp_path)
    path = tmp_path / 'half.pth'
    path.write_bytes(written[0].read_bytes()[:5000])
    assert str(path) in refuse('test.py', CONFIG, path, *arguments)
    save_file({**load_file(written[0]), 'maxq_accelerated': 7}, path)
    assert 'another version than 2: 7' in refuse('test.py', CONFIG, path, *arguments)
    assert 'is an accelerated file' in refuse('accelerate.py', CONFIG, written[0], *arguments)


def test_load(written, refuse, shapes, tmp_path, folded):
    out = tmp_path / 'load.json'
    text = run_tool('tools/benchmark_load.py', written[0], shapes / 'val', '--clients', 2,
                    '--seconds', 1, '--count', 1, '--json', out)
    assert "results that differ from a single thread's: 0" in text
    row = json.loads(out.read_text())
    assert row['different'] == []
    assert row['requests'] == 11
    assert row['memory_mib']['highest'] >= row['memory_mib']['start'] > 0
    assert 'image folder not found' in refuse('benchmark_load.py', written[0], tmp_path / 'gone')
    assert f'no images in {tmp_path}' in refuse('benchmark_load.py', written[0], tmp_path)
    assert 'is a checkpoint' in refuse('benchmark_load.py', folded, shapes / 'val')


def test_what_cannot_be_written(refuse, folded, tmp_path):
    before = folded.read_bytes()
    assert 'is the input itself' in refuse('accelerate.py', CONFIG, folded, folded)
    assert str(tmp_path) in refuse('accelerate.py', CONFIG, folded, tmp_path)
    assert folded.read_bytes() == before


def test_refuses_what_is_not_there(refuse):
    assert 'nowhere.pth' in refuse('accelerate.py', CONFIG, 'nowhere.pth')


def test_int8(folded, options, tmp_path):
    """Near float32, whatever of it this machine computes in int8."""
    out = tmp_path / 'out.json'
    run_tool('tools/accelerate.py', CONFIG, folded, '--work-dir', tmp_path, '--repeat', 1,
             '--int8', '--calib-images', 4, '--json', out, *options)
    result = json.loads(out.read_text())
    dense, fast = result['scores']['dense'], result['scores']['accelerated']
    assert all(abs(dense[name] - fast[name]) < 0.1 for name in dense if name.endswith('mAP'))
    layers = {row['name']: row for row in result['report']['layers']}
    assert layers['rpn_head.rpn_cls']['reason'].endswith('float32: predicts')
    assert 'float32: ' not in layers['backbone.conv1']['reason']
    has_int8 = any(row['precision'] == 'int8' for row in layers.values())
    assert has_int8 == bool(result['report']['rounding'])


def test_refuses_more_images_than_there_are(folded, options):
    text = run_tool('tools/accelerate.py', CONFIG, folded, '--int8', '--calib-images', 100000,
                    *options, code=2)
    assert '--calib-images 100000: the train set has' in text.strip().splitlines()[-1]

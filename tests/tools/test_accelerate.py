"""tools/accelerate.py on a small trained detector: as fast as it says, and the same scores."""

import json

from ..running import run_tool
from .conftest import CONFIG


def test_scores_stay(folded, options, tmp_path):
    out = tmp_path / 'out.json'
    text = run_tool('tools/accelerate.py', CONFIG, folded, '--work-dir', tmp_path, '--repeat', 2,
                    '--json', out, *options)
    last = text.strip().splitlines()[-1]
    assert last.startswith('detector: ')
    assert last.endswith('the same')
    result = json.loads(out.read_text())
    dense, fast = result['scores']['dense'], result['scores']['accelerated']
    assert dense.keys() == fast.keys()
    assert all(abs(dense[name] - fast[name]) < 0.0005 for name in dense if name.endswith('mAP'))
    assert dense['coco/bbox_mAP'] > 0
    assert [row['variant'] for row in result['rows']] == ['dense', 'accelerated']
    traced = result['report']['traced']
    assert traced == ['extract_feat and rpn_head', 'roi_head.bbox_head', 'roi_head.mask_head'] \
        or traced == ['extract_feat and rpn_head']


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
    assert layers['backbone.conv1']['precision'] == 'float32'
    assert layers['backbone.conv1']['reason'].endswith('float32: takes the image')
    has_int8 = any(row['precision'] == 'int8' for row in layers.values())
    assert has_int8 == bool(result['report']['rounding'])


def test_refuses_more_images_than_there_are(folded, options):
    text = run_tool('tools/accelerate.py', CONFIG, folded, '--int8', '--calib-images', 100000,
                    *options, code=2)
    assert '--calib-images 100000: the train set has' in text.strip().splitlines()[-1]

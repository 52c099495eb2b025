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

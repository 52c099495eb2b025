"""The benchmark tool on the GPU: its results agree, and its figures are written."""

import json

import pytest

from ..running import run_tool

CONFIG = 'configs/quickstart_mask_rcnn_r18.py'


@pytest.mark.parametrize(('what', 'options'), [
    ('masks', []), ('train', []), ('train', ['--dtype', 'bfloat16']), ('infer', [])])
def test_benchmark(tmp_path, device, what, options):
    out = tmp_path / 'out.json'
    text = run_tool('tools/benchmark.py', what, '--model', CONFIG, '--pattern', '2:4', '--size', 64,
                    64, '--batch', 1, '--repeat', 2, '--device', device, '--json', out, *options)
    rows = json.loads(out.read_text())['rows']
    assert rows and all(row['median_s'] > 0 for row in rows)
    if what == 'masks':
        assert 'sorted formulation: 0 layers' in text
        assert all(row['largest_difference'] < 1e-6 for row in rows)

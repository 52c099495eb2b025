"""The benchmark tool on a small model: what it compares is alike, and what it prints is written."""

import json
import statistics

import pytest

from ..running import run_tool
from .conftest import CONFIG


def bench(what, out, *options):
    text = run_tool('tools/benchmark.py', what, '--model', CONFIG, '--size', 64, 64, '--threads', 1,
                    '--repeat', 2, '--json', out, *options)
    return text, json.loads(out.read_text())


def test_masks(tmp_path):
    text, result = bench('masks', tmp_path / 'masks.json', '--pattern', '2:4', '1:16')
    assert result['settings']['what'] == 'masks'
    assert result['machine']['threads'] == 1
    assert result['machine']['versions'].keys() >= {'torch', 'mmdet', 'maxq_mm'}
    rows = result['rows']
    assert len(rows) == 2 * 3 * 3
    for row in rows:
        assert row['layers'] == 19
        assert row['layers_that_differ'] == 0
        assert row['largest_difference'] < 1e-6
        assert row['low_s'] <= row['median_s'] <= row['high_s']
        assert (row['ratio'] == 1) == (row['variant'] == 'sorted')
    assert 'sorted formulation: 0 layers' in text


@pytest.mark.parametrize(('what', 'options'), [('train', []), ('train', ['--dtype', 'bfloat16']),
                                               ('infer', [])])
def test_runs(tmp_path, what, options):
    text, result = bench(what, tmp_path / 'out.json', '--pattern', '2:4', '--batch', 1, *options)
    rows = {row['variant']: row for row in result['rows']}
    assert rows.keys() == {
        'train': {'dense', 'MaxQ, half way', 'MaxQ, finished'},
        'infer': {'dense', 'MaxQ', 'MaxQ, folded'}}[what]
    assert all(name in text for name in rows)
    if what == 'train':
        assert rows['dense']['kept'] == 0
        assert rows['MaxQ, finished']['kept'] == 1, 'one copy of the sparse weights, no more'


@pytest.mark.parametrize('precision', ['float32', 'int8'])
def test_profile(tmp_path, precision):
    text, result = bench('profile', tmp_path / 'out.json', '--pattern', '1:4', '--batch', 1,
                         *['--precision', 'int8'] * (precision == 'int8'))
    assert result['settings']['precision'] == precision
    assert bool(result['report']['rounding']) == (precision == 'int8')
    rows = {row['stage']: row for row in result['rows']}
    assert rows.keys() >= {'data_preprocessor', 'extract_feat', 'rpn_head.predict_by_feat',
                           'roi_head.bbox_roi_extractor', 'roi_head.bbox_head', 'other'}
    for stage, row in rows.items():
        assert stage in text
        assert row['dense_ms'] >= 0 <= row['accelerated_ms']
    assert rows['extract_feat']['dense_ms'] > 0 < rows['extract_feat']['accelerated_ms']
    assert not any(name.startswith(('backbone', 'neck')) for name in rows), 'of extract_feat'
    assert result['report']['traced']


@pytest.mark.parametrize(('options', 'named'), [
    (['profile', '--checkpoint', 'some.pth'], 'give --image-dir'),
    (['profile', '--precision', 'float32', 'int8'], 'profile takes one --precision'),
    (['masks', '--pattern', '4:4'], '4:4 prunes nothing'),
    (['masks', '--pattern', '5:4'], '5:4'),
    (['train', '--device', 'cuda:99'], '--device cuda:99'),
    (['train', '--device', 'meta'], 'cpu or cuda, got meta'),
    (['train', '--size', '1', '1'], 'at least 32 32'),
    (['masks', '--pattern', '1:7'], 'no layer can be 1:7'),
    (['masks', '--json', '/proc/none/out.json'], 'cannot write'),
    (['train', '--device', 'cpu', '--dtype', 'float16'], 'bfloat16'),
    (['masks', '--model', 'nowhere.py'], 'config not found: nowhere.py'),
])
def test_bad_input(refuse, options, named):
    assert named in refuse('benchmark.py', *options)


def test_variants_take_turns():
    import torch

    from maxq_mm.cli import timing

    calls = []
    seconds = timing.alternate({'a': lambda: calls.append('a'), 'b': lambda: calls.append('b')}, 3,
                                torch.device('cpu'))
    assert calls == ['b', 'a', 'a', 'b'] * 2  # one turn to warm up
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_summary_by_hand():
    from maxq_mm.cli import timing

    rows = timing.summarize({'dense': [1., 2., 4.], 'maxq': [2., 3., 4.]}, 'dense')
    assert rows[0] == dict(variant='dense', median_s=2., low_s=1., high_s=4.,
                           ratio=1., ratio_low=1., ratio_high=1.)
    assert rows[1]['ratio'] == statistics.median([2., 1.5, 1.])
    assert (rows[1]['ratio_low'], rows[1]['ratio_high']) == (1., 2.)


def test_engines(tmp_path):
    """Each engine computes the network, and the accelerated one what its zeros ask for."""
    text, result = bench('engines', tmp_path / 'out.json', '--pattern', '1:16', '--batch', 1,
                         '--scope', 'backbone', '--plot', tmp_path / 'plot.png')
    rows = {row['variant']: row for row in result['rows']}
    assert rows.keys() >= {'torch', 'onnxruntime float32', 'onnxruntime int8', 'maxq_mm 1:16'}
    for name in ('torch', 'onnxruntime float32', 'maxq_mm 1:16'):
        assert rows[name]['difference'] < 1e-4
    assert 0 < rows['onnxruntime int8']['difference'] < 0.5
    assert rows['maxq_mm 1:16']['pattern'] == '1:16'
    assert rows['maxq_mm int8 1:16']['precision'] == 'int8'
    assert 0 <= rows['maxq_mm int8 1:16']['difference'] < 0.5
    for name in ('1:16', 'int8 1:16'):
        layers = result['layers'][name]
        assert len(layers) == 20
        assert all(row['of_peak'] > 0 for row in layers if row['sparse_ms'])
    assert 'against fastest dense float32' in text
    assert (tmp_path / 'plot.png').stat().st_size > 1000

import json

import pytest
import torch
from torch import nn

from maxq_mm import fold, report, sparsify
from maxq_mm.functional.compact import compact


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1),
                         nn.Conv2d(16, 4, 1))


def test_layers_and_totals(model):
    sparsify(model, '2:4', overrides={'2': '1:8'})
    result = report(model, torch.zeros(1, 3, 10, 10))
    assert [layer.name for layer in result.layers] == ['1', '2']
    first, second = result.layers
    assert (first.shape, first.pattern, first.kept) == ((16, 8, 3, 3), '2:4', 0.5)
    assert (first.macs, first.macs_kept) == (16 * 8 * 9 * 100, 16 * 4 * 9 * 100)
    assert (second.macs, second.macs_kept) == (6400, 800)
    assert (result.weights, result.satisfied) == (1152 + 64, 2)
    assert result.kept == (576 + 8) / 1216
    assert result.macs == 121600
    assert json.loads(json.dumps(result.as_dict()))['totals']['macs_kept'] == 58400
    assert '1:8' in str(result)
    assert 'MMACs' in str(result)


def test_sizes(model):
    """Values and indices: 2 and 3 bits of each kept weight, beside its own 4 bytes."""
    sparsify(model, '2:4', overrides={'2': '1:8'})
    result = report(model)
    first, second = result.layers
    assert (first.weights_kept, first.bytes, first.bytes_compact) == (576, 4608, 576 * 4 + 144)
    assert (second.weights_kept, second.bytes, second.bytes_compact) == (8, 256, 8 * 4 + 3)
    totals = json.loads(json.dumps(result.as_dict()))['totals']
    assert (totals['weights'], totals['weights_kept']) == (1216, 584)
    assert (totals['bytes'], totals['bytes_compact']) == (4864, 2483)
    assert totals['compact_ratio'] == 2483 / 4864
    assert 'weights: 1,216 dense, 584 kept' in str(result)
    assert 'size: 4.8 KiB dense, 2.4 KiB compact (0.51)' in str(result)
    assert report(model.half()).bytes_compact == 2483 - 584 * 2


def test_compact_size_is_what_compacting_takes(model):
    sparsify(model, '2:4')
    for row in report(model).layers:
        layer = model.get_submodule(row.name)
        assert row.bytes_compact == compact(layer.effective + 0., '2:4').nbytes


def test_no_smaller_form():
    """Indices of 4:4 would add to the weight; a compact file holds it as it is."""
    model = nn.Sequential(nn.Conv2d(8, 2048, 4))
    result = report(model, patterns={'0': '4:4'})
    assert result.bytes_compact == result.bytes == 2**20
    assert 'size: 1.0 MiB dense, 1.0 MiB compact (1.00)' in str(result)


def test_half_way_up_the_ramp(model):
    sparsify(model, '2:4', ramp=dict(type='linear', begin=1, end=3))
    result = report(model)
    assert result.satisfied == 0
    assert result.kept == 1
    assert result.macs is None
    assert 'MMACs' not in str(result)
    assert result.layers[0].bytes_compact is result.bytes_compact is result.compact_ratio is None
    assert 'no compact form: 2 of 2 layers do not satisfy their pattern' in str(result)


def test_folded(model):
    sparsify(model, '2:4')
    before = report(model)
    fold(model)
    assert report(model, patterns={'1': '2:4', '2': '2:4'}) == before
    assert report(model, patterns={'1': '1:4'}).satisfied == 0
    with pytest.raises(ValueError, match='no MaxQ layers'):
        report(model)
    with pytest.raises(ValueError, match="'7'"):
        report(model, patterns={'7': '2:4'})

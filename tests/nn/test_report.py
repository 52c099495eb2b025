import json

import pytest
import torch
from torch import nn

from maxq_mm import fold, report, sparsify


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


def test_half_way_up_the_ramp(model):
    sparsify(model, '2:4', ramp=dict(type='linear', begin=1, end=3))
    result = report(model)
    assert result.satisfied == 0
    assert result.kept == 1
    assert result.macs is None
    assert 'MMACs' not in str(result)


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

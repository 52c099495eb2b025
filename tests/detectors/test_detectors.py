"""MaxQ in the detectors that mmdet ships: every layer sparse or left dense for a true reason."""

import re
from pathlib import Path

import pytest
import torch
from mmdet.models.dense_heads import RetinaHead, SSDHead
from mmdet.testing._utils import demo_mm_inputs
from mmengine.logging import MessageHub
from torch import nn

from maxq_mm import fold, satisfies, sparsify
from maxq_mm.nn.select import select
from maxq_mm.nn.settings import SparsitySettings
from maxq_mm.nn.stand_ins import sparse_type

from ..nested import flat_tensors
from .last_layers import last_layers
from .table import HEADER, row
from .zoo import DETECTORS, PATTERN, build

PAGE = Path(__file__).parents[2] / 'docs/detectors.md'
OUTDATED = 'docs/detectors.md is outdated: put there what `python -m tests.detectors.table` prints'

# Last layers that give features for what others predict.
FEATURES = {'SOLOv2': {'mask_head.mask_feature_head.conv_pred.conv'},
            'Mask2Former': {'panoptic_head.pixel_decoder.mask_feature'}}


def documented() -> list[str]:
    """The lines of the documented table of detectors."""
    lines = PAGE.read_text(encoding='utf-8').splitlines()
    return [line for line in lines if line.startswith('|')]


def check_reason(module: nn.Module, reason: str) -> None:
    """The reason is true of the module."""
    if found := re.fullmatch(r'(\d+) input channels, not divisible by 4', reason):
        assert module.weight.shape[1] == int(found[1])
        assert int(found[1]) % 4
    elif found := re.fullmatch(r'grouped \((\d+) groups\)', reason):
        assert module.groups == int(found[1]) > 1
    elif reason == 'frozen':
        assert not module.weight.requires_grad
    elif reason.startswith('in-projection'):
        assert isinstance(module, nn.MultiheadAttention)
    elif reason.endswith('reads the weight without calling the layer'):
        assert sparse_type(module) is not None
    else:
        found = re.fullmatch(r'(\w+) computes with its weight in its own way', reason)
        assert found, reason
        assert type(module).__name__ == found[1]
        assert sparse_type(module) is None


def test_page_names_these_detectors():
    lines = documented()
    assert lines[:2] == HEADER.splitlines(), OUTDATED
    assert [line.split(' | ')[0].removeprefix('| ') for line in lines[2:]] == [*DETECTORS], OUTDATED


@pytest.mark.parametrize('name', DETECTORS)
def test_train_and_fold(name):
    detector = DETECTORS[name]
    model = build(detector)
    model.init_weights()
    by_default = select(model, SparsitySettings(PATTERN))
    handle = sparsify(model, PATTERN, predictors=True)
    predicting = handle.layers.keys() - by_default.sparse.keys()
    assert all(by_default.skipped[layer] == 'predicts, and is not named' for layer in predicting)
    assert row(name, handle) in documented(), OUTDATED
    for layer, reason in handle.skipped.items():
        check_reason(model.get_submodule(layer), reason)
    for reason in detector.reasons:
        assert any(reason in text for text in handle.skipped.values()), handle.skipped
    matrices = {layer for layer, module in model.named_modules()
                if any(p.ndim >= 2 for p in module.parameters(recurse=False))}
    assert matrices == {*handle.layers, *handle.skipped}
    assert all(module.weight.requires_grad for module in handle.layers.values())

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    handle.attach(optimizer, strict=True)
    data = demo_mm_inputs(2, [[3, 96, 96], [3, 96, 96]], num_classes=80,
                          with_mask=re.search('mask|solo', detector.config) is not None)
    data = model.data_preprocessor(data, True)
    before = {layer: module.weight.detach().clone() for layer, module in handle.layers.items()}
    MessageHub.get_current_instance().update_info('epoch', 0)  # TOOD asks a Runner's for it
    for _ in range(3 * detector.trains):
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned = [layer for layer, module in handle.layers.items()
               if not torch.equal(module.weight, before[layer])]
    assert not detector.trains or len(learned) > 0.9 * len(handle.layers)

    handle.refresh()
    model.eval()
    sparse = flat_tensors(model(**data, mode='tensor'))
    last = last_layers(sparse, handle.layers)
    assert last & predicting
    assert last - predicting == FEATURES.get(name, set())
    with torch.no_grad():
        fold(model)
        folded = flat_tensors(model(**data, mode='tensor'))
    assert len(sparse) > 0
    for a, b in zip(sparse, folded, strict=True):
        largest = a.abs().max().item() if a.numel() else 0.
        assert torch.allclose(a, b, rtol=0, atol=1e-5 * max(1., largest))
    assert all(satisfies(model.get_submodule(layer).weight, PATTERN) for layer in handle.layers)


def test_names_of_towers_that_predict_in_one_head_alone():
    ssd = SSDHead(3, in_channels=(16, 32, 16), anchor_generator=dict(
        type='SSDAnchorGenerator', scale_major=False, input_size=300, basesize_ratio_range=(.2, .9),
        strides=[8, 16, 32], ratios=[[2], [2], [2]]))
    retina = RetinaHead(3, 16, feat_channels=16, stacked_convs=1)
    heads = nn.ModuleDict(dict(ssd=ssd, retina=retina))
    skipped = [name for name, reason in select(heads, SparsitySettings('2:4')).skipped.items()
               if 'predicts' in reason]
    assert skipped == [
        *(f'ssd.{kind}_convs.{level}.0' for kind in ('cls', 'reg') for level in range(3)),
        'retina.retina_cls', 'retina.retina_reg']

import pytest
import torch

from maxq_mm.allocation.distortion import measure, spreads
from maxq_mm.allocation.images import look
from maxq_mm.allocation.moments import watching
from maxq_mm.allocation.outputs import outputs
from maxq_mm.allocation.prune import prune, pruned_checkpoint
from maxq_mm.engine.checkpoint import layer_patterns
from maxq_mm.functional.masks import keep_mask, satisfies
from maxq_mm.nn.select import select
from maxq_mm.nn.settings import SparsitySettings
from maxq_mm.utils.errors import InputError

from .conftest import DETECTORS, build, images


def chosen(model: torch.nn.Module, pattern: str = '2:4') -> dict[str, str]:
    return dict.fromkeys(select(model, SparsitySettings(pattern)).sparse, pattern)


def test_every_layer_satisfies_its_pattern(detector):
    patterns = chosen(detector)
    patterns[next(reversed(patterns))] = None
    before = {name: detector.get_submodule(name).weight.clone() for name in patterns}
    places = look(detector, images())
    distortion = prune(detector.train(), images(), patterns)
    assert detector.training
    for name, pattern in patterns.items():
        weight = detector.get_submodule(name).weight
        if pattern is None:
            assert torch.equal(weight, before[name])
        else:
            assert torch.equal(weight != 0, keep_mask(before[name], pattern)), name
            assert not torch.signbit(weight[weight == 0]).any()
    assert distortion == pytest.approx(measure(detector.eval(), places, spreads(places)))


def distortion(**settings) -> float:
    model = build(DETECTORS['Mask R-CNN']())
    return prune(model, images(4), chosen(model), **settings)


def test_compensation_helps():
    mended = distortion(norms=False)
    assert mended < 0.7 * distortion(norms=False, compensate=False)
    assert mended == distortion(norms=False)  # repeatable
    assert mended != distortion(norms=False, seed=1)


def test_plain_pruning_is_the_mask_alone(mask_rcnn):
    patterns = chosen(mask_rcnn)
    before = {name: mask_rcnn.get_submodule(name).weight.clone() for name in patterns}
    means = mask_rcnn.backbone.bn1.running_mean.clone()
    prune(mask_rcnn, images(1), patterns, compensate=False, norms=False)
    for name, weight in before.items():
        assert torch.equal(mask_rcnn.get_submodule(name).weight,
                           torch.where(keep_mask(weight, '2:4'), weight, 0.))
    assert torch.equal(mask_rcnn.backbone.bn1.running_mean, means)


def test_statistics_are_those_of_the_pruned_network(mask_rcnn):
    stem = mask_rcnn.backbone.bn1.running_mean.clone()
    places = look(mask_rcnn, images(3))
    prune(mask_rcnn, images(3), {'backbone.layer2.0.conv1': '1:4'})
    for norm in (mask_rcnn.backbone.layer2[0].bn1, mask_rcnn.backbone.layer4[1].bn2):
        rows = []
        with watching([norm], lambda _, x, rows=rows: rows.append(x.transpose(0, 1).flatten(1))):
            for one in places:
                outputs(mask_rcnn, one)
        var, mean = torch.var_mean(torch.cat(rows, dim=1), dim=1, correction=0)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-3, atol=1e-4)
    assert torch.equal(mask_rcnn.backbone.bn1.running_mean, stem)  # before what was pruned


def test_masks_of_images_without_detections(mask_rcnn):
    mask_rcnn.roi_head.test_cfg.score_thr = 1.1
    name = 'roi_head.mask_head.convs.0.conv'
    before = mask_rcnn.get_submodule(name).weight.clone()
    prune(mask_rcnn, images(1), {name: '1:4'})
    assert torch.equal(mask_rcnn.get_submodule(name).weight,
                       torch.where(keep_mask(before, '1:4'), before, 0.))


def test_checkpoint_is_a_folded_one(mask_rcnn):
    patterns = chosen(mask_rcnn)
    prune(mask_rcnn, images(1), patterns, compensate=False)
    checkpoint = pruned_checkpoint(mask_rcnn, patterns, dict(epoch=3))
    assert checkpoint.keys() == {'meta', 'state_dict', 'maxq'}
    assert checkpoint['maxq'].keys() == {'version', 'layers', 'ramp'}
    assert layer_patterns(checkpoint) == patterns
    assert all(satisfies(checkpoint['state_dict'][f'{name}.weight'], pattern)
               for name, pattern in patterns.items())


@pytest.mark.parametrize(('patterns', 'said'), [
    ({'backbone.nothing': '2:4'}, "patterns has 'backbone.nothing', which is no layer"),
    ({'backbone.conv1': None}, 'leaves every layer dense'),
    ({'backbone.conv1': '9'}, "pattern must be .* got '9'"),
    ({'backbone.conv1': '2:4'}, 'backbone.conv1: 3 input channels, not divisible by 4'),
    ({'backbone.bn1': '2:4'}, 'backbone.bn1 is no layer with an N:M pattern'),
])
def test_bad_patterns(mask_rcnn, patterns, said):
    with pytest.raises(InputError, match=said):
        prune(mask_rcnn, images(1), patterns)

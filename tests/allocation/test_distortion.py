import pytest
import torch

from maxq_mm.allocation.distortion import measure, predict, spreads
from maxq_mm.allocation.images import look
from maxq_mm.allocation.outputs import outputs

from .conftest import images

NAME = 'backbone.layer2.0.conv1'


def test_dense_network_has_no_distortion(detector):
    places = look(detector, images())
    assert measure(detector, places, spreads(places)) == 0


@torch.no_grad()
def test_units_of_its_own_spread(mask_rcnn, seen):
    """Shifting one kind of output by its spread is a distortion of 1."""
    spread = spreads(seen)
    (unit, ) = spread['confidence of masks']
    mask_rcnn.roi_head.mask_head.conv_logits.bias += unit
    assert measure(mask_rcnn, seen, spread) == pytest.approx(1, rel=1e-4)


def test_spreads_are_those_of_the_places(seen):
    values = torch.cat([places.said['confidence of regions'] for places in seen])
    spread = spreads(seen)
    assert float(spread['confidence of regions']) == pytest.approx(float(values.std(correction=0)))
    assert len(spread['localisation of anchors']) == int(max(p.levels.max() for p in seen)) + 1


def test_prediction_of_small_changes_is_the_truth(detector):
    places = look(detector, images(1))
    spread = spreads(places)
    names = [name for name, module in detector.named_modules()
             if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)][3::6]
    changes = {name: 1e-3 * torch.stack([
        detector.get_submodule(name).weight.detach().sign(),
        torch.randn_like(detector.get_submodule(name).weight)]) for name in names}
    predicted = predict(detector, places, spread, changes, probes=100, seed=0)
    for name in names:
        weight = detector.get_submodule(name).weight
        for change, value in zip(changes[name], predicted[name], strict=True):
            with torch.no_grad():
                before = weight.clone()
                weight += change
                true = measure(detector, places, spread)
                weight.copy_(before)
            assert 0.5 * true <= value <= 2 * true, name


def test_prediction_is_repeatable_and_grows_with_the_square(mask_rcnn, seen):
    change = torch.randn(2, *mask_rcnn.get_submodule(NAME).weight.shape)
    change[1] = 3 * change[0]
    one, two = (predict(mask_rcnn, seen, spreads(seen), {NAME: change}, 1, seed=4)[NAME]
                for _ in range(2))
    assert torch.equal(one, two)
    torch.testing.assert_close(one[1], 9 * one[0])
    other = predict(mask_rcnn, seen, spreads(seen), {NAME: change}, 1, seed=5)[NAME]
    assert not torch.equal(one, other)


def test_prediction_leaves_the_model_as_it_was(mask_rcnn, seen):
    mask_rcnn.backbone.conv1.weight.requires_grad_(False)
    before = {name: p.requires_grad for name, p in mask_rcnn.named_parameters()}
    change = torch.zeros(1, *mask_rcnn.get_submodule(NAME).weight.shape)
    assert not predict(mask_rcnn, seen, spreads(seen), {NAME: change}, 1, 0)[NAME].any()
    assert before == {name: p.requires_grad for name, p in mask_rcnn.named_parameters()}
    assert all(p.grad is None for p in mask_rcnn.parameters())


def test_outputs_stay_at_their_places_when_the_network_changes(mask_rcnn, seen):
    with torch.no_grad():
        mask_rcnn.rpn_head.rpn_cls.weight.neg_()
    for places in seen:
        said = outputs(mask_rcnn, places)
        assert {name: value.shape for name, value in said.items()} == {
            name: value.shape for name, value in places.said.items()}

import sys

import pytest
import torch
from mmdet.structures import DetDataSample

import maxq_mm
from maxq_mm.allocation.costs import costs, count_macs
from maxq_mm.allocation.figure import draw
from maxq_mm.allocation.images import look
from maxq_mm.functional.compact import compact
from maxq_mm.functional.pattern import Pattern
from maxq_mm.utils.errors import InputError

from .conftest import DETECTORS, build, images

PATTERNS = '2:4', '1:4', '1:8'


def test_plan_of_each_detector(detector):
    detector.train()
    detector.neck.eval()
    trained = [parameter.requires_grad for parameter in detector.parameters()]
    state = {name: value.clone() for name, value in detector.state_dict().items()}
    plan = maxq_mm.allocate(detector, images(), PATTERNS, 0.4)
    assert plan.share <= 0.4
    sparse = maxq_mm.allocation.allocate  # the package is there once its name was asked for
    assert sparse is maxq_mm.allocate
    assert {choice.pattern for choice in plan.choices} <= {None, *PATTERNS}
    assert plan.distortion == pytest.approx(sum(
        plan.table[choice.name][choice.pattern] for choice in plan.choices if choice.pattern))
    totals = [sum(row[pattern] for row in plan.table.values()) for pattern in PATTERNS]
    assert 0 < totals[0] < totals[1] < totals[2]
    assert all(torch.equal(value, state[name]) for name, value in detector.state_dict().items())
    assert detector.training
    assert not detector.neck.training
    assert trained == [parameter.requires_grad for parameter in detector.parameters()]


def test_same_seed_same_plan_and_more_budget_less_distortion(mask_rcnn):
    plans = [maxq_mm.allocate(mask_rcnn, images(), PATTERNS, budget, seed=1)
             for budget in (0.3, 0.3, 0.6)]
    assert plans[0] == plans[1]
    assert plans[2].distortion < plans[0].distortion
    assert plans[2].curve == plans[0].curve


def test_layers_that_are_candidates(mask_rcnn):
    mask_rcnn.backbone.layer1.requires_grad_(False)
    plan = maxq_mm.allocate(mask_rcnn, images(1), ['1:16', '1:8'], 0.5, include=('backbone', ),
                            exclude=('backbone.layer4', ), probes=1)
    assert plan.patterns.keys() == {name for name, module in mask_rcnn.named_modules()
                                    if isinstance(module, torch.nn.Conv2d)
                                    and name.startswith(('backbone.layer2', 'backbone.layer3'))}
    # 8 channels take no block of 16
    assert plan.table['backbone.layer2.0.conv1'].keys() == {'1:8'}
    assert plan.table['backbone.layer3.0.conv1'].keys() == {'1:16', '1:8'}


def test_multiply_accumulates_are_those_of_the_report():
    model = build(DETECTORS['RetinaNet']())
    places = look(model, images(3))
    size = tuple(places[0].inputs.shape[-2:])
    patterns = dict.fromkeys((name for name, module in model.named_modules()
                              if isinstance(module, torch.nn.Conv2d)), '1:1')
    del patterns['backbone.conv1']
    forward = model.forward
    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1., 1.)))
    model.forward = lambda inputs: forward(inputs, [sample])
    counted = maxq_mm.report(model, (torch.zeros(1, 3, *size), ), patterns)
    assert count_macs(model, places, patterns) == {
        layer.name: layer.macs for layer in counted.layers}


def test_regions_of_an_image_are_counted(mask_rcnn):
    found = count_macs(mask_rcnn, look(mask_rcnn, images(1)), ['roi_head.bbox_head.fc_cls',
                                                               'roi_head.mask_head.convs.0.conv'])
    limits = mask_rcnn.test_cfg
    assert 0 < found['roi_head.bbox_head.fc_cls'] <= 32 * 4 * limits.rpn.max_per_img
    assert 0 < found['roi_head.mask_head.convs.0.conv'] <= (
        limits.rcnn.max_per_img * 14 * 14 * 9 * 16 * 16)


def test_bytes_are_those_of_the_compact_file(mask_rcnn):
    name, patterns = 'backbone.layer3.0.conv1', [Pattern(1, 1), Pattern(1, 4)]
    weight = mask_rcnn.get_submodule(name).weight.detach()
    pruned = weight.abs() * maxq_mm.keep_mask(weight, '1:4')
    assert costs('bytes', mask_rcnn, [], {name: patterns}) == {
        name: [weight.nbytes, compact(pruned, '1:4').nbytes]}
    plan = maxq_mm.allocate(mask_rcnn, images(1), PATTERNS, 0.5, 'bytes', probes=1)
    assert plan.kind == 'bytes'
    assert 0.4 < plan.share <= 0.5


@pytest.mark.parametrize(('changes', 'said'), [
    (dict(budget=0), r'budget must be a share of the dense cost in \(0, 1\], got 0'),
    (dict(budget=0.01), 'budget 0.01 is too small'),
    (dict(cost='joules'), "cost must be one of .* got 'joules'"),
    (dict(patterns=[]), r'patterns must be a sequence of N:M, got \[\]'),
    (dict(patterns='2:4'), "patterns must be a sequence of N:M, got '2:4'"),
    (dict(patterns=['2:4', '2:4']), "patterns must be distinct, got .'2:4', '2:4'."),
    (dict(patterns=['4:2']), "N:M needs 1 <= N <= M, got '4:2'"),
    (dict(data=[]), 'data has no images'),
    (dict(probes=0), 'probes must be a whole number of at least 1, got 0'),
    (dict(saliency='size'), "saliency must be one of .* got 'size'"),
    (dict(include=('bone', )), "include has 'bone', which matches no layer"),
])
def test_bad_arguments(mask_rcnn, changes, said):
    wanted = dict(dict(data=images(1), patterns=PATTERNS, budget=0.5), **changes)
    with pytest.raises(InputError, match=said):
        maxq_mm.allocate(mask_rcnn, **wanted)


def test_a_budget_that_nothing_meets_is_refused_before_the_long_part(mask_rcnn, monkeypatch):
    monkeypatch.setattr(sys.modules[maxq_mm.allocate.__module__], 'predict_all', None)
    with pytest.raises(InputError, match='budget 0.1 is too small: .* 0.1250 of the cost is left'):
        maxq_mm.allocate(mask_rcnn, images(1), ('2:4', '1:8'), 0.1)


def test_network_that_is_sparse_already(mask_rcnn):
    maxq_mm.sparsify(mask_rcnn, '1:8', include=('backbone.layer4', ))
    for _ in range(2):
        with pytest.raises(InputError, match='sparse already: backbone.layer4.0.conv1 is 2:4'):
            maxq_mm.allocate(mask_rcnn, images(1), PATTERNS, 0.5)
        maxq_mm.fold(mask_rcnn)


def test_picture(mask_rcnn):
    plan = maxq_mm.allocate(mask_rcnn, images(1), PATTERNS, 0.5, probes=1)
    kept, distortion, curve = draw(plan).axes
    widths = [bar.get_width() for bar in kept.patches]
    assert len(widths) == len(plan.choices)
    assert sorted(widths) == sorted(
        1. if choice.pattern is None else Pattern.parse(choice.pattern).n
        / Pattern.parse(choice.pattern).m for choice in plan.choices)
    assert {line.get_label() for line in distortion.lines} == {*PATTERNS, 'plan'}
    (point, ) = (line for line in curve.lines if line.get_label() == 'plan')
    assert point.get_xydata().tolist() == [[plan.share, plan.distortion]]

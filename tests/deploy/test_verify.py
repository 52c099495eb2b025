"""Sound files are taken, whatever the rounding of the machine; wrong ones are not."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from maxq_mm.deploy import agreement, detectors, export, reference, verify
from maxq_mm.deploy.agreement import Agreement
from maxq_mm.deploy.onnx_detector import OnnxDetector
from maxq_mm.utils.errors import InputError

from . import small
from .conftest import CONFIGS


def exported(model, patterns, precision, **fields) -> onnx.ModelProto:
    """``model`` as a file, without the checks that its layers satisfy ``patterns``."""
    about = small.about(precision=precision, **fields)
    return export.to_onnx(export.prepared(model, patterns, half=precision == 'float16'), about,
                          patterns, small.SIZE)


def verified(model, file, precision, shapes=((40, 90), ), **fields) -> verify.Verifier:
    verifier = verify.Verifier(model, file, small.about(precision=precision, **fields))
    for shape in shapes:
        verifier.check(small.batch(small.noise(*shape)))
    return verifier


@pytest.fixture(scope='module', params=['float32', 'float16'])
def precision(request) -> str:
    return request.param


@pytest.mark.parametrize('name', CONFIGS)
def test_sound_files(built, sized, name, precision):
    """The sizes of a file for any size have nothing in common with that of its trace."""
    model, _ = built[name]
    found = verified(model, sized(name, precision), precision, ((64, 64), (200, 130), (32, 32)),
                     size=None).worst
    stages = [verify.FEATURES, verify.RPN, verify.PROPOSALS, verify.BOX_HEAD, verify.REFINED,
              verify.DETECTIONS, verify.MASK_HEAD, verify.MASKS]
    if not isinstance(model.roi_head.bbox_head, nn.ModuleList):
        stages.remove(verify.REFINED)
    assert list(found) == (stages if model.roi_head.with_mask else stages[:-2])
    assert all(0 <= difference < limit / 2 for difference, limit in found.values())


def swap(layer, width=1):
    """Exchange what a layer predicts for the first two classes."""
    for values in (layer.weight.data, layer.bias.data):
        first, second = values[:width].clone(), values[width:2 * width].clone()
        values[:width], values[width:2 * width] = second, first


def last(module):
    return detectors.as_list(module)[-1]


# In what another model differs, whose file is then a wrong one, and the stage that tells.
WRONG = {
    'no normalisation': (verify.FEATURES, lambda m: setattr(
        m.data_preprocessor, '_enable_normalize', False)),
    'channels in another order': (verify.FEATURES, lambda m: setattr(
        m.data_preprocessor, '_channel_conversion', not m.data_preprocessor._channel_conversion)),
    'no batch norm in one layer': (verify.FEATURES, lambda m: m.backbone.layer3[1].bn1
                                   .reset_running_stats()),
    'RPN boxes': (verify.RPN, lambda m: swap(m.rpn_head.rpn_reg, 4)),
    'RPN scores': (verify.RPN, lambda m: swap(m.rpn_head.rpn_cls)),
    'RPN anchors': (verify.PROPOSALS, lambda m: m.rpn_head.prior_generator.base_anchors[0].add_(
        1.)),
    'RPN candidates': (verify.PROPOSALS, lambda m: m.rpn_head.test_cfg.update(nms_pre=40)),
    'RPN overlap': (verify.PROPOSALS, lambda m: m.rpn_head.test_cfg.nms.update(
        iou_threshold=0.6)),
    'number of regions': (verify.PROPOSALS, lambda m: m.rpn_head.test_cfg.update(max_per_img=40)),
    'classes': (verify.BOX_HEAD, lambda m: swap(last(m.roi_head.bbox_head).fc_cls)),
    'boxes of classes': (verify.BOX_HEAD, lambda m: swap(last(m.roi_head.bbox_head).fc_reg, 4)),
    'sampling': (verify.BOX_HEAD, lambda m: setattr(
        last(m.roi_head.bbox_roi_extractor).roi_layers[0], 'aligned', False)),
    'scale of boxes': (verify.DETECTIONS, lambda m: setattr(
        last(m.roi_head.bbox_head).bbox_coder, 'stds', (0.1, 0.1, 0.1, 0.1))),
    'boxes beyond the image': (verify.DETECTIONS, lambda m: setattr(
        last(m.roi_head.bbox_head).bbox_coder, 'clip_border', False)),
    'score threshold': (verify.DETECTIONS, lambda m: m.roi_head.test_cfg.update(score_thr=0.2)),
    'lower score threshold': (verify.DETECTIONS, lambda m: m.roi_head.test_cfg.update(
        score_thr=0.01)),
    'overlap': (verify.DETECTIONS, lambda m: m.roi_head.test_cfg.nms.update(iou_threshold=0.6)),
    'lower overlap': (verify.DETECTIONS, lambda m: m.roi_head.test_cfg.nms.update(
        iou_threshold=0.4)),
    'number of detections': (verify.DETECTIONS, lambda m: m.roi_head.test_cfg.update(
        max_per_img=20)),
    'masks': (verify.MASK_HEAD, lambda m: swap(last(m.roi_head.mask_head).conv_logits)),
}


@pytest.mark.parametrize('wrong', WRONG)
def test_wrong_files(built, sized, wrong, precision):
    stage, change = WRONG[wrong]
    other = copy.deepcopy(built['Mask R-CNN'][0])
    change(other)
    with pytest.raises(InputError, match=f'disagree in the stage {stage!r}') as error:
        verified(other, sized('Mask R-CNN', precision), precision, size=None)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('stage', 'change'), [
    (verify.BOX_HEAD, lambda head: swap(head.bbox_head[0].fc_cls)),
    (verify.REFINED, lambda head: setattr(head.bbox_head[0].bbox_coder, 'stds', (0.1, ) * 4)),
    (verify.MASK_HEAD, lambda head: swap(head.mask_head[0].conv_logits))])
def test_a_wrong_stage_of_a_cascade(built, sized, stage, change, precision):
    other = copy.deepcopy(built['Cascade R-CNN'][0])
    change(other.roi_head)
    with pytest.raises(InputError, match=f'disagree in the stage {stage!r}'):
        verified(other, sized('Cascade R-CNN', precision), precision, size=None)


def test_masks_of_another_class(built, precision, monkeypatch):
    model, patterns = built['Mask R-CNN']
    masks = detectors._masks
    monkeypatch.setattr(detectors, '_masks', lambda head, maps, boxes, labels: masks(
        head, maps, boxes, (labels + 1) % 3))
    file = exported(model, patterns, precision)
    with pytest.raises(InputError, match=f'disagree in the stage {verify.MASKS!r}'):
        verified(model, file, precision)


def shaken(file: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """``file`` with each float16 weight moved by up to one unit in the last place, as much as
    rounding to float16 could move what a layer computes on another machine, and twice that."""
    file, generator = copy.deepcopy(file), np.random.default_rng(seed)
    for initializer in file.graph.initializer:
        weight = numpy_helper.to_array(initializer)
        if weight.dtype == np.float16:
            moved = weight + np.spacing(weight) * generator.integers(-1, 2, weight.shape)
            moved = np.where(weight == 0, weight, moved).astype(np.float16)
            initializer.CopyFrom(numpy_helper.from_array(moved, initializer.name))
    return file


@pytest.mark.parametrize('precision', ['float16'], scope='module', indirect=True)
def test_another_machines_rounding(built, sized, precision):
    """It takes a detection across the score threshold, which is laid between the detection's two
    scores; the file is as sound as before."""
    model, patterns = copy.deepcopy(built['Mask R-CNN'])
    about = small.about(precision=precision, size=None)

    def detections(file):
        runtime = OnnxDetector(file.SerializeToString(), about)
        return (reference.predict(model, small.batch(small.noise()), about),
                runtime.test_step(small.batch(small.noise()))[0].pred_instances)

    expected, found = detections(shaken(sized('Mask R-CNN', precision), seed=0))
    scores = [(expected.scores[a].item(), found.scores[b].item())
              for a, b in agreement._pairs(expected, found)]
    apart = max(scores, key=lambda pair: abs(pair[0] - pair[1]))
    model.roi_head.test_cfg.score_thr = sum(apart) / 2
    file = shaken(exported(model, patterns, precision, size=None), seed=0)
    assert agreement.compare(*detections(file)).alone > 0
    verified(model, file, precision, (small.SIZE, (40, 90)), size=None)


def test_feature_maps(built, precision):
    model, patterns = built['Mask R-CNN']
    other = copy.deepcopy(model)
    other.neck.fpn_convs[0].conv.bias.data += 1
    file = exported(model, patterns, precision, kind='features')
    assert list(verified(model, file, precision, kind='features').worst) == [verify.FEATURES]
    with pytest.raises(InputError, match='features_0 differs by'):
        verified(other, file, precision, kind='features')
    other.neck.fpn_convs[0].conv.bias.data += torch.nan
    with pytest.raises(InputError, match='features_0 differs by nan'):
        verified(other, file, precision, kind='features')


def test_rounding_grows_with_depth_and_with_the_sums():
    one, wide = nn.Linear(4, 4), nn.Linear(4096, 4)
    assert verify.rounding([one], 'float16') > 1000 * verify.rounding([one], 'float32')
    assert verify.rounding([one] * 7, 'float32') == 2 * verify.rounding([one], 'float32')
    assert verify.rounding([wide], 'float32') > 10 * verify.rounding([one], 'float32')


def test_agreement_is_printed_as_found():
    total = Agreement(3, 0.01, 1e-4, (1, 100), 1)
    total.add(Agreement(4, 0.02, 1e-5, (0, 100), 1))
    assert total == Agreement(7, 0.02, 1e-4, (1, 200), 2)
    assert str(total) == ('7 detections in both, boxes within 2.0e-02 px, scores within 1.0e-04, '
                          'masks equal but for 0.50% of their pixels; in one only: 2')

"""Sound files are taken, whatever the rounding of the machine; wrong ones are not."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from maxq_mm.deploy import detectors, export, reference, verify
from maxq_mm.deploy.agreement import Agreement, compare
from maxq_mm.deploy.onnx_detector import OnnxDetector
from maxq_mm.utils.errors import InputError

from . import small


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


@pytest.mark.parametrize('precision', ['float32', 'float16'])
def test_sound_files(detector, precision):
    """The sizes of a file for any size have nothing in common with that of its trace."""
    model, patterns = detector
    file = exported(model, patterns, precision, size=None)
    found = verified(model, file, precision, ((64, 64), (200, 130), (32, 32)), size=None).worst
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


# What is wrong with the model that is exported in place of another, and the stage that tells.
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


@pytest.mark.parametrize('precision', ['float32', 'float16'])
@pytest.mark.parametrize('wrong', WRONG)
def test_wrong_files(mask_rcnn, wrong, precision):
    model, patterns = mask_rcnn
    stage, spoil = WRONG[wrong]
    other = copy.deepcopy(model)
    spoil(other)
    with pytest.raises(InputError, match=f'disagree in the stage {stage!r}') as error:
        verified(model, exported(other, patterns, precision), precision)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('precision', ['float32', 'float16'])
@pytest.mark.parametrize(('stage', 'spoil'), [
    (verify.BOX_HEAD, lambda head: swap(head.bbox_head[0].fc_cls)),
    (verify.REFINED, lambda head: setattr(head.bbox_head[0].bbox_coder, 'stds', (0.1, ) * 4)),
    (verify.MASK_HEAD, lambda head: swap(head.mask_head[0].conv_logits))])
def test_a_wrong_stage_of_a_cascade(built, stage, spoil, precision):
    model, patterns = built['Cascade R-CNN']
    other = copy.deepcopy(model)
    spoil(other.roi_head)
    with pytest.raises(InputError, match=f'disagree in the stage {stage!r}'):
        verified(model, exported(other, patterns, precision), precision)


@pytest.mark.parametrize('precision', ['float32', 'float16'])
def test_masks_of_another_class(mask_rcnn, precision, monkeypatch):
    model, patterns = mask_rcnn
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


def test_another_machines_rounding(mask_rcnn):
    """Other proposals survive, and so other detections; the file is as sound as before."""
    model, patterns = mask_rcnn
    file, about = exported(model, patterns, 'float16'), small.about(precision='float16')
    alone = 0
    for seed in range(3):
        other = shaken(file, seed)
        runtime = OnnxDetector(other.SerializeToString(), about)
        for shape in (small.SIZE, (40, 90)):
            data = small.batch(small.noise(*shape))
            found = runtime.test_step(data)[0].pred_instances
            alone += compare(reference.predict(model, data, about), found).alone
        verified(model, other, 'float16', (small.SIZE, (40, 90)))
    assert alone > 0


def test_feature_maps(mask_rcnn):
    model, patterns = mask_rcnn
    other = copy.deepcopy(model)
    other.neck.fpn_convs[0].conv.bias.data += 1
    for precision in ('float32', 'float16'):
        file = exported(model, patterns, precision, kind='features')
        found = verified(model, file, precision, kind='features')
        assert list(found.worst) == [verify.FEATURES]
        with pytest.raises(InputError, match='features_0 differs by'):
            verified(other, file, precision, kind='features')
        about = small.about(kind='features', precision=precision)
        maps = {name: torch.full_like(map_, torch.nan) for name, map_ in reference.features(
            model, small.batch(small.noise()), about).items()}
        with pytest.raises(InputError, match='features_0 differs by nan'):
            found._check_features(maps, maps)


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

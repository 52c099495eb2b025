"""The traceable function says what mmdet predicts."""

import pytest
import torch

from maxq_mm.deploy import detectors, reference

from . import small


def as_mmdet(model, image, size=small.SIZE):
    """mmdet's detections in an image padded to ``size``."""
    return reference.predict(model, small.batch(image), small.about(size=size))


def padded(image, size=small.SIZE, value=7.):
    canvas = torch.full((1, 3, *size), value)
    canvas[0, :, :image.shape[1], :image.shape[2]] = image
    return canvas, torch.tensor(image.shape[1:])


@pytest.mark.parametrize('dynamic', [False, True])
@pytest.mark.parametrize('shape', [small.SIZE, (50, 61)])
@torch.no_grad()
def test_detections_are_those_of_mmdet(detector, shape, dynamic):
    model, _ = detector
    image = small.noise(*shape)
    expected = as_mmdet(model, image)
    labels, boxes, scores, *_ = detectors.detect(model, *padded(image), dynamic=dynamic)
    assert len(expected) == 30
    assert torch.equal(labels, expected.labels)
    torch.testing.assert_close(boxes, expected.bboxes, atol=1e-4, rtol=0)
    torch.testing.assert_close(scores, expected.scores)
    assert boxes[:, 0::2].max() <= shape[1]
    assert boxes[:, 1::2].max() <= shape[0]


@torch.no_grad()
def test_masks_are_in_the_boxes_of_their_classes(mask_rcnn, runtime):
    model, _ = mask_rcnn
    image = small.noise()
    expected = as_mmdet(model, image)
    labels, boxes, scores, masks = detectors.detect(model, *padded(image))
    assert masks.shape == (30, 28, 28)
    found = runtime._instances(dict(
        labels=labels.numpy(), boxes=boxes.numpy(), scores=scores.numpy(), masks=masks.numpy()),
        small.batch(image)['data_samples'][0].metainfo)
    assert (found.masks ^ expected.masks).sum() <= 2


@pytest.mark.parametrize('changes', [
    {'roi_head.bbox_head.reg_class_agnostic': True},
    {'roi_head.mask_head.class_agnostic': True},
    {'rpn_head.loss_cls': dict(type='CrossEntropyLoss', use_sigmoid=False)},
    {'test_cfg.rpn.min_bbox_size': 20}, {'test_cfg.rpn.nms_pre': 5000},
    {'test_cfg.rcnn.max_per_img': -1}, {'test_cfg.rcnn.nms.iou_threshold': 0.1},
    {'data_preprocessor.bgr_to_rgb': False, 'data_preprocessor.pad_value': 1},
    {'data_preprocessor.mean': None, 'data_preprocessor.std': None},
], ids=lambda changes: next(iter(changes)))
@torch.no_grad()
def test_settings_are_followed(changes):
    model, _ = small.build(small.model_config(**changes))
    image = small.noise(60, 90)
    expected = as_mmdet(model, image)
    labels, boxes, scores, masks = detectors.detect(model, *padded(image))
    assert len(expected) > 5
    assert torch.equal(labels, expected.labels)
    assert len(masks) == len(labels)
    torch.testing.assert_close(boxes, expected.bboxes, atol=1e-3, rtol=0)
    torch.testing.assert_close(scores, expected.scores, atol=1e-4, rtol=0)


def test_preparation_is_that_of_the_preprocessor(mask_rcnn):
    model, _ = mask_rcnn
    image = small.noise(64, 90)
    expected = model.data_preprocessor(small.batch(image))['inputs']
    canvas, size = padded(image, value=float('nan'))
    assert torch.equal(detectors.prepare(model.data_preprocessor, canvas, size), expected)


@torch.no_grad()
def test_feature_maps_are_those_of_the_model(mask_rcnn):
    model, _ = mask_rcnn
    image = small.noise()
    maps = model.extract_feat(model.data_preprocessor(small.batch(image))['inputs'])
    found = detectors.features(model, *padded(image))
    assert len(found) == len(maps) == 4
    assert list(found) == [f'features_{level}' for level in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(found.values(), maps, strict=True))

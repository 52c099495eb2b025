import pytest
import torch

from maxq_mm.allocation.images import look
from maxq_mm.allocation.outputs import MASKS, PRIORS, REGIONS, check_detector, choose
from maxq_mm.utils.errors import InputError

from ..deploy import small
from .conftest import DETECTORS, build, images, of_one_stage

TWO_STAGES = {'confidence of anchors', 'localisation of anchors', 'confidence of regions',
              'localisation of regions'}
NAMES = {
    'Mask R-CNN': TWO_STAGES | {'confidence of masks'},
    'Faster R-CNN': TWO_STAGES,
    'RetinaNet': {'confidence', 'localisation'},
    'FCOS': {'confidence', 'localisation', 'confidence, further 0'},
    'ATSS': {'confidence', 'localisation', 'confidence, further 0'},
}


@pytest.mark.parametrize('name', NAMES)
def test_what_each_detector_says(name):
    for places in look(build(DETECTORS[name]()), images(1)):
        assert places.said.keys() == NAMES[name]
        assert all(value.ndim == 2 and value.isfinite().all() for value in places.said.values())
        assert 100 < len(places.priors) == len(places.levels) <= PRIORS
        for kind in (part for part in places.said if 'localisation' in part):
            assert places.said[kind].shape[1] == 4


def test_priors_are_those_with_the_highest_scores():
    model = build(DETECTORS['RetinaNet']())
    (places, ) = look(model, images(1))
    with torch.no_grad():
        levels = model.bbox_head(model.extract_feat(places.inputs))[0]
    rows = torch.cat([level[0].permute(1, 2, 0).reshape(-1, 3) for level in levels])
    best = rows.amax(dim=1).sort(descending=True).values
    torch.testing.assert_close(
        places.said['confidence'].amax(dim=1).sort(descending=True).values, best[:PRIORS])
    sizes = [level[0].numel() // 3 for level in levels]
    assert torch.equal(places.levels, torch.repeat_interleave(
        torch.arange(len(sizes)), torch.tensor(sizes))[places.priors])


def test_regions_are_those_with_the_highest_foreground(mask_rcnn):
    (places, ) = look(mask_rcnn, images(1))
    features = mask_rcnn.extract_feat(places.inputs)
    proposals = mask_rcnn.rpn_head.predict(features, places.samples, rescale=False)[0].bboxes
    assert len(places.rois) == min(REGIONS, len(proposals))
    assert len(places.mask_rois) <= MASKS
    logits = mask_rcnn.roi_head._bbox_forward(features, places.rois)['cls_score']
    assert torch.equal(places.classes, logits[:, :-1].argmax(dim=1))
    centred = logits - logits.mean(dim=1, keepdim=True)
    torch.testing.assert_close(places.said['confidence of regions'], centred)


def test_batches_are_taken_image_by_image(mask_rcnn):
    singles = images(2)
    batch = dict(inputs=[one['inputs'] for one in singles],
                 data_samples=[one['data_samples'] for one in singles])
    for one, other in zip(look(mask_rcnn, singles), look(mask_rcnn, [batch]), strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert all(torch.equal(one.said[name], other.said[name]) for name in one.said)


def test_an_image_in_which_nothing_is_found(mask_rcnn):
    mask_rcnn.roi_head.test_cfg.score_thr = 1.1
    (places, ) = look(mask_rcnn, images(1))
    assert places.mask_rois is None
    assert places.said.keys() == TWO_STAGES


def test_refused_detectors():
    cascade = build(small.cascade_config())
    with pytest.raises(InputError, match='CascadeRCNN cannot be .*its RoI head is a Cascade'):
        check_detector(cascade)
    with pytest.raises(InputError, match='Linear cannot be .*neither of one nor of two'):
        check_detector(torch.nn.Linear(2, 2))
    cfg = of_one_stage('retinanet/retinanet_r18_fpn_1x_coco')
    model = build(cfg)
    model.bbox_head = torch.nn.Identity()
    with pytest.raises(InputError, match='RetinaNet cannot be .*its head is a Identity'):
        check_detector(model)
    model = build(cfg)
    model.bbox_head.forward = lambda features: features
    with pytest.raises(InputError, match='RetinaHead cannot be read: its outputs are no maps'):
        look(model, images(1))


def test_refused_data(mask_rcnn):
    with pytest.raises(InputError, match='data has no images'):
        look(mask_rcnn, [])
    with pytest.raises(InputError, match='got a Tensor'):
        look(mask_rcnn, [torch.zeros(3, 8, 8)])


def test_choosing_keeps_no_graph(mask_rcnn):
    data = mask_rcnn.data_preprocessor(small.batch(small.noise()))
    places = choose(mask_rcnn, data['inputs'], data['data_samples'])
    assert not any(value.requires_grad for value in places.said.values())

"""What surrounds the layers of a detector: same results as mmcv's and mmdet's, or left to them."""

import copy

import pytest
import torch
from mmcv.ops import RoIAlign, nms
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import GenericRoIExtractor, SingleRoIExtractor
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import nn

from maxq_mm.runtime import detectors, masks, regions, suppression
from maxq_mm.runtime.detectors import install_around

from .region_cases import check, random_boxes
from .test_kernels import needs_kernels


@needs_kernels
@pytest.mark.parametrize(('seed', 'threads'), [(0, 1), (1, 3)])
def test_random_cases(seed, threads):
    torch.set_num_threads(threads)
    check(seed, 20)


@needs_kernels
def test_what_has_no_kernel():
    align = regions.RoiAlign((7, 7), (1., ), 0, True)
    maps, rois = [torch.randn(1, 4, 9, 9)], torch.tensor([[0., 1, 1, 5, 5]])
    assert align.takes(maps, rois)
    assert not align.takes([maps[0].double()], rois.double())
    assert not align.takes([maps[0].requires_grad_()], rois)
    maps[0].requires_grad_(False)
    for place, value in ((0, 1.), (0, -1.), (1, float('nan')), (3, float('inf')), (3, 0.)):
        other = rois.clone()
        other[0, place] = value  # no such image, no number, inside out
        assert not align.takes(maps, other)
    assert not align.takes(maps * 2, rois)
    assert not align.takes([maps[0][:, :, :0]], rois)
    probabilities, boxes = torch.rand(1, 28, 28), torch.tensor([[1., 1, 5, 5]])
    assert masks.can_paste(probabilities, boxes, (9, 9))
    for box in ([1., 1, 1, 5], [1, 1, float('nan'), 5], [-5, 1, -1, 5], [10, 1, 12, 5]):
        assert not masks.can_paste(probabilities, torch.tensor([box]), (9, 9))
    plain = dict(type='nms', iou_threshold=0.5)
    assert suppression.can_select(dict(nms=plain, max_per_img=100))
    for settings in (dict(nms=plain), dict(nms=plain, max_per_img=-1),
                     dict(nms=dict(plain, type='soft_nms'), max_per_img=100),
                     dict(nms=dict(plain, class_agnostic=True), max_per_img=100)):
        assert not suppression.can_select(settings)


class Detector(nn.Module):
    """Just the modules."""

    def __init__(self) -> None:
        super().__init__()
        layer = dict(type='RoIAlign', output_size=7, sampling_ratio=0)
        self.extractor = SingleRoIExtractor(layer, 8, [4, 8])
        self.sum = GenericRoIExtractor(roi_layer=layer, out_channels=8, featmap_strides=[4, 8])
        self.largest = RoIAlign(7, 0.25, pool_mode='max')
        self.boxes = BBoxHead(num_classes=30, in_channels=8)
        self.masks = FCNMaskHead(num_convs=1, in_channels=8, conv_out_channels=8, num_classes=30)
        self.eval().requires_grad_(False)


@pytest.fixture
def pair(monkeypatch):
    """Modules as they are, and with kernels."""
    monkeypatch.setattr(detectors, 'takes_images', lambda model: True)
    before = Detector()
    after = copy.deepcopy(before)
    found = install_around(after)
    return before, copy.deepcopy(after), dict(found)


def same(module, other, *args, **kwargs):
    results = [m(*copy.deepcopy(args), **copy.deepcopy(kwargs)) for m in (module, other)]
    torch.testing.assert_close(*results, rtol=0, atol=1e-5)
    return results[0]


@needs_kernels
def test_modules_of_detectors(pair):
    """Instances change, with what falls back, and no class does."""
    before, after, found = pair
    assert found == {'extractor': 'RoIAlign of all levels', 'boxes': 'suppression',
                     'masks': 'pasting', 'sum.roi_layers.0': 'RoIAlign',
                     'sum.roi_layers.1': 'RoIAlign'}
    assert type(after.largest) is RoIAlign, 'takes the largest of the samples'
    assert type(before.extractor) is SingleRoIExtractor
    assert type(after.extractor).__name__ == 'AcceleratedSingleRoIExtractor'
    with pytest.raises(ValueError, match='accelerated'):
        after.extractor.train()
    maps = torch.randn(2, 8, 40, 40), torch.randn(2, 8, 20, 20)
    rois = torch.cat([torch.randint(2, (30, 1)).float(), random_boxes(30, 160, 160)], 1)
    for name in ('extractor', 'sum'):
        assert same(getattr(before, name), getattr(after, name), maps, rois).shape == (30, 8, 7, 7)
        same(getattr(before, name), getattr(after, name), maps, rois[:0])
        same(getattr(before, name), getattr(after, name), maps, rois, roi_scale_factor=1.5)
    same(before.extractor, after.extractor, maps[:1], rois)
    same(before.largest, after.largest, maps[0], rois)
    one = maps[0].clone().requires_grad_()
    after.extractor((one, maps[1]), rois).sum().backward()
    assert one.grad.abs().sum() > 0


def instances(boxes):
    return InstanceData(bboxes=boxes.clone(), labels=torch.randint(30, (len(boxes), )),
                        scores=torch.rand(len(boxes)))


@needs_kernels
@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize('seed', range(10))
def test_suppression_is_mmcvs(seed, threads, monkeypatch):
    """To the bit: equal scores, boxes without an area or inside out, some apart, none at all."""
    torch.manual_seed(seed)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    for count, threshold in ((0, 0.5), (1, 0.), (7, 0.3), (300, 0.5), (400, 0.7), (300, 1.)):
        corners = torch.rand(count, 2) * 300
        boxes = torch.cat([corners, corners + torch.rand(count, 2) * 60], 1)
        scores = torch.rand(count)
        if seed % 2:
            boxes, scores = boxes.round(), (scores * 20).round()
        boxes += torch.randint(4, (count, 1)) * 400. - (150 if seed % 3 else 0)
        if seed % 5 == 0:
            boxes[:count // 3] = boxes[:count // 3, [2, 3, 0, 1]]
            boxes[count // 2::2, 2:] = boxes[count // 2::2, :2]
        found, expected = suppression.nms(boxes, scores, threshold), nms(boxes, scores, threshold)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_kernels
def test_suppression_without_a_kernel(monkeypatch):
    """mmcv's own, and no other."""
    boxes, scores = random_boxes(50, 40, 40), torch.rand(50)
    endless = torch.cat([boxes[:-1], torch.tensor([[0., 0, torch.inf, 1]])])
    others = [(boxes, scores, -1.), (endless, scores, 0.5)]
    expected = [nms(*case) for case in others]
    monkeypatch.setattr(suppression, '_function', None)
    for case, wanted in zip(others, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(suppression.nms(*case), wanted, strict=True))
    with pytest.raises(TypeError):
        suppression.nms(boxes, scores, 0.5)


@needs_kernels
@pytest.mark.parametrize('settings', [
    dict(), dict(min_bbox_size=4), dict(nms=dict(type='nms', iou_threshold=0.5, max_num=9)),
    dict(nms=dict(type='soft_nms', iou_threshold=0.5)), dict(min_bbox_size=1000)],
    ids=str)
def test_proposals(settings, monkeypatch):
    """mmdet's, in its order, whatever it is asked for; its settings stay."""
    monkeypatch.setattr(detectors, 'takes_images', lambda model: True)
    torch.manual_seed(0)
    cfg = ConfigDict(dict(nms_pre=200, max_per_img=100, min_bbox_size=0,
                          nms=dict(type='nms', iou_threshold=0.7)) | settings)
    expected = RPNHead(in_channels=8, feat_channels=8, test_cfg=cfg).eval().requires_grad_(False)
    other = copy.deepcopy(expected)
    assert install_around(other) == (('', 'suppression'), )
    maps = [torch.randn(2, 8, 64 >> i, 96 >> i) * 30 for i in range(5)]
    metas = [dict(img_shape=(256, 384)), dict(img_shape=(200, 300))]
    for a, b in zip(other.predict_by_feat(*other(maps), batch_img_metas=metas),
                    expected.predict_by_feat(*expected(maps), batch_img_metas=metas), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a.keys())  # noqa: SIM118
    assert other.test_cfg == cfg
    assert 0 < len(a) <= 100 or cfg.min_bbox_size == 1000


@needs_kernels
@pytest.mark.parametrize('rescale', [True, False])
@pytest.mark.parametrize('threshold', [0.5, -1])
def test_masks_of_a_head(pair, rescale, threshold):
    """Also an empty box, which mmdet's operators answer for; results are changed alike."""
    before, after, _ = pair
    meta = dict(ori_shape=(50, 70), scale_factor=(1.5, 1.25), img_shape=(62, 105))
    boxes = torch.rand(6, 2) * 40
    boxes = torch.cat([boxes, boxes + 1 + torch.rand(6, 2) * 20], 1)
    logits = torch.randn(6, 30, 28, 28)
    for empty in (False, True):
        boxes[3, 2:] = boxes[3, :2] if empty else boxes[3, 2:]
        given = instances(boxes)
        found = [m.masks.predict_by_feat([logits], [copy.deepcopy(given)], [meta],
                                         ConfigDict(mask_thr_binary=threshold), rescale)[0]
                 for m in (before, after)]
        assert torch.equal(found[0].masks, found[1].masks)
        assert found[0].masks.any()
        assert torch.equal(found[0].bboxes, found[1].bboxes)


@needs_kernels
@pytest.mark.parametrize('settings', [
    dict(score_thr=0., max_per_img=20), dict(score_thr=0.05, max_per_img=20),
    dict(score_thr=0., max_per_img=-1), dict(score_thr=0.9, max_per_img=20), None])
def test_boxes_of_a_head(pair, settings):
    before, after, _ = pair
    rois = torch.cat([torch.zeros(120, 1), random_boxes(120, 100, 80).clamp(min=0)], 1)
    settings = settings and ConfigDict(settings, nms=dict(type='nms', iou_threshold=0.5))
    meta = dict(img_shape=(80, 100), scale_factor=(2., 2.))
    scores, deltas = torch.randn(120, 31), torch.randn(120, 120)
    for count in (120, 0):
        found = [m.boxes.predict_by_feat(
            (rois[:count], ), (scores[:count], ), (deltas[:count], ), [meta],
            rcnn_test_cfg=settings, rescale=True)[0] for m in (before, after)]
        assert {*found[0].keys()} == {*found[1].keys()}
        for name in found[0].keys():  # noqa: SIM118  iterating gives instances
            assert torch.equal(found[0][name], found[1][name]), name


def test_models_that_stay(monkeypatch):
    """No detector, or no kernels."""
    model = Detector()
    assert install_around(model) == ()
    monkeypatch.setattr(detectors, 'takes_images', lambda model: True)
    monkeypatch.setattr(detectors, 'library', lambda: None)
    assert install_around(model) == ()
    assert type(model.extractor) is SingleRoIExtractor

"""Random regions, masks and boxes, held against mmcv's and mmdet's; run in other processes, too."""

import random

import torch
from mmcv.ops import RoIAlign
from mmdet.models.layers import multiclass_nms
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

from maxq_mm.runtime import masks, regions
from maxq_mm.runtime.suppression import suppress


def random_boxes(count: int, width: float, height: float) -> torch.Tensor:
    """Small, large, empty ones, also beyond the image."""
    size = torch.tensor([width, height])
    low = (torch.rand(count, 2) * 1.6 - 0.3) * size
    high = low + torch.rand(count, 2)**3 * 1.5 * size
    high[::5] = low[::5]
    return torch.cat([low, high], 1)


def check_roi_align(choose: random.Random) -> None:
    """A random pyramid."""
    levels, batch, channels = choose.randint(1, 4), choose.randint(1, 2), choose.choice(
        [choose.randint(1, 20), 16, 32, 80])
    height, width, count = choose.randint(1, 60), choose.randint(1, 60), choose.randint(0, 20)
    maps = [torch.randn(batch, channels, -(-height // 2**i), -(-width // 2**i))
            for i in range(levels)]
    if choose.random() < 0.5:
        maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    size = choose.choice([(7, 7), (14, 14), (choose.randint(1, 20), choose.randint(1, 20))])
    scale = tuple(choose.choice([1., 0.25]) / 2**i for i in range(levels))
    sampling, aligned = choose.choice([0, 0, 1, 2, 3]), choose.random() < 0.6
    rois = torch.cat([torch.randint(batch, (count, 1)).float(),
                      random_boxes(count, width / scale[0], height / scale[0])], 1)
    level = torch.randint(levels, (count, ))
    align = regions.RoiAlign(size, scale, sampling, aligned)
    assert align.takes(maps, rois)
    found = align(maps, rois, level)
    assert found.shape == (count, channels, *size)
    for i in range(levels):
        layer = RoIAlign(size, scale[i], sampling, aligned=aligned)
        # mmcv's takes what is channels-last for what is not.
        expected = layer(maps[i].contiguous(), rois[level == i])
        torch.testing.assert_close(found[level == i], expected, rtol=0, atol=1e-5,
                                   msg=f'{maps[i].shape} {size} {scale} {sampling} {aligned}')


def check_paste(choose: random.Random) -> None:
    """Random masks: equal, to the pixel, also where all values are next to the threshold."""
    height, width, count = choose.randint(1, 150), choose.randint(1, 150), choose.randint(1, 8)
    size = choose.choice([(28, 28), (choose.randint(1, 40), choose.randint(1, 40))])
    probabilities = choose.choice([
        torch.rand(count, *size), 0.5 + 1e-7 * torch.randn(count, *size),
        (torch.rand(count, *size) > 0.5).float(), torch.full((count, *size), 0.5)])
    low = torch.rand(count, 2) * torch.tensor([width, height])
    high = low + 1e-3 + torch.rand(count, 2)**2 * torch.tensor([width, height])
    boxes = torch.cat([low, high], 1)
    if choose.random() < 0.3:
        boxes = torch.cat([low.floor(), low.floor() + (high - low).ceil()], 1)
    threshold = choose.choice([0.5, 0., 0.3])
    assert masks.can_paste(probabilities, boxes, (height, width))
    expected = torch.zeros(count, height, width, dtype=torch.bool)
    for i in range(count):
        part, where = _do_paste_mask(probabilities[i:i + 1, None], boxes[i:i + 1], height, width)
        expected[(i, *where)] = (part >= threshold)[0]
    found = masks.paste(probabilities, boxes, (height, width), threshold)
    if found is None:  # too many pixels in doubt
        assert (probabilities - threshold).abs().amin() < 1e-5
    else:
        assert torch.equal(found, expected)


def check_suppression(choose: random.Random) -> None:
    """Random boxes of all classes or of each, of which most are suppressed or few are."""
    classes, count = choose.randint(20, 40), choose.randint(100, 150)
    each = choose.random() < 0.5
    low = torch.rand(count, (classes if each else 1), 2) * choose.choice([10, 1000])
    boxes = torch.cat([low, low + 5 + 100 * torch.rand_like(low)], 2).flatten(1)
    scores = torch.randn(count, classes + 1).softmax(1)
    settings = dict(score_thr=choose.choice([0., 1e-3, 0.5]), max_per_img=choose.choice([5, 100]),
                    nms=dict(type='nms', iou_threshold=choose.choice([0.01, 0.5])))
    found = suppress(boxes, scores, settings)
    expected = multiclass_nms(boxes, scores, settings['score_thr'], settings['nms'],
                              settings['max_per_img'])
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def check(seed: int, count: int) -> None:
    """So many random cases of each."""
    torch.manual_seed(seed)
    choose = random.Random(seed)
    for _ in range(count):
        check_roi_align(choose)
        check_paste(choose)
        check_suppression(choose)

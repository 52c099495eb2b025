"""Detectors of mmdet from a file to serve from: two stages and one, by mmdet's own functions."""

import copy

import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector
from mmengine.config import Config

from maxq_mm import accelerate, load_accelerated, save_accelerated
from maxq_mm.cli.load_bench import Server, bench_load, make_requests, show_load
from maxq_mm.runtime.partition import SPARSE

from ..allocation.conftest import DETECTORS, build
from .test_accelerate import force, sparse
from .test_detector import detections

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 64), keep_ratio=True),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                                                  'scale_factor'))]
TRACED = {'Mask R-CNN': ('rpn_head', 'roi_head.bbox_head', 'roi_head.mask_head'),
          'Faster R-CNN': ('rpn_head', 'roi_head.bbox_head'), 'RetinaNet': ('bbox_head', )}


def served(name, path):
    """An accelerated detector that finds something in noise, its file, and the detector of it."""
    cfg = DETECTORS[name]()
    settings = cfg.test_cfg.get('rcnn', cfg.test_cfg)
    settings.update(score_thr=0., max_per_img=20)
    model = sparse(build(cfg), '2:4')
    model.cfg = Config(dict(
        default_scope='mmdet', model=cfg, test_dataloader=dict(dataset=dict(
            type='CocoDataset', ann_file='nowhere.json', pipeline=PIPELINE))))
    model.dataset_meta = dict(classes=('a', 'b', 'c'), palette='random')
    dense = copy.deepcopy(model)
    with pytest.MonkeyPatch.context() as patch:
        force(patch, SPARSE)
        report = accelerate(model, torch.randn(1, 3, 64, 96))
    assert report.traced[0] == f'extract_feat and {TRACED[name][0]}'
    assert report.traced[1:] == TRACED[name][1:]
    save_accelerated(model, path)
    return dense, model, load_accelerated(path)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected[key]))


@pytest.mark.parametrize('name', TRACED)
def test_it_finds_the_same(name, tmp_path):
    dense, model, loaded = served(name, tmp_path / 'a.pth')
    for size in ((1, 64, 96), (2, 96, 64)):
        batch, *size = size
        images = torch.randn(batch, 3, *size)
        for found, expected in zip(detections(loaded, images), detections(model, images),
                                   strict=True):
            assert len(found) > 0
            assert_equal(found, expected)
    draw = np.random.default_rng(0)
    for size in ((1, 1), (50, 70), (200, 31)):
        image = draw.integers(0, 255, (*size, 3)).astype(np.uint8)
        found = inference_detector(loaded, image).pred_instances
        assert_equal(found, inference_detector(model, image).pred_instances)
        expected = inference_detector(dense, image).pred_instances
        assert abs(len(found) - len(expected)) <= 1
        torch.testing.assert_close(found.scores[:5], expected.scores[:5], rtol=1e-3, atol=1e-4)
    if name == 'Mask R-CNN':
        under_load(loaded, tmp_path)


def under_load(model, folder):
    """Clients get what a single thread gets; broken images are refused, by them alone."""
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 255, (*size, 3)).astype(np.uint8) for size in ((60, 80), (90, 50))]
    requests = make_requests(images, folder)
    assert len({path.name for path in requests}) == len(requests) == 16
    server = Server(model)
    memory = iter(range(1, 10**6))
    row = bench_load(server, requests, 3, 3., 1, lambda: next(memory) * 2**20)
    assert row['different'] == []
    assert row['answered'] + row['refused'] >= 3
    assert row['memory_mib']['start'] == 1 < row['memory_mib']['end']
    assert 'differ from a single thread\'s: 0' in show_load(row)
    refusals = [path.name for path in requests if isinstance(server.answer(path), str)]
    assert refusals == ['empty.png', 'text.png', 'gone.png', 'cut.png', 'header.png']
    answer = server.answer
    count = iter(range(10**6))

    def break_later(path):
        return 'Broken' if next(count) >= 2 * len(requests) else answer(path)

    server.answer = break_later
    row = bench_load(server, requests, 2, .5, 1, lambda: 2**20)
    assert row['answered'] == 0
    assert len(row['different']) == row['refused'] > 0

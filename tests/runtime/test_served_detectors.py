"""Detectors of mmdet from a file to serve from: two stages and one, by mmdet's own functions."""

import copy

import pytest
import torch
from mmdet.apis import inference_detector
from mmengine.config import Config

from maxq_mm import accelerate, load_accelerated, save_accelerated
from maxq_mm.cli.load_bench import Server, bench_load, make_requests, show_load
from maxq_mm.runtime.partition import SPARSE

from ..allocation import conftest as one_stage
from ..deploy import small
from .test_accelerate import force, sparse
from .test_detector import detections

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 64), keep_ratio=True),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                                                  'scale_factor'))]
# The backbone alone is sparse in the two-stage ones, so that their other heads are no programs.
TRACED = {'Mask R-CNN': 'rpn_head', 'Faster R-CNN': 'rpn_head', 'RetinaNet': 'bbox_head'}


def served(name, path):
    """An accelerated detector that finds something in noise, its file, and the detector of it."""
    if name == 'RetinaNet':
        cfg = one_stage.DETECTORS[name]()
        cfg.test_cfg.update(score_thr=0., max_per_img=20)
        model = sparse(one_stage.build(cfg), '2:4')
    else:
        cfg = small.model_config(**({} if name == 'Mask R-CNN' else small.NO_MASKS))
        model, _ = small.build(cfg)
    model.cfg = Config(dict(
        default_scope='mmdet', model=cfg, test_dataloader=dict(dataset=dict(
            type='CocoDataset', ann_file='nowhere.json', pipeline=PIPELINE))))
    model.dataset_meta = dict(classes=('a', 'b', 'c'), palette='random')
    dense = copy.deepcopy(model)
    images = model.data_preprocessor(small.batch(small.noise()))['inputs']
    with pytest.MonkeyPatch.context() as patch:
        force(patch, SPARSE)
        report = accelerate(model, images)
    assert report.traced == (f'extract_feat and {TRACED[name]}', )
    save_accelerated(model, path)
    return dense, model, load_accelerated(path)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected[key]))


@pytest.mark.parametrize('name', TRACED)
def test_it_finds_the_same(name, tmp_path):
    dense, model, loaded = served(name, tmp_path / 'a.pth')
    for size in ((64, 96), (96, 64)):
        images = model.data_preprocessor(small.batch(small.noise(*size)))['inputs']
        for found, expected in zip(detections(loaded, images), detections(model, images),
                                   strict=True):
            assert len(found) > 0
            assert_equal(found, expected)
    if name == 'Mask R-CNN':
        under_load(loaded, tmp_path)
    for size in ((1, 1), (50, 70), (200, 31)):
        image = small.noise(*size).permute(1, 2, 0).numpy()
        found = inference_detector(loaded, image).pred_instances
        assert_equal(found, inference_detector(model, image).pred_instances)
        expected = inference_detector(dense, image).pred_instances
        assert abs(len(found) - len(expected)) <= 1
        torch.testing.assert_close(found.scores[:5], expected.scores[:5], rtol=1e-3, atol=1e-4)


def under_load(model, folder):
    """Clients get what a single thread gets; broken images are refused, by them alone."""
    image = small.noise(60, 80).permute(1, 2, 0).numpy()
    requests = make_requests([image], folder)
    assert len({path.name for path in requests}) == len(requests) == 11
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

"""Export and evaluation of the exported file, as a user does them with what training left."""

import importlib
import json
import re

import numpy as np
import onnx
import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import encode

from maxq_mm import satisfies
from maxq_mm.deploy import metadata
from maxq_mm.deploy.onnx_detector import OnnxDetector
from maxq_mm.utils.files import load_file, save_file

from ..running import ROOT, run_tool
from .conftest import CONFIG


@pytest.fixture(scope='module')
def config(trained):
    """The config of the run, its data included."""
    return trained / 'quickstart_mask_rcnn_r18.py'


@pytest.fixture(scope='module')
def exported(config, folded, tmp_path_factory):
    out = tmp_path_factory.mktemp('onnx') / 'new/mask.onnx'
    return out, run_tool('tools/export_onnx.py', config, folded, out, '--verify-images', '3')


def average_precisions(config, path) -> dict[str, float]:
    """Of what the file finds, by pycocotools alone."""
    importlib.import_module('mmdet.datasets')
    init_default_scope('mmdet')
    cfg = Config.fromfile(config)
    detector = OnnxDetector.from_file(path, threads=1)
    truth = COCO(cfg.test_evaluator.ann_file)
    ids = [truth.getCatIds(catNms=name)[0] for name in detector.about.classes]
    results = []
    for item in DATASETS.build(cfg.test_dataloader.dataset):
        found, meta = detector.run(item['inputs']), item['data_samples'].metainfo
        masks = detector.test_step(pseudo_collate([item]))[0].pred_instances.masks
        boxes = found['boxes'] / np.tile(np.float32(meta['scale_factor']), 2)
        boxes[:, 2:] -= boxes[:, :2]
        results += [dict(
            image_id=meta['img_id'], category_id=ids[label], bbox=box.tolist(), score=float(score),
            segmentation=encode(np.asfortranarray(mask.numpy().astype(np.uint8))))
            for label, box, score, mask in zip(found['labels'], boxes, found['scores'], masks,
                                               strict=True)]
    return {f'coco/{kind}_mAP': average_precision(truth, results, kind)
            for kind in ('bbox', 'segm')}


def average_precision(truth, results, kind) -> float:
    evaluation = COCOeval(truth, truth.loadRes(results), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]


def test_export_says_what_it_has_checked(exported):
    out, text = exported
    assert 'exporting MaskRCNN, input 1 x 3 x 128 x 128' in text
    assert '3 image(s), stages fed alike' in text
    stages = dict(re.findall(r'^  (\S.*?) +\S+ of (\S+)$', text, re.MULTILINE))
    assert list(stages) == ['feature maps', 'RPN', 'proposals', 'box head', 'detections',
                            'mask head', 'masks']
    assert all(float(limit) < 1e-3 for limit in stages.values())
    assert re.search(r'as a whole: \d+ detections in both, boxes within \S+ px', text)
    assert re.search(r'19 of 19 N:M layers .* 1,394,688 zeros \(1,394,688 in the check', text)
    assert re.search(r'mask.onnx: \d+\.\d MiB, float32, opset 17', text)
    assert [path.name for path in out.parent.iterdir()] == ['mask.onnx']


def test_the_file_holds_the_checkpoint(exported, folded):
    model, state = onnx.load(exported[0]), load_file(folded)['state_dict']
    about = metadata.read(model)
    assert (about.kind, about.classes, about.size) == (
        'detector', ('disc', 'box', 'triangle'), (128, 128))
    assert about.config == 'quickstart_mask_rcnn_r18.py'
    assert len(about.layers) == 19
    for layer in about.layers.values():
        weight = metadata.layer_weight(model, layer)
        assert torch.equal(weight == 0, state[layer.initializer] == 0)
        assert satisfies(weight, '2:4')


def test_its_scores_are_those_of_what_it_finds(exported, config, tmp_path):
    text = run_tool('tools/test_onnx.py', config, exported[0], '--threads', '1', '--json',
                    tmp_path / 'new/scores.json')
    found = json.loads((tmp_path / 'new/scores.json').read_text())
    expected = average_precisions(config, exported[0])
    assert expected['coco/bbox_mAP'] > 0
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=0.00051)  # three digits
    assert f'coco/bbox_mAP {found["coco/bbox_mAP"]:.3f}' in text


def test_any_size_in_float16(config, folded, exported, tmp_path):
    out = tmp_path / 'half.onnx'
    text = run_tool('tools/export_onnx.py', config, folded, out, '--dynamic', '--fp16',
                    '--verify-images', '2')
    assert 'input of any size (multiples of 32)' in text
    assert '3 image(s)' in text  # one of them is cut
    assert 'float16' in text
    assert out.stat().st_size < 0.52 * exported[0].stat().st_size
    scores = average_precisions(config, out)
    assert scores['coco/bbox_mAP'] > 0
    assert scores['coco/segm_mAP'] > 0


@pytest.fixture
def faster(tmp_path):
    """Config and checkpoint, without MaxQ or data, of a Faster R-CNN with random weights."""
    path = tmp_path / 'faster.py'
    path.write_text(
        f"_base_ = '{ROOT / CONFIG}'\n"
        "model = dict(type='FasterRCNN', roi_head=dict(mask_roi_extractor=None, mask_head=None))\n"
        "val_dataloader = dict(dataset=dict(data_root='nowhere/'))\n")
    return path, random_weights(path, tmp_path / 'faster.pth')


def random_weights(config, path):
    from mmdet.registry import MODELS

    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    save_file(dict(meta={}, state_dict=MODELS.build(cfg.model).state_dict()), path)
    return path


def call(monkeypatch, capsys, tool, *arguments) -> str:
    """Run a tool within this process; returns what it printed."""
    import runpy
    import sys
    monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
    return capsys.readouterr().out


def test_dense_faster_rcnn_without_data(faster, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'faster.onnx'
    text = call(monkeypatch, capsys, 'export_onnx.py', *faster, out, '--size', '64', '96')
    assert 'exporting FasterRCNN, input 1 x 3 x 64 x 96' in text
    assert '1 image(s), ' in text
    assert 'no N:M layers: the checkpoint tells of none' in text
    model = onnx.load(out)
    assert [output.name for output in model.graph.output] == ['labels', 'boxes', 'scores']
    assert metadata.read(model).mask_threshold is None
    text = call(monkeypatch, capsys, 'export_onnx.py', *faster, out, '--dynamic', '--cfg-options',
                'model.test_cfg.rcnn.score_thr=0.99')
    assert '0 detections in both' in text
    assert re.search(r'  detections +\S+ of', text)  # held to mmdet all the same


def test_feature_maps_of_another_detector(refuse, tmp_path, monkeypatch, capsys):
    path, out = tmp_path / 'fcos.py', tmp_path / 'fcos.onnx'
    path.write_text("_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'\n"
                    "model = dict(backbone=dict(depth=18, base_channels=8, init_cfg=None),\n"
                    "    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),\n"
                    "    bbox_head=dict(in_channels=16, feat_channels=32))\n")
    checkpoint = random_weights(path, tmp_path / 'fcos.pth')
    text = call(monkeypatch, capsys, 'export_onnx.py', path, checkpoint, out, '--features',
                '--size', '64', '64')
    assert re.search(r'feature maps +\S+ of', text)
    assert len(onnx.load(out).graph.output) == 5
    assert 'backbone and neck only' in refuse('test_onnx.py', CONFIG, out, '--cfg-options',
                                              'test_dataloader.dataset.ann_file=',
                                              'test_dataloader.dataset.data_prefix.img=',
                                              'test_evaluator.ann_file=')
    error = refuse('export_onnx.py', path, checkpoint, tmp_path / 'whole.onnx')
    assert 'FCOS cannot be exported as a whole' in error
    assert '--features' in error
    assert not (tmp_path / 'whole.onnx').exists()


def test_what_cannot_be_exported(refuse, trained, folded, config, tmp_path):
    out = tmp_path / 'x.onnx'
    error = refuse('export_onnx.py', config, trained / 'epoch_20.pth', out)
    assert '19 of 19 layers do not satisfy their pattern, such as backbone.layer1' in error
    assert '.onnx' in refuse('export_onnx.py', config, folded, tmp_path / 'x.pth')
    assert 'multiples of 32 (pad_size_divisor), got 100 128' in refuse(
        'export_onnx.py', config, folded, out, '--size', '100', '128')
    assert 'give --size H W, or --dynamic' in refuse(
        'export_onnx.py', config, folded, out, '--cfg-options',
        'test_dataloader.dataset.pipeline.1.scale=2')
    assert 'give --size H W, or --dynamic' in refuse(
        'export_onnx.py', config, folded, out, '--cfg-options', 'test_dataloader=None',
        'test_pipeline=None')
    assert 'does not fit the config' in refuse(
        'export_onnx.py', 'configs/dense_mask_rcnn_r50.py', folded, out)
    assert 'soft_nms' in refuse('export_onnx.py', config, folded, out, '--cfg-options',
                                'model.test_cfg.rcnn.nms.type=soft_nms')
    (tmp_path / 'file').write_text('')
    assert 'cannot write' in refuse('export_onnx.py', config, folded, tmp_path / 'file/x.onnx')
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_disagreement_leaves_no_file(refuse, folded, config, tmp_path, monkeypatch):
    """mmdet tests another network than the one that was exported."""
    from maxq_mm.deploy import export
    prepared, out = export.prepared, tmp_path / 'x.onnx'
    out.write_text('what stood there')

    def other(*arguments, **options):
        model = prepared(*arguments, **options)
        model.roi_head.test_cfg.nms.iou_threshold = 0.3
        return model

    monkeypatch.setattr(export, 'prepared', other)
    error = refuse('export_onnx.py', config, folded, out, '--verify-images', '1')
    assert "onnxruntime and mmdet disagree in the stage 'detections'" in error
    assert [path.read_text() for path in tmp_path.iterdir()] == ['what stood there']


def test_what_cannot_be_evaluated(refuse, exported, config, shapes, tmp_path):
    out, _ = exported
    assert 'file not found: nowhere.onnx' in refuse('test_onnx.py', config, 'nowhere.onnx')
    content = out.read_bytes()
    for number, damaged in enumerate((b'', content[:-100], content[:100000])):
        path = tmp_path / f'{number}.onnx'
        path.write_bytes(damaged)
        assert f'not a readable ONNX file: {path}' in refuse('test_onnx.py', config, path)
    assert 'an image of 160 x 160 pixels does not fit' in refuse(
        'test_onnx.py', config, out, '--cfg-options',
        'test_dataloader.dataset.pipeline.1.scale=(160,160)')
    assert 'the classes 3 (disc, box, triangle), the data has 1 (other)' in refuse(
        'test_onnx.py', config, out, '--cfg-options',
        'test_dataloader.dataset.metainfo.classes=other,')

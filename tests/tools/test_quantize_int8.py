"""int8 on the quickstart's detector: its detections, its zeros, and what is refused."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mmdet.registry import DATASETS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config
from mmengine.registry import init_default_scope

from maxq_mm import satisfies
from maxq_mm.deploy import int8, metadata
from maxq_mm.deploy.onnx_detector import OnnxDetector, feeds, make_session, read_file
from maxq_mm.engine.checkpoint import layer_patterns
from maxq_mm.utils.files import load_file

from ..running import run_tool
from .conftest import CONFIG


@pytest.fixture(scope='module')
def config(trained) -> Path:
    return trained / Path(CONFIG).name


@pytest.fixture(scope='module')
def exported(config, folded) -> Path:
    out = config.parent / 'float.onnx'
    run_tool('tools/export_onnx.py', config, folded, out, '--verify-images', '1')
    return out


@pytest.fixture(scope='module')
def quantized(config, exported) -> tuple[Path, str]:
    """The int8 file, and what the tool printed."""
    out = config.parent / 'new/int8.onnx'
    return out, run_tool('tools/quantize_int8.py', config, exported, out, '--calib-images', '8')


@pytest.fixture(scope='module')
def images(config) -> list[torch.Tensor]:
    """Of the test set."""
    importlib.import_module('mmdet.datasets')
    init_default_scope('mmdet')
    return [item['inputs']
            for item in DATASETS.build(Config.fromfile(config).test_dataloader.dataset)]


def test_detections_and_size(exported, quantized, images):
    """What the float file is surest of, the int8 file finds, too, but for an image or two."""
    floats, int8s = (OnnxDetector.from_file(path) for path in (exported, quantized[0]))
    same = 0
    for image in images:
        best, found = floats.run(image), int8s.run(image)
        overlaps = bbox_overlaps(torch.from_numpy(best['boxes'][:1]),
                                 torch.from_numpy(found['boxes']))[0]
        same += bool((overlaps.numpy()[found['labels'] == best['labels'][0]] > 0.5).any())
    assert same >= len(images) - 2
    assert quantized[0].stat().st_size < 0.3 * exported.stat().st_size


def test_every_pruned_weight_is_zero(folded, quantized):
    """Read anew from the written file, against the checkpoint."""
    checkpoint, model = load_file(folded), onnx.load(quantized[0])
    about = metadata.read(model)
    assert about.precision == 'int8'
    assert about.patterns == layer_patterns(checkpoint)
    pruned = 0
    for name, layer in about.layers.items():
        stored = metadata.layer_weight(model, layer)
        assert stored.dtype == torch.int8
        assert satisfies(stored, layer.pattern)
        zeros = checkpoint['state_dict'][f'{name}.weight'] == 0
        assert not stored[zeros].any()
        pruned += int(zeros.sum())
    text = quantized[1]
    assert f'{pruned:,} of {pruned:,} pruned weights are 0, 19 of 19 N:M layers' in text
    assert pruned == 1_394_688
    assert 'calibrated on 8 of 8 training images; 32 layers are int8, 6 stay float32' in text
    assert 'roi_head.bbox_head.fc_cls' in text


def test_feature_maps(config, folded, images, tmp_path):
    run_tool('tools/export_onnx.py', config, folded, tmp_path / 'a.onnx', '--features')
    text = run_tool('tools/quantize_int8.py', config, tmp_path / 'a.onnx', tmp_path / 'b.onnx',
                    '--calib-images', '2', '--keep-float', 'backbone.conv1')
    assert '27 layers are int8, 1 stay float32 (backbone.conv1)' in text
    floats, int8s = (read_file(tmp_path / name) for name in ('a.onnx', 'b.onnx'))
    assert int8s[1].kind == 'features'
    sessions = [make_session(content) for content, _ in (floats, int8s)]
    for image in images[:2]:
        for a, b in zip(*(session.run(None, feeds(image, int8s[1])) for session in sessions),
                        strict=True):
            print(np.linalg.norm(a - b) / np.linalg.norm(a))
            assert np.linalg.norm(a - b) < 0.2 * np.linalg.norm(a)


@pytest.mark.parametrize(('arguments', 'named'), [
    (['--calib-images', '9'], '--calib-images 9: the train set has 8 images'),
    (['--keep-float', 'fc_cls', 'fc_clz'], "'fc_clz' is no layer"),
    (['--cfg-options', 'train_dataloader.dataset.data_prefix.img=gone/'], 'train data not found'),
    (['--cfg-options', 'test_dataloader.dataset.pipeline=[]'], 'no pipeline'),
])
def test_refused_options(refuse, config, exported, tmp_path, arguments, named):
    assert named in refuse('quantize_int8.py', config, exported, tmp_path / 'out.onnx', *arguments)
    assert not any(tmp_path.iterdir())


def test_refused_files(refuse, config, exported, quantized, tmp_path):
    out = tmp_path / 'out/int8.onnx'
    assert 'file not found: nowhere.onnx' in refuse('quantize_int8.py', config, 'nowhere.onnx', out)
    (tmp_path / 'no.onnx').write_bytes(exported.read_bytes()[:1000])
    for path, complaint in ((tmp_path / 'no.onnx', 'not a readable ONNX file'),
                            (quantized[0], 'is quantised already')):
        error = refuse('quantize_int8.py', config, path, out)
        assert complaint in error
        assert str(path) in error
    model = onnx.load(exported)
    metadata.write(model, replace(metadata.read(model), size=(32, 32)))
    onnx.save(model, tmp_path / 'small.onnx')
    assert 'does not fit into the file' in refuse(
        'quantize_int8.py', config, tmp_path / 'small.onnx', out, '--calib-images', '2')
    assert 'OUT must end with .onnx' in refuse('quantize_int8.py', config, exported, 'a.pth')
    assert 'is the input itself' in refuse('quantize_int8.py', config, exported, exported)
    assert not out.parent.exists()


def test_train_set_without_images(refuse, config, exported, shapes, tmp_path):
    annotations = json.loads((shapes / 'annotations/train.json').read_text())
    (tmp_path / 'empty.json').write_text(json.dumps(
        {**annotations, 'images': [], 'annotations': []}))
    error = refuse('quantize_int8.py', config, exported, tmp_path / 'out.onnx', '--cfg-options',
                   f'train_dataloader.dataset.ann_file={tmp_path / "empty.json"}')
    assert 'the train set has no images' in error


def test_no_file_where_a_zero_is_lost(refuse, config, exported, tmp_path, monkeypatch):
    quantize = int8.quantize

    def spoil(*arguments):
        model = quantize(*arguments)
        for initializer in model.graph.initializer:
            if initializer.name == 'backbone.layer1.0.conv1.weight_quantized':
                initializer.raw_data = b'\1' * len(initializer.raw_data)
        return model

    monkeypatch.setattr(int8, 'quantize', spoil)
    out = tmp_path / 'out.onnx'
    out.write_bytes(b'precious')
    error = refuse('quantize_int8.py', config, exported, out, '--calib-images', '1')
    assert 'backbone.layer1.0.conv1 does not satisfy 2:4 in int8' in error
    assert out.read_bytes() == b'precious'
    assert list(tmp_path.iterdir()) == [out]

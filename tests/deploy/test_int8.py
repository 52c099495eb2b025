"""On a small network; tests/tools holds the tool to the quickstart's detector."""

import io
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from maxq_mm import fold, satisfies, sparsify
from maxq_mm.deploy import int8, metadata, onnx_detector
from maxq_mm.deploy.metadata import Metadata, SparseLayer

LAYERS = {'1': SparseLayer('2:4', '1.weight'), '4': SparseLayer('1:4', '4.weight')}
ABOUT = Metadata(kind='features', config='net.py', classes=(), size=(16, 16), layers=LAYERS)


@pytest.fixture
def net():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2),
                        nn.Conv2d(16, 8, 1), nn.Flatten(), nn.Linear(8 * 36, 5))
    sparsify(net, '2:4', exclude=('6', ), overrides={'4': '1:4'})
    return fold(net).eval()


@pytest.fixture
def model(net):
    return export(net, torch.rand(1, 3, 16, 16))


def export(net, *inputs, **options) -> onnx.ModelProto:
    buffer = io.BytesIO()
    torch.onnx.export(net, inputs, buffer, dynamo=False, opset_version=17,
                      input_names=['image'], **options)
    model = onnx.load_from_string(buffer.getvalue())
    metadata.write(model, ABOUT)
    return model


def images(count: int = 8) -> list[dict]:
    generator = np.random.default_rng(0)
    return [dict(image=generator.random((1, 3, 16, 16), dtype=np.float32)) for _ in range(count)]


def run(model: onnx.ModelProto, feed: dict) -> np.ndarray:
    return onnx_detector.make_session(model.SerializeToString()).run(None, feed)[0]


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def test_weights_are_symmetric_and_keep_their_zeros(net, model):
    before = model.SerializeToString()
    quantized = int8.quantize(model, int8.measure_ranges(model, images()), keep_float=())
    assert model.SerializeToString() == before
    weights = stored(quantized)
    for name in ('0', '1', '4', '6'):
        weight = net[int(name)].weight.detach()
        ints, scale = weights[f'{name}.weight_quantized'], weights[f'{name}.weight_scale']
        assert ints.dtype == np.int8
        assert not weights[f'{name}.weight_zero_point'].any()
        assert scale.shape == (len(weight), )
        scale = torch.from_numpy(scale.copy()).view(-1, *[1] * (weight.dim() - 1))
        error = (torch.from_numpy(ints.copy()) * scale - weight).abs() / scale
        assert error.max() < 0.5001
        assert not ints[(weight == 0).numpy()].any()
    line = int8.check_zeros(model, quantized)
    assert line == '672 of 672 pruned weights are 0, 2 of 2 N:M layers satisfy their pattern'


def test_what_the_file_says_of_itself_is_carried_over(model):
    quantized = int8.quantize(model, int8.measure_ranges(model, images()))
    about = metadata.read(quantized)
    assert about == replace(ABOUT, precision='int8', layers={
        name: layer._replace(initializer=f'{name}.weight_quantized')
        for name, layer in LAYERS.items()})
    for layer in about.layers.values():
        assert satisfies(metadata.layer_weight(quantized, layer), layer.pattern)
    assert [entry.key for entry in quantized.metadata_props] == ['maxq_mm']


def test_outputs(model):
    quantized = int8.quantize(model, int8.measure_ranges(model, images(32)))
    for feed in images(4):
        a, b = run(model, feed), run(quantized, feed)
        assert np.abs(a - b).max() < 0.1 * np.abs(a).max()
    kinds = [node.op_type for node in quantized.graph.node]
    assert 'Relu' not in kinds  # the lower end of a range
    types = {stored(quantized)[node.input[2]].dtype for node in quantized.graph.node
             if node.op_type == 'QuantizeLinear'}
    assert types == {np.dtype(np.uint8)}


@pytest.mark.parametrize('width', [4, 64])
def test_sums_do_not_overflow(width):
    """On x86 without VNNI they did; one layer, used twice, as those of an RPN are."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(width, width, 1)
            nn.init.constant_(self.layer.weight, 1 / width)

        def forward(self, x):
            return self.layer(self.layer(x))

    model = export(Twice().eval(), torch.ones(1, width, 4, 4))
    metadata.write(model, replace(ABOUT, layers={}))
    feed = dict(image=np.ones((1, width, 4, 4), np.float32))
    quantized = int8.quantize(model, int8.measure_ranges(model, [feed]), keep_float=())
    assert int8.count_layers(model, quantized) == (1, [])
    assert np.allclose(run(quantized, feed), run(model, feed), atol=0.03)


def test_ranges(model):
    """Of 1568 values the mean of the images' extremes, of 768 or 5 the extremes of all."""
    feeds = [dict(image=np.full((1, 3, 16, 16), value, np.float32)) for value in (1, 2, 6)]
    feeds[0]['image'][0, 0, 0, 0] = -3
    ranges = int8.measure_ranges(model, feeds)
    for name, summary in (('image', (min, max)), ('/0/Conv_output_0', (np.mean, np.mean)),
                          ('/1/Conv_output_0', (np.mean, np.mean)),
                          (model.graph.output[0].name, (min, max))):
        values = [feed['image'] if name == 'image' else run_to(model, feed, name)
                  for feed in feeds]
        expected = (summary[0]([value.min() for value in values]),
                    summary[1]([value.max() for value in values]))
        assert ranges[name] == pytest.approx(expected, rel=1e-4)


def run_to(model: onnx.ModelProto, feed: dict, name: str) -> np.ndarray:
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.insert(0, helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return run(probe, feed)


def test_images_without_detections():
    """Where nothing was found there is nothing to measure; if nowhere, the layer stays float."""
    model = export(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.rand(2, 4),
                   dynamic_axes={'image': {0: 'n'}})
    metadata.write(model, replace(ABOUT, layers={'0': SparseLayer('4:4', '0.weight')}))
    none, some = (dict(image=np.ones((n, 4), np.float32)) for n in (0, 3))
    assert int8.measure_ranges(model, [none, some, none])['image'] == (1, 1)
    ranges = int8.measure_ranges(model, [none])
    assert ranges == {}
    quantized = int8.quantize(model, ranges)
    assert int8.count_layers(model, quantized) == (0, ['0'])
    assert np.array_equal(run(quantized, some), run(model, some))
    assert '1 of 1 N:M layers' in int8.check_zeros(model, quantized)


def test_layers_that_are_to_stay_float(net, model):
    ranges = int8.measure_ranges(model, images())
    assert int8.count_layers(model, int8.quantize(model, ranges)) == (3, ['0'])  # the first
    quantized = int8.quantize(model, ranges, keep_float=('4', 'nothing'))
    assert int8.count_layers(model, quantized) == (3, ['4'])
    assert np.array_equal(stored(quantized)['4.weight'], net[4].weight.detach().numpy())
    assert metadata.read(quantized).layers['4'] == LAYERS['4']
    assert '672 of 672' in int8.check_zeros(model, quantized)
    int8.check_names(model, ['4', '6'])
    with pytest.raises(ValueError, match="'nothing' is no layer"):
        int8.check_names(model, ['4', 'nothing'])
    with pytest.raises(ValueError, match="'0', '1', '4', '6' would leave no layer for int8"):
        int8.check_names(model, ['0', '1', '4', '6'])


def test_a_lost_zero_or_pattern_is_an_error(model):
    quantized = int8.quantize(model, int8.measure_ranges(model, images()))
    weight = stored(quantized)['1.weight_quantized'].copy()
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(quantized)
    weight.reshape(-1)[int(np.flatnonzero(weight == 0)[0])] = 1
    put(spoilt, '1.weight_quantized', weight)
    with pytest.raises(ValueError, match='1 does not satisfy 2:4 in int8: 1 of its zeros are lost'):
        int8.check_zeros(model, spoilt)
    spoilt.CopyFrom(quantized)
    put(spoilt, '4.weight_zero_point', np.ones(8, np.int8))
    with pytest.raises(RuntimeError, match='4.weight_quantized is not symmetric'):
        int8.check_zeros(model, spoilt)


def put(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    for initializer in model.graph.initializer:
        if initializer.name == name:
            initializer.CopyFrom(numpy_helper.from_array(value, name))


def test_files_without_sparse_layers(model):
    metadata.write(model, replace(ABOUT, layers={}))
    quantized = int8.quantize(model, int8.measure_ranges(model, images()))
    assert int8.check_zeros(model, quantized) == 'no N:M layers: the file has none'


def test_only_float32_files(model, tmp_path):
    path = tmp_path / 'a.onnx'
    onnx.save(model, path)
    read, about = int8.read_float(path)
    assert (read, about) == (model, ABOUT)
    onnx.save(int8.quantize(model, int8.measure_ranges(model, images())), path)
    with pytest.raises(ValueError, match='a.onnx is quantised already'):
        int8.read_float(path)
    metadata.write(model, replace(ABOUT, precision='float16'))
    onnx.save(model, path)
    with pytest.raises(ValueError, match='a.onnx is float16'):
        int8.read_float(path)
    path.write_bytes(b'no')
    with pytest.raises(ValueError, match='not a readable ONNX file'):
        int8.read_float(path)

"""A first layer in int8: a scale for each channel of an image, from pixels to a served file."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from maxq_mm import accelerate, load_accelerated, save_accelerated
from maxq_mm.runtime import choose, kernels
from maxq_mm.runtime.calibrate import images
from maxq_mm.runtime.choose import Packer
from maxq_mm.runtime.fuse import Layer
from maxq_mm.runtime.install import decisions_of
from maxq_mm.runtime.library import library
from maxq_mm.runtime.partition import DENSE_INT8
from maxq_mm.runtime.program import Program
from maxq_mm.runtime.quantization import ChannelQuantization, Quantization, quantize_weight
from maxq_mm.utils.errors import InputError

from .image_cases import check, normalised
from .test_accelerate import force, sparse
from .test_detector import small_mask_rcnn
from .test_int8_detectors import pictures
from .tiny import CLASSES, config

needs_int8 = pytest.mark.skipif(library(int8=True) is None, reason='no int8 kernels here')
MEANS, DEVIATIONS = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
ENDS = normalised(torch.tensor([0, 255]).expand(3, 1, 2), MEANS, DEVIATIONS).flatten(1)
IMAGE = ChannelQuantization.of_ranges(ENDS.tolist())


@needs_int8
@pytest.mark.parametrize('seed', range(3))
def test_any_layer(seed):
    check(seed, 40)


def test_ranges():
    """Zero is in them, and lies between bytes; a constant has some scale."""
    found = ChannelQuantization.of_ranges([(-1, 254), (0, 255), (51, 102), (-2.55, -1), (0, 0),
                                           (-0.25, 2.3)])
    assert found.scales == pytest.approx((1, 1, 0.4, 0.01, 1, 0.01))
    assert found.zero_points == pytest.approx((1, 0, 0, 255, 0, 25))
    assert pytest.approx(MEANS.tolist(), rel=1e-6) == IMAGE.zero_points
    assert ChannelQuantization.of_ranges(ENDS.tolist()) == IMAGE
    with pytest.raises(InputError, match='no range'):
        ChannelQuantization.of_ranges([(0, 1), (0, float('inf'))])
    with pytest.raises(InputError, match='2 scales and 1 zero points'):
        ChannelQuantization((1., 1.), (0., ))
    with pytest.raises(InputError, match='zero_points must be'):
        ChannelQuantization((1., ), (255.1, ))


@needs_int8
def test_an_image_of_bytes_loses_nothing():
    """All that differs from float32 is what rounding weights does: of integers, nothing."""
    pixels = torch.arange(256).repeat(3, 5).reshape(1, 3, 20, 64).to(torch.uint8)
    for channel in range(3):
        pixels[:, channel] = pixels[:, channel].flatten()[torch.randperm(1280)].view(20, 64)
    x = normalised(pixels, MEANS, DEVIATIONS)
    integers = torch.randint(-63, 64, (8, 3, 7, 7))
    integers[:, :2, 0, 0] = 64  # as much as a pair can be: a scale of 1
    weight = integers / torch.tensor(IMAGE.scales).view(-1, 1, 1)
    assert torch.equal(quantize_weight(weight, None, input=IMAGE).integers.long(), integers)
    found = kernels.pack_int8(weight, None, stride=2, input=IMAGE, output=None)(x)
    exact = F.conv2d(pixels.double() - MEANS.double()[:, None, None], integers.double(), stride=2)
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


@needs_int8
def test_only_layers_take_it():
    program = Program()
    image, byte = program.input(3, quantization=IMAGE), Quantization(1., 0)
    whole = program.input(3, quantization=byte)
    layer = kernels.pack_int8(torch.randn(3, 3, 1, 1), None, input=byte, output=byte)
    for call in (lambda: program.output(image), lambda: program.dequantize(image),
                 lambda: program.max_pool(image, 2, 2), lambda: program.relu(image),
                 lambda: program.add(whole, image, output=byte),
                 lambda: program.layer(whole, layer, image)):
        with pytest.raises(InputError, match='only layers take it'):
            call()
    with pytest.raises(InputError, match='cannot take a value of'):
        program.layer(image, layer)
    with pytest.raises(InputError, match='3 scales for 4 channels'):
        program.input(4, quantization=IMAGE)


@pytest.fixture
def image_first(monkeypatch):
    """Layers that may be int8 are."""
    force(monkeypatch, DENSE_INT8)


class Residual(nn.Module):
    """Adds the image to what a layer makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        return self.b(self.a(x).relu()) + x


class Shared(nn.Module):
    """One layer of the image and of another value."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.b(self.a(self.a(x)).relu())


@needs_int8
@pytest.mark.parametrize(('kind', 'floats'), [(Residual, {'a', 'b'}), (Shared, {'a'})])
def test_an_image_that_is_more_than_a_layers_input(kind, floats, image_first):
    """Weights have only one scale of a channel: the layer stays float32."""
    model = kind().eval()
    expected, x = copy.deepcopy(model), torch.randn(1, 3, 32, 32)
    report = accelerate(model, x, 'int8', [x])
    assert {row.name for row in report.layers
            if row.reason.endswith('float32: takes the image')} == floats
    assert {*report.int8} == {'a', 'b'} - floats
    assert (model(x) - expected(x)).abs().max() < 0.1 * expected(x).abs().max()


def test_what_pixels_can_be():
    """Of bytes the preprocessor says it, of other pictures and of tensors nobody."""
    torch.manual_seed(0)
    model, x = small_mask_rcnn(), (torch.randn(1, 3, 64, 96), )
    norm = model.data_preprocessor
    norm.mean, norm.std = MEANS.view(-1, 1, 1), DEVIATIONS.view(-1, 1, 1)
    norm._enable_normalize, norm._channel_conversion = True, True
    for item in (*pictures(1), dict(inputs=[picture['inputs'] for picture in pictures(2)])):
        for shown in images(model, x, [item]):
            assert torch.equal(shown.limits, ENDS.double())
    picture = pictures(1)[0]['inputs'].float()
    for item in (dict(inputs=picture), x[0]):
        assert [shown.limits for shown in images(model, x, [item])] == [None]


@needs_int8
def test_weights_are_quantized_once(monkeypatch):
    """Whatever the number of ways and of calls."""
    count = []
    quantize = choose.quantize_weight
    monkeypatch.setattr(choose, 'quantize_weight', lambda *a: count.append(a) or quantize(*a))
    packed = Packer({})
    layer = Layer(torch.randn(8, 3, 3, 3), torch.randn(8, 3, 3, 3), None)
    outputs = (None, Quantization(1., 3), Quantization(2., 0))
    made = [packed(layer, DENSE_INT8, takes, gives) for gives in outputs
            for takes in (IMAGE, Quantization(0.5, 7), Quantization(0.1, 0))]
    packed.quantized(layer, DENSE_INT8, IMAGE)
    packed.quantized(layer, DENSE_INT8, outputs[1])
    assert len(count) == 2  # of the image, of others
    assert len({one.values.data_ptr() for one in made}) == 2


@needs_int8
def test_a_detector_and_its_file(tmp_path, image_first):
    """Near float32, and the same bits after deepcopy, and from a file that has its integers."""
    cfg = Config(config())
    torch.manual_seed(0)
    expected = sparse(MODELS.build(cfg.model), '1:16', exclude=('last', ))
    expected.cfg, expected.dataset_meta = cfg, dict(classes=CLASSES, palette=[(1, 2, 3), (4, 5, 6)])
    model, x = copy.deepcopy(expected), torch.randn(1, 3, 64, 96)
    report = accelerate(model, x, 'int8', torch.randn(4, 3, 64, 96))
    first = next(row for row in report.layers if row.shape[1] == 3)
    assert first.precision == 'int8'
    assert "the image's bytes by channels" in str(report)
    save_accelerated(model, tmp_path / 'a.pth')
    loaded = load_accelerated(tmp_path / 'a.pth')
    assert decisions_of(loaded) == decisions_of(model)
    layer, = (layer for part in decisions_of(loaded).parts for layer in part.layers
              if layer.channels)
    assert layer.weight == f'{first.name}.weight'
    with torch.no_grad():
        for size in ((1, 3, 64, 96), (2, 3, 96, 33)):
            y = torch.randn(size)
            for a, b, c, d in zip(model(y), loaded(y), copy.deepcopy(model)(y), expected(y),
                                  strict=True):
                assert torch.equal(a, b)
                assert torch.equal(a, c)
                assert (a - d).abs().max() < 0.1 * d.abs().max()
    weight, was = (one.state_dict()[layer.weight] for one in (loaded, expected))
    assert 0 < (weight - was).abs().max() < 0.03 * was.abs().max()

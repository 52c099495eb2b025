"""Ranges over calibration images, and what is refused as such."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from maxq_mm.runtime.calibrate import calibrate, images
from maxq_mm.runtime.fuse import Layer
from maxq_mm.runtime.parts import Search
from maxq_mm.runtime.quantization import ChannelQuantization, Quantization
from maxq_mm.utils.errors import InputError

from .test_accelerate import refused


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 1, 9),
                         nn.Flatten(), nn.Linear(16, 2)).eval()


@pytest.fixture(scope='module')
def search(net):
    with torch.no_grad():
        return Search(net, (torch.randn(1, 3, 16, 16), ), {net[0]})


def found(net, search, calibration):
    """Quantizations of the image and of the layers' results, in order."""
    part, = search.parts
    with torch.no_grad():
        calibrate(net, search.parts, search.args, calibration)
    return [part.trace.quantizations[node.name] for node in part.trace.graph.nodes
            if node.op == 'placeholder' or isinstance(node.target, Layer)]


def test_ranges(net, search):
    """Of maps the mean of the images' extremes, of few values the extremes of all; 0 is in them."""
    pictures = [torch.randn(1, 3, 16, 16) * scale for scale in (1, 2, 5)]
    with torch.no_grad():
        values = [[x, net[:2](x), net[:3](x), net[:4](x), net(x)] for x in pictures]
    expected = []
    pixels = torch.cat(pictures).transpose(0, 1).flatten(1)
    image = ChannelQuantization.of_ranges(zip(pixels.amin(1).tolist(), pixels.amax(1).tolist(),
                                              strict=True))
    assert found(net, search, iter(pictures))[0] == image  # of all pictures, by channels
    for number, each in enumerate(zip(*values, strict=True)):
        lows, highs = ([float(getattr(x, kind)()) for x in each] for kind in ('min', 'max'))
        few = each[0].numel() < 1000
        assert few == (number in (0, 2, 3, 4))
        expected.append(Quantization.of_range(
            *(min(lows), max(highs)) if few else (np.mean(lows), np.mean(highs))))
    for one, wanted in list(zip(found(net, search, iter(pictures)), expected, strict=True))[1:]:
        assert one.scale == pytest.approx(wanted.scale, rel=1e-4)
        assert abs(one.zero_point - wanted.zero_point) <= 1
    assert found(net, search, pictures)[1].zero_point == 0  # behind a ReLU
    assert found(net, search, torch.cat(pictures)) == found(net, search, pictures)
    assert found(net, search, [(x, ) for x in pictures]) == found(net, search, pictures)


def test_the_graph_computes_what_the_model_does(net, search):
    """Samples are kept to be compared on."""
    part, = search.parts
    found(net, search, torch.randn(5, 3, 16, 16))
    assert 0 < len(part.samples) <= 3
    assert all(call.args[0].shape == (1, 3, 16, 16) for call in part.samples)


@pytest.mark.parametrize(('factor', 'difference', 'decibels'), [
    (1., 0., math.inf), (1.1, 0.1, 20.), (0., 1., 0.), (math.nan, math.inf, -math.inf)])
def test_agreement(net, search, factor, difference, decibels):
    part, = search.parts
    found = part.agreement(SimpleNamespace(run=lambda x: [factor * net(*x)]), part.calls[0])
    assert found.difference == pytest.approx(difference, rel=1e-4, abs=1e-7)
    assert found.decibels == pytest.approx(decibels, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(('calibration', 'match'), [
    ([], 'calibration has no images'),
    (iter(()), 'calibration has no images'),
    (5, 'calibration must be an iterable of images .* got int'),
    ('images/', 'calibration must be an iterable of images .* got str'),
    ([torch.ones(1, 3, 16, 16), torch.zeros(2, 3, 16, 16)],
     'calibration: each of the 3 images has the same value everywhere'),
    ([torch.randn(1, 3, 16, 16), 'image.png'], r'calibration\[1\]: inputs must be .* got str'),
    ([torch.randn(3, 16, 16)], re.escape('calibration[0]: shape (3, 16, 16) is unlike')),
    ([torch.randn(1, 4, 16, 16)], re.escape('calibration[0]: shape (1, 4, 16, 16) is unlike')),
    ([torch.zeros(1, 3, 16, 16, dtype=torch.float64)], r'calibration\[0\]: inputs are .*float64'),
    ([(torch.randn(1, 3, 16, 16), ) * 2], r'calibration\[0\]: 2 arguments, inputs have 1'),
    ([torch.full((1, 3, 16, 16), torch.nan)], r'calibration\[0\]: some values are not finite'),
    ([dict(inputs=torch.randn(3, 16, 16))], r'calibration\[0\]: inputs must be .* got dict'),
])
def test_bad_calibration(net, calibration, match):
    with pytest.raises(InputError, match=match) as error:
        list(images(net, (torch.randn(1, 3, 16, 16), ), calibration))
    assert '\n' not in str(error.value)


def test_the_model_is_unchanged_where_calibration_is_refused(net):
    x = torch.randn(1, 3, 16, 16)
    refused(net, x, 'precision int8 needs calibration', precision='int8')
    refused(net, x, 'calibration is for precision int8, not for float32', calibration=[x])
    refused(net, x, r'calibration\[1\]: inputs must be', precision='int8', calibration=[x, 'a.png'])


@pytest.mark.parametrize('scale', [1e16, 3e38])  # of the last, sums overflow
def test_values_that_are_too_large(net, search, scale):
    with pytest.raises(InputError, match='what Sequential computes of it cannot be int8'):
        found(net, search, [torch.randn(1, 3, 16, 16).sign() * scale])


def test_one_constant_image_among_others(net):
    pictures = [torch.zeros(1, 3, 16, 16), torch.randn(1, 3, 16, 16)]
    assert len(list(images(net, (pictures[0], ), pictures))) == 2

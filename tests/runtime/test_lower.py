"""Programs with int8 layers, computed by a simulation: what is bytes, what float32."""

import random
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maxq_mm.nn.predictors import predicting_layers
from maxq_mm.runtime import kernels, lower
from maxq_mm.runtime.calibrate import calibrate
from maxq_mm.runtime.calls import Call
from maxq_mm.runtime.candidates import stay_float
from maxq_mm.runtime.compiled import Compiled
from maxq_mm.runtime.fuse import Layer, layers_of
from maxq_mm.runtime.library import library
from maxq_mm.runtime.partition import DENSE, DENSE_INT8, INT8, INT8_WAYS, SPARSE, SPARSE_WAYS, TORCH
from maxq_mm.runtime.parts import Search
from maxq_mm.runtime.program import Program
from maxq_mm.runtime.quantization import Quantization

from .simulated_int8 import SimulatedProgram, simulated_pack, simulated_pack_int8
from .test_accelerate import Net, sparse


def pattern_of(layer: Layer, way: str) -> str | None:
    """Stems are dense."""
    return '2:4' if way in SPARSE_WAYS and layer.weight.shape[1] % 4 == 0 else None


def packed(layer: Layer, way: str, takes=None, gives=None, beside_int8=False):
    settings = (layer.weight, pattern_of(layer, way), layer.bias, layer.stride, layer.padding,
                layer.dilation)
    if way in INT8_WAYS:
        return simulated_pack_int8(*settings, input=takes, output=gives)
    assert takes is gives is None
    return simulated_pack(*settings)


@pytest.fixture(autouse=True)
def simulation(monkeypatch):
    monkeypatch.setattr(lower, 'Program', SimulatedProgram)


def calibrated(model, x, images=None):
    """The part that a whole model is, and why some of its layers stay float32."""
    layers = {module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    with torch.no_grad():
        part, = Search(model, (x, ), layers).parts
        calibrate(model, [part], (x, ), [x] if images is None else images)
    return part, stay_float(part, (x, ), [module.weight for module in predicting_layers(model)])


def programs(compiled):
    return [step.program for step in compiled.steps if hasattr(step, 'program')]


def kinds(compiled):
    return Counter(node.kind for program in programs(compiled) for node in program.nodes)


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 96)
    part, reasons = calibrated(sparse(Net(), '2:4'), x)
    names = {module.weight: name for name, module in part.module.named_modules()
             if isinstance(module, (nn.Conv2d, nn.Linear))}
    return part, {names[layer.source]: layer for layer in layers_of(part.trace)}, {
        names[layer.source]: reason for layer, reason in reasons.items()}, Call((x, ), {}, None)


def test_which_layers_stay_float(net):
    assert net[2] == {'fc': 'some of its calls are not of a program'}


@pytest.mark.parametrize('stem', [DENSE, INT8])
def test_bytes_from_layer_to_layer(net, stem):
    """Sums, pooling and the pyramid included; only what goes in is quantized."""
    part, layers, reasons, call = net
    choices = {layer: DENSE if name in reasons else INT8 for name, layer in layers.items()}
    choices[layers['grouped']], choices[layers['stem']] = TORCH, stem
    compiled = Compiled(part.trace, choices, packed)
    found = {'import': 4, 'quantize': 1, 'layer': 14, 'max pool': 1, 'upsample': 1}
    assert kinds(compiled) == Counter({**found, 'quantize': int(stem == DENSE)})
    found = part.agreement(compiled, call)
    assert found.decibels > 25
    assert 1e-4 < found.difference < 0.2


def test_float32_alone_is_equal(net):
    part, layers, _, call = net
    choices = {layer: TORCH if name == 'grouped' else DENSE for name, layer in layers.items()}
    compiled = Compiled(part.trace, choices, packed)
    assert kinds(compiled)['quantize'] == kinds(compiled)['dequantize'] == 0
    assert part.agreement(compiled, call).difference < 1e-5


@pytest.mark.parametrize('seed', range(6))
def test_any_mixture(net, seed):
    """Each layer by any way: results stay near, no value is converted twice."""
    part, layers, reasons, call = net
    choose = random.Random(seed)
    choices = {layer: TORCH if name == 'grouped' else choose.choice(
        (SPARSE, TORCH) if name in reasons else (INT8, INT8, SPARSE, TORCH))
        for name, layer in layers.items()}
    compiled = Compiled(part.trace, choices, packed)
    for program in programs(compiled):
        changes = [(node.kind, node.source) for node in program.nodes if node.source is not None]
        assert len(changes) == len(set(changes))
        layers_there = sum(node.kind == 'layer' for node in program.nodes)
        assert len(changes) <= 2 * layers_there
    assert part.agreement(compiled, call).decibels > 20
    for size in ((1, 3, 32, 32), (3, 3, 65, 127)):
        x = torch.randn(size)
        assert part.agreement(compiled, Call((x, ), {}, None)).decibels > 15


class Signs(nn.Module):
    """Values on both sides of 0, a residual block without ReLUs, a ReLU and a sum by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.c = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8, 8))

    def forward(self, x):
        a = self.a(self.first(x))
        b = self.b(a) + a
        return self.c(F.relu(F.max_pool2d(b + a, 3, 2, 1)))


def test_zero_points_and_the_borders():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 24, 32)
    part, reasons = calibrated(Signs().eval(), x)
    assert reasons == {}
    compiled = Compiled(part.trace, dict.fromkeys(layers_of(part.trace), INT8), packed)
    assert kinds(compiled) == Counter(
        {'import': 1, 'layer': 4, 'add': 2, 'max pool': 1})
    program, = programs(compiled)
    zero_points = [value.quantization.zero_point for value in program.values(x)
                   if isinstance(value.quantization, Quantization)]
    assert all(0 < zero < 255 for zero in zero_points)
    assert part.agreement(compiled, Call((x, ), {}, None)).decibels > 30


@pytest.mark.skipif(library(int8=True) is None, reason='no int8 kernels here')
@pytest.mark.parametrize('seed', range(3))
def test_kernels_compute_the_same(net, seed, monkeypatch):
    """But for sums in float32, after which a byte may be one off, and by group norm a map a little.
    """
    part, layers, reasons, call = net
    choose = random.Random(seed)
    choices = {layer: choose.choice((TORCH, DENSE) if name in reasons else
                                    (INT8, INT8, DENSE_INT8, SPARSE))
               for name, layer in layers.items()}
    choices[layers['grouped']] = TORCH

    def with_kernels(layer, way, takes=None, gives=None, beside_int8=False):
        settings = (layer.weight, pattern_of(layer, way), layer.bias, layer.stride, layer.padding,
                    layer.dilation)
        return (kernels.pack_int8(*settings, input=takes, output=gives) if way in INT8_WAYS
                else kernels.pack(*settings, beside_int8=beside_int8))

    simulated = Compiled(part.trace, choices, packed)
    monkeypatch.setattr(lower, 'Program', Program)
    compiled = Compiled(part.trace, choices, with_kernels)
    for x in (*call.args, torch.randn(1, 3, 65, 40)):
        for a, b in zip(compiled.run([x]), simulated.run([x]), strict=True):
            assert a.shape == b.shape
            off = (a - b).abs() / b.abs().max()
            assert off.max() < 0.1
            assert off.mean() < 4e-3


@pytest.mark.parametrize('way', [SPARSE, INT8])
def test_an_upsampling_waits_for_what_it_is_added_to(net, way):
    """What it enlarges is there a phase before, the other part of the sum comes from torch."""
    part, layers, reasons, call = net
    choices = {layer: TORCH if name in ('grouped', 'lateral.0') else
               SPARSE if name in reasons else way for name, layer in layers.items()}
    compiled = Compiled(part.trace, choices, packed)
    assert kinds(compiled)['upsample'] == 1
    assert part.agreement(compiled, call).decibels > 25

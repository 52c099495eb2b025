"""Transposed convolutions whose kernel is their stride: layers like others, in one program."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maxq_mm import accelerate
from maxq_mm.runtime.decisions import Decisions
from maxq_mm.runtime.fuse import fuse, layers_of
from maxq_mm.runtime.install import decisions_of
from maxq_mm.runtime.library import library
from maxq_mm.runtime.partition import DENSE, DENSE_INT8, TORCH
from maxq_mm.runtime.rebuild import rebuild
from maxq_mm.runtime.trace import trace

from .test_accelerate import assert_alike, force, sparse
from .test_int8_detectors import decibels
from .test_kernels import needs_kernels


class Head(nn.Module):
    """A mask head, with a norm and a second transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.upsample = nn.ConvTranspose2d(16, 22, 2, 2)
        self.norm = nn.BatchNorm2d(22)
        self.wide = nn.ConvTranspose2d(22, 7, (1, 3), (1, 3), bias=False)
        self.logits = nn.Conv2d(7, 3, 1)

    def forward(self, x):
        x = F.relu(self.norm(self.upsample(F.relu(self.conv(x)))))
        y = self.wide(x)
        return self.logits(y), y + y.sigmoid()


def programs(model) -> list:
    return [step.program for step in vars(model)['_compiled'].steps if hasattr(step, 'program')]


@pytest.fixture
def head():
    torch.manual_seed(0)
    return sparse(Head(), '1:4')


@needs_kernels
@pytest.mark.parametrize('way', [DENSE, TORCH])
def test_one_program(head, way, monkeypatch):
    model = copy.deepcopy(head)
    force(monkeypatch, way)
    report = accelerate(model, torch.randn(2, 16, 14, 14))
    found = {row.name: row for row in report.layers}
    assert set(found) == {'conv', 'upsample', 'wide', 'logits'}
    assert found['upsample'].pattern is found['wide'].pattern is None
    assert found['upsample'].dense_ms is not None
    if way == DENSE:
        program, = programs(model)
        kinds = [node.kind for node in program.nodes]
        assert kinds.count('depth to space') == 2
        assert kinds.count('import') == 1
    for size in ((2, 16, 14, 14), (5, 16, 3, 40), (0, 16, 14, 14)):
        assert_alike(model, head, torch.randn(size))
    assert_alike(model, head, torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last))


@pytest.mark.skipif(library(int8=True) is None, reason='no int8 kernels here')
def test_int8_and_what_was_decided(head, monkeypatch):
    """One more layer of bytes; made anew with the same bits."""
    force(monkeypatch, DENSE_INT8)
    model, other = copy.deepcopy(head), copy.deepcopy(head)
    images = torch.randn(3, 16, 14, 14)
    report = accelerate(model, images, 'int8', [images])
    rows = {row.name: row for row in report.layers}
    assert rows['upsample'].precision == rows['wide'].precision == 'int8'
    program, = programs(model)
    blocks = [node for node in program.nodes if node.kind == 'depth to space']
    assert [node.quantization is not None for node in blocks] == [True, True]
    with torch.no_grad():
        assert decibels(model(images), head(images)) > 30
        decided = Decisions.from_dict(decisions_of(model).as_dict())
        assert rebuild(other, decided) == []
        for x in (images, torch.randn(1, 16, 5, 9)):
            assert all(torch.equal(a, b) for a, b in zip(model(x), other(x), strict=True))


@pytest.mark.parametrize(('settings', 'is_layer'), [
    (dict(kernel_size=2, stride=2), True), (dict(kernel_size=1), True),
    (dict(kernel_size=(3, 2), stride=(3, 2), bias=False), True),
    (dict(kernel_size=3, stride=2), False), (dict(kernel_size=2, stride=3), False),
    (dict(kernel_size=4, stride=4, padding=1), False),
    (dict(kernel_size=2, stride=2, output_padding=1), False),
    (dict(kernel_size=2, stride=2, dilation=2), False),
    (dict(kernel_size=2, stride=2, groups=2), False)])
def test_which_ones(settings, is_layer):
    """Whose blocks overlap or leave something out are torch's, and of the same results."""
    torch.manual_seed(0)
    model = sparse(nn.Sequential(nn.Conv2d(4, 8, 1), nn.ConvTranspose2d(8, 6, **settings)), '2:4')
    x = torch.randn(2, 4, 6, 7)
    found = trace(model, model.forward, (x, ), {})
    fuse(found)
    assert [layer.block is not None for layer in layers_of(found)] == (
        [False, True] if is_layer else [False])
    other = copy.deepcopy(model)
    accelerate(other, x)
    assert_alike(other, model, x)
    assert_alike(other, model, torch.randn(1, 4, 9, 3))

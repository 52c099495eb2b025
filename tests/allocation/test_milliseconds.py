"""Costs in time, with a runtime that takes as long as it is told."""

import sys
import time
from types import SimpleNamespace

import pytest
import torch

import maxq_mm
from maxq_mm.allocation import milliseconds
from maxq_mm.allocation.images import look
from maxq_mm.functional.masks import satisfies
from maxq_mm.functional.pattern import Pattern
from maxq_mm.utils.errors import InputError

from .conftest import images

SECONDS = {None: 5, '2:4': 0.02, '1:4': 0.01}
NAMES = 'backbone.layer2.0.conv1', 'roi_head.bbox_head.fc_cls', 'rpn_head.rpn_conv'
CANDIDATES = {name: [Pattern(1, 1), Pattern(2, 4), Pattern(1, 4)] for name in NAMES}


@pytest.fixture
def runtime(monkeypatch):
    """Its layers note how long they would take; a clock that adds that up."""
    now, packed = [0], []

    def pack(weight, pattern, bias, **settings):
        assert pattern is None or satisfies(weight, pattern)
        packed.append((tuple(weight.shape), pattern, bias is not None, settings))

        return lambda x: spend(SECONDS[pattern])

    def spend(seconds):
        now[0] += int(1e9 * seconds)

    monkeypatch.setattr(milliseconds, 'time', SimpleNamespace(
        perf_counter_ns=lambda: now[0] + time.perf_counter_ns() // 10**6))  # real time: a millionth
    return SimpleNamespace(pack=pack, packed=packed, spend=spend, instruction_set=lambda: 'avx2',
                           refusal=lambda weight, pattern: 'odd' if len(weight) == 4 else None)


def test_times_of_candidates(mask_rcnn, runtime):
    layer = mask_rcnn.get_submodule(NAMES[0])
    forward = layer.forward
    layer.forward = lambda x: (runtime.spend(0.02), forward(x))[1]
    (places, ) = look(mask_rcnn, images(1))
    found = milliseconds.nanoseconds(mask_rcnn, places, CANDIDATES, runtime)
    dense, half, quarter = (value / 1e9 for value in found[NAMES[0]])
    assert dense == pytest.approx(0.02, rel=1e-3)  # torch's, which is told to take that long
    assert half == pytest.approx(0.02, rel=1e-3)
    assert quarter == pytest.approx(0.01, rel=1e-3)
    # refused, 4 outputs: as long as dense
    assert len(set(found[NAMES[1]])) == 1
    assert not any(shape[0] == 4 for shape, *_ in runtime.packed)
    # slower than torch, which takes no time here: the runtime leaves it dense
    assert len(set(found[NAMES[2]])) == 1
    settings = [settings for shape, pattern, _, settings in runtime.packed if pattern == '1:4']
    assert settings[0] == dict(stride=(2, 2), padding=(1, 1), dilation=(1, 1))


def test_without_a_runtime(mask_rcnn, monkeypatch):
    monkeypatch.setitem(sys.modules, 'maxq_mm.runtime.kernels', None)
    monkeypatch.delattr('maxq_mm.runtime.kernels', raising=False)
    with pytest.raises(InputError, match="cost='ms' needs the N:M runtime, which cannot be imp"):
        maxq_mm.allocate(mask_rcnn, images(1), ['2:4'], 0.8, 'ms')
    monkeypatch.setitem(sys.modules, 'maxq_mm.runtime.kernels',
                        SimpleNamespace(instruction_set=lambda: None))
    with pytest.raises(InputError, match='no kernels for this CPU'):
        maxq_mm.allocate(mask_rcnn, images(1), ['2:4'], 0.8, 'ms')


def test_plan_in_milliseconds(mask_rcnn, monkeypatch):
    """With the real kernels, where there are any, on a clock by which the sparser is faster."""
    try:
        milliseconds.find_runtime()
    except InputError:
        pytest.skip('no runtime here')

    def run(variants, inputs):
        for variant in variants:
            for x in inputs:
                variant(x)
        return (10**6 // place for place in range(1, len(variants) + 1))

    monkeypatch.setattr(milliseconds, '_alternate', run)
    plan = maxq_mm.allocate(mask_rcnn, images(1), ['1:4', '1:8'], 0.7, 'ms', probes=1)
    assert plan.kind == 'ms'
    assert plan.share <= 0.7
    assert all(torch.isfinite(torch.tensor(choice.distortion)) for choice in plan.choices)

"""Large maps in bands of rows: the same bits, each unit once and in order, in less memory."""

from collections import defaultdict

import pytest
import torch

from maxq_mm.runtime import kernels
from maxq_mm.runtime.program import Program

from . import band_cases
from .kernel_cases import check_network, residual_network, sparse
from .test_kernels import needs_kernels, run, skip_unless_other

pytestmark = needs_kernels


@pytest.fixture(autouse=True)
def one_thread():
    """Bands grow with their number."""
    torch.set_num_threads(1)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('int8', [False, True])
def test_the_same_bits(seed, int8):
    band_cases.check(seed, 12, int8)


@pytest.mark.parametrize('name', ['emulated', 'emulated-pixels', 'avx512-vnni', 'avx2'])
def test_the_same_bits_of_other_kernels(name):
    skip_unless_other(name)
    run('from tests.runtime import band_cases\n'
        'band_cases.check(5, 10)\n'
        f'if {name!r} != "emulated-pixels": band_cases.check(5, 10, True)', MAXQ_ISA=name)


@pytest.mark.parametrize('threads', [1, 2])
def test_a_network_in_bands(threads):
    """Right, not only alike."""
    with band_cases.in_bands(2 << 10, 10 << 10):
        check_network(threads)


def block(width: int = 64) -> Program:
    """A residual block, and its pooled result."""
    program = Program()
    x = program.relu(program.input(width))
    y = program.layer(x, kernels.pack(sparse((16, width, 1, 1), '1:4'), '1:4'), None, True)
    y = program.layer(y, kernels.pack(sparse((16, 16, 3, 3), '1:4'), '1:4', None, 1, 1), None, True)
    y = program.layer(y, kernels.pack(sparse((width, 16, 1, 1), '1:4'), '1:4'), x, True)
    program.output(program.max_pool(y, 3, 2, 1))
    return program


def plan_of(program: Program, x: torch.Tensor):
    program._forget()
    return program._plan((x, ), torch.contiguous_format)


@pytest.mark.parametrize('batch', [1, 2])
def test_each_unit_once_and_in_order(batch):
    x = torch.randn(batch, 64, 70, 50)
    program = block()
    whole = plan_of(program, x)
    assert len(whole.steps) == len(whole.ops)  # small maps go as before
    with band_cases.in_bands(1 << 10, 40 << 10):
        plan = plan_of(program, x)
    done = defaultdict(int)
    for step in plan.steps:
        assert step.begin == done[step.op] < step.end
        done[step.op] = step.end
    assert done == {step.op: step.end for step in whole.steps}
    # The first rows leave before the last ones come in.
    assert min(i for i, step in enumerate(plan.steps) if step.op == len(plan.ops) - 1) < max(
        i for i, step in enumerate(plan.steps) if step.op == 0)
    if plan.library.kernels.lanes_are == 'pixels':
        assert plan.bytes < whole.bytes / 2


def test_only_large_maps_go_in_bands():
    program = block()
    x = torch.randn(1, 64, 200, 200)
    with band_cases.in_bands(64 * 200 * 200 * 4, 100 << 10):
        plan = plan_of(program, x)
        banded = {step.op for step in plan.steps if step.begin > 0}
        assert banded == {0, 1, 2, 4, 5}  # alone between two runs: the 3 x 3 layer
    with band_cases.in_bands(64 * 200 * 200 * 4 + 1, 100 << 10):
        plan = plan_of(program, x)
        assert len(plan.steps) == len(plan.ops)


def test_bands_count_in_the_operators_time():
    program, _ = residual_network()
    with band_cases.in_bands(1 << 10, 10 << 10):
        found = program.timings(torch.randn(1, 3, 64, 64), repeats=2)
    assert all(milliseconds > 0 for _, milliseconds in found)
    assert len(found) == len(program.nodes)

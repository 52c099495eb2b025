"""The kernels against torch in float64, on every set of them, in threads, forks and copies."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from maxq_mm.runtime import kernels
from maxq_mm.runtime.library import KERNELS, library
from maxq_mm.runtime.program import Program
from maxq_mm.utils.errors import InputError

from ..conftest import ROOT
from . import image_cases, int8_cases
from .kernel_cases import check, check_network, close, residual_network, sparse

needs_kernels = pytest.mark.skipif(kernels.instruction_set() is None,
                                   reason='no AVX2 or AVX-512, or no C++ compiler')


def skip_unless_other(name: str) -> None:
    """Unless this set runs here and is not the one that this process tests."""
    here = library()
    if not name.startswith('emulated') and (
            here is None or KERNELS[name].level > here.functions.maxq_level()
            or name == here.instruction_set):
        pytest.skip('tested in this process, or not here')


def run(code: str, **environment: str) -> str:
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True, check=False,
                            capture_output=True, timeout=600, env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr
    return result.stdout


@needs_kernels
@pytest.mark.parametrize('seed', range(5))
def test_any_layer(seed):
    check(seed, 40, 10)


@needs_kernels
@pytest.mark.parametrize('threads', [1, 3])
def test_a_network_at_several_sizes(threads):
    check_network(threads)


@pytest.mark.parametrize('name', [name for name in KERNELS if name != 'avx512-amx'])
def test_other_kernels(name):
    """What AVX-512 and AMX run, in plain C++; and all lower sets that run here."""
    skip_unless_other(name)
    found = run('from tests.runtime import image_cases, int8_cases, region_cases\n'
                'from tests.runtime.kernel_cases import check, check_network\n'
                'from maxq_mm.runtime import kernels\n'
                f'assert kernels.instruction_set() == {name!r}\n'
                'check(7, 40, 10); check_network(2); region_cases.check(7, 8)\n'
                'int8_cases.check(7, 40, 10); int8_cases.check_moves(7)\n'
                'int8_cases.check_large_results(7)\n'
                'print(int8_cases.check_network(2), image_cases.check(7, 40))', MAXQ_ISA=name)
    if kernels.instruction_set() is not None:  # int8 has the same bits everywhere
        assert found.split()[-2:] == [int8_cases.check_network(1), image_cases.check(7, 40)]


def test_no_kernels():
    run('import torch; from maxq_mm.runtime import kernels\n'
        'from maxq_mm.utils.errors import InputError\n'
        'assert kernels.instruction_set() is None\n'
        'weight = torch.eye(4)\n'
        'assert "no kernel for this CPU" in kernels.refusal(weight, "1:4")\n'
        'try: kernels.pack(weight, "1:4")\n'
        'except InputError as error: assert "no kernel takes this layer" in str(error)\n'
        'else: raise AssertionError', MAXQ_ISA='none')


def test_an_unknown_set():
    run('from maxq_mm.runtime import kernels\n'
        'try: kernels.instruction_set()\n'
        'except ValueError as error: assert "got \'sse\'" in str(error)\n'
        'else: raise AssertionError', MAXQ_ISA='sse')


@needs_kernels
def test_never_more_than_the_processor_has():
    name = run('from maxq_mm.runtime import kernels; print(kernels.instruction_set())',
               MAXQ_ISA='avx512').strip()
    flags = Path('/proc/cpuinfo')
    if flags.exists():
        assert KERNELS[name].level == (2 if 'avx512f' in flags.read_text() else 1)
    flags = flags.read_text().split() if flags.exists() else []
    if {'amx_int8', 'avx512_vbmi', 'avx512_vnni'} <= {*flags} and not os.environ.get('MAXQ_ISA'):
        assert kernels.instruction_set() in ('avx512-amx', 'avx512-vnni')  # as the system allows


def test_without_a_compiler(tmp_path):
    run('import warnings; from maxq_mm.runtime import kernels\n'
        'with warnings.catch_warnings(record=True) as seen:\n'
        '    warnings.simplefilter("always")\n'
        '    for _ in range(2): assert kernels.instruction_set() is None\n'
        'seen = [str(w.message) for w in seen if "compile its kernels" in str(w.message)]\n'
        'assert len(seen) == 1, seen', CXX='no-such-compiler', XDG_CACHE_HOME=str(tmp_path))


@needs_kernels
def test_under_the_address_sanitizer(tmp_path):
    compiler = shutil.which(os.environ.get('CXX') or 'c++')
    if compiler is None:
        pytest.skip('no compiler here')
    # The second, so that exceptions of other libraries are thrown.
    found = [subprocess.run([compiler, f'-print-file-name={name}'], text=True, capture_output=True,
                            check=False).stdout.strip() for name in ('libasan.so', 'libstdc++.so')]
    if not all(Path(name).is_absolute() for name in found):
        pytest.skip('no address sanitizer here')
    run('import maxq_mm.runtime.library as library\n'
        'library.FLAGS = ("-O1", *library.FLAGS[1:], "-fsanitize=address", "-g1")\n'
        'from tests.runtime import region_cases\n'
        'from tests.runtime.kernel_cases import check, check_network\n'
        'from tests.runtime import image_cases, int8_cases\n'
        'image_cases.check(3, 30)\n'
        'check(3, 20, 5); check_network(2); region_cases.check(3, 10)\n'
        'int8_cases.check(3, 20, 5); int8_cases.check_moves(3); int8_cases.check_network(2)\n'
        'int8_cases.check_large_results(3)\n'
        'from tests.runtime import band_cases\n'
        'band_cases.check(3, 8); band_cases.check(3, 8, True)',
        LD_PRELOAD=' '.join(str(Path(name).resolve()) for name in found),
        ASAN_OPTIONS='detect_leaks=0', XDG_CACHE_HOME=str(tmp_path))


@needs_kernels
def test_several_callers_at_once():
    torch.set_num_threads(2)
    program, reference = residual_network('1:4')
    inputs = [torch.randn(1, 3, 24 + 4 * i, 40) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: program(x), inputs * 4))
    for x, results in zip(inputs * 4, found, strict=True):
        for one, expected in zip(results, reference(x), strict=True):
            close(one, expected)


@needs_kernels
@pytest.mark.skipif(not hasattr(os, 'sched_getaffinity'), reason='no affinity')
@pytest.mark.parametrize('kept', [1, None])
def test_a_helper_leaves_its_caller_alone(kept):
    """It may run on all of the caller's processors but the one that the caller is on, if any."""
    run('import os, time, torch; from tests.runtime.kernel_cases import residual_network\n'
        'torch.set_num_threads(2)\n'
        'program, _ = residual_network()\n'
        f'mine = set(sorted(os.sched_getaffinity(0))[:{kept}])\n'
        'x = torch.randn(1, 3, 64, 64)\n'
        'threads = set(os.listdir("/proc/self/task"))\n'
        'os.sched_setaffinity(0, mine)\n'
        'wanted, found, end = max(1, len(mine) - 1), set(), time.monotonic() + 60\n'
        'while len(found) != wanted and time.monotonic() < end:  # until it has begun to help\n'
        '    program(x)\n'
        '    helper, = {*os.listdir("/proc/self/task")} - threads\n'
        '    found = os.sched_getaffinity(int(helper))\n'
        'assert os.sched_getaffinity(0) == mine\n'
        'assert found <= mine and len(found) == wanted, (found, mine)')


@needs_kernels
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
def test_after_a_fork():
    """The child has no helpers; it gets its own, and both end."""
    run('import os, torch; from tests.runtime.kernel_cases import residual_network\n'
        'torch.set_num_threads(2)\n'
        'program, _ = residual_network()\n'
        'x = torch.randn(1, 3, 64, 64)\n'
        'before = program(x)\n'
        'child = os.fork()  # in which torch itself may not compute: its own threads hang\n'
        'same = all(a.numpy().tobytes() == b.numpy().tobytes()\n'
        '           for _ in range(3) for a, b in zip(program(x), before))\n'
        'if child == 0: os._exit(0 if same else 1)\n'
        'assert same and os.waitpid(child, 0)[1] == 0')


@needs_kernels
@pytest.mark.parametrize('copied', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_their_own(copied):
    program, reference = residual_network()
    x = torch.randn(1, 3, 20, 20)
    program(x)
    other = copied(program)
    del program
    close(other(x)[0], reference(x)[0])


@needs_kernels
def test_numbers_that_are_none():
    """NaN is not hidden by a ReLU or a maximum."""
    weight = sparse((4, 4, 1, 1), None)
    x = torch.ones(1, 4, 3, 3)
    x[0, 0, 1, 1] = torch.nan
    result = kernels.pack(weight, None)(x, relu=True)
    assert result[0, :, 1, 1].isnan().all()
    assert result.isnan().sum() == 4
    program = Program()
    program.output(program.max_pool(program.relu(program.input(4)), 3, 1, 1))
    assert program(x)[0][0, 0].isnan().all()
    assert not program(x)[0][0, 1:].isnan().any()


@needs_kernels
def test_timings_name_the_operators():
    program, _ = residual_network()
    names = [name for name, milliseconds in program.timings(torch.randn(1, 3, 32, 32), repeats=2)
             if milliseconds > 0]
    assert len(names) == len(program.nodes)  # one input, whose place the outputs' sum takes
    assert names[0] == 'dense 16x3x7x7 -> 16 x 16 x 16'
    assert names[-1] == 'inputs and outputs'


@needs_kernels
def test_what_is_refused():
    weight = sparse((4, 16, 3, 3), '2:4')
    assert kernels.refusal(weight, '2:4') is None
    assert kernels.refusal(weight, '1:16') == 'not 1:16'
    assert kernels.refusal(weight, '1:3') == '16 input channels, no multiple of 3'
    assert kernels.refusal(weight, '2:4', groups=2) == 'grouped (2 groups)'
    assert 'float64' in kernels.refusal(weight.double(), '2:4')
    assert 'meta' in kernels.refusal(weight.to('meta'), '2:4')
    for arguments, said in (((weight, '1:16'), 'not 1:16'),
                            ((weight, '2:4', torch.ones(3)), 'bias'),
                            ((weight, '2:4', None, 0), 'stride'),
                            ((weight, '2:4', None, 1, 'same'), 'padding')):
        with pytest.raises(InputError, match=said):
            kernels.pack(*arguments)
    layer = kernels.pack(weight, '2:4')
    for x, said in ((torch.ones(1, 8, 9, 9), r'\(N, 16, H, W\)'), (torch.ones(16, 9), 'N, 16'),
                    (torch.ones(1, 16, 2, 2), 'too small'),
                    (torch.ones(1, 16, 9, 9).double(), 'float32')):
        with pytest.raises(InputError, match=said):
            layer(x)
    with pytest.raises(InputError, match='cannot be added'):
        layer(torch.ones(1, 16, 9, 9), torch.ones(1, 4, 9, 9))
    program = Program()
    x = program.input(8)
    for call, said in ((lambda: program.layer(x, layer), '16 input channels'),
                       (lambda: program.relu(5), '5 is no value'),
                       (lambda: program.add(x, program.input(4)), '8 channels and 4'),
                       (lambda: program.max_pool(x, 2, 2, 2), 'padding'),
                       (lambda: program.depth_to_space(x, (3, 2)), '8 channels are no multiple')):
        with pytest.raises(InputError, match=said):
            call()


@needs_kernels
def test_packed_for_another_set():
    layer = kernels.pack(sparse((4, 16, 1, 1), '1:4'), '1:4')
    object.__setattr__(layer, 'instruction_set', 'another')
    with pytest.raises(RuntimeError, match=f'another.* {library().instruction_set}'):
        layer(torch.ones(1, 16, 2, 2))

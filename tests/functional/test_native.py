"""The compiled operators against the sorted formulation, and what happens where there are none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maxq_mm import soft_mask
from maxq_mm.functional import batched, native
from maxq_mm.functional.decay import add_decay_
from maxq_mm.functional.masks import AXES, effective_weight
from maxq_mm.functional.pattern import Pattern

from ..conftest import ROOT
from ..reference import reference_keep_mask, reference_soft_mask

KINDS = ('normal', 'heavy tails', 'few values', 'all equal', 'zeros', 'denormals', 'outlier',
         'shifted filters', 'structured', 'near ties')
KERNELS = ((), (1, 1), (3, 3), (1, 7), (2, ), (5, 5))


def draw(generator: torch.Generator, shape, kind: str) -> torch.Tensor:
    weight = torch.randn(shape, generator=generator) * 0.02
    if kind == 'heavy tails':
        weight *= torch.randn(shape, generator=generator).exp() ** 4
    elif kind == 'few values':
        weight = (weight * 100).round() / 100
    elif kind == 'all equal':
        weight = torch.full(shape, -0.25)
    elif kind == 'zeros':
        weight *= torch.rand(shape, generator=generator) < 0.3
    elif kind == 'denormals':
        weight *= 1e-39
    elif kind == 'outlier':
        weight.view(-1)[weight.numel() // 3] = 3e37
    elif kind == 'shifted filters':  # neighbours tell nothing of a filter's threshold
        weight *= 10 ** torch.randint(-8, 8, (shape[0], *[1] * (len(shape) - 1)),
                                      generator=generator).float()
    elif kind == 'structured':  # magnitude goes with the channel: a regular sample misleads
        weight = weight.movedim(1, -1) * torch.arange(shape[1]).add(1)
        weight = weight.movedim(-1, 1).contiguous()
    elif kind == 'near ties':  # norms that differ in their last bit, by the order of additions
        weight = weight.sign() * (1 + torch.randint(0, 3, shape, generator=generator) * 2 ** -23)
    return weight


def check(generator: torch.Generator, seed: int) -> None:
    """One random case; a failure names it."""
    def choose(options):
        return options[int(torch.randint(len(options), (), generator=generator))]

    m = choose((2, 3, 4, 8, 16, 48, 64))
    n = 1 + int(torch.randint(m - 1, (), generator=generator))
    kind, kernel = choose(KINDS), choose(KERNELS)
    shape = (choose((1, 2, 7, 24, 160)), m * choose((1, 2, 5)), *kernel)
    fraction = choose((0., 1e-3, 0.37, 0.5, 0.93, 1.))
    axes = choose(((), ('filter', ), ('kernel', ), ('filter', 'kernel')))
    order = choose(('smallest', 'largest'))
    weight = draw(generator, shape, kind)
    case = (seed, kind, shape, (n, m), fraction, axes, order)
    mask = soft_mask(weight, f'{n}:{m}', fraction, axes, 1e-2, order)
    expected = reference_soft_mask(weight, n, m, fraction, axes, 1e-2, order)
    assert torch.equal(mask != 0, reference_keep_mask(weight, n, m, fraction, order)), case
    assert torch.allclose(mask, expected, rtol=0, atol=1e-6), case
    effective = effective_weight(weight, f'{n}:{m}', fraction, axes, 1e-2, order)
    assert torch.equal(effective, mask * weight), case


@pytest.mark.parametrize('seed', range(10))
def test_any_weight(seed, path):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(40):
        check(generator, seed)


def test_pruned_weights_that_fade(path):
    weight = torch.tensor([[4., -3, 2, 1, -5, 6, 7, 8]])
    mask = soft_mask(weight, '2:4', 0.25, axes=(), fade=True)
    assert mask.tolist() == [[1, 1, 0.25, 0.25, 0.25, 0.25, 1, 1]]
    effective = effective_weight(weight, '2:4', 0.25, axes=(), fade=True)
    assert effective.tolist() == [[4, -3, 0.5, 0.25, -1.25, 1.5, 7, 8]]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('fraction', [0., 1e-3, 0.37, 1.])
def test_fading_of_any_weight(kind, fraction, path):
    """All as if dense, the pruned ones times the fraction; its ends are those of other ramps."""
    weight = draw(torch.Generator().manual_seed(0), (24, 32, 3, 3), kind)
    keep = reference_keep_mask(weight, 1, 8)
    expected = reference_soft_mask(weight, 1, 8, 1.) * torch.where(keep, 1., fraction)
    mask = soft_mask(weight, '1:8', fraction, fade=True)
    effective = effective_weight(weight, '1:8', fraction, fade=True)
    together, = batched.soft_masks([weight], Pattern(1, 8), fraction, AXES, 1e-2, 'smallest',
                                   False, fade=True)
    assert torch.allclose(mask, expected, rtol=0, atol=1e-6)
    assert torch.allclose(together, expected, rtol=0, atol=1e-6)
    assert torch.allclose(effective, expected * weight, rtol=1e-5, atol=1e-38)
    if fraction in (0., 1.):
        assert torch.equal(mask, soft_mask(weight, '1:8', fraction))
        assert torch.equal(effective, effective_weight(weight, '1:8', fraction))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('shape', [(256, 128, 3, 3), (1024, 256, 1, 1)])
def test_weights_too_long_to_be_read_twice(shape, kind):
    """Long kernel positions and block norms are sampled first, then verified."""
    weight = draw(torch.Generator().manual_seed(0), shape, kind)
    for fraction in (0., 0.7):
        mask = soft_mask(weight, '2:4', fraction)
        assert torch.equal(mask != 0, reference_keep_mask(weight, 2, 4, fraction))
        assert torch.allclose(mask, reference_soft_mask(weight, 2, 4, fraction), rtol=0, atol=1e-6)


@pytest.mark.parametrize('n', [1, 4, 7])
def test_one_block_a_position(n, path):
    """torch sums such norms in another order; near ties tell."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        weight = 1 + torch.randint(0, 3, (1, 8, 3, 3), generator=generator) * 2 ** -23
        for order in ('smallest', 'largest'):
            mask = soft_mask(weight, f'{n}:8', 0.5, order=order)
            assert torch.equal(mask != 0, reference_keep_mask(weight, n, 8, 0.5, order))


def test_numbers_at_the_edges(path):
    """Sums that overflow, a temperature of next to nothing, and NaN, which is not hidden."""
    weight = torch.full((8, 8, 3, 3), 2e38)
    assert torch.equal(soft_mask(weight, '2:4'), reference_soft_mask(weight, 2, 4))
    weight = torch.randn(8, 8, 3, 3)
    assert torch.allclose(soft_mask(weight, '2:4', temperature=1e-39),
                          reference_soft_mask(weight, 2, 4, temperature=1e-39))
    weight[3, 5, 1, 1] = torch.nan
    assert effective_weight(weight, '2:4')[3, 5, 1, 1].isnan()


def test_a_tied_filter_among_others():
    weight = torch.randn(16, 32, 3, 3)
    weight[3] = 0
    weight[5] = (weight[5] * 4).round() / 4
    for fraction in (0., 0.5):
        expected = reference_soft_mask(weight, 2, 4, fraction)
        assert torch.allclose(soft_mask(weight, '2:4', fraction), expected, rtol=0, atol=1e-6)


def test_weights_that_move():
    """No step remembers another: a small move and quite different weights come out alike."""
    weight = torch.randn(64, 32, 3, 3) * 0.02
    for other in (weight + 1e-4 * torch.randn_like(weight), weight * 1e3, 1 / weight, weight * 0):
        soft_mask(weight, '1:16', 0.5)
        assert torch.allclose(soft_mask(other, '1:16', 0.5),
                              reference_soft_mask(other, 1, 16, 0.5), rtol=0, atol=1e-6)


def test_number_of_threads_does_not_matter():
    weight = torch.randn(256, 128, 3, 3)
    masks = []
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        masks.append(soft_mask(weight, '2:4', 0.5))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_decay(path):
    weight = torch.randn(16, 16, 3, 3)
    effective = effective_weight(weight, '2:4')
    grad = torch.randn_like(weight)
    expected = grad + 0.1 * weight * (effective == 0)
    for form in (torch.contiguous_format, torch.channels_last):
        given = grad.clone(memory_format=form)
        add_decay_(given, weight, effective, 0.1)
        assert torch.allclose(given, expected, rtol=0, atol=1e-6)
    scaled = grad * 1024
    add_decay_(scaled, weight, effective, 0.1, torch.tensor(1024.))
    assert torch.allclose(scaled / 1024, expected, rtol=0, atol=1e-6)


def test_keeps_out_of_inference_mode_and_autograd(path):
    weight = torch.nn.Parameter(torch.randn(8, 8))
    assert not soft_mask(weight, '2:4').requires_grad
    with torch.inference_mode():
        inside = soft_mask(weight, '2:4')
    assert torch.equal(inside, soft_mask(weight, '2:4'))


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True, check=False,
                            capture_output=True, env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='reads Linux counters')
def test_memory_of_a_refresh():
    """Beside its result, a refresh of a layer takes less than a third of one."""
    code = ('import torch; from pathlib import Path\n'
            'from maxq_mm.functional.masks import effective_weight\n'
            'def status(key):\n'
            '    lines = Path("/proc/self/status").read_text().splitlines()\n'
            '    return 1024 * next(int(l.split()[1]) for l in lines if l.startswith(key))\n'
            'weight = torch.randn(1024, 512, 3, 3)\n'
            'for fraction in (0., 0.5):\n'
            '    effective_weight(weight, "2:4", fraction)\n'
            '    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here\n'
            '    before = status("VmRSS")\n'
            '    result = effective_weight(weight, "2:4", fraction)\n'
            '    extra = status("VmHWM") - before - result.nbytes\n'
            '    assert extra < weight.nbytes / 3, extra / weight.nbytes\n'
            '    del result\n')
    run(code, MALLOC_MMAP_THRESHOLD_='65536')  # what is freed goes back at once


@pytest.mark.parametrize('capability', ['default', 'avx2'])
def test_older_processors(capability, tmp_path):
    """What is compiled for fewer vector instructions gives the same; cached where it is told to."""
    code = ('import torch; from tests.functional.test_native import check, native\n'
            'assert native.available()\n'
            'generator = torch.Generator().manual_seed(1)\n'
            'for _ in range(100): check(generator, 1)\n')
    run(code, ATEN_CPU_CAPABILITY=capability, XDG_CACHE_HOME=str(tmp_path))
    library, = (tmp_path / 'maxq_mm').iterdir()
    assert library.suffix == '.so'
    stamp = library.stat().st_mtime_ns
    run('from maxq_mm.functional import native; assert native.available()',
        ATEN_CPU_CAPABILITY=capability, XDG_CACHE_HOME=str(tmp_path))
    assert library.stat().st_mtime_ns == stamp, 'compiled twice'


def test_a_library_cut_short_is_compiled_anew(tmp_path):
    code = 'from maxq_mm.functional import native; assert native.available()'
    run(code, XDG_CACHE_HOME=str(tmp_path))
    library, = (tmp_path / 'maxq_mm').iterdir()
    whole = library.read_bytes()
    library.write_bytes(whole[:60_000])  # loading this would kill the process
    run(code, XDG_CACHE_HOME=str(tmp_path))
    assert len(library.read_bytes()) == len(whole)
    assert [path.name for path in (tmp_path / 'maxq_mm').iterdir()] == [library.name]


def test_two_threads_at_once(tmp_path):
    run('from concurrent.futures import ThreadPoolExecutor\n'
        'from maxq_mm.functional import native\n'
        'with ThreadPoolExecutor(2) as pool:\n'
        '    found = [pool.submit(native.available) for _ in range(2)]\n'
        'assert all(one.result() for one in found)', XDG_CACHE_HOME=str(tmp_path))


def test_without_a_compiler(tmp_path):
    code = ('import torch, warnings; from maxq_mm import soft_mask\n'
            'with warnings.catch_warnings(record=True) as seen:\n'
            '    warnings.simplefilter("always")\n'
            '    for _ in range(2): mask = soft_mask(torch.ones(4, 4), "2:4")\n'
            'seen = [str(w.message) for w in seen if "could not compile" in str(w.message)]\n'
            'assert len(seen) == 1 and (mask != 0).sum() == 8, seen')
    run(code, CXX='no-such-compiler', XDG_CACHE_HOME=str(tmp_path))
    assert not list(tmp_path.rglob('*.so'))


def test_turned_off(tmp_path):
    run('from maxq_mm.functional import native; assert not native.available()', MAXQ_NATIVE='0')


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / 'maxq_mm').write_text('in the way')
    code = ('import warnings; from maxq_mm.functional import native\n'
            'with warnings.catch_warnings(record=True) as seen:\n'
            '    warnings.simplefilter("always")\n'
            '    assert native.available()\n'
            'assert any("cannot keep" in str(w.message) for w in seen)')
    run(code, XDG_CACHE_HOME=str(tmp_path))


def test_what_the_operators_do_not_take():
    """Left to torch: other precisions, devices, subclasses, and blocks too large to rank."""
    from maxq_mm.functional.pattern import Pattern
    weight = torch.randn(4, 128)
    assert native.serves(weight, Pattern(2, 4), 'smallest')
    assert not native.serves(weight, Pattern(1, 128), 'smallest')
    assert not native.serves(weight, Pattern(4, 4), 'smallest')
    assert not native.serves(weight, Pattern(2, 4), 'random')
    assert not native.serves(weight.double(), Pattern(2, 4), 'smallest')
    assert not native.serves(weight.to('meta'), Pattern(2, 4), 'smallest')
    for given, n, dense in ((weight.t(), 2, 0), (weight, 0, 0), (weight, 2, 1000)):
        with pytest.raises(RuntimeError, match='unfit weight'):
            torch.ops.maxq_mm.soft_mask(given, n, 4, dense, False, True, True, 1e-2, False)
    with pytest.raises(RuntimeError, match='unfit gradient'):
        torch.ops.maxq_mm.add_decay_(torch.zeros(99), weight, weight, 1.)

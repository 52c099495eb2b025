"""The C++ operators behind masks and decay on CPUs, for float32.

They are compiled on first use, with the machine's own C++ compiler, and kept in the user's cache
folder. Where that fails, or with ``MAXQ_NATIVE=0`` in the environment, the functions in masks.py
and decay.py compute the same with torch alone, several times slower.
"""

import functools
import os
import threading
from pathlib import Path

import torch
from torch import Tensor

from ..utils import compiler
from .pattern import Pattern
from .ramp import dense_count

SOURCE = Path(__file__).parent / 'csrc' / 'soft_mask.cpp'
# What SOURCE takes: see kMaxM there.
_MAX_M = 64
_ORDERS = ('smallest', 'largest')
_lock = threading.Lock()
_VECTORS = {'AVX512': ('-mavx512f', '-mavx512bw', '-mavx512vl', '-mavx512dq', '-mavx2', '-mfma'),
            'AVX2': ('-mavx2', '-mfma')}


def available() -> bool:
    """Whether the operators are there; compiles and loads them if need be, once a process."""
    with _lock:  # a cache alone lets two threads in
        return _available()


@functools.cache
def _available() -> bool:
    if os.environ.get('MAXQ_NATIVE') == '0':
        return False
    try:
        compiler.load('soft_mask', [compiler.Unit(SOURCE)], torch.ops.load_library,
                      flags=_flags(), with_torch=True)
    except Exception as error:  # no compiler, no space, another torch: never in the way of training
        compiler.say_fallback('C++ operators', error, 'masks are computed with torch alone, '
                              'several times slower')
        return False
    return True


def serves(weight: Tensor, pattern: Pattern, order: str) -> bool:
    """Whether the operators take these arguments."""
    # Of one block a position, torch sums the norms in another order than of all other weights.
    one_block = weight.ndim > 2 and weight.shape[:2] == (1, pattern.m)
    return (not pattern.is_dense and pattern.m <= _MAX_M and order in _ORDERS and not one_block
            and _take(weight) and available())


def serves_decay(*tensors: Tensor) -> bool:
    """Whether the operator for decay takes these tensors."""
    alike = all(tensor.is_contiguous() and tensor.shape == tensors[0].shape for tensor in tensors)
    return alike and _take(*tensors) and available()


def _take(*tensors: Tensor) -> bool:
    return all(type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type == 'cpu'
               and tensor.dtype == torch.float32 for tensor in tensors
               ) and not torch.jit.is_tracing()


def _flags() -> list[str]:
    capability = torch.backends.cpu.get_cpu_capability()
    name = capability if capability in _VECTORS else 'DEFAULT'
    return ['-O3', '-std=c++20', '-fopenmp', '-fno-math-errno', '-fno-trapping-math',
            f'-DCPU_CAPABILITY={name}', f'-DCPU_CAPABILITY_{name}', *_VECTORS.get(name, ())]


def soft_mask(weight: Tensor, pattern: Pattern, dense_fraction: float, axes: tuple[str, ...],
              temperature: float, order: str, effective: bool, fade: bool) -> Tensor:
    """Soft mask of :func:`maxq_mm.soft_mask`, times the weight if ``effective``."""
    weight = weight.detach().contiguous()

    def with_dense(fraction: float) -> Tensor:
        return torch.ops.maxq_mm.soft_mask(
            weight, pattern.n, pattern.m, dense_count(fraction, weight.numel() // pattern.m),
            order == 'largest', 'filter' in axes, 'kernel' in axes, temperature, effective)

    if not fade or dense_fraction == 0:
        return with_dense(0. if fade else dense_fraction)
    kept = with_dense(0.)
    return torch.where(kept == 0, with_dense(1.).mul_(dense_fraction), kept)


def add_decay_(grad: Tensor, weight: Tensor, effective: Tensor, decay: float) -> None:
    """Add decay * weight to ``grad`` where ``effective`` is 0; all contiguous, of one shape."""
    torch.ops.maxq_mm.add_decay_(grad, weight.detach(), effective, decay)

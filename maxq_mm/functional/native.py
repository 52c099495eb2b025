"""The C++ operators behind masks and decay on CPUs, for float32.

They are compiled on first use, with the machine's own C++ compiler, and kept in the user's cache
folder. Where that fails, or with ``MAXQ_NATIVE=0`` in the environment, the functions in masks.py
and decay.py compute the same with torch alone, several times slower.
"""

import functools
import hashlib
import logging
import os
import platform
import shutil
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ..utils.errors import first_line
from .pattern import Pattern

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
        library = _cached()
        if _is_whole(library):
            torch.ops.load_library(library)
        else:
            _compile(library)
    except Exception as error:  # no compiler, no space, another torch: never in the way of training
        warnings.warn(f'maxq_mm could not compile its C++ operators ({first_line(error)}); masks '
                      'are computed with torch alone, several times slower', stacklevel=3)
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
    return ['-O3', '-fopenmp', '-fno-math-errno', '-fno-trapping-math',
            f'-DCPU_CAPABILITY={name}', f'-DCPU_CAPABILITY_{name}', *_VECTORS.get(name, ())]


def _cached() -> Path:
    """Where the library of this source, torch and machine is kept."""
    parts = (SOURCE.read_text(), *_flags(), torch.__version__, platform.platform(), sys.version)
    key = hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16]
    root = Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'))  # noqa: PTH111
    return root / 'maxq_mm' / f'soft_mask-{key}.so'


def _is_whole(library: Path) -> bool:
    """Whether the file ends with its own checksum: loading one cut short kills the process."""
    if not library.is_file():
        return False
    content = library.read_bytes()
    size = hashlib.sha256().digest_size
    return content[-size:] == hashlib.sha256(content[:-size]).digest()


def _compile(library: Path) -> None:
    """Compile and load; keep the result in ``library`` if that can be written."""
    from torch.utils import cpp_extension

    logging.getLogger('maxq_mm').warning(
        'maxq_mm: compiling C++ operators, once on this machine (about 15 s)')
    parent = library.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=parent)
    except OSError as error:
        warnings.warn(f'maxq_mm cannot keep its compiled operators ({error}); the next process '
                      'compiles them again', stacklevel=4)
        folder = tempfile.mkdtemp(prefix='maxq_mm-')
    path = os.environ.get('PATH', '')
    # In a folder of its own: a compilation that was killed leaves no lock to others.
    try:
        # ninja sits beside an interpreter that was started by its path.
        os.environ['PATH'] = os.pathsep.join((str(Path(sys.executable).parent), path))
        cpp_extension.load(library.stem.replace('-', '_'), [str(SOURCE)], _flags(),
                           build_directory=folder, is_python_module=False)
        built = next(Path(folder).glob('*.so'))
        if Path(folder).parent == parent:
            content = built.read_bytes()
            beside = Path(folder) / library.name
            with beside.open('wb') as file:
                file.write(content + hashlib.sha256(content).digest())
                file.flush()
                os.fsync(file.fileno())
            beside.replace(library)
    finally:
        os.environ['PATH'] = path
        shutil.rmtree(folder, ignore_errors=True)


def soft_mask(weight: Tensor, pattern: Pattern, dense_count: int, axes: tuple[str, ...],
              temperature: float, order: str, effective: bool) -> Tensor:
    """Soft mask of :func:`maxq_mm.soft_mask`, times the weight if ``effective``."""
    return torch.ops.maxq_mm.soft_mask(
        weight.detach().contiguous(), pattern.n, pattern.m, dense_count, order == 'largest',
        'filter' in axes, 'kernel' in axes, temperature, effective)


def add_decay_(grad: Tensor, weight: Tensor, effective: Tensor, decay: float) -> None:
    """Add decay * weight to ``grad`` where ``effective`` is 0; all contiguous, of one shape."""
    torch.ops.maxq_mm.add_decay_(grad, weight.detach(), effective, decay)

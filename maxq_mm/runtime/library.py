"""The compiled runtime: C++ kernels behind a plain C interface, called without Python's lock.

Instruction sets are chosen at run time: AVX-512 (F, BW, DQ, VL) or AVX2 with FMA. ``MAXQ_ISA`` in
the environment (``avx512``, ``avx2``, ``none``) forces a lower set than the processor has;
``emulated`` compiles what AVX-512 runs as plain C++, slow, for tests.
"""

import ctypes
import functools
import os
import platform
import threading
from pathlib import Path
from typing import NamedTuple

from ..utils import compiler
from ..utils.errors import InputError

SOURCES = Path(__file__).parent / 'csrc'
_LANES = {'avx512': 16, 'avx2': 8, 'none': 0, 'emulated': 16}
_AVX2 = ('-mavx2', '-mfma')
_AVX512 = (*_AVX2, '-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl')
_lock = threading.Lock()
_Int = ctypes.c_int64


class View(ctypes.Structure):
    """A planar tensor: see runtime.h."""

    _fields_ = [(name, _Int) for name in ('offset', 'image', 'channel', 'n', 'c', 'h', 'w', 'pitch',
                                          'front')]


class Op(ctypes.Structure):
    """One operator: see runtime.h."""

    _fields_ = [('kind', _Int), ('relu', _Int), ('input', View), ('other', View), ('out', View),
                ('external', _Int), ('strides', _Int * 4), ('kernel', _Int * 2),
                ('stride', _Int * 2), ('padding', _Int * 2), ('dilation', _Int * 2),
                ('n', _Int), ('m', _Int), ('block_rows', _Int), ('values', ctypes.c_void_p),
                ('rows', ctypes.c_void_p), ('bias', ctypes.c_void_p)]


class Library(NamedTuple):
    """The functions of the library, and what it runs with here."""

    run: ctypes._CFuncPtr
    lanes: int
    outputs: int
    instruction_set: str


def library() -> Library | None:
    """The library, compiled and loaded once a process; None if it cannot run here.

    Raises:
        InputError: ``MAXQ_ISA`` is none of its values.
    """
    with _lock:  # a cache alone lets two threads in
        return _library()


@functools.cache
def _library() -> Library | None:
    wanted = os.environ.get('MAXQ_ISA') or 'avx512'
    if wanted not in _LANES:
        raise InputError(f'MAXQ_ISA must be one of {", ".join(_LANES)}, got {wanted!r}')
    emulated = wanted == 'emulated'
    if wanted == 'none' or not (emulated or platform.machine() in ('x86_64', 'AMD64')):
        return None
    try:
        functions = _load(emulated)
    except Exception as error:  # no compiler, no space: layers stay dense
        compiler.say_fallback('kernels', error, 'N:M layers stay dense', stacklevel=5)
        return None
    lanes = min(functions.maxq_lanes(), _LANES[wanted])
    if lanes == 0:
        return None
    name = 'emulated' if emulated else next(key for key, n in _LANES.items() if n == lanes)
    return Library(functions.maxq_run, lanes, functions.maxq_outputs(lanes), name)


def _load(emulated: bool) -> ctypes.CDLL:
    sets = {'avx512': ()} if emulated else {'avx512': _AVX512, 'avx2': _AVX2}
    units = [compiler.Unit(SOURCES / f'{name}.cpp', flags) for name, flags in sets.items()]
    units += [compiler.Unit(SOURCES / f'{name}.cpp') for name in ('pool', 'program')]
    functions = compiler.load(
        'runtime', units, ctypes.CDLL, headers=sorted(SOURCES.glob('*.h')),
        flags=('-O3', '-std=c++20', '-pthread', *(['-DMAXQ_EMULATE'] if emulated else [])))
    functions.maxq_lanes.restype = functions.maxq_outputs.restype = _Int
    functions.maxq_op_bytes.restype = _Int
    functions.maxq_outputs.argtypes = [_Int]
    functions.maxq_run.restype = None
    pointer = ctypes.c_void_p
    functions.maxq_run.argtypes = [_Int, pointer, _Int, pointer, pointer, _Int, pointer]
    assert functions.maxq_op_bytes() == ctypes.sizeof(Op), 'the two sides of Op differ'
    return functions


KINDS = {name: number for number, name in enumerate(
    ('import', 'export', 'layer', 'dense layer', 'max pool', 'add', 'upsample'))}

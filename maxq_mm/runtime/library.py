"""The compiled runtime: C++ kernels behind a plain C interface, called without Python's lock.

Kernels are chosen at run time by what the processor has: AVX-512 (F, BW, DQ, VL) with VBMI and VNNI
or without, with AMX beside them or not, AVX2 with FMA, or nothing. ``MAXQ_ISA`` in the environment
forces others, never such as the processor lacks: ``avx512-vnni``, ``avx512``, ``avx2``, ``none``,
``avx512-pixels`` (AVX2's kernels in AVX-512); for tests, ``emulated``, ``emulated-amx`` and
``emulated-pixels`` are what AVX-512 and AMX run in plain C++.
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


class Kernels(NamedTuple):
    """One set of kernels: its number in program.cpp, what it needs (maxq_level), its layout."""

    number: int
    level: int
    # What the lanes of a vector are: pixels, whose tiles hold them side by side, or output
    # channels, of channels-last activations.
    lanes_are: str
    int8: str  # the set that programs with int8 layers run with as a whole


# The one place where instruction sets, kernels and layouts are matched; the best comes first.
KERNELS = {
    'avx512-amx': Kernels(5, 4, 'outputs', 'avx512-amx'),
    'avx512-vnni': Kernels(3, 3, 'outputs', 'avx512-vnni'),
    'avx512': Kernels(1, 2, 'outputs', 'avx2'),
    'avx2': Kernels(0, 1, 'pixels', 'avx2'),
    'avx512-pixels': Kernels(2, 2, 'pixels', 'avx2'),
    'emulated': Kernels(3, 4, 'outputs', 'emulated'),
    'emulated-amx': Kernels(5, 4, 'outputs', 'emulated-amx'),
    'emulated-pixels': Kernels(2, 4, 'pixels', 'emulated'),
}
_BEST = {4: 'avx512-amx', 3: 'avx512-vnni', 2: 'avx512', 1: 'avx2', 0: 'none'}  # by level
FLAGS = ('-O3', '-std=c++20', '-pthread')  # of all files
_AVX2 = ('-mavx2', '-mfma')
_AVX512 = (*_AVX2, '-mprfchw', '-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl')
_VNNI = (*_AVX512, '-mavx512vbmi', '-mavx512vnni')
_AMX = (*_VNNI, '-mamx-tile', '-mamx-int8')
_lock = threading.Lock()
_Int = ctypes.c_int64


class View(ctypes.Structure):
    """A tensor: see runtime.h."""

    _fields_ = [(name, _Int) for name in ('offset', 'image', 'n', 'c', 'h', 'w', 'pitch', 'size',
                                          'tiles', 'margin', 'front', 'element', 'zero', 'ring')]


class Op(ctypes.Structure):
    """One operator: see runtime.h."""

    _fields_ = [('kind', _Int), ('relu', _Int), ('input', View), ('other', View), ('out', View),
                ('external', _Int), ('strides', _Int * 4), ('kernel', _Int * 2),
                ('stride', _Int * 2), ('padding', _Int * 2), ('dilation', _Int * 2),
                ('block_rows', _Int), ('steps', _Int), ('values', ctypes.c_void_p),
                ('rows', ctypes.c_void_p), ('bias', ctypes.c_void_p),
                ('scales', ctypes.c_void_p), ('factor', ctypes.c_float),
                ('other_factor', ctypes.c_float), ('offset', ctypes.c_float)]


class Step(ctypes.Structure):
    """A part of an operator: see runtime.h."""

    _fields_ = [(name, _Int) for name in ('op', 'begin', 'end')]


class Library(NamedTuple):
    """The library as it runs here."""

    instruction_set: str  # a key of KERNELS
    kernels: Kernels
    run: ctypes._CFuncPtr
    lanes: int
    outputs: int  # side by side
    int8_outputs: int  # the same of int8 layers
    width: int  # pixels of a tile
    unit: int  # bytes that a pixel's channels are padded to a multiple of
    functions: ctypes.CDLL  # others


def library(int8: bool = False) -> Library | None:
    """The library, compiled and loaded once a process; None if it cannot run here.

    ``int8``: with the kernels that programs with int8 layers run with.

    Raises:
        InputError: ``MAXQ_ISA`` is none of its values.
    """
    with _lock:  # a cache alone lets two threads in
        return _library(int8)


@functools.cache
def _library(int8: bool) -> Library | None:
    wanted = os.environ.get('MAXQ_ISA') or 'avx512-amx'
    if wanted not in (*KERNELS, 'none'):
        raise InputError(f'MAXQ_ISA must be none or one of {", ".join(KERNELS)}, got {wanted!r}')
    emulated = wanted.startswith('emulated')
    if wanted == 'none' or not (emulated or platform.machine() in ('x86_64', 'AMD64')):
        return None
    try:
        functions = _load(emulated)
    except Exception as error:  # no compiler, no space: layers stay dense
        compiler.say_fallback('kernels', error, 'N:M layers stay dense', stacklevel=5)
        return None
    level = functions.maxq_level()
    if KERNELS[wanted].level > level:
        wanted = _BEST[level]
    if wanted == 'none':
        return None
    if int8:
        wanted = KERNELS[wanted].int8
    described = (_Int * 5)()
    functions.maxq_describe(KERNELS[wanted].number, described)
    return Library(wanted, KERNELS[wanted], functions.maxq_run, *described, functions)


@functools.cache
def _load(emulated: bool) -> ctypes.CDLL:
    if emulated:  # arrays of 16 take a compiler long at -O3
        sets = dict.fromkeys(('outputs_amx', 'outputs_vnni', 'pixels_avx512', 'align_avx512'),
                             ('-O1',))
    else:
        sets = {'outputs_amx': _AMX, 'outputs_vnni': _VNNI, 'outputs_avx512': _AVX512,
                'pixels_avx512': _AVX512, 'align_avx512': _AVX512,
                'pixels_avx2': _AVX2, 'align_avx2': _AVX2}
    units = [compiler.Unit(SOURCES / f'{name}.cpp', flags) for name, flags in sets.items()]
    units += [compiler.Unit(SOURCES / f'{name}.cpp') for name in ('pool', 'program')]
    # What rounds here is to round as in the operators whose place these take.
    units += [compiler.Unit(SOURCES / f'{name}.cpp', ('-ffp-contract=off', ))
              for name in ('regions', 'paste', 'suppress')]
    functions = compiler.load(
        'runtime', units, ctypes.CDLL, headers=sorted(SOURCES.glob('*.h')),
        flags=(*FLAGS, *(['-DMAXQ_EMULATE'] if emulated else [])))
    pointer = ctypes.c_void_p
    functions.maxq_level.restype = functions.maxq_op_bytes.restype = _Int
    functions.maxq_describe.restype = functions.maxq_run.restype = None
    functions.maxq_describe.argtypes = [_Int, pointer]
    functions.maxq_run.argtypes = [_Int, pointer, pointer, _Int, pointer, pointer, _Int,
                                   pointer]
    assert functions.maxq_op_bytes() == ctypes.sizeof(Op), 'the two sides of Op differ'
    return functions


KINDS = {name: number for number, name in enumerate(
    ('import', 'export', 'layer', 'dense layer', 'max pool', 'add', 'upsample',
     'convert', 'depth to space'))}

"""Memory that costs little to touch for the first time.

The system gives a page of 4 KiB at the first touch of each; for the maps of a large image that
takes several times as long as writing them. Pages of 2 MiB, which Linux gives where it is asked to,
also spare the processor most of its page table.
"""

import ctypes
import mmap
import sys
from functools import cache

import torch
from torch import Tensor

_LARGE = 4 << 20  # bytes from which it is worth a system call


@cache
def _advise():
    if not sys.platform.startswith('linux') or not hasattr(mmap, 'MADV_HUGEPAGE'):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def empty(*size, **options) -> Tensor:
    """``torch.empty`` on the CPU, of large pages where that pays."""
    tensor = torch.empty(*size, **options)
    advise = _advise() if tensor.nbytes >= _LARGE else None
    if advise is not None:
        begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = tensor.data_ptr() + tensor.nbytes - begin
        advise(begin, length, mmap.MADV_HUGEPAGE)  # a hint: a refusal changes nothing
    return tensor

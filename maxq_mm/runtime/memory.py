"""Memory that costs little to touch for the first time.

The system gives a page of 4 KiB at the first touch of each; for the maps of a large image that
takes several times as long as writing them. Pages of 2 MiB, which Linux gives where it is asked to,
also spare the processor most of its page table. Results cost it at each call: memory of those that
nobody uses any more is given to the next.
"""

import ctypes
import mmap
import sys
import weakref
from functools import cache

import numpy as np
import torch
from torch import Tensor

_LARGE = 4 << 20  # bytes from which it is worth a system call
_KEPT = 256 << 20  # bytes that wait for their next use, in all
# By address, the oldest first. No lock, which a fork could leave closed: each access is one step.
_free: dict[int, Tensor] = {}


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


def result(size: tuple[int, ...],
           memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """``torch.empty``, float32 on the CPU, in memory of an earlier result if one is free.

    A result is free when no tensor, view or array has its memory any more. At most 256 MiB wait, of
    all in the process, and the oldest go first. Small results are plain tensors.
    """
    like = torch.empty(size, device='meta', memory_format=memory_format)
    if like.nbytes < _LARGE:
        return torch.empty(size, memory_format=memory_format)
    block = _take(like.nbytes)
    lent = np.ndarray(size, np.float32, block.numpy(),
                      strides=[stride * like.itemsize for stride in like.stride()])
    weakref.finalize(lent, _give, block).atexit = False
    return torch.from_numpy(lent)  # whose storage keeps `lent`, and nothing else does


def _take(size: int) -> Tensor:
    """The smallest free memory of at least so many bytes, less than twice as many; or new."""
    fitting = {address: block.nbytes for address in list(_free)
               if (block := _free.get(address)) is not None and size <= block.nbytes < 2 * size}
    for address in sorted(fitting, key=fitting.get):
        block = _free.pop(address, None)
        if block is not None:  # no other thread was faster
            return block
    return empty(size, dtype=torch.uint8)


def _give(block: Tensor) -> None:
    _free[block.data_ptr()] = block
    kept = 0
    for address in reversed(list(_free)):
        other = _free.get(address)
        kept += 0 if other is None else other.nbytes
        if kept > _KEPT:
            _free.pop(address, None)

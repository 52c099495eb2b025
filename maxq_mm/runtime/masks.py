"""Masks of boxes drawn into an image: the pixels of each box alone, on all threads.

Shapes: masks ``(K, h, w)`` of probabilities, boxes ``(K, 4)`` as x1, y1, x2, y2 in pixels. How
they are drawn stands in csrc/paste.cpp.
"""

import ctypes
import functools
import math
import mmap

import torch
import torch.nn.functional as F
from torch import Tensor

from .library import library

_Int = ctypes.c_int64
_DOUBTS = 1000  # a mask; to draw it anew takes as long as deciding on so many pixels


class _Paste(ctypes.Structure):
    """See paste.cpp."""

    _fields_ = [*((name, _Int) for name in ('count', 'rows', 'columns', 'height', 'width')),
                *((name, ctypes.c_void_p) for name in ('masks', 'boxes')),
                *((name, ctypes.c_float) for name in ('threshold', 'rounding', 'drift')),
                *((name, ctypes.c_void_p) for name in ('out', 'doubts')),
                ('capacity', _Int)]


def can_paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> bool:
    """Whether there is a kernel for these masks and boxes in an image of (height, width)."""
    if library() is None or not (masks.numel() and all(size)):
        return False
    if any(x.dtype != torch.float32 or x.device.type != 'cpu' for x in (masks, boxes)):
        return False
    if torch.is_grad_enabled() and (masks.requires_grad or boxes.requires_grad):
        return False
    low, high = boxes[:, :2], boxes[:, 2:]
    return bool(torch.isfinite(boxes).all() and (high > low).all() and (high >= 0).all()
                and (low <= low.new_tensor(size[::-1])).all())


@torch.no_grad()
def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> Tensor | None:
    """Draw the masks that :func:`can_paste` has seen.

    Returns:
        ``(K, height, width)``, bool: where ``torch.nn.functional.grid_sample`` of the mask, at the
        pixel's centre in its box, is at least ``threshold``. Where a value is so near to it that
        rounding decides, grid_sample is asked; None if that is so for more pixels than pays.
    """
    masks, boxes = masks.detach().contiguous(), boxes.detach().contiguous()
    # Zeros of the system, which are no memory until a page of them is written. numpy's would ask
    # for large pages, which can take long to be had.
    shape = len(masks), *size
    zeros = mmap.mmap(-1, math.prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    out = torch.frombuffer(zeros, dtype=torch.uint8).view(shape)
    doubts = torch.empty(_DOUBTS * len(masks), 3, dtype=torch.int64)
    # Both are about twice what some roundings, of this order or another, amount to.
    rounding, drift = 1e-6 * float(masks.amax()), 2.5e-7 * sum(masks.shape[1:])
    op = _Paste(*masks.shape, *size, masks.data_ptr(), boxes.data_ptr(), threshold, rounding,
                drift, out.data_ptr(), doubts.data_ptr(), len(doubts))
    count = _function()(ctypes.byref(op), torch.get_num_threads())
    if count > len(doubts):
        return None
    if count:
        number, y, x = doubts[:count].unbind(1)
        values = _values(masks, boxes, number, torch.stack([x, y], 1))
        out[number, y, x] = (values >= threshold).to(torch.uint8)
    return out.view(torch.bool)


def _values(masks: Tensor, boxes: Tensor, number: Tensor, pixels: Tensor) -> Tensor:
    """What mmdet's operators make of pixels ``(P, 2)``, x and y, of boxes with these numbers."""
    order = number.argsort()
    number, pixels = number[order], pixels[order]
    counts = number.bincount(minlength=len(masks))
    place = torch.arange(len(number)) - (counts.cumsum(0) - counts)[number]
    low, high = boxes[number].split(2, 1)
    grid = boxes.new_zeros(len(masks), 1, int(counts.max()), 2)
    grid[number, 0, place] = (pixels.to(torch.float32) + 0.5 - low) / (high - low) * 2 - 1
    values = F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0, 0]
    return torch.empty(len(number)).index_copy_(0, order, values[number, place])


@functools.cache
def _function() -> ctypes._CFuncPtr:
    functions = library().functions
    functions.maxq_paste_bytes.restype = _Int
    assert functions.maxq_paste_bytes() == ctypes.sizeof(_Paste), 'the two sides of Paste differ'
    function = functions.maxq_paste
    function.restype, function.argtypes = _Int, [ctypes.c_void_p, _Int]
    return function

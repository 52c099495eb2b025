"""RoIAlign on all threads: features of regions, of one map or of a pyramid's levels in one call.

Shapes: a map is ``(N, C, H, W)``, regions are ``(K, 5)``: the image's number and x1, y1, x2, y2 in
the image; features of regions are ``(K, C, rows, columns)`` of bins. How they are computed stands
in csrc/regions.h.
"""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .library import library
from .memory import result

_Int = ctypes.c_int64
_PIXELS_LANES = 16  # of kernels that have channels in lanes


class _Map(ctypes.Structure):
    """See regions.h."""

    _fields_ = [('data', ctypes.c_void_p),
                *((name, _Int) for name in ('n', 'h', 'w', 'image', 'channel', 'row', 'pixel')),
                ('scale', ctypes.c_float)]


class _RoiAlign(ctypes.Structure):
    """See regions.h."""

    _fields_ = [*((name, _Int) for name in ('count', 'channels', 'rows', 'columns', 'sampling',
                                            'aligned', 'levels')),
                *((name, ctypes.c_void_p) for name in ('maps', 'boxes', 'level', 'out'))]


@dataclass(frozen=True)
class RoiAlign:
    """The mean of bilinear samples in each of ``size`` bins, as ``mmcv.ops.RoIAlign`` computes it.

    ``scale`` is that of boxes to pixels of each map; ``sampling`` the samples of a bin along an
    axis, 0 for one a pixel; with ``aligned`` pixels have their centres at halves.
    """

    size: tuple[int, int]
    scale: tuple[float, ...]
    sampling: int
    aligned: bool

    def takes(self, maps: Sequence[Tensor], regions: Tensor) -> bool:
        """Whether there is a kernel for these, whose results have no gradient."""
        tensors = (*maps, regions)
        if (library() is None or len(maps) != len(self.scale)
                or any(x.dtype != torch.float32 or x.device.type != 'cpu' for x in tensors)
                or torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
            return False
        if (regions.ndim != 2 or regions.shape[1] != 5 or any(x.ndim != 4 for x in maps)
                or len({x.shape[:2] for x in maps}) != 1 or not all(x.numel() for x in maps)):
            return False
        if not len(regions):
            return True
        # What is not finite or inside out is mmcv's to answer.
        image, boxes = regions[:, 0], regions[:, 1:]
        return bool(torch.isfinite(regions).all() and image.min() >= 0
                    and image.max() < len(maps[0]) and (boxes[:, 2:] >= boxes[:, :2]).all())

    @torch.no_grad()
    def __call__(self, maps: Sequence[Tensor], regions: Tensor, level: Tensor | None = None
                 ) -> Tensor:
        """Features of regions that :meth:`takes` has seen.

        Args:
            maps: one of each level.
            regions: ``(K, 5)``.
            level: ``(K,)``, int64: which map each region is taken from; the first by default.
        """
        maps = [x.detach() for x in maps]
        in_pixels = _are_pixels(maps)
        if not in_pixels:
            maps = [x.contiguous() for x in maps]
        regions = regions.detach().contiguous()
        level = torch.zeros(len(regions), dtype=torch.int64) if level is None else (
            level.contiguous())
        out = result((len(regions), maps[0].shape[1], *self.size))
        if out.numel():
            described = (_Map * len(maps))(*(
                (x.data_ptr(), len(x), *x.shape[2:], *x.stride()[:3],
                 x.stride(3) if in_pixels else 1, scale)
                for x, scale in zip(maps, self.scale, strict=True)))
            op = _RoiAlign(len(regions), maps[0].shape[1], *self.size, self.sampling, self.aligned,
                           len(maps), ctypes.addressof(described), regions.data_ptr(),
                           level.data_ptr(), out.data_ptr())
            _function()(library().lanes, ctypes.byref(op), torch.get_num_threads())
        return out


def has_pixels_kernel(channels: int) -> bool:
    """Whether there is a kernel here for channels-last maps of so many channels."""
    found = library()
    return found is not None and found.lanes == _PIXELS_LANES and channels % _PIXELS_LANES == 0


def _are_pixels(maps: Sequence[Tensor]) -> bool:
    """Whether that kernel takes these."""
    return has_pixels_kernel(maps[0].shape[1]) and all(
        x.stride(1) == 1 and x.stride(3) > 1
        and x.is_contiguous(memory_format=torch.channels_last) for x in maps)


@functools.cache
def _function() -> ctypes._CFuncPtr:
    """``maxq_roi_align``, whose structures were compared."""
    functions, described = library().functions, (_Int * 2)()
    functions.maxq_region_bytes.restype = None
    functions.maxq_region_bytes(described)
    assert [*described] == [ctypes.sizeof(_Map), ctypes.sizeof(_RoiAlign)], 'the two sides differ'
    function = functions.maxq_roi_align
    function.restype, function.argtypes = None, [_Int, ctypes.c_void_p, _Int]
    return function

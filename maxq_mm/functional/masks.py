"""Keep masks and soft masks of MaxQ.

Source: MaxQ (arXiv 2312.07061), sections 3.2 and 3.3; decay and straight-through from SR-STE
(arXiv 2102.04010) live with the layers. Deviations from the reference implementation: N = M is
dense instead of NaN, kernels of any size, ties always broken by position. On CPUs, float32 masks
come from :mod:`.native`, on other devices all from :mod:`.batched`; what is written here defines
them. Masks lie in memory as their weights do (channels-last, say).

Shapes: weight ``(O, I, *K)``; B blocks of M as in :mod:`.pattern`; the filter axis ranks rows of
I * prod(K) weights, the kernel axis rows of O * I weights, one row a kernel position.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..utils.errors import InputError
from . import batched, native
from .pattern import Pattern, check_blocks, from_blocks, laid_out_like, to_blocks
from .ramp import dense_count
from .selection import split_smallest

AXES = ('filter', 'kernel')
ORDERS = ('smallest', 'largest', 'random')
TEMPERATURE = 1e-2
# Up to this M, ranks by pairwise comparison beat a sort of every block.
_MAX_PAIRWISE_M = 32


def check_axes(axes: Sequence[str]) -> tuple[str, ...]:
    """The axes as a tuple.

    Raises:
        InputError: a string instead of a sequence, an unknown or a repeated axis.
    """
    if isinstance(axes, str) or not isinstance(axes, Sequence):
        raise InputError(f'axes must be a sequence out of {AXES}, got {axes!r}')
    for axis in axes:
        if axis not in AXES or list(axes).count(axis) > 1:
            raise InputError(f'axes must be distinct and out of {AXES}, got {tuple(axes)!r}')
    return tuple(axes)


def check_order(order: str) -> str:
    """Raises InputError if ``order`` is not one of ORDERS."""
    if order not in ORDERS:
        raise InputError(f'order must be one of {ORDERS}, got {order!r}')
    return order


def check_temperature(temperature: float) -> float:
    """Raises InputError if ``temperature`` is not a positive finite number."""
    if not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
        raise InputError(f'temperature must be a positive number, got {temperature!r}')
    return float(temperature)


def _keep_in_blocks(magnitude: Tensor, pattern: Pattern) -> Tensor:
    """Bool ``(B, M)``: the N largest of every block of ``magnitude`` ``(B, M)``."""
    n, m = pattern
    if m > _MAX_PAIRWISE_M:
        order = magnitude.argsort(dim=1, stable=True)
        keep = torch.zeros_like(magnitude, dtype=torch.bool)
        return keep.scatter_(1, order[:, m - n:], True)
    columns = magnitude.t().contiguous()
    rank = torch.zeros(columns.shape, dtype=torch.uint8, device=columns.device)
    for j in range(1, m):
        before = columns[:j] <= columns[j]  # the earlier of two equals ranks lower
        rank[j] += before.sum(dim=0, dtype=torch.uint8)
        rank[:j] += ~before
    return (rank >= m - n).t()


def _dense_blocks(magnitude: Tensor, fraction: float, order: str) -> Tensor | None:
    """Bool ``(B, 1)``: which blocks of ``magnitude`` ``(B, M)`` stay dense; None for none."""
    total = len(magnitude)
    count = dense_count(fraction, total)
    if count == 0:
        return None
    if count == total:
        return torch.ones(total, 1, dtype=torch.bool, device=magnitude.device)
    if order == 'random':
        return (batched.random_ranks(total, magnitude.device) < count)[:, None]
    score = magnitude.sum(dim=1)
    n_m, _ = split_smallest((-score if order == 'largest' else score)[None], count)
    return ~n_m.t()


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise InputError(f'dense_fraction must be in [0, 1], got {fraction!r}')


@torch.no_grad()
def keep_mask(weight: Tensor, pattern: str | Pattern, dense_fraction: float = 0.,
              order: str = 'smallest') -> Tensor:
    """The N:M choice: bool like ``weight`` ``(O, I, *K)``, True where a weight is kept.

    Every block keeps exactly its N largest magnitudes, of equal ones the last. Then
    floor(dense_fraction * B) blocks are kept whole: those with the smallest L1 norm, the largest,
    or a fixed random choice, by ``order``. MaxQ section 3.4.

    Raises:
        InputError: bad pattern or order, a fraction outside [0, 1], I no multiple of M.
    """
    pattern = Pattern.parse(pattern)
    check_order(order)
    _check_fraction(dense_fraction)
    check_blocks(weight.shape, pattern.m)
    return _keep(weight, pattern, dense_fraction, order)


def _keep(weight: Tensor, pattern: Pattern, dense_fraction: float, order: str) -> Tensor:
    if weight.device.type != 'cpu':
        return batched.keep_masks([weight], pattern, dense_fraction, order)[0]
    magnitude = to_blocks(weight.abs(), pattern.m)
    keep = _keep_in_blocks(magnitude, pattern)
    dense = _dense_blocks(magnitude, dense_fraction, order)
    if dense is not None:
        keep = keep | dense
    return laid_out_like(weight, from_blocks(keep, weight.shape))


def _query(rows: Tensor, pattern: Pattern, temperature: float) -> Tensor:
    """Importance in [0, 1) of every entry of ``rows`` ``(R, C)`` of magnitudes, ranked in its row.

    MaxQ equation 5: a sigmoid around the magnitude that N/M of the row exceeds; 0 below it.
    """
    important, threshold = split_smallest(rows, pattern.smallest(rows.shape[1]))
    return (rows - threshold).div_(temperature).sigmoid_().mul_(important)


@torch.no_grad()
def soft_mask(weight: Tensor, pattern: str | Pattern, dense_fraction: float = 0.,
              axes: Sequence[str] = AXES, temperature: float = TEMPERATURE,
              order: str = 'smallest', fade: bool = False) -> Tensor:
    """Keep mask times (1 + sum of queries): like ``weight`` ``(O, I, *K)``, 0 or in [1, 3).

    ``axes`` names the queries: ``'filter'`` ranks a weight within its filter, ``'kernel'`` within
    its kernel position (only where there is more than one). N = M gives ones. MaxQ section 3.3.
    With ``fade``, no block is dense, and the keep mask of pruned weights is ``dense_fraction``
    instead of 0 (arXiv 2402.04744).

    Raises:
        InputError: as :func:`keep_mask`; unknown axes; a temperature that is not positive.
    """
    return _checked(weight, pattern, dense_fraction, axes, temperature, order,
                    effective=False, fade=fade)


@torch.no_grad()
def effective_weight(weight: Tensor, pattern: str | Pattern, dense_fraction: float = 0.,
                     axes: Sequence[str] = AXES, temperature: float = TEMPERATURE,
                     order: str = 'smallest', fade: bool = False) -> Tensor:
    """``weight`` times its :func:`soft_mask`, without gradient; the arguments are those."""
    return _checked(weight, pattern, dense_fraction, axes, temperature, order,
                    effective=True, fade=fade)


def _checked(weight: Tensor, pattern: str | Pattern, dense_fraction: float, axes: Sequence[str],
             temperature: float, order: str, effective: bool, fade: bool) -> Tensor:
    pattern = Pattern.parse(pattern)
    check_blocks(weight.shape, pattern.m)
    _check_fraction(dense_fraction)
    return mask_weight(weight, pattern, dense_fraction, check_axes(axes),
                       check_temperature(temperature), check_order(order), effective, fade)


def mask_weight(weight: Tensor, pattern: Pattern, dense_fraction: float, axes: tuple[str, ...],
                temperature: float, order: str, effective: bool = True,
                fade: bool = False) -> Tensor:
    """Soft mask, times ``weight`` if ``effective``; for layers, whose settings are checked once."""
    if weight.device.type != 'cpu':
        return batched.soft_masks([weight], pattern, dense_fraction, axes, temperature, order,
                                  effective, fade)[0]
    if native.serves(weight, pattern, order):
        return laid_out_like(weight, native.soft_mask(weight, pattern, dense_fraction, axes,
                                                       temperature, order, effective, fade))
    keep = _keep(weight, pattern, 0. if fade else dense_fraction, order)
    if fade:
        keep = batched.faded(keep, dense_fraction, weight.dtype)
    mask = torch.ones_like(weight, memory_format=torch.contiguous_format)
    if not pattern.is_dense:
        magnitude = weight.abs()
        o, i, *kernel = weight.shape
        positions = math.prod(kernel)
        if 'filter' in axes:
            query = _query(magnitude.reshape(o, -1), pattern, temperature)
            mask += query.view_as(weight)
        if 'kernel' in axes and positions > 1:
            rows = magnitude.reshape(o * i, positions).t().contiguous()
            mask += _query(rows, pattern, temperature).t().reshape(weight.shape)
    mask.mul_(keep)
    return laid_out_like(weight, mask.mul_(weight.detach()) if effective else mask)


@torch.no_grad()
def satisfies(weight: Tensor, pattern: str | Pattern) -> bool:
    """True when no block of ``weight`` ``(O, I, *K)`` has more than N non-zeros.

    Raises:
        InputError: bad pattern, or I no multiple of M.
    """
    pattern = Pattern.parse(pattern)
    nonzeros = to_blocks(weight != 0, pattern.m).sum(dim=1)
    return bool((nonzeros <= pattern.n).all())

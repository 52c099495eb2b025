"""The smallest values of a row, by selection instead of sorting.

Shapes: values ``(R, C)``, 0 < k < C.
"""

import math

import torch
from torch import Tensor

# numpy selects with vector instructions where torch does not; bfloat16 it does not know.
_NUMPY_DTYPES = (torch.float16, torch.float32, torch.float64)


def order_statistics(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k-th and the (k+1)-th smallest of every row, both ``(R, 1)``."""
    if values.device.type == 'cpu' and values.dtype in _NUMPY_DTYPES:
        return _order_statistics_numpy(values, k)
    return _order_statistics_torch(values, k)


def _order_statistics_numpy(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    rows = values.numpy().copy(order='C')
    rows.partition(k - 1, axis=1)
    following = rows[:, k:].min(axis=1, keepdims=True)
    return torch.from_numpy(rows[:, k - 1:k].copy()), torch.from_numpy(following)


def _order_statistics_torch(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    kth = values.kthvalue(k, dim=1, keepdim=True).values
    not_above = values <= kth
    following = values.masked_fill(not_above, math.inf).amin(dim=1, keepdim=True)
    return kth, torch.where(not_above.sum(dim=1, keepdim=True) > k, kth, following)


def split_smallest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Split every row into its k smallest and the rest.

    Returns a bool ``(R, C)``, True outside the k smallest (of equal values the first ones count
    as smaller), and the threshold ``(R, 1)`` half way between the two sides.
    """
    kth, following = order_statistics(values, k)
    rest = values > kth
    if bool((following == kth).any()):
        tied = values == kth
        room = k - (values < kth).sum(dim=1, keepdim=True)
        rest |= tied & (tied.cumsum(dim=1) > room)
    return rest, (kth + following) / 2

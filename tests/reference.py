"""The sort-based formulation of the masks, written for clarity: what every fast path must equal."""

import torch
from torch import Tensor


def reference_keep_mask(weight: Tensor, n: int, m: int, fraction: float = 0.,
                        order: str = 'smallest') -> Tensor:
    o, i, *kernel = weight.shape
    blocks = weight.abs().movedim(1, -1).reshape(-1, m)
    keep = torch.zeros_like(blocks, dtype=torch.bool)
    keep.scatter_(1, blocks.argsort(dim=1, stable=True)[:, m - n:], True)
    norms = blocks.sum(dim=1) * (-1 if order == 'largest' else 1)
    keep[norms.argsort(stable=True)[:int(fraction * len(blocks))]] = True
    return keep.reshape(o, *kernel, i).movedim(-1, 1)


def reference_query(rows: Tensor, n: int, m: int, temperature: float) -> Tensor:
    q = rows.shape[1] * (m - n) // m
    values, order = rows.sort(dim=1, stable=True)
    threshold = (values[:, q - 1:q] + values[:, q:q + 1]) / 2
    query = torch.sigmoid((rows - threshold) / temperature)
    return query.scatter(1, order[:, :q], 0.)


def reference_soft_mask(weight: Tensor, n: int, m: int, fraction: float = 0.,
                        axes=('filter', 'kernel'), temperature: float = 1e-2,
                        order: str = 'smallest') -> Tensor:
    o, i, *kernel = weight.shape
    magnitude = weight.abs()
    total = torch.ones_like(weight)
    if 'filter' in axes:
        total = total + reference_query(magnitude.reshape(o, -1), n, m, temperature).view_as(weight)
    positions = weight[0, 0].numel()
    if 'kernel' in axes and positions > 1:
        rows = magnitude.reshape(o * i, positions).T
        total = total + reference_query(rows, n, m, temperature).T.reshape(weight.shape)
    return reference_keep_mask(weight, n, m, fraction, order) * total

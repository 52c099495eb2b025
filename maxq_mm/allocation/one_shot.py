"""One layer pruned without training: which weights stay, and how they make up for the others.

Sources: OBS and its layer-wise form OBC (arXiv 2208.11580), SparseGPT (arXiv 2301.00774): kept
weights minimise the squared error of the layer's outputs. Deviations: the mask is chosen first,
and then all kept weights of a row are solved for at once; the inputs may be those of the pruned
network while the outputs are still to be the dense one's.

Shapes: as in :mod:`.moments`.
"""

import torch
from torch import Tensor

from ..functional.masks import keep_mask
from ..functional.pattern import Pattern
from ..utils.errors import InputError
from .moments import Moments

SALIENCIES = ('magnitude', 'second-order')
DAMPING = 1e-2  # in units of the mean of the Gram matrix's diagonal
_TRIES = 20


def check_saliency(saliency: str) -> str:
    """Raises InputError if ``saliency`` is not one of SALIENCIES."""
    if saliency not in SALIENCIES:
        raise InputError(f'saliency must be one of {SALIENCIES}, got {saliency!r}')
    return saliency


@torch.no_grad()
def one_shot(weight: Tensor, pattern: str | Pattern, moments: Moments | None = None,
             saliency: str = 'magnitude', compensate: bool = True) -> Tensor:
    """The weight ``(O, I, *K)`` with N of every M kept, without training.

    ``saliency``: keep the largest magnitudes, or the largest |w|^2 times the mean square of what
    they are multiplied with. ``compensate``: change the kept ones so that the layer's outputs
    differ least. Both need ``moments`` of its inputs; without any, the magnitude decides alone.

    Raises:
        InputError: bad pattern or saliency, I no multiple of M.
    """
    check_saliency(saliency)
    if moments is None or not moments.count:
        return _masked(weight, keep_mask(weight, pattern))
    rows = weight.detach().flatten(1)
    importance = rows if saliency == 'magnitude' else rows.square() * moments.diagonal
    keep = keep_mask(importance.view_as(weight), pattern)
    if not compensate:
        return _masked(weight, keep)
    keep, solved = keep.flatten(1), torch.empty_like(rows)
    for number, part in enumerate(moments.parts):
        cross = None if moments.cross is None else moments.cross[number]
        solved[:, part] = least_squares(rows[:, part], keep[:, part], moments.gram[number], cross)
    return _masked(solved.view_as(weight), keep.view_as(weight))


def _masked(weight: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, weight.detach(), 0.)  # never -0.0


@torch.no_grad()
def least_squares(rows: Tensor, keep: Tensor, gram: Tensor, cross: Tensor | None = None,
                  damping: float = DAMPING) -> Tensor:
    """Rows ``(O, J)``, 0 outside of ``keep``, whose outputs are nearest to those of ``rows``.

    Each row v minimises v G v - 2 v b + d |v - w|^2, with the Gram matrix G ``(J, J)`` of the
    inputs, b = G w (or, with ``cross``, the product C w of inputs and those of the network that is
    the aim), and d = ``damping`` times the mean of G's diagonal. Solved are the normal equations of
    what is added to the kept weights, row by row, as each row keeps others.
    """
    shift = damping * gram.diagonal().mean()
    solution = rows * keep
    if not shift:
        return solution
    missing = (rows - solution) @ gram if cross is None else rows @ cross.t() - solution @ gram
    for row, kept, wanted in zip(solution, keep, missing, strict=True):
        places = kept.nonzero()[:, 0]
        system = gram.index_select(0, places).index_select(1, places)
        system.diagonal().add_(shift)
        row[places] += _solve(system, wanted[places])
    return solution


def _solve(system: Tensor, wanted: Tensor) -> Tensor:
    """x of ``system`` x = ``wanted``, for a symmetric matrix that is positive definite but for
    rounding: where that shows, its diagonal grows by as little as mends it."""
    more = torch.finfo(system.dtype).eps * system.diagonal().mean()
    for _ in range(_TRIES):
        factor, failed = torch.linalg.cholesky_ex(system)
        if not failed:
            return torch.cholesky_solve(wanted[:, None], factor)[:, 0]
        system.diagonal().add_(more)
        more *= 4
    raise InputError('the inputs of a layer are not finite')

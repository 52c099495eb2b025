"""The masks of :mod:`.masks` for devices other than the CPU: many layers in few operators.

A GPU is kept busy by few large operators, and by a host that never waits for it: nothing here
branches on values, and layers whose weights agree in all but O are computed as one. Ranks come from
unique integer keys, magnitude first and place second, so that no choice has ties: the results are
those of masks.py, keep masks to the bit. All operators are exact and deterministic.

Shapes: weights ``(O, I, *K)`` joined to ``(S, I, *K)``, S the sum of their O; L layers of equal O
that follow each other are a run; P = prod(K), G = I / M.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from .pattern import Pattern, laid_out_like, to_blocks
from .ramp import dense_count

# Weights that are joined, at most, unless a single layer has more. Beside its result, a refresh
# takes up to 25 + 16 N / M bytes of scratch for each of them (float32), 30 at least: 140 MB at 2:4.
CHUNK = 1 << 22
# Up to so many kept (or pruned) weights of a block are found one after another.
_MAX_STEPS = 4
_PLACE_BITS = 32
_INTEGERS = {2: torch.int16, 4: torch.int32}


@functools.lru_cache(maxsize=64)
def random_ranks(total: int, device: torch.device) -> Tensor:
    """The random order of ``total`` blocks: int32 ``(total,)`` of their ranks.

    One fixed order for a number of blocks: a block that has turned N:M stays so, in every process
    and after a resume.
    """
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(total)
        return torch.randperm(total, generator=generator).to(torch.int32).to(device)


def chunks(weights: Sequence[Tensor], m: int) -> Iterator[list[int]]:
    """Which of ``weights`` are computed as one: lists of indices, each index once.

    Such weights differ in O alone, lie in memory alike, and number at most CHUNK.
    """
    def kind(index: int) -> tuple:
        weight = weights[index]
        return (str(weight.device), str(weight.dtype), tuple(weight.shape[1:]),
                _memory_format(weight) == torch.channels_last, weight.shape[0])

    for _, members in groupby(sorted(range(len(weights)), key=kind), lambda i: kind(i)[:-1]):
        chunk, size = [], 0
        for index in members:
            weight = weights[index]
            # One block a position: masks.py sums its norm in the order of a single weight.
            alone = weight.shape[:2] == (1, m)
            if chunk and (alone or size + weight.numel() > CHUNK):
                yield chunk
                chunk, size = [], 0
            chunk.append(index)
            size += CHUNK if alone else weight.numel()
        yield chunk


def keep_masks(weights: Sequence[Tensor], pattern: Pattern, dense_fraction: float = 0.,
               order: str = 'smallest') -> list[Tensor]:
    """:func:`.masks.keep_mask` of each of ``weights``; the arguments are checked ones."""
    return _each(weights, pattern, lambda chunk: chunk.keep(dense_fraction, order))


def soft_masks(weights: Sequence[Tensor], pattern: Pattern, dense_fraction: float,
               axes: Sequence[str], temperature: float, order: str, effective: bool,
               fade: bool = False) -> list[Tensor]:
    """:func:`.masks.soft_mask` of each of ``weights``, times it if ``effective``."""
    return _each(weights, pattern, lambda chunk: chunk.soft(dense_fraction, axes, temperature,
                                                            order, effective, fade))


def faded(keep: Tensor, fraction: float, dtype: torch.dtype) -> Tensor:
    """A bool keep mask with 1 for True, and ``fraction`` in [0, 1] for False."""
    return keep.to(dtype).clamp_(min=fraction)


@torch.no_grad()
def _each(weights: Sequence[Tensor], pattern: Pattern, compute) -> list[Tensor]:
    results: list = [None] * len(weights)
    for members in chunks(weights, pattern.m):
        chunk = [weights[index].detach() for index in members]
        joined = compute(_Chunk(chunk, pattern))
        parts = joined.split([len(weight) for weight in chunk])
        for index, weight, part in zip(members, chunk, parts, strict=True):
            results[index] = laid_out_like(weight, part)
    return results


def _memory_format(weight: Tensor) -> torch.memory_format:
    channels_last = weight.ndim == 4 and not weight.is_contiguous() and weight.is_contiguous(
        memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


class _Run(NamedTuple):
    """Layers of equal O: the first of the S filters that are theirs, L, and O."""

    start: int
    layers: int
    filters: int

    def of(self, joined: Tensor) -> Tensor:
        """Their part of ``joined`` ``(S, ...)``."""
        return joined.narrow(0, self.start, self.layers * self.filters)

    def each(self, joined: Tensor) -> Tensor:
        """Their part of ``joined``, ``(L, O, ...)``."""
        return self.of(joined).unflatten(0, (self.layers, self.filters))


class _Ranked:
    """Unique int64 ``keys`` in the order of ``values`` >= 0, of equals in that of their places.

    ``descending``: the other way round, of equals the first still first.
    """

    def __init__(self, values: Tensor, descending: bool = False) -> None:
        self.dtype = values.dtype
        self.ordered = None
        if self.dtype.itemsize in _INTEGERS:
            bits = values.view(_INTEGERS[self.dtype.itemsize])
            place = torch.arange(values.numel(), device=values.device).view(values.shape)
            self.keys = place.add_(bits, alpha=-(1 << _PLACE_BITS) if descending
                                   else 1 << _PLACE_BITS)
        else:  # no room for a place beside 64 bits
            self.ordered, order = values.flatten().sort(stable=True, descending=descending)
            self.keys = order.argsort().view(values.shape)

    def values(self, keys: Tensor) -> Tensor:
        """The values that contiguous ``keys`` ``(..., C)`` stand for."""
        if self.ordered is not None:
            return self.ordered.take(keys)
        # They begin the upper half of a key, the lower bytes first as on every GPU.
        size = self.dtype.itemsize
        return keys.view(self.dtype).unflatten(-1, (-1, 8 // size)).select(
            -1, _PLACE_BITS // 8 // size)


def _around(keys: Tensor, k: int) -> Tensor:
    """The k-th and the (k+1)-th smallest of the last axis of C, 0 < k < C: ``(..., 2)``."""
    upper = keys.topk(keys.shape[-1] - k + 1, sorted=False).values
    return upper.topk(2, largest=False).values


class _Chunk:
    """Weights of one ``(I, *K)``, joined; every method returns one tensor for all of them."""

    def __init__(self, weights: Sequence[Tensor], pattern: Pattern) -> None:
        self.pattern = pattern
        joined = torch.cat(list(weights))
        self.weight = joined.contiguous(memory_format=_memory_format(weights[0]))
        self.magnitude = self.weight.abs()
        self.ranked = _Ranked(self.magnitude)
        self.kernel = self.weight.shape[2:]
        self.runs = []
        start = 0
        for filters, members in groupby(len(weight) for weight in weights):
            layers = len(list(members))
            self.runs.append(_Run(start, layers, filters))
            start += layers * filters

    def keep(self, fraction: float, order: str) -> Tensor:
        """Bool ``(S, I, *K)``."""
        blocks = self.ranked.keys.unflatten(1, (-1, self.pattern.m))
        keep = _keep_in_blocks(blocks, self.pattern)
        norms = None
        for run in self.runs:
            total = run.of(blocks).numel() // self.pattern.m // run.layers
            count = dense_count(fraction, total)
            if count == total:
                run.of(keep).fill_(True)
            elif count:
                if order == 'random':
                    dense = (random_ranks(total, keep.device) < count).expand(run.layers, total)
                else:
                    norms = self._ranked_norms(order) if norms is None else norms
                    keys = run.of(norms).reshape(run.layers, total)
                    dense = keys <= _around(keys, count).narrow(1, 0, 1)
                # in the order of to_blocks: (O, *K, G)
                dense = dense.reshape(run.layers * run.filters, *self.kernel, -1)
                run.of(keep).logical_or_(dense.movedim(-1, 1).unsqueeze(2))
        return keep.flatten(1, 2)

    def _ranked_norms(self, order: str) -> Tensor:
        """Keys of the blocks' L1 norms, those that turn dense first first: ``(S, P * G)``."""
        norms = to_blocks(self.magnitude, self.pattern.m).sum(dim=1)
        return _Ranked(norms, descending=order == 'largest').keys.view(len(self.weight), -1)

    def soft(self, fraction: float, axes: Sequence[str], temperature: float, order: str,
             effective: bool, fade: bool) -> Tensor:
        """Soft masks, or effective weights, ``(S, I, *K)``."""
        if self.pattern.is_dense:
            return self.weight if effective else torch.ones_like(self.weight)
        keep = self.keep(0. if fade else fraction, order)
        if fade:
            keep = faded(keep, fraction, self.magnitude.dtype)
        total = None
        if 'filter' in axes:
            keys = self.ranked.keys.flatten(1)
            query = self._query(self.magnitude, self.ranked.keys, keys, temperature)
            total = query.add_(1)
        if 'kernel' in axes and math.prod(self.kernel) > 1:
            total = torch.ones_like(self.magnitude) if total is None else total
            for run in self.runs:
                keys = run.each(self.ranked.keys)
                rows = keys.flatten(1, 2).flatten(2).transpose(1, 2).clone(
                    memory_format=torch.contiguous_format)
                run.each(total).add_(self._query(run.each(self.magnitude), keys, rows, temperature))
        mask = keep.to(self.magnitude.dtype) if total is None else total.mul_(keep)
        return self.weight.mul_(mask) if effective else mask

    def _query(self, magnitude: Tensor, keys: Tensor, rows: Tensor, temperature: float) -> Tensor:
        """Query of every one of ``magnitude``; ``rows`` ``(..., C)`` holds its ``keys`` by rank
        list, in the order that broadcasts: one row a filter, or a layer and kernel position."""
        pair = _around(rows, self.pattern.smallest(rows.shape[-1]))
        lists = ((len(rows), *[1] * (keys.ndim - 1)) if pair.ndim == 2 else
                 (len(rows), 1, 1, *self.kernel))
        middle = self.ranked.values(pair).mean(dim=-1).view(lists)
        important = keys > pair.select(-1, 0).reshape(lists)
        return (magnitude - middle).div_(temperature).sigmoid_().mul_(important)


def _keep_in_blocks(keys: Tensor, pattern: Pattern) -> Tensor:
    """Bool: which of unique ``keys`` ``(S, G, M, *K)`` are among the N largest of axis 2."""
    n, m = pattern
    if n == m:
        return torch.ones_like(keys, dtype=torch.bool)
    if n <= min(m - n, _MAX_STEPS):
        edge = keys.amax(dim=2, keepdim=True)
        for _ in range(n - 1):
            edge = keys.masked_fill(keys >= edge, -1).amax(dim=2, keepdim=True)
        return keys >= edge
    if m - n <= _MAX_STEPS:
        edge = keys.amin(dim=2, keepdim=True)
        for _ in range(m - n - 1):
            edge = keys.masked_fill(keys <= edge, torch.iinfo(keys.dtype).max).amin(
                dim=2, keepdim=True)
        return keys > edge
    edge = keys.movedim(2, -1).topk(n, sorted=False).values.amin(dim=-1)
    return keys >= edge.unsqueeze(2)

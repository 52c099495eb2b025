"""``tools/benchmark.py engines``: dense engines and accelerated N:M networks, by turns."""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .. import accelerate, fold, report, sparsify
from ..runtime.kernels import instruction_set
from ..utils.errors import InputError
from ..utils.tables import table
from .engines import (
    Engine,
    dense_engines,
    detection_difference,
    difference,
    in_torch,
    network,
    peak,
    plot,
)

SCOPES = ('backbone', 'features', 'detector')
PRECISIONS = {'float32': 'maxq_mm', 'int8': 'maxq_mm int8'}


def bench_engines(args: argparse.Namespace, build: Callable[[], nn.Module],
                  measure: Callable) -> tuple[list[dict], dict]:
    """A row an engine, and the layers of each pattern; ``build`` gives a dense detector.

    Engines that quantize are calibrated on the images they are timed with. What is timed of a whole
    detector is said in :mod:`.detector_engines`; ``left_out`` is why no other engine runs it.
    """
    images = torch.randn(args.batch, 3, *args.size)
    variants, expected, layers, ours, left_out = {}, {}, {}, {}, None
    highest = peak(_seconds)
    apart = detection_difference if args.scope == 'detector' else difference
    for pattern in args.pattern:
        detector = _distinct(build())
        sparsify(detector, pattern)
        folded = network(fold(detector), args.scope)
        if not variants:  # dense engines take as long whatever is zero
            engines, left_out = _dense(copy.deepcopy(folded), images, args.scope)
            variants = {name: partial(engine, images) for name, engine in engines.items()}
            reference = variants['torch']()
            expected = {name: apart(reference, call()) for name, call in variants.items()}
        reference = in_torch(folded)(images)
        macs = {} if args.scope == 'detector' else {
            row.name: row.macs_kept for row in report(folded, images, _patterns(folded)).layers}
        for precision in args.precision:
            model = copy.deepcopy(folded)
            found = accelerate(model, images, precision, [images] if precision == 'int8' else None)
            name = f'{PRECISIONS[precision]} {pattern}'
            ours[name] = pattern, precision
            variants[name] = partial(in_torch(model), images)
            expected[name] = apart(reference, variants[name]())
            layers[name.removeprefix('maxq_mm ')] = [dict(
                name=row.name, shape=list(row.shape), pattern=row.pattern, used=row.used,
                precision=row.precision, reason=row.reason, dense_ms=row.dense_ms,
                sparse_ms=row.sparse_ms, int8_ms=row.int8_ms,
                of_peak=_share(macs.get(row.name), row.int8_ms if row.precision == 'int8'
                               else row.sparse_ms, highest)) for row in found.layers]
    rows = [dict(row, pattern=pattern, precision=precision, difference=expected[row['variant']])
            for row in measure(variants, args.scope, baseline='torch')
            for pattern, precision in [ours.get(row['variant'], (None, None))]]
    return rows, dict(isa=instruction_set(), peak_macs_per_s=highest, layers=layers,
                      left_out=left_out)


def _dense(model: nn.Module, images: Tensor, scope: str) -> tuple[dict[str, Engine], str | None]:
    """The engines that run ``model``, torch first, and why a detector has no others."""
    if scope != 'detector':
        return dense_engines(model, images, torch.get_num_threads()), None
    from .detector_engines import detector_engines

    try:
        return detector_engines(model, images, torch.get_num_threads()), None
    except InputError as error:  # of another kind than the exporter takes
        return {'torch': in_torch(model)}, str(error)


def _distinct(model: nn.Module) -> nn.Module:
    """Biases and norms of fresh weights are alike, and an exported file holds like ones once."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.01 * torch.randn_like(parameter))
    return model


def _patterns(model: nn.Module) -> dict[str, str]:
    from ..runtime.patterns import sparsest

    return {name: str(pattern) for name, module in model.named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear))
            and (pattern := sparsest(module.weight.detach())) is not None}


def _share(macs: int | None, ms: float | None, highest: float) -> float | None:
    """Useful multiply-adds a second of a layer, as a share of the machine's most."""
    return macs / (ms * 1e-3) / highest if macs and ms else None


def _seconds(call: Callable[[], object], repeat: int = 200) -> float:
    call()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def show_engines(rows: list[dict], about: dict) -> str:
    """The engines, and the layers of each pattern."""
    fastest = min(row['median_s'] for row in rows
                   if not row['pattern'] and row['variant'].endswith(('torch', 'float32')))
    text = table(('engine', 'median ms', 'range ms', 'against fastest dense float32',
                  'difference'),
                 [(row['variant'], f'{row["median_s"] * 1e3:.1f}',
                   f'{row["low_s"] * 1e3:.1f} to {row["high_s"] * 1e3:.1f}',
                   f'{fastest / row["median_s"]:.2f}x', f'{row["difference"]:.1e}')
                  for row in rows])
    lines = [text, f'  kernels: {about["isa"]}; peak: '
             f'{about["peak_macs_per_s"] / 1e9:.1f} G multiply-adds a second (a dense product)']
    if about['left_out'] is not None:
        lines.append(f'  other engines are left out: {about["left_out"]}')
    for pattern, layers in about['layers'].items():
        measured = [row['of_peak'] for row in layers if row['of_peak']]
        used = sum(row['used'] for row in layers)
        int8 = sum(row['precision'] == 'int8' for row in layers)
        share = (f', useful multiply-adds at {statistics.median(measured):.0%} of the peak '
                 f'({min(measured):.0%} to {max(measured):.0%})' if measured else '')
        lines.append(f'  {pattern}: {used} of {len(layers)} layers on sparse kernels'
                     + f', {int8} in int8' * bool(int8) + share)
    return '\n'.join(lines)


__all__ = ['PRECISIONS', 'SCOPES', 'bench_engines', 'plot', 'show_engines']

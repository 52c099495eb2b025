"""Measure what MaxQ costs, as ratios of variants that take turns in one run.

    python tools/benchmark.py masks|train|infer|engines|profile [--model CONFIG] [--pattern N:M] ...

``masks``: one refresh of all sparse layers against the formulation that sorts. ``train``: a whole
training iteration against the dense model's. ``infer``: backbone and neck of the dense, the sparse
and the folded model; what follows them takes as long as there are detections, which random weights
decide. Images are random, too. ``engines``: what other engines make of the dense network, and
maxq_mm.accelerate of the sparse ones, in float32 and int8, on this CPU: of the backbone, of that
and the neck, or of a whole detector (``--scope``), from images as the backbone gets them to masks
pasted into them. ``profile``: where the milliseconds of a whole detector go, dense and accelerated,
in float32 or int8.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from maxq_mm import cli, soft_mask, sparsify
from maxq_mm.cli.engine_bench import PRECISIONS, SCOPES, bench_engines, plot, show_engines
from maxq_mm.cli.model_bench import DTYPES, bench_infer, bench_train, build
from maxq_mm.cli.stages import bench_profile, show_profile
from maxq_mm.cli.timing import alternate, machine, summarize
from maxq_mm.functional import batched, native
from maxq_mm.functional.masks import AXES, effective_weight
from maxq_mm.functional.pattern import Pattern
from maxq_mm.utils.tables import table

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.reference import reference_soft_mask  # noqa: E402
from tests.simulated import Simulated  # noqa: E402

FRACTIONS = {'ramp at 0': 1., 'half way': 0.5, 'finished': 0.}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=('masks', 'train', 'infer', 'engines', 'profile'))
    parser.add_argument('--model', type=Path, default=Path('configs/maxq_mask_rcnn_r50.py'),
                        dest='config', help="config whose model's backbone is made sparse")
    parser.add_argument('--pattern', nargs='+', default=['2:4', '1:4', '1:16'])
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--dtype', choices=DTYPES, default='float32',
                        help='of the weights (masks), or of mixed precision (train, infer)')
    parser.add_argument('--size', nargs=2, type=cli.positive, default=(512, 512),
                        metavar=('H', 'W'), help='of the images (train, infer)')
    parser.add_argument('--batch', type=cli.positive, default=2, help='images (train, infer)')
    parser.add_argument('--threads', type=cli.positive, help='CPU threads')
    parser.add_argument('--repeat', type=cli.positive, default=5, help='measured turns')
    parser.add_argument('--scope', choices=SCOPES, default='features',
                        help='what of the detector runs (engines); features: backbone and neck')
    parser.add_argument('--precision', nargs='+', choices=PRECISIONS,
                        help='what maxq_mm.accelerate computes in (engines, default: both; '
                        'profile, one, default: float32)')
    parser.add_argument('--checkpoint', type=Path, help='folded one of --model (profile)')
    parser.add_argument('--image-dir', type=Path, metavar='DIR',
                        help='images to find objects in, with --checkpoint (profile)')
    parser.add_argument('--plot', type=Path, metavar='OUT.png', help='draw the times (engines)')
    parser.add_argument('--json', type=Path, metavar='OUT', help='also write everything here')
    parser.set_defaults(data_root=None, cfg_options=None)
    args = parser.parse_args()
    args.precision = args.precision or (
        ['float32'] if args.what == 'profile' else [*PRECISIONS])
    return args


def check(args: argparse.Namespace) -> None:
    for pattern in args.pattern:
        if Pattern.parse(pattern).is_dense:
            raise cli.InputError(f'--pattern {pattern} prunes nothing')
    if args.what == 'profile' and len(args.precision) > 1:
        raise cli.InputError(f'profile takes one --precision, got {" ".join(args.precision)}')
    if args.device.split(':')[0] not in ('cpu', 'cuda'):
        raise cli.InputError(f'--device must be cpu or cuda, got {args.device}')
    if min(args.size) < 32:
        raise cli.InputError(f'--size must be at least 32 32, got {args.size[0]} {args.size[1]}')
    cli.check_outputs(args.json, args.plot, inputs=[args.config])
    cli.check_device(args.device)
    on_cpu = torch.device(args.device).type == 'cpu'
    if not on_cpu and args.what in ('engines', 'profile'):
        raise cli.InputError(f'{args.what} is for the CPU, got --device {args.device}')
    if on_cpu and args.what != 'masks' and args.dtype == 'float16':
        raise cli.InputError('--dtype float16 is for GPUs; on CPUs mixed precision is bfloat16')


@contextmanager
def torch_alone():
    """Without the compiled operators."""
    available, native.available = native.available, lambda: False
    try:
        yield
    finally:
        native.available = available


def bench_masks(args: argparse.Namespace, cfg, measure: Callable) -> list[dict]:
    rows = []
    for pattern in args.pattern:
        n, m = Pattern.parse(pattern)
        handle = sparsify(build(cfg, args.device), pattern, include=('backbone', ))
        fit = [layer.weight.detach().to(DTYPES[args.dtype]) for layer in handle.layers.values()]
        for progress, fraction in FRACTIONS.items():

            def refresh(one, fit=fit, fraction=fraction, pattern=pattern):
                for weight in fit:
                    one(weight, pattern, fraction)

            def alone(refresh=refresh):
                with torch_alone():
                    refresh(effective_weight)

            def by_sorting(weight, pattern, fraction, n=n, m=m):
                return reference_soft_mask(weight, n, m, fraction) * weight

            variants = {'sorted': partial(refresh, by_sorting)}
            agreement = compare(fit, pattern, fraction)
            if torch.device(args.device).type == 'cpu':
                variants |= {'torch alone': alone, 'maxq_mm': partial(refresh, effective_weight)}
            else:
                together = partial(batched.soft_masks, fit, Pattern(n, m), fraction, AXES, 1e-2,
                                   'smallest', effective=True)
                variants |= {'layer by layer': partial(refresh, effective_weight),
                             'maxq_mm': together}
                with Simulated() as counted:  # raises if the host waits for the device
                    together()
                agreement['operators_per_layer'] = counted.count / len(fit)
            rows += [dict(pattern=pattern, progress=progress, layers=len(fit),
                          weights=sum(weight.numel() for weight in fit), **agreement, **row)
                     for row in measure(variants, f'{pattern} {progress}', baseline='sorted')]
    return rows


def compare(weights: list[torch.Tensor], pattern: str, fraction: float) -> dict:
    """How masks differ from the sorted formulation's: layers with another choice, and values."""
    n, m = Pattern.parse(pattern)
    different, largest = 0, 0.
    for weight in weights:
        mask, expected = soft_mask(weight, pattern, fraction), reference_soft_mask(
            weight, n, m, fraction)
        different += not torch.equal(mask != 0, expected != 0)
        largest = max(largest, float((mask - expected).abs().max()))
    return dict(layers_that_differ=different, largest_difference=largest)


BENCHES = dict(masks=bench_masks, train=bench_train, infer=bench_infer)


def show(rows: list[dict], what: str) -> str:
    lines = []
    for row in rows:
        speed = (f'{1 / row["ratio"]:.1f}x faster' if what == 'masks' else
                 f'{row["ratio"]:.3f} ({row["ratio_low"]:.3f} to {row["ratio_high"]:.3f})')
        lines.append((row['pattern'], row.get('progress', ''), row['variant'],
                      f'{row["median_s"] * 1e3:.1f}',
                      f'{row["low_s"] * 1e3:.1f} to {row["high_s"] * 1e3:.1f}', speed))
    return table(('pattern', 'ramp', 'variant', 'median ms', 'range ms', 'ratio'), lines)


def main() -> None:
    args = parse_args()
    check(args)
    cfg = cli.read_config(args)
    cli.check_settings(cfg.model, args.config, 'backbone')
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)

    def measure(variants, description, baseline):
        progress = partial(track, description=description, transient=True,
                           console=Console(stderr=True))
        return summarize(alternate(variants, args.repeat, device, progress), baseline)

    about = {}
    if (args.what in ('engines', 'profile') and args.checkpoint is None
            and 'rcnn' in (cfg.model.get('test_cfg') or {})):
        cfg.model.test_cfg.rcnn.score_thr = 0.  # random weights find as much as they may
    if args.what == 'engines':
        rows, about = bench_engines(args, partial(build, cfg, args.device), measure)
    elif args.what == 'profile':
        rows, about = bench_profile(args, cfg, partial(build, cfg, args.device))
    else:
        rows = BENCHES[args.what](args, cfg, measure)
    settings = dict(what=args.what, model=args.config.name, dtype=args.dtype, repeat=args.repeat,
                    native=native.available())
    if args.what != 'masks':
        settings |= dict(size=list(args.size), batch=args.batch)
    if args.what == 'engines':
        settings |= dict(scope=args.scope)
    elif args.what == 'profile':
        settings |= dict(precision=args.precision[0])
    on = machine(device)
    print(f'{on["device"]}, {on["threads"]} threads, {on["vectors"]}, torch {torch.__version__}, '
          + ', '.join(f'{key} {value}' for key, value in settings.items()))
    print(show_engines(rows, about) if args.what == 'engines' else show_profile(rows)
          if args.what == 'profile' else show(rows, args.what))
    if args.what == 'masks':
        print(f'masks that differ from the sorted formulation: '
              f'{sum(row["layers_that_differ"] for row in rows)} layers; largest difference of a '
              f'value: {max(row["largest_difference"] for row in rows):.1e}')
        operators = [row['operators_per_layer'] for row in rows if 'operators_per_layer' in row]
        if operators:
            print(f'operators of a refresh: {min(operators):.1f} to {max(operators):.1f} a layer')
    elif args.what == 'train':
        print(f'memory that MaxQ keeps: {rows[-1]["kept"]:.2f} of the sparse weights')
    if args.json is not None:
        cli.write_json(dict(settings=settings, machine=on, rows=rows, **about), args.json)
    if args.plot is not None:
        with cli.writing(args.plot):
            plot(rows, f'{args.config.stem}, {args.scope}, {args.size[0]} x {args.size[1]}, '
                 f'{on["threads"]} threads', args.plot)


if __name__ == '__main__':
    cli.run(main)

"""Compare the finished runs of a sweep: tables, two plots and all runs as JSON.

    python projects/nuclei/sweep_report.py SPEC --runs DIR --out projects/nuclei/results/NAME

Reads what sweep.py left in DIR (or, with --runs FILE, an earlier runs.json) and writes
runs.json, results.md, sparsity.png and curves.png.

A method is compared with the reference (SR-STE) seed by seed, both having started from the same
weights: the mean of these differences, and the interval that holds the true one with 95 %
confidence (Student's t). An interval that holds 0 is called noise.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import matrix
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.config import Config
from scipy import stats

from maxq_mm import cli
from maxq_mm.engine import figure
from maxq_mm.functional.pattern import Pattern
from maxq_mm.utils.files import save_text

CONFIDENCE = 0.95
_KEYS = {'name', 'method', 'pattern', 'seed', 'start', 'iterations', 'scores', 'curve',
         'train'}
# Runs by (method, pattern), then by seed.
Groups = dict[tuple[str, str | None], dict[int, dict]]


def read_runs(spec: Path, source: Path) -> tuple[list[dict], int]:
    """The finished runs, in the spec's order, and how many it asks for."""
    wanted = matrix.read_spec(spec)
    try:
        if source.is_file():
            runs = json.loads(source.read_text())
        else:
            runs = [json.loads((source / run.name / 'result.json').read_text())
                    for run in wanted if matrix.is_finished(run, source)]
        whole = all(set(run) >= _KEYS and run['train']['epoch'] and run['curve']['epoch']
                    for run in runs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise cli.InputError(f'not the runs of a sweep: {source} ({error})') from error
    if not whole:
        raise cli.InputError(f'not the runs of a sweep: {source} has one without its settings, '
                             'scores and curves')
    names = {run.name for run in wanted}
    strange = next((run['name'] for run in runs if run['name'] not in names), None)
    if strange is not None:
        raise cli.InputError(f'{source} has the run {strange}, which {spec} does not ask for')
    if not any(run['method'] != matrix.START for run in runs):
        raise cli.InputError(f'no finished run in {source}')
    return runs, len(wanted)


def scores_of(runs: list[dict]) -> list[str]:
    """The scores that all runs have."""
    return [score for score in matrix.SCORES if all(score in run['scores'] for run in runs)]


def group(runs: Iterable[dict]) -> Groups:
    groups: Groups = {}
    for run in runs:
        groups.setdefault((run['method'], run['pattern']), {})[run['seed']] = run
    return groups


def scores(runs: dict[int, dict], score: str) -> np.ndarray:
    """A score of every seed's run, in points (0 to 100)."""
    return np.array([100 * run['scores'][score] for run in runs.values()])


def paired(runs: dict[int, dict], reference: dict[int, dict], score: str) -> np.ndarray:
    """Differences in points between runs that share a seed."""
    return np.array([100 * (run['scores'][score] - reference[seed]['scores'][score])
                     for seed, run in runs.items() if seed in reference])


def half_width(values: np.ndarray) -> float:
    """Half of the confidence interval of the mean of ``values``; NaN for fewer than two."""
    if len(values) < 2:
        return float('nan')
    spread = values.std(ddof=1) / np.sqrt(len(values))
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * spread)


def spread(values: np.ndarray) -> str:
    """Mean and standard deviation over seeds."""
    return (f'{values.mean():.1f} ± {values.std(ddof=1):.1f}' if len(values) > 1
            else f'{values.mean():.1f}')


def difference(values: np.ndarray) -> tuple[str, str]:
    """A paired difference with its interval, and what it says."""
    if not len(values):
        return '', ''
    width = half_width(values)
    if np.isnan(width):
        return f'{values.mean():+.1f}', 'one seed'
    verdict = ('within noise' if abs(values.mean()) <= width else
               'better' if values.mean() > 0 else 'worse')
    return f'{values.mean():+.1f} ± {width:.1f}', verdict


def order(key: tuple[str, str | None]) -> float:
    """Dense first, then by the share that is kept."""
    pattern = None if key[1] is None else Pattern.parse(key[1])
    return -2. if pattern is None else -pattern.n / pattern.m


def table(groups: Groups, reference: str, names: list[str]) -> str:
    """The comparison of the scores ``names`` as Markdown."""
    kinds = [name.split('_')[0] for name in names]
    head = ['pattern', 'method', 'n', *(f'{kind} mAP' for kind in kinds),
            *(f'{kind} − {reference}' for kind in kinds), 'in words']
    rows = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
    for method, pattern in sorted(groups, key=order):
        runs = groups[method, pattern]
        compared = [('', '')] * len(names)
        if method != reference:
            against = groups.get((reference, pattern), {})
            compared = [difference(paired(runs, against, score)) for score in names]
        cells = [pattern or '', method, len(runs),
                 *(spread(scores(runs, score)) for score in names),
                 *(text for text, _ in compared),
                 in_words(dict(zip(kinds, (said for _, said in compared), strict=True)))]
        rows.append('| ' + ' | '.join(map(str, cells)) + ' |')
    return '\n'.join(rows)


def in_words(verdicts: dict[str, str]) -> str:
    """What is said of each kind of score, in one if it is the same."""
    if len(set(verdicts.values())) == 1:
        return next(iter(verdicts.values()))
    return ', '.join(f'{kind} {verdict}' for kind, verdict in verdicts.items())


def page(runs: list[dict], comparison: str, wanted: int, command: str) -> str:
    """All of results.md, around its table."""
    trained = [run for run in runs if run['method'] != matrix.START]
    iterations = sorted({run['iterations'] for run in trained})
    dense = sorted({run['iterations'] for run in runs if run['method'] == matrix.START})
    begins = sorted({'from scratch' if run['start'] is None else
                     'from the dense weights of its seed, themselves trained for '
                     f'{_join(dense)} iterations (`{matrix.START}`)' for run in trained})
    return '\n'.join([
        f'{len(runs)} of {wanted} runs: `{command}`', '',
        f'Every run trained {_join(iterations)} iterations, {" or ".join(begins)}.', '',
        'mAP in points: mean ± standard deviation over n seeds. Differences are paired by seed, '
        f'with their {CONFIDENCE:.0%} interval (Student\'s t; with 3 seeds it is wide); "within '
        'noise" is an interval that holds 0; by chance alone, one in twenty does not. "One seed" '
        'says nothing about noise.', '',
        comparison, '',
        '![mAP by the share of weights kept](sparsity.png)', '',
        '![Training curves](curves.png)', ''])


def _join(numbers: list[int]) -> str:
    return ' or '.join(f'{number:,}' for number in numbers)


def draw_sparsity(groups: Groups, methods: list[str], names: list[str]) -> Figure:
    """mAP over patterns, from the one that keeps most, a line a method; over methods, if there is
    but one pattern."""
    patterns = {key[1]: np.log2(-1 / order(key)) for key in sorted(groups, key=order) if key[1]}
    dense = [method for method in methods if (method, None) in groups]
    sparse = [method for method in methods if method not in dense
              and any((method, pattern) in groups for pattern in patterns)]
    picture = Figure(figsize=(11, 5), layout='constrained')
    for axes, score in zip(picture.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for method in dense:
            axes.axhline(scores(groups[method, None], score).mean(), color='black',
                         linestyle='--', linewidth=1, label=method)
        for place, method in enumerate(sparse):
            keys = sorted((key for key in groups if key[0] == method and key[1]), key=order)
            values = [scores(groups[key], score) for key in keys]
            if len(patterns) == 1:
                x = [place]
            else:  # beside each other
                x = [patterns[key[1]] + 0.04 * (place - (len(sparse) - 1) / 2) for key in keys]
            style = _style(place)
            axes.errorbar(x, [v.mean() for v in values],
                          [v.std(ddof=1) if len(v) > 1 else 0. for v in values],
                          marker='o', capsize=3, label=method, **style)
            single = [(at, v[0]) for at, v in zip(x, values, strict=True) if len(v) == 1]
            if single:
                axes.plot(*zip(*single, strict=True), 'o', color=style['color'],
                          markerfacecolor='white', zorder=3)
        if len(patterns) == 1:
            axes.set_xticks(range(len(sparse)), sparse, rotation=40, ha='right',
                            rotation_mode='anchor')
            axes.set_xlabel(f'{next(iter(patterns))}' + '; dashed: dense' * bool(dense))
        else:
            axes.set_xticks(list(patterns.values()), list(patterns))
            axes.set_xlabel('pattern')
            axes.legend(fontsize=8)
        axes.set_ylabel(score.replace('_', ' ') + ', points')
        axes.grid(axis='y', alpha=0.3)
    picture.suptitle('mean and standard deviation over seeds; hollow: one seed')
    return picture


def draw_curves(groups: Groups, methods: list[str], pattern: str, score: str) -> Figure:
    """Validation mAP and training loss by epoch, means over seeds, with the ramp drawn in."""
    picture = Figure(figsize=(11, 5), layout='constrained')
    left, right = picture.subplots(1, 2)
    behind = [_ramp_axes(axes) for axes in (left, right)]
    drawn = set()  # ramps
    shown = [key for method in methods for key in ((method, None), (method, pattern))
             if key in groups]
    for place, key in enumerate(shown):
        runs, style = list(groups[key].values()), _style(place)
        left.plot(*mean_curve([run['curve'] for run in runs], score, 100), marker='o',
                  label=key[0], **style)
        right.plot(*mean_curve([run['train'] for run in runs], 'loss'), **style)
        epochs, ramp = runs[0]['train']['epoch'], runs[0]['train']['dense_fraction']
        if key[1] is None or max(ramp) == 0 or tuple(ramp) in drawn:
            continue
        drawn.add(tuple(ramp))
        for axes in behind:
            axes.fill_between([0, *epochs], [ramp[0], *ramp], step='pre', alpha=0.1,
                              color=style['color'])
    left.set_ylabel(f'{score.replace("_", " ")} on the validation set, points')
    right.set_ylabel('training loss')
    for axes in (left, right):
        axes.set_xlabel('epoch')
    picture.legend(loc='outside lower center', ncols=5, fontsize=8)
    picture.suptitle(f'{pattern}, mean over seeds; shaded: the dense fraction, in the colour of '
                     'the first method that has it')
    return picture


def _style(place: int) -> dict:
    """Colour and line of the method at ``place``, told apart from those of twenty others."""
    return dict(color=f'C{place % 10}', linestyle=('-', '--', ':')[place // 10 % 3])


def mean_curve(curves: list[dict], key: str,
               scale: float = 1.) -> tuple[list[float], list[float]]:
    """Epochs that all curves have, and the mean of ``key`` there."""
    points = [dict(zip(curve['epoch'], curve[key], strict=True)) for curve in curves]
    epochs = [epoch for epoch in points[0] if all(epoch in other for other in points)]
    return epochs, [scale * float(np.mean([p[epoch] for p in points])) for epoch in epochs]


def _ramp_axes(axes: Axes) -> Axes:
    """A second scale, for the ramp, which is filled in the colour of its method."""
    behind = axes.twinx()
    behind.set_ylim(0, 1.02)
    behind.set_ylabel('dense fraction')
    return behind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('spec', type=Path, help='what projects/nuclei/sweep.py trained')
    parser.add_argument('--runs', type=Path, required=True, help="sweep's --out, or a runs.json")
    parser.add_argument('--out', type=Path, required=True, help='folder to write')
    parser.add_argument('--reference', default='SR-STE', help='method to compare with')
    parser.add_argument('--curves', default='1:16', metavar='N:M', help='pattern of the curves')
    args = parser.parse_args()

    runs, wanted = read_runs(args.spec, args.runs)
    groups = group(runs)
    spec = Config.fromfile(args.spec)
    if spec.methods.get(args.reference) is None:
        raise cli.InputError(f'--reference {args.reference} is no sparse method of {args.spec}')
    if args.curves not in {key[1] for key in groups}:
        raise cli.InputError(f'--curves {args.curves}: no run has this pattern')
    names = scores_of(runs)
    comparison = table(groups, args.reference, names)
    methods = list(spec.methods)
    with cli.writing(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        save_text('[\n' + ',\n'.join(map(json.dumps, runs)) + ']\n', args.out / 'runs.json')
        command = f'python projects/nuclei/sweep.py {args.spec} --out DIR'
        save_text(page(runs, comparison, wanted, command), args.out / 'results.md')
        figure.save(draw_sparsity(groups, methods, names), args.out / 'sparsity.png')
        figure.save(draw_curves(groups, methods, args.curves, names[-1]), args.out / 'curves.png')
    print(comparison)


if __name__ == '__main__':
    cli.run(main)

"""Compare the finished runs of a sweep: tables, two plots and all runs as JSON.

    python projects/nuclei/sweep_report.py SPEC --runs DIR --out projects/nuclei/results/NAME

Reads what sweep.py left in DIR (or, with --runs FILE, an earlier runs.json; or several of both,
for runs made on several machines) and writes runs.json, results.md, sparsity.png and curves.png.

A method is compared with the reference (SR-STE, or what --reference names, one or several) at its
pattern, or with a dense one at all, as sweep_scores.py says. An interval that holds 0 is called
noise.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import sweep_runs
from markdown_table import markdown
from mmengine.config import Config
from sweep_plots import draw_curves, draw_sparsity
from sweep_scores import (
    CONFIDENCE,
    RATE,
    Groups,
    group,
    half_width,
    order,
    paired,
    read_runs,
    scores,
    scores_of,
)

from maxq_mm import cli
from maxq_mm.engine import figure
from maxq_mm.utils.files import save_text


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


def rates(groups: Groups) -> dict[tuple[str, str | None], float]:
    """The learning rate of each group; empty unless all but the starts set one, and they differ."""
    found = {key: (next(iter(runs.values())).get('options') or {}).get(RATE)
             for key, runs in groups.items() if key[0] != sweep_runs.START}
    return found if None not in found.values() and len(set(found.values())) > 1 else {}


def table(groups: Groups, reference: str, names: list[str]) -> str:
    """The comparison of the scores ``names`` as Markdown."""
    kinds = [name.split('_')[0] for name in names]
    rate = rates(groups)
    head = ['pattern', 'method', *['lr'] * bool(rate), 'n', *(f'{kind} mAP' for kind in kinds),
            *(f'{kind} − {reference}' for kind in kinds), 'in words']
    rows = []
    for method, pattern in sorted(groups, key=order):
        runs = groups[method, pattern]
        compared = compare(groups, (method, pattern), reference, names)
        shown = f'{rate[method, pattern]:g}' if (method, pattern) in rate else ''
        rows.append([pattern or '', method, *[shown] * bool(rate), len(runs),
                     *(spread(scores(runs, score)) for score in names),
                     *(text for text, _ in compared),
                     in_words(dict(zip(kinds, (said for _, said in compared), strict=True)))])
    return markdown(head, rows)


def compare(groups: Groups, key: tuple[str, str | None], reference: str,
            names: list[str]) -> list[tuple[str, str]]:
    """By score, how a method at a pattern differs from the reference there, or from a dense one."""
    method, pattern = key
    if method == reference:
        return [('', '')] * len(names)
    against = groups.get((reference, pattern)) or groups.get((reference, None), {})
    return [difference(paired(groups[key], against, score)) for score in names]


def differences(groups: Groups, references: list[str], names: list[str]) -> str:
    """How each method differs from each of the ``references``, as Markdown; bold beyond noise."""
    rows = []
    for key in sorted(groups, key=order):
        cells = [' / '.join(f'**{text}**' if said in ('better', 'worse') else text
                            for text, said in compare(groups, key, reference, names) if text)
                 for reference in references]
        if any(cells):
            rows.append([key[1] or '', key[0], *cells])
    return markdown(['pattern', 'method', *(f'− {name}' for name in references)], rows)


def in_words(verdicts: dict[str, str]) -> str:
    """What is said of each kind of score, in one if it is the same."""
    if len(set(verdicts.values())) == 1:
        return next(iter(verdicts.values()))
    return ', '.join(f'{kind} {verdict}' for kind, verdict in verdicts.items())


def page(runs: list[dict], comparison: str, wanted: int, command: str) -> str:
    """All of results.md, around its tables."""
    trained = [run for run in runs if run['method'] != sweep_runs.START]
    iterations = sorted({run['iterations'] for run in trained})
    dense = sorted({run['iterations'] for run in runs if run['method'] == sweep_runs.START})
    begins = sorted({'from scratch' if run['start'] is None else
                     'from the dense weights of its seed, themselves trained for '
                     f'{_join(dense)} iterations (`{sweep_runs.START}`)' + (
                         '' if run.get('pruned') is None else ', pruned without training')
                     for run in trained})
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('spec', type=Path, help='what projects/nuclei/sweep.py trained')
    parser.add_argument('--runs', type=Path, nargs='+', required=True,
                        help="sweep's --out, or a runs.json; of several, the first that has a run")
    parser.add_argument('--out', type=Path, required=True, help='folder to write')
    parser.add_argument('--reference', nargs='+', default=['SR-STE'], metavar='METHOD',
                        help='method to compare with; others after it get a table of differences')
    parser.add_argument('--curves', default='1:16', metavar='N:M', help='pattern of the curves')
    args = parser.parse_args()

    runs, wanted = read_runs(args.spec, *args.runs)
    groups = group(runs)
    spec = Config.fromfile(args.spec, lazy_import=False)
    for reference in args.reference:
        if reference not in {key[0] for key in groups}:
            raise cli.InputError(f'--reference {reference}: no run is of this method')
    if args.curves not in {key[1] for key in groups}:
        raise cli.InputError(f'--curves {args.curves}: no run has this pattern')
    names = scores_of(runs)
    first, *others = args.reference
    comparison = table(groups, first, names)
    if others:
        kinds = ' / '.join(name.split('_')[0] for name in names)
        comparison += (f'\n\nDifferences from other methods, {kinds}; bold: beyond noise.\n\n'
                       + differences(groups, others, names))
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

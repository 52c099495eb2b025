"""Choose each method's learning rate: the best of the grid that a spec trains it at.

    python projects/nuclei/sweep_rates.py SPEC --runs DIR --out projects/nuclei/results/NAME

In SPEC (configs/fair_rates.py), methods are called 'NAME, lr RATE', and entries set the rate by
``options``. Reads what sweep.py left in DIR (or, with --runs FILE, an earlier runs.json; or several
of both) and writes runs.json, results.md and rates.json, which configs/fair.py takes its runs from.

The best rate has the highest mean of bbox and segm mAP over the seeds. It is chosen once the next
lower and the next higher rate of its grid are trained, too; so one at an edge of the grid is not.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sweep_runs
from markdown_table import markdown
from sweep_scores import RATE, group, read_runs, scores

from maxq_mm import cli
from maxq_mm.utils.files import save_text


@dataclass(frozen=True)
class Grid:
    """A method with a pattern, and the runs that ask for it at each rate, from low to high."""

    method: str
    pattern: str | None
    runs: dict[float, list[sweep_runs.Run]]


@dataclass(frozen=True)
class Choice:
    """``scores``: by rate, means over the seeds in points; ``best``: None if none is chosen."""

    scores: dict[float, np.ndarray]
    best: float | None
    remark: str


def grids(wanted: Sequence[sweep_runs.Run]) -> list[Grid]:
    """The grids of a spec, in its order.

    Raises:
        InputError: a method whose name does not end in the rate that its options set.
    """
    found: dict[tuple[str, str | None], dict[float, list[sweep_runs.Run]]] = {}
    for run in wanted:
        if run.method == sweep_runs.START:
            continue
        rate = (run.options or {}).get(RATE)
        name, _, ending = run.method.rpartition(', lr ')
        if rate is None or not name or ending != f'{rate:g}':
            raise cli.InputError(f'method {run.method!r}: not called NAME, lr RATE by the rate '
                                 f'that {RATE} sets ({rate})')
        found.setdefault((name, run.pattern), {}).setdefault(rate, []).append(run)
    return [Grid(*key, dict(sorted(runs.items()))) for key, runs in found.items()]


def choose(grid: Grid, finished: Sequence[dict]) -> Choice:
    """The best rate of a grid, by its ``finished`` runs."""
    names = {run['name'] for run in finished}
    found = {}
    for rate, runs in grid.runs.items():
        if all(run.name in names for run in runs):
            mine = group(run for run in finished if run['name'] in {run.name for run in runs})
            (by_seed, ) = mine.values()
            found[rate] = np.array([scores(by_seed, score).mean() for score in sweep_runs.SCORES])
    if not found:
        return Choice(found, None, 'none trained')
    best = max(found, key=lambda rate: found[rate].mean())
    rates = list(grid.runs)
    if best in (rates[0], rates[-1]):
        return Choice(found, None, f'best at {best:g}, an edge of the grid')
    place = rates.index(best)
    waiting = [rate for rate in (rates[place - 1], rates[place + 1]) if rate not in found]
    if waiting:
        return Choice(found, None, f'best at {best:g}, {waiting[0]:g} beside it not trained')
    return Choice(found, best, f'{best:g}')


def table(chosen: Sequence[tuple[Grid, Choice]]) -> str:
    """Scores by rate as Markdown: a table for each grid of rates."""
    parts: dict[tuple[float, ...], list[list[str]]] = {}
    for grid, choice in chosen:
        rates = tuple(grid.runs)
        cells = [grid.pattern or '', grid.method]
        for rate in rates:
            text = ' / '.join(f'{value:.1f}' for value in choice.scores.get(rate, ()))
            cells.append(f'**{text}**' if rate == choice.best else text)
        parts.setdefault(rates, []).append([*cells, choice.remark])
    return '\n\n'.join(
        markdown(['pattern', 'method', *(f'{rate:g}' for rate in rates), 'chosen'], rows)
        for rates, rows in parts.items())


def chosen_rates(chosen: Sequence[tuple[Grid, Choice]]) -> list[dict]:
    """What a spec needs to train each method that has a best rate, at that rate."""
    best = [(grid, grid.runs[choice.best][0]) for grid, choice in chosen
            if choice.best is not None]
    return [dict(method=grid.method, pattern=grid.pattern, changes=run.changes,
                 options=run.options, pruned=run.pruned) for grid, run in best]


def page(text: str, wanted: Sequence[sweep_runs.Run], finished: Sequence[dict],
         command: str) -> str:
    """All of results.md, around its tables."""
    seeds = sorted({run.seed for run in wanted})
    return '\n'.join([
        f'{len(finished)} of {len(wanted)} runs: `{command}`', '',
        f'mAP in points, bbox / segm, of {"seed" if len(seeds) == 1 else "seeds"} '
        f'{", ".join(map(str, seeds))}, by learning rate. Chosen is the highest mean of both.', '',
        text, ''])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('spec', type=Path, help='what projects/nuclei/sweep.py trained')
    parser.add_argument('--runs', type=Path, nargs='+', required=True,
                        help="sweep's --out, or a runs.json; of several, the first that has a run")
    parser.add_argument('--out', type=Path, required=True, help='folder to write')
    args = parser.parse_args()

    wanted = sweep_runs.read_spec(args.spec)
    finished, _ = read_runs(args.spec, *args.runs)
    chosen = [(grid, choose(grid, finished)) for grid in grids(wanted)]
    text = table(chosen)
    command = f'python projects/nuclei/sweep.py {args.spec} --out DIR'
    with cli.writing(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        for name, entries in (('runs', finished), ('rates', chosen_rates(chosen))):
            save_text('[\n' + ',\n'.join(map(json.dumps, entries)) + '\n]\n',
                      args.out / f'{name}.json')
        save_text(page(text, wanted, finished, command), args.out / 'results.md')
    print(text)


if __name__ == '__main__':
    cli.run(main)

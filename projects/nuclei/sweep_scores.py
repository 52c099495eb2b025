"""The finished runs of a sweep, grouped, and what their scores are worth against each other.

A method is compared with another seed by seed, both having started from the same weights: the mean
of these differences, and the interval that holds the true one with 95 % confidence (Student's t).
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import sweep_runs
from scipy import stats

from maxq_mm import cli
from maxq_mm.functional.pattern import Pattern

CONFIDENCE = 0.95
RATE = 'optim_wrapper.optimizer.lr'  # what a spec's options set it by
_KEYS = {'name', 'method', 'pattern', 'seed', 'start', 'iterations', 'scores', 'curve',
         'train'}
# Runs by (method, pattern), then by seed.
Groups = dict[tuple[str, str | None], dict[int, dict]]


def read_runs(spec: Path, source: Path) -> tuple[list[dict], int]:
    """The finished runs, in the spec's order, and how many it asks for."""
    wanted = sweep_runs.read_spec(spec)
    try:
        if source.is_file():
            runs = json.loads(source.read_text())
        else:
            runs = [json.loads((source / run.name / 'result.json').read_text())
                    for run in wanted if sweep_runs.is_finished(run, source)]
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
    if not any(run['method'] != sweep_runs.START for run in runs):
        raise cli.InputError(f'no finished run in {source}')
    return runs, len(wanted)


def scores_of(runs: list[dict]) -> list[str]:
    """The scores that all runs have."""
    return [score for score in sweep_runs.SCORES if all(score in run['scores'] for run in runs)]


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
    return float(stats.t.interval(CONFIDENCE, len(values) - 1, scale=stats.sem(values))[1])


def order(key: tuple[str, str | None]) -> float:
    """Dense first, then by the share that is kept."""
    pattern = None if key[1] is None else Pattern.parse(key[1])
    return -2. if pattern is None else -pattern.n / pattern.m

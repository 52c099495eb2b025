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


def read_runs(spec: Path, *sources: Path) -> tuple[list[dict], int]:
    """The finished runs, in the spec's order, and how many it asks for.

    A source is a sweep's folder or a runs.json; of a run that several have, the first counts.
    """
    wanted = {run.name: run for run in sweep_runs.read_spec(spec)}
    found: dict[str, dict] = {}
    for source in sources:
        for kept in _read(source, wanted):
            if kept['name'] not in wanted:
                raise cli.InputError(f'{source} has the run {kept["name"]}, which {spec} does not '
                                     'ask for')
            if not _agrees(kept, wanted[kept['name']]):
                raise cli.InputError(f'{source}: {kept["name"]} has other settings than {spec} '
                                     'asks for')
            found.setdefault(kept['name'], kept)
    if not any(run['method'] != sweep_runs.START for run in found.values()):
        raise cli.InputError(f'no finished run in {", ".join(map(str, sources))}')
    return [found[name] for name in wanted if name in found], len(wanted)


def _read(source: Path, wanted: dict[str, sweep_runs.Run]) -> list[dict]:
    """What a source has; InputError unless every run has its settings, scores and curves."""
    try:
        if source.is_file():
            runs = json.loads(source.read_text())
        else:
            runs = [json.loads((source / name / 'result.json').read_text())
                    for name, run in wanted.items() if sweep_runs.is_finished(run, source)]
        whole = all(set(run) >= _KEYS and run['train']['epoch'] and run['curve']['epoch']
                    for run in runs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise cli.InputError(f'not the runs of a sweep: {source} ({error})') from error
    if not whole:
        raise cli.InputError(f'not the runs of a sweep: {source} has one without its settings, '
                             'scores and curves')
    return runs


def _agrees(kept: dict, run: sweep_runs.Run) -> bool:
    """Whether nothing that a finished run says of itself is other than what the spec asks for."""
    changes, options = json.loads(json.dumps([run.changes or {}, run.options]))  # as JSON has them
    hook = kept.get('hook') or {}
    return (all(kept[key] == getattr(run, key) for key in ('method', 'pattern', 'seed', 'start'))
            and all(hook.get(key, value) == value for key, value in changes.items())
            and kept.get('options') == options and kept.get('pruned') == run.pruned)


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
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))


def order(key: tuple[str, str | None]) -> float:
    """Dense first, then by the share that is kept."""
    pattern = None if key[1] is None else Pattern.parse(key[1])
    return -2. if pattern is None else -pattern.n / pattern.m

import json
from dataclasses import replace

import numpy as np
import pytest
import sweep_rates
import sweep_report
import sweep_runs
import sweep_scores

from maxq_mm import cli

from ..running import ROOT, run_tool

NUCLEI = ROOT / 'projects/nuclei/configs'
SPEC = NUCLEI / 'fair_rates.py'
RATES = (1e-4, 1e-3, 1e-2)


def asked(rate, seed=0, method='MaxQ', pattern='1:16'):
    return sweep_runs.Run(f'{method}, lr {rate:g}', pattern, seed, SPEC, dict(axes=()), None,
                          {sweep_scores.RATE: rate, 'train_cfg.max_epochs': 3})


def finished(run, bbox, segm=0.):
    return dict(name=run.name, method=run.method, pattern=run.pattern, seed=run.seed,
                start=f'start-seed-{run.seed}', epochs=2, iterations=20,
                scores=dict(bbox_mAP=bbox, segm_mAP=segm),
                curve=dict(epoch=[2], bbox_mAP=[bbox], segm_mAP=[segm]),
                train=dict(epoch=[2.], loss=[2.], dense_fraction=[0.]), hook=None,
                options=run.options, pruned=run.pruned)


def chosen(*scores, seeds=(0, )):
    """The choice among RATES, whose bbox mAP is given for each."""
    grid, = sweep_rates.grids([asked(rate, seed) for rate in RATES for seed in seeds])
    runs = [finished(asked(rate, seed), score) for rate, score in zip(RATES, scores, strict=False)
            for seed in seeds]
    return sweep_rates.choose(grid, runs)


def test_the_best_rate_within_the_grid():
    assert chosen(.2, .3, .1).best == 1e-3
    assert chosen(.2, .3, .1).remark == '0.001'
    np.testing.assert_allclose(chosen(.2, .3, .1).scores[1e-3], [30, 0])


@pytest.mark.parametrize('scores, edge', [((.3, .2, .1), '0.0001'), ((.1, .2, .3), '0.01')])
def test_none_at_an_edge(scores, edge):
    assert chosen(*scores).best is None
    assert chosen(*scores).remark == f'best at {edge}, an edge of the grid'


def test_none_whose_neighbour_is_not_trained():
    choice = chosen(.2, .3)
    assert (choice.best, choice.remark) == (None, 'best at 0.001, 0.01 beside it not trained')
    assert sorted(choice.scores) == [1e-4, 1e-3]


def test_rates_beyond_the_neighbours_may_wait():
    rates = (1e-5, *RATES, 1.)
    grid, = sweep_rates.grids([asked(rate) for rate in rates])
    choice = sweep_rates.choose(grid, [finished(asked(rate), score) for rate, score in
                                       zip(RATES, (.2, .3, .1), strict=True)])
    assert (choice.best, sorted(choice.scores)) == (1e-3, list(RATES))


def test_both_scores_and_all_seeds_count():
    grid, = sweep_rates.grids([asked(rate, seed) for rate in RATES for seed in (0, 1)])
    runs = [finished(asked(rate, seed), *score) for rate, scores in zip(RATES, [
        [(.1, .1), (.1, .1)], [(.5, .1), (.1, .1)], [(.3, .4), (.1, .1)]], strict=True)
        for seed, score in enumerate(scores)]
    assert sweep_rates.choose(grid, runs).remark == 'best at 0.01, an edge of the grid'
    np.testing.assert_allclose(sweep_rates.choose(grid, runs).scores[1e-2], [20, 25])
    # A rate of which a seed is missing counts as not trained.
    assert sweep_rates.choose(grid, runs[:-1]).remark == (
        'best at 0.001, 0.01 beside it not trained')


def test_names_that_say_another_rate():
    run = asked(1e-3)
    for wrong in (replace(run, options={sweep_scores.RATE: 1e-2}), replace(run, options=None),
                  replace(run, method='MaxQ')):
        with pytest.raises(cli.InputError, match='not called NAME, lr RATE'):
            sweep_rates.grids([wrong])


def test_grids_of_the_project():
    grids = sweep_rates.grids(sweep_runs.read_spec(SPEC))
    sparse = ('SR-STE', 'MaxQ', 'filter query', 'fading', 'STE')
    healed = dict(AdamW=('SR-STE, pruned first', 'MaxQ, pruned first'), SGD=())
    assert [(grid.method, grid.pattern) for grid in grids] == [
        (f'{method}, {optimizer}', pattern) for optimizer in healed
        for method, pattern in (*((method, '1:16') for method in sparse), ('dense', None),
                                *((method, '1:16') for method in healed[optimizer]),
                                *((method, '1:8') for method in sparse))]
    lengths = {grid.method: len(grid.runs) for grid in grids}
    assert lengths.pop('dense, SGD') == 9
    assert {length for method, length in lengths.items() if 'pruned first' in method} == {3}
    assert {length for method, length in lengths.items() if method.endswith('SGD')} == {6}
    assert {lengths[f'{method}, AdamW'] for method in (*sparse, 'dense')} == {5}
    assert {run.seed for grid in grids for runs in grid.runs.values() for run in runs} == {0}


def copied(tmp_path):
    """The configs, where another study's results may stand beside them."""
    folder = tmp_path / 'nuclei/configs'
    folder.mkdir(parents=True)
    for name in ('fair', 'fair_rates', 'dense_mask_rcnn_r18', 'maxq_mask_rcnn_r18'):
        (folder / f'{name}.py').write_text((NUCLEI / f'{name}.py').read_text())
    return folder


def test_from_rates_to_the_runs_of_the_comparison(tmp_path):
    folder, out = copied(tmp_path), tmp_path / 'nuclei/results/nuclei_fair_rates'
    with pytest.raises(cli.InputError, match='asks for no run'):
        sweep_runs.read_spec(folder / 'fair.py')  # no rates yet
    best = {'SR-STE, AdamW': .002, 'MaxQ, AdamW': .0005, 'dense, AdamW': .001, 'STE, SGD': .02,
            'fading, AdamW': .004, 'MaxQ, pruned first, AdamW': .002}
    runs = [finished(run, .3 if f'{method}, lr {best[method]:g}' == run.method else .2)
            for run in sweep_runs.read_spec(folder / 'fair_rates.py') if run.method != 'start'
            for method in best if run.method.startswith(method) and run.pattern != '1:8']
    (tmp_path / 'runs.json').write_text(json.dumps(runs))
    printed = run_tool('projects/nuclei/sweep_rates.py', folder / 'fair_rates.py',
                       '--runs', tmp_path / 'runs.json', '--out', out)
    row = '| 1:16 | MaxQ, AdamW | 20.0 / 0.0 | **30.0 / 0.0** | 20.0 / 0.0 | 20.0 / 0.0 | ' \
          '20.0 / 0.0 | 0.0005 |'
    assert row in printed
    assert row in (out / 'results.md').read_text()
    assert '| 1:16 | fading, AdamW | 20.0 / 0.0 | 20.0 / 0.0 | 20.0 / 0.0 | 20.0 / 0.0 | ' \
           '30.0 / 0.0 | best at 0.004, an edge of the grid |' in printed
    assert '| 1:8 | STE, SGD |  |  |  |  |  |  | none trained |' in printed
    assert '| pattern | method | 0.0025 | 0.005 | 0.01 | 0.02 | 0.04 | 0.08 | chosen |' in printed

    made = [run for run in sweep_runs.read_spec(folder / 'fair.py') if run.method != 'start']
    assert {run.method for run in made} == set(best) - {'fading, AdamW'}
    assert {run.seed for run in made} == {1, 2, 3, 4, 5}
    assert len(made) == 5 * 5
    assert [run.method for run in made if run.seed == 3] == [
        'SR-STE, AdamW', 'MaxQ, AdamW', 'dense, AdamW', 'MaxQ, pruned first, AdamW', 'STE, SGD']
    for run in made:
        assert run.pattern == (None if run.method == 'dense, AdamW' else '1:16')
        cfg = sweep_runs.configure(run, tmp_path, None)
        sweep_runs.check_method(run, cfg)
        assert cfg.optim_wrapper.optimizer.lr == best[run.method]
        assert cfg.optim_wrapper.optimizer.type == run.method.split(', ')[-1]
        assert run.pruned == (16 if 'pruned first' in run.method else None)
    ste = next(hook for hook in cfg.custom_hooks if hook['type'] == 'MaxQHook')
    assert (ste['axes'], ste['ramp'], ste['decay'], ste['include']) == ([], None, 0., [])


def test_the_report_shows_rates_that_differ():
    def groups(**rates):
        runs = [finished(asked(rate, 1, method), .3) for method, rate in rates.items()]
        return sweep_scores.group(dict(run, method=run['method'].split(',')[0]) for run in runs)

    shown = sweep_report.table(groups(MaxQ=1e-3, STE=2e-3), 'STE', ['bbox_mAP'])
    assert '| pattern | method | lr | n | bbox mAP |' in shown
    assert '| 1:16 | MaxQ | 0.001 | 1 | 30.0 | +0.0 | one seed |' in shown
    assert '| lr |' not in sweep_report.table(groups(MaxQ=1e-3, STE=1e-3), 'STE', ['bbox_mAP'])

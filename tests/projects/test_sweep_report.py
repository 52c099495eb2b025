import json

import numpy as np
import pytest
import sweep_plots
import sweep_report
import sweep_runs
import sweep_scores

from ..running import ROOT, run_tool

TOOL = 'projects/nuclei/sweep_report.py'

SPEC = ROOT / 'projects/nuclei/configs/sweep.py'


def made(method, pattern, seed, segm):
    """What a finished run leaves, with scores given."""
    return dict(
        name=sweep_runs.Run(method, pattern, seed, SPEC).name, method=method, pattern=pattern,
        seed=seed, start=None if method == 'start' else f'start-seed-{seed}', epochs=2,
        iterations=20,
        scores=dict(bbox_mAP=segm + .05, segm_mAP=segm),
        curve=dict(epoch=[1, 2], bbox_mAP=[.1, segm + .05], segm_mAP=[.1, segm]),
        train=dict(epoch=[1., 2.], loss=[3., 2.],
                   dense_fraction=[.5, 0.] if method == 'MaxQ' else [0., 0.]), hook=None)


RUNS = [made(method, pattern, seed, score)
        for method, pattern, values in [
            ('start', None, [.30, .31, .32]), ('dense', None, [.31, .32, .33]),
            ('SR-STE', '1:16', [.20, .22, .24]), ('MaxQ', '1:16', [.25, .26, .30]),
            ('SR-STE', '2:4', [.30, .31, .32]), ('MaxQ', '2:4', [.31, .30, .33]),
            ('ASP', '1:16', [.15])]
        for seed, score in enumerate(values)]


def by_name(runs):
    return {run['name']: run for run in runs}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / 'runs.json'
    path.write_text(json.dumps(RUNS))
    return path


def test_paired_difference():
    groups = sweep_scores.group(RUNS)
    values = sweep_scores.paired(groups['MaxQ', '1:16'], groups['SR-STE', '1:16'], 'segm_mAP')
    np.testing.assert_allclose(values, [5, 4, 6])
    # Student's t of two degrees of freedom, from a table, times the standard error
    assert sweep_scores.half_width(values) == pytest.approx(4.30265 / np.sqrt(3), rel=1e-5)
    assert sweep_report.difference(values) == ('+5.0 ± 2.5', 'better')
    assert sweep_report.difference(-values) == ('-5.0 ± 2.5', 'worse')
    assert sweep_report.difference(values - 4) == ('+1.0 ± 2.5', 'within noise')
    assert sweep_report.difference(np.ones(2)) == ('+1.0 ± 0.0', 'better')
    assert sweep_report.difference(values[:1]) == ('+5.0', 'one seed')


def test_pairs_by_seed():
    runs = {seed: made('MaxQ', '2:4', seed, score) for seed, score in [(1, .5), (2, .6), (7, 0.)]}
    against = {seed: made('SR-STE', '2:4', seed, score) for seed, score in [(2, .5), (1, .45)]}
    np.testing.assert_allclose(sweep_scores.paired(runs, against, 'segm_mAP'), [5, 10])


def test_in_words():
    assert sweep_report.in_words(dict(bbox='better', segm='better')) == 'better'
    assert sweep_report.in_words(dict(segm='one seed')) == 'one seed'
    assert sweep_report.in_words(dict(bbox='better', segm='within noise')) == \
        'bbox better, segm within noise'


def test_against_a_dense_reference():
    rows = sweep_report.table(sweep_scores.group(RUNS), 'dense', ['segm_mAP']).splitlines()
    assert '|  | start | 3 | 31.0 ± 1.0 | -1.0 ± 0.0 | worse |' in rows
    assert '| 1:16 | MaxQ | 3 | 27.0 ± 2.6 | -5.0 ± 4.3 | worse |' in rows  # -6, -6, -3


def test_differences_from_several():
    rows = sweep_report.differences(sweep_scores.group(RUNS), ['dense', 'MaxQ'],
                                    ['bbox_mAP', 'segm_mAP']).splitlines()
    assert rows[0] == '| pattern | method | − dense | − MaxQ |'
    # MaxQ at 1:16: -6, -6, -3 and nothing of itself
    assert '| 1:16 | MaxQ | **-5.0 ± 4.3** / **-5.0 ± 4.3** |  |' in rows
    assert '| 1:16 | ASP | -16.0 / -16.0 | -10.0 / -10.0 |' in rows
    assert '| 2:4 | SR-STE | **-1.0 ± 0.0** / **-1.0 ± 0.0** | -0.3 ± 2.9 / -0.3 ± 2.9 |' in rows
    assert not any(row.startswith('|  | dense |') for row in rows)  # nothing to be compared with


def test_mean_curve_of_the_epochs_in_all():
    curves = [dict(epoch=[1, 2, 4], loss=[1., 2., 3.]), dict(epoch=[2, 3, 4], loss=[4., 9., 7.])]
    assert sweep_plots.mean_curve(curves, 'loss', 10) == ([2, 4], [30., 50.])


def test_writes_table_plots_and_runs(source, tmp_path):
    out = tmp_path / 'projects/nuclei/results'
    printed = run_tool(TOOL, SPEC, '--runs', source, '--out', out)
    table = (out / 'results.md').read_text()
    row = '| 1:16 | MaxQ | 3 | 32.0 ± 2.6 | 27.0 ± 2.6 | +5.0 ± 2.5 | +5.0 ± 2.5 | better |'
    assert row in table
    assert row in printed
    assert '| 2:4 | MaxQ | 3 | 36.3 ± 1.5 | 31.3 ± 1.5 | +0.3 ± 2.9 | +0.3 ± 2.9 | within noise |' \
        in table
    assert '| 1:16 | ASP | 1 | 20.0 | 15.0 | -5.0 | -5.0 | one seed |' in table
    assert '|  | dense | 3 | 37.0 ± 1.0 | 32.0 ± 1.0 |  |  |  |' in table
    assert by_name(json.loads((out / 'runs.json').read_text())) == by_name(RUNS)
    for picture in ('sparsity.png', 'curves.png'):
        assert (out / picture).read_bytes().startswith(b'\x89PNG')
    again = tmp_path / 'again'  # from what was written
    run_tool(TOOL, SPEC, '--runs', out / 'runs.json', '--out', again)
    assert (again / 'results.md').read_text() == table


def test_reads_a_folder_and_what_an_earlier_report_kept(source, tmp_path):
    folder, newer = tmp_path / 'runs', made('MaxQ', '1:16', 2, .29)
    (folder / newer['name']).mkdir(parents=True)
    (folder / newer['name'] / 'result.json').write_text(json.dumps(newer))
    runs, wanted = sweep_scores.read_runs(SPEC, folder, source)
    assert by_name(runs) == {**by_name(RUNS), newer['name']: newer}  # the first that has a run
    assert by_name(sweep_scores.read_runs(SPEC, source, folder)[0]) == by_name(RUNS)
    asked = [run.name for run in sweep_runs.read_spec(SPEC)]
    assert [run['name'] for run in runs] == [name for name in asked if name in by_name(RUNS)]
    assert wanted == len(asked)


def test_the_table_of_plans(tmp_path):
    """Of a spec that reads other files: what stands in the results."""
    results = ROOT / 'projects/nuclei/results/nuclei_allocation'
    run_tool(TOOL, 'projects/nuclei/configs/allocation.py', '--runs', results / 'runs.json',
             '--out', tmp_path, '--reference', 'uniform, predictors dense', '--curves', '1:8')
    assert (tmp_path / 'results.md').read_text() == (results / 'results.md').read_text()


def test_of_boxes_and_one_pattern_alone(tmp_path):
    runs = [dict(run, scores=dict(bbox_mAP=run['scores']['bbox_mAP']),
                 curve={key: run['curve'][key] for key in ('epoch', 'bbox_mAP')})
            for run in RUNS if run['pattern'] != '2:4']
    (tmp_path / 'runs.json').write_text(json.dumps(runs))
    printed = run_tool(TOOL, SPEC, '--runs', tmp_path / 'runs.json',
                       '--out', tmp_path / 'out')
    assert '| 1:16 | MaxQ | 3 | 32.0 ± 2.6 | +5.0 ± 2.5 | better |' in printed
    assert 'segm' not in printed
    assert '2:4' not in printed


def test_plots_hold_every_method():
    groups, names = sweep_scores.group(RUNS), ['bbox_mAP', 'segm_mAP']
    methods = ['dense', 'SR-STE', 'MaxQ', 'STE', 'ASP']  # STE was not trained
    axes = sweep_plots.draw_sparsity(groups, methods, names).axes[1]
    assert axes.get_legend_handles_labels()[1] == ['dense', 'SR-STE', 'MaxQ', 'ASP']
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ['2:4', '1:16']
    at_1x16 = {key: runs for key, runs in groups.items() if key[1] != '2:4'}
    axes = sweep_plots.draw_sparsity(at_1x16, methods, names).axes[1]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ['SR-STE', 'MaxQ', 'ASP']
    np.testing.assert_allclose(axes.containers[1].lines[0].get_xydata(), [[1, 27]])
    hollow, = [line for line in axes.lines if line.get_markerfacecolor() == 'white']
    np.testing.assert_allclose(hollow.get_xydata(), [[2, 15]])  # ASP, of one seed

    score, loss, *ramps = sweep_plots.draw_curves(groups, methods, '1:16', 'segm_mAP').axes
    assert [line.get_label() for line in score.lines] == ['dense', 'SR-STE', 'MaxQ', 'ASP']
    np.testing.assert_allclose(score.lines[2].get_xydata(), [[1, 10], [2, 27]])
    np.testing.assert_allclose(loss.lines[2].get_xydata(), [[1, 3], [2, 2]])
    assert [len(axes.collections) for axes in ramps] == [1, 1]  # MaxQ's alone


def test_refusals(refuse, source, tmp_path):
    arguments = SPEC, '--out', tmp_path / 'out', '--runs'
    assert 'no finished run' in refuse(TOOL, *arguments, tmp_path)
    assert '--curves 1:3: no run has this pattern' in refuse(
        TOOL, *arguments, source, '--curves', '1:3')
    other = tmp_path / 'other.json'
    other.write_text(json.dumps([*RUNS, dict(RUNS[-1], name='another')]))
    assert 'has the run another, which' in refuse(TOOL, *arguments, other)
    for changed in (dict(options={'optim_wrapper.optimizer.lr': 1.}), dict(start=None),
                    dict(hook=dict(axes=['filter']))):
        other.write_text(json.dumps([dict(made('SR-STE', '1:16', 0, .2), **changed)]))
        assert 'sr-ste-1x16-seed-0 has other settings than' in refuse(TOOL, *arguments, source,
                                                                other)
    other.write_text(json.dumps([dict(name='start-seed-0')]))
    assert 'without its settings' in refuse(TOOL, *arguments, other)
    assert 'spec not found' in refuse(TOOL, 'x.py', *arguments[1:], source)
    assert '--reference x: no run is of this method' in refuse(TOOL, *arguments, source,
                                                               '--reference', 'x')
    source.write_text('{')
    assert 'not the runs of a sweep' in refuse(TOOL, *arguments, source)
    assert not (tmp_path / 'out').exists()

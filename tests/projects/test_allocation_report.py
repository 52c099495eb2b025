import allocation_report
import pytest


def entry(bbox, segm, share=.25):
    return dict(share=share, predicted=.1, true=.2, scores=dict(bbox_mAP=bbox, segm_mAP=segm))


def detector(name, bbox, **ways):
    """One with a dense score, and others at a quarter of the multiply-accumulates."""
    return dict(name=name, one_shot={
        'dense': dict(share=1., scores=dict(bbox_mAP=bbox, segm_mAP=bbox)),
        **{f'1/4 | {way}': value for way, value in ways.items()}})


SEEDS = [detector('seed 0', .40, plan=entry(.39, .38), uniform=entry(.35, .36)),
         detector('seed 2', .30, plan=entry(.28, .28), uniform=entry(.26, .26)),
         detector('seed 3', .35, plan=entry(.33, .33))]


def test_one_shot_table_pairs_by_detector():
    rows = allocation_report.one_shot(SEEDS).splitlines()
    assert '|  | dense | 100.0% | 35.0 ± 5.0 | 35.0 ± 5.0 |  |  |  |  |  |  | 3 |' in rows
    assert ('| 1/4 | plan | 25.0% | 33.3 ± 5.5 | 33.0 ± 5.0 | -1.7 ± 1.4 '
            '| -2.0 ± 0.0 |  |  | 0.1 | 0.2 | 3 |') in rows
    # 3 and 1 points of two detectors: t of one degree of freedom is 12.706
    assert ('| 1/4 | uniform | 25.0% | 30.5 ± 6.4 | 31.0 ± 7.1 | -4.5 ± 6.4 '
            '| -4.0 ± 0.0 | +3.0 ± 12.7 | +2.0 ± 0.0 | 0.1 | 0.2 | 2 |') in rows


def test_what_a_detector_lacks_is_left_out():
    lone = [detector('seed 0', .40, ERK=entry(.37, .36))]
    row = allocation_report.one_shot(lone).splitlines()[-1]
    assert '| -3.0 | -4.0 |  |  |' in row
    axes = allocation_report.draw_one_shot([*SEEDS, dict(name='seed 1')]).axes[0]
    plan = next(line for line in axes.lines if line.get_label() == 'plan')
    assert list(plan.get_ydata()) == pytest.approx([-5 / 3])


def test_correlations_name_the_detector():
    values = {f'layer{i}': {'2:4': i + 1., '1:4': i + 3.} for i in range(3)}
    found = dict(name='seed 2', predicted=values, true=values)
    assert '| seed 2 | 1.000 | 1.000 | 1.000 | nan | nan | 6 |' in \
        allocation_report.correlations([found, dict(found, true={})])

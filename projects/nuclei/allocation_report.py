"""Tables and plots of what allocation_evidence.py found, for one or several dense detectors.

    python projects/nuclei/allocation_report.py SEED.json [SEED.json ...] --out DIR

Writes evidence.md, distortion.png and one_shot.png. Trained networks are sweep_report.py's.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from markdown_table import markdown
from matplotlib.figure import Figure
from scipy import stats
from sweep_report import difference, spread
from sweep_scores import CONFIDENCE

from maxq_mm import cli
from maxq_mm.allocation.allocate import PATTERNS
from maxq_mm.engine import figure
from maxq_mm.utils.files import save_text

SCORES = ('bbox_mAP', 'segm_mAP')


def read(paths: list[Path]) -> list[dict]:
    found = []
    for path in paths:
        try:
            found.append(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise cli.InputError(f'not what allocation_evidence.py writes: {path} '
                                 f'({cli.first_line(error)})') from error
        if 'predicted' not in found[-1]:
            raise cli.InputError(f'not what allocation_evidence.py writes: {path}')
        found[-1]['name'] = path.stem.replace('-', ' ')
    return found


def pairs(seed: dict) -> list[tuple[str, str, float, float]]:
    """(layer, pattern, predicted, true) of all that the detector feels at all."""
    truth = seed.get('true', {})
    return [(layer, pattern, value, truth[layer][pattern])
            for layer, row in seed['predicted'].items() if layer in truth
            for pattern, value in row.items() if value > 0 and truth[layer][pattern] > 0]


def correlations(seeds: list[dict]) -> str:
    """(a) as Markdown: rank correlation over all, and of each pattern."""
    rows = []
    for seed in seeds:
        found = pairs(seed)
        if found:
            cells = [rank(found), *(rank([p for p in found if p[1] == pattern])
                                    for pattern in PATTERNS)]
            rows.append([seed['name'], *(f'{c:.3f}' for c in cells), len(found)])
    return markdown(['detector', 'all', *PATTERNS, 'n'], rows)


def rank(found: list[tuple]) -> float:
    return float(stats.spearmanr([p[2] for p in found], [p[3] for p in found]).statistic)


def one_shot(seeds: list[dict]) -> str:
    """(b) as Markdown: means with standard deviations; differences paired by detector."""
    keys = list(dict.fromkeys(key for seed in seeds for key in seed.get('one_shot', {})))
    head = ['MACs', 'allocation', 'MACs kept', 'bbox', 'segm', 'bbox − dense', 'segm − dense',
            'bbox: plan − this', 'segm: plan − this', 'distortion, sum', 'measured', 'n']
    rows = []
    for key in sorted(keys, key=order):
        found = [seed['one_shot'] for seed in seeds if key in seed.get('one_shot', {})]
        budget, way = ['', 'dense'] if key == 'dense' else key.split(' | ')
        rows.append([
            budget, way, f'{np.mean([run[key]["share"] for run in found]):.1%}',
            *(spread(np.array([100 * run[key]['scores'][score] for run in found]))
              for score in SCORES),
            *(['', ''] if key == 'dense' else compare(found, key, 'dense')),
            *(['', ''] if way in ('dense', 'plan')
              else compare(found, f'{budget} | plan', key)),
            *(f'{np.mean([run[key][name] for run in found]):.3g}' if key != 'dense' else ''
              for name in ('predicted', 'true')), len(found)])
    return markdown(head, rows)


def compare(found: list[dict], key: str, reference: str) -> list[str]:
    """Differences in points of each score, ``key`` minus ``reference``, of detectors with both."""
    both = [run for run in found if key in run and reference in run]
    return [difference(np.array([100 * (run[key]['scores'][score] - run[reference]['scores'][score])
                                 for run in both]))[0] for score in SCORES]


def order(key: str) -> int:
    return ['dense', '1/2', '1/4', '1/8'].index(key.partition(' | ')[0])


def draw_distortion(seeds: list[dict]) -> Figure:
    """Predicted against true: single layers, and whole networks."""
    found = [pair for seed in seeds for pair in pairs(seed)]
    picture = Figure(figsize=(10, 5), layout='constrained')
    axes = single, together = picture.subplots(1, 2)
    for pattern in PATTERNS:
        single.plot([p[2] for p in found if p[1] == pattern],
                    [p[3] for p in found if p[1] == pattern], 'o', markersize=4, label=pattern)
    single.set_title('one layer pruned')
    single.legend()
    whole = [entry for seed in seeds for key, entry in seed.get('one_shot', {}).items()
             if key != 'dense']
    together.plot([e['predicted'] for e in whole], [e['true'] for e in whole], 'o', color='black')
    together.set_title('whole networks: sum over layers')
    for panel in axes:
        panel.set(xscale='log', yscale='log', xlabel='predicted distortion',
                  ylabel='true distortion')
        low, high = panel.get_xlim()
        panel.plot([low, high], [low, high], color='grey', linewidth=1)
        panel.grid(alpha=0.3)
    return picture


def draw_one_shot(seeds: list[dict]) -> Figure:
    """What is lost over kept MACs, a line an allocation: mean over the detectors."""
    found = [seed['one_shot'] for seed in seeds if 'one_shot' in seed]
    ways = dict.fromkeys(key.partition(' | ')[2] for run in found for key in run if key != 'dense')
    picture = Figure(figsize=(11, 5), layout='constrained')
    for axes, score in zip(picture.subplots(1, 2), SCORES, strict=True):
        for number, way in enumerate(ways):
            points = []
            for budget in ('1/8', '1/4', '1/2'):
                entries = [(run[key]['share'], 100 * (run[key]['scores'][score]
                                                      - run['dense']['scores'][score]))
                           for run in found if (key := f'{budget} | {way}') in run]
                points += [np.mean(entries, axis=0)] if entries else []
            axes.plot(*zip(*points, strict=True), marker='o', color=f'C{number}', label=way)
        axes.axhline(0, color='black', linestyle=':', label='dense')
        axes.set_xscale('log', base=2)
        axes.set_xticks([0.125, 0.25, 0.5], ['1/8', '1/4', '1/2'])
        axes.set_xlabel('share of multiply-accumulates kept')
        axes.set_ylabel(score.replace('_', ' ') + ' − dense, points')
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    picture.suptitle('pruned without training')
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('seeds', type=Path, nargs='+', help='what allocation_evidence.py wrote')
    parser.add_argument('--out', type=Path, required=True, help='folder to write')
    args = parser.parse_args()
    seeds = read(args.seeds)
    text = '\n'.join(['Rank correlation of predicted and true distortion, one layer pruned at a '
                      'time:', '', correlations(seeds), ''])
    with cli.writing(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        figure.save(draw_distortion(seeds), args.out / 'distortion.png')
        if any('one_shot' in seed for seed in seeds):
            text += '\n'.join(['', 'Pruned without training, validation mAP in points: mean ± '
                               'standard deviation over n detectors; differences are paired by '
                               f'detector, with their {CONFIDENCE:.0%} interval:', '',
                               one_shot(seeds), ''])
            figure.save(draw_one_shot(seeds), args.out / 'one_shot.png')
        save_text(text, args.out / 'evidence.md')
    print(text)


if __name__ == '__main__':
    cli.run(main)

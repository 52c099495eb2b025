"""What a network costs in time and finds, drawn."""

from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

LEAST = 5  # points of mAP that an axis spans, so that noise looks like noise
MARKERS = 'osD^vPX*<>ph'


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, score) that no other beats in both, cheapest first."""
    best = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or score > best[-1][1]:
            best.append((cost, score))
    return best


def draw(rows: Sequence[dict], scores: Sequence[str]) -> Figure:
    """mAP against milliseconds of tools/deploy_table.py's rows: a panel a score, a colour a
    runtime, a marker a network. Bars span the turns; a line joins what nothing beats in both."""
    scores = [score for score in scores if all(row[score] is not None for row in rows)]
    colours = {name: f'C{i % 10}' for i, name in enumerate(dict.fromkeys(
        row['runtime'] for row in rows))}
    markers = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(dict.fromkeys(
        row['network'] for row in rows))}
    picture = Figure(figsize=(5.5 * len(scores) + 2.5, 5), layout='constrained')
    for axes, score in zip(picture.subplots(1, len(scores), squeeze=False)[0], scores, strict=True):
        for row in rows:
            x, y = row['latency_ms'], 100 * row[score]
            axes.errorbar(
                x, y, xerr=[[x - row['latency_low_ms']], [row['latency_high_ms'] - x]],
                color=colours[row['runtime']], marker=markers[row['network']], markersize=8,
                markeredgecolor='white', markeredgewidth=0.4, elinewidth=1, alpha=0.9)
        best = front((row['latency_ms'], 100 * row[score]) for row in rows)
        axes.plot(*zip(*best, strict=True), color='grey', linewidth=0.8, linestyle='--', zorder=0)
        low, high = axes.get_ylim()
        rest = max(0, LEAST - (high - low)) / 2
        axes.set(xlabel='ms an image', ylabel=score.replace('_', ' ') + ', points',
                 xlim=(0, 1.05 * axes.get_xlim()[1]), ylim=(low - rest, high + rest))
        axes.grid(alpha=0.3)
    handles = [Line2D([], [], color=colour, linewidth=4, label=name)
               for name, colour in colours.items()]
    handles += [Line2D([], [], color='grey', marker=marker, linestyle='', label=name)
                for name, marker in markers.items()]
    picture.legend(handles=handles, loc='outside right upper', fontsize=8)
    return picture

"""What a network costs in time and finds, drawn."""

from collections.abc import Sequence

from matplotlib.figure import Figure

LEAST = 5  # points of mAP that an axis spans, so that noise looks like noise


def draw(rows: Sequence[dict], scores: Sequence[str]) -> Figure:
    """mAP against milliseconds of tools/deploy_table.py's rows: a panel a score, a line a runtime,
    a label a network."""
    scores = [score for score in scores if all(row[score] is not None for row in rows)]
    picture = Figure(figsize=(6.5 * len(scores), 5), layout='constrained')
    for axes, score in zip(picture.subplots(1, len(scores), squeeze=False)[0], scores, strict=True):
        for runtime in dict.fromkeys(row['runtime'] for row in rows):
            points = sorted((row['latency_ms'], 100 * row[score], row['network'])
                            for row in rows if row['runtime'] == runtime)
            axes.plot([x for x, _, _ in points], [y for _, y, _ in points], marker='o',
                      label=runtime, linewidth=2 if runtime.startswith('maxq_mm') else 0.5)
            for x, y, network in points:
                axes.annotate(network, (x, y), fontsize=7, xytext=(3, 3),
                              textcoords='offset points')
        low, high = axes.get_ylim()
        rest = max(0, LEAST - (high - low)) / 2
        axes.set(xlabel='ms an image', ylabel=score.replace('_', ' ') + ', points',
                 xlim=(0, 1.1 * axes.get_xlim()[1]), ylim=(low - rest, high + rest))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return picture

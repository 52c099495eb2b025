"""The two plots of a sweep's report: scores over patterns, and the course of training."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sweep_scores import Groups, order, scores


def draw_sparsity(groups: Groups, methods: list[str], names: list[str]) -> Figure:
    """mAP over patterns, from the one that keeps most, a line a method; over methods, if there is
    but one pattern."""
    patterns = {key[1]: np.log2(-1 / order(key)) for key in sorted(groups, key=order) if key[1]}
    dense = [method for method in methods if (method, None) in groups]
    sparse = [method for method in methods if method not in dense
              and any((method, pattern) in groups for pattern in patterns)]
    picture = Figure(figsize=(11, 5), layout='constrained')
    for axes, score in zip(picture.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for method in dense:
            axes.axhline(scores(groups[method, None], score).mean(), color='black',
                         linestyle='--', linewidth=1, label=method)
        for place, method in enumerate(sparse):
            keys = sorted((key for key in groups if key[0] == method and key[1]), key=order)
            values = [scores(groups[key], score) for key in keys]
            if len(patterns) == 1:
                x = [place]
            else:  # beside each other
                x = [patterns[key[1]] + 0.04 * (place - (len(sparse) - 1) / 2) for key in keys]
            style = _style(place)
            axes.errorbar(x, [v.mean() for v in values],
                          [v.std(ddof=1) if len(v) > 1 else 0. for v in values],
                          marker='o', capsize=3, label=method, **style)
            single = [(at, v[0]) for at, v in zip(x, values, strict=True) if len(v) == 1]
            if single:
                axes.plot(*zip(*single, strict=True), 'o', color=style['color'],
                          markerfacecolor='white', zorder=3)
        if len(patterns) == 1:
            axes.set_xticks(range(len(sparse)), sparse, rotation=40, ha='right',
                            rotation_mode='anchor')
            axes.set_xlabel(f'{next(iter(patterns))}' + '; dashed: dense' * bool(dense))
        else:
            axes.set_xticks(list(patterns.values()), list(patterns))
            axes.set_xlabel('pattern')
            axes.legend(fontsize=8)
        axes.set_ylabel(score.replace('_', ' ') + ', points')
        axes.grid(axis='y', alpha=0.3)
    picture.suptitle('mean and standard deviation over seeds; hollow: one seed')
    return picture


def draw_curves(groups: Groups, methods: list[str], pattern: str, score: str) -> Figure:
    """Validation mAP and training loss by epoch, means over seeds, with the ramp drawn in."""
    picture = Figure(figsize=(11, 5), layout='constrained')
    left, right = picture.subplots(1, 2)
    behind = [_ramp_axes(axes) for axes in (left, right)]
    drawn = set()  # ramps
    shown = [key for method in methods for key in ((method, None), (method, pattern))
             if key in groups]
    for place, key in enumerate(shown):
        runs, style = list(groups[key].values()), _style(place)
        left.plot(*mean_curve([run['curve'] for run in runs], score, 100), marker='o',
                  label=key[0], **style)
        right.plot(*mean_curve([run['train'] for run in runs], 'loss'), **style)
        epochs, ramp = runs[0]['train']['epoch'], runs[0]['train']['dense_fraction']
        if key[1] is None or max(ramp) == 0 or tuple(ramp) in drawn:
            continue
        drawn.add(tuple(ramp))
        for axes in behind:
            axes.fill_between([0, *epochs], [ramp[0], *ramp], step='pre', alpha=0.1,
                              color=style['color'])
    left.set_ylabel(f'{score.replace("_", " ")} on the validation set, points')
    right.set_ylabel('training loss')
    for axes in (left, right):
        axes.set_xlabel('epoch')
    picture.legend(loc='outside lower center', ncols=5, fontsize=8)
    picture.suptitle(f'{pattern}, mean over seeds; shaded: the dense fraction, in the colour of '
                     'the first method that has it')
    return picture


def _style(place: int) -> dict:
    """Colour and line of the method at ``place``, told apart from those of twenty others."""
    return dict(color=f'C{place % 10}', linestyle=('-', '--', ':')[place // 10 % 3])


def mean_curve(curves: list[dict], key: str,
               scale: float = 1.) -> tuple[list[float], list[float]]:
    """Epochs that all curves have, and the mean of ``key`` there."""
    points = [dict(zip(curve['epoch'], curve[key], strict=True)) for curve in curves]
    epochs = [epoch for epoch in points[0] if all(epoch in other for other in points)]
    return epochs, [scale * float(np.mean([p[epoch] for p in points])) for epoch in epochs]


def _ramp_axes(axes: Axes) -> Axes:
    """A second scale, for the ramp, which is filled in the colour of its method."""
    behind = axes.twinx()
    behind.set_ylim(0, 1.02)
    behind.set_ylabel('dense fraction')
    return behind

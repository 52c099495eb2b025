"""One picture of a plan: pattern by layer, what each candidate would do, and other budgets."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..functional.pattern import Pattern
from .plan import DENSE, Plan


def draw(plan: Plan) -> Figure:
    """The picture; :func:`maxq_mm.engine.figure.save` writes it."""
    figure = Figure(figsize=(15, max(6, 0.19 * len(plan.choices))), layout='constrained')
    kept, distortion, curve = figure.subplots(1, 3, width_ratios=(2, 3, 3))
    texts = dict.fromkeys(text for layer in plan.table.values() for text in layer)
    patterns = sorted((Pattern.parse(text) for text in texts), key=lambda p: -p.n / p.m)
    colours = {str(pattern): f'C{number}' for number, pattern in enumerate(patterns)}
    _kept(kept, plan, colours)
    _distortion(distortion, plan, colours)
    distortion.sharey(kept)
    distortion.tick_params(labelleft=False)
    _curve(curve, plan)
    figure.suptitle(f'{plan.share:.1%} of the {plan.kind} of {len(plan.choices)} layers, predicted '
                    f'distortion {plan.distortion:.3g}')
    return figure


def _kept(axes: Axes, plan: Plan, colours: dict[str, str]) -> None:
    for text, colour in {None: 'lightgrey', **colours}.items():
        rows = [place for place, choice in enumerate(plan.choices) if choice.pattern == text]
        pattern = DENSE if text is None else Pattern.parse(text)
        axes.barh(rows, [pattern.n / pattern.m] * len(rows), color=colour, label=text or 'dense')
    axes.set_yticks(range(len(plan.choices)), [choice.name for choice in plan.choices], fontsize=7)
    axes.set_ylim(len(plan.choices) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xlabel('share of weights kept')
    axes.legend(title='plan', fontsize=7, loc='lower right')


def _distortion(axes: Axes, plan: Plan, colours: dict[str, str]) -> None:
    for text, colour in colours.items():
        rows = [(plan.table[choice.name][text], place) for place, choice in enumerate(plan.choices)
                if plan.table[choice.name].get(text, 0) > 0]
        if rows:
            axes.plot(*zip(*rows, strict=True), 'o', color=colour, markersize=4, label=text)
    chosen = [(choice.distortion, place) for place, choice in enumerate(plan.choices)
              if choice.distortion > 0]
    if chosen:
        axes.plot(*zip(*chosen, strict=True), 'o', color='black', markerfacecolor='none',
                  markersize=9, label='plan')
    axes.set_xscale('log')
    axes.set_xlabel('predicted distortion, this layer alone')
    axes.grid(axis='x', alpha=0.3)
    axes.legend(fontsize=7)


def _curve(axes: Axes, plan: Plan) -> None:
    points = [(share, value) for share, value in plan.curve if value > 0]
    if points:
        axes.plot(*zip(*points, strict=True), drawstyle='steps-post', label='least distortion')
        axes.set_yscale('log')
    if plan.distortion > 0:
        axes.plot(plan.share, plan.distortion, 'o', color='black', label='plan')
    axes.axvline(plan.budget, color='black', linestyle='--', linewidth=1, label='budget')
    axes.set_xlim(0, 1)
    axes.set_xlabel(f'share of the dense {plan.kind}')
    axes.set_ylabel('predicted distortion, sum over layers')
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)

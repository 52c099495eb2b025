"""One picture of a sparse network: kept share by layer, the ramp, weights and soft mask values."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from ..functional.ramp import Ramp
from ..nn.report import SparsityReport
from ..utils.errors import InputError
from ..utils.files import written_whole
from .checkpoint import raw_weights, trained_ramp

_BINS = 80
# Weights of a large network drawn into the distributions; evenly spaced ones tell as much.
_MAX_DRAWN = 2_000_000


class Weights(NamedTuple):
    """All sparse weights of a network in one row: effective ones, and raw ones where known."""

    effective: Tensor
    raw: Tensor | None


def gather(effective: Sequence[Tensor], raw: Sequence[Tensor] | None) -> Weights:
    """Weights of several layers as :class:`Weights`, thinned out evenly where there are many."""
    step = -(-sum(weight.numel() for weight in effective) // _MAX_DRAWN)

    def row(weights: Sequence[Tensor]) -> Tensor:
        return torch.cat([weight.detach().float().cpu().reshape(-1)[::step] for weight in weights])

    drawn = row(effective)
    if raw is None:
        return Weights(drawn[drawn.isfinite()], None)
    drawn_raw = row(raw)
    finite = drawn.isfinite() & drawn_raw.isfinite()  # those of a run that diverged are not
    return Weights(drawn[finite], drawn_raw[finite])


def history(scalars: Mapping[str, HistoryBuffer], hook: str = 'maxq') -> list[float]:
    """Dense fraction at every iteration that mmengine's log scalars remember of a MaxQHook."""
    name = f'train/{hook}/dense_fraction'
    return scalars[name].data[0].tolist() if name in scalars else []


def draw(report: SparsityReport, weights: Weights, fractions: Sequence[float],
         ramp: Ramp | None) -> Figure:
    """The picture: ``fractions`` are dense fractions in [0, 1] by iteration, as they were trained;
    without any, the curve of ``ramp`` stands in."""
    figure = Figure(figsize=(13, max(7, 0.17 * len(report.layers))), layout='constrained')
    grid = figure.add_gridspec(3, 2)
    _kept(figure.add_subplot(grid[:, 0]), report)
    _ramp(figure.add_subplot(grid[0, 1]), fractions, ramp)
    _distribution(figure.add_subplot(grid[1, 1]), weights)
    _soft_mask(figure.add_subplot(grid[2, 1]), weights)
    figure.suptitle(f'{len(report.layers)} sparse layers, {report.kept:.1%} of their weights kept, '
                    f'{report.satisfied} satisfy their pattern')
    return figure


def of_checkpoint(report: SparsityReport, model: nn.Module, checkpoint: dict) -> Figure:
    """The picture of a checkpoint that ``model`` has loaded, with what the file knows."""
    raw = raw_weights(checkpoint)
    names = [layer.name for layer in report.layers]
    weights = gather([model.get_submodule(name).weight for name in names],
                     [raw[f'{name}.weight'] for name in names] if raw else None)
    scalars = checkpoint.get('message_hub', {}).get('log_scalars', {})
    return draw(report, weights, history(scalars), trained_ramp(checkpoint))


def save(figure: Figure, path: str | Path) -> None:
    """Write the picture, of the kind that the name ends with; whole or not at all.

    Raises:
        InputError: a kind that matplotlib does not know.
        OSError: it cannot be written.
    """
    kind = check_kind(path)
    with written_whole(path) as file:
        figure.savefig(file, format=kind, dpi=100)


def check_kind(path: str | Path) -> str:
    """The kind of picture that the name ends with; InputError if matplotlib does not know it."""
    kind = Path(path).suffix.removeprefix('.').lower()
    if kind not in FigureCanvasBase.get_supported_filetypes():
        raise InputError(f'no picture of kind {kind!r} can be written: {path}')
    return kind


def _kept(axes: Axes, report: SparsityReport) -> None:
    patterns = sorted({layer.pattern for layer in report.layers})
    places = range(len(report.layers))
    for pattern in patterns:
        rows = [(place, layer.kept) for place, layer in zip(places, report.layers, strict=True)
                if layer.pattern == pattern]
        axes.barh(*zip(*rows, strict=True), label=pattern, height=0.8)
    for place, layer in zip(places, report.layers, strict=True):
        if not layer.satisfied:
            axes.text(layer.kept, place, ' not satisfied', va='center', fontsize=7)
    axes.set_yticks(list(places), [layer.name for layer in report.layers], fontsize=7)
    axes.set_ylim(len(report.layers) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xlabel('share of weights kept')
    axes.legend(title='pattern')


def _ramp(axes: Axes, fractions: Sequence[float], ramp: Ramp | None) -> None:
    axes.set_title('ramp')
    axes.set_ylabel('dense fraction')
    axes.set_ylim(-0.05, 1.05)
    if fractions:
        axes.plot(range(len(fractions)), fractions)
        axes.set_xlabel('iteration, as it was trained')
    elif ramp is not None:
        end = max(ramp.end, ramp.begin + 1)
        steps = torch.linspace(0, 1.25 * end, 300).tolist()
        axes.plot(steps, [ramp(step) for step in steps])
        axes.set_xlabel(('epoch' if ramp.by_epoch else 'iteration') + ', by its settings')
    else:
        axes.text(0.5, 0.5, 'not in this file', ha='center', transform=axes.transAxes)


def _distribution(axes: Axes, weights: Weights) -> None:
    axes.set_title('weights')
    kept = weights.effective != 0
    # All but one in a thousand: a few outliers would leave nothing to see.
    reach = float(weights.effective.abs().quantile(0.999)) if len(kept) else 0.
    reach = reach or 1.
    bins = dict(bins=_BINS, range=(-reach, reach))
    axes.hist(weights.effective[kept].numpy(), **bins, label='effective, kept', alpha=0.6)
    if weights.raw is not None:
        axes.hist(weights.raw[kept].numpy(), **bins, label='raw, kept', histtype='step')
        axes.hist(weights.raw[~kept].numpy(), **bins, label='raw, pruned', histtype='step')
    axes.set_ylabel('weights')
    axes.legend(fontsize=7)


def _soft_mask(axes: Axes, weights: Weights) -> None:
    axes.set_title('soft mask of kept weights')
    if weights.raw is None:
        axes.text(0.5, 0.5, 'not in this file: it holds no raw weights', ha='center',
                  transform=axes.transAxes)
        return
    kept = (weights.effective != 0) & (weights.raw != 0)
    values = weights.effective[kept] / weights.raw[kept]
    axes.hist(values.numpy(), _BINS, range=(1, 3))
    axes.set_xlabel('1 + sum of queries')
    axes.set_ylabel('weights')

"""How much a change of weights changes what a detector says: measured, and predicted.

The distortion of a network is the mean squared difference of its outputs from the dense detector's
at the places that matter (:mod:`.outputs`), each kind of output in units of its own spread over
places, summed over the kinds. Around the dense weights its gradient is 0, so that to second order
the distortion of a change dw is dw J'J dw, J being the Jacobian of the scaled outputs. For
combinations v of the outputs with independent random weights of variance 1, the mean of
(grad(v . y) . dw)^2 is just that: one backward pass serves every layer and every change at once.
It is assumed that changes of different layers add up: what mixes two layers is left out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from rich.progress import track
from torch import Tensor, nn

from .outputs import LOCALISATION, Places, outputs

# Of those at places of one level, where a spread is one of a level.
_ENOUGH = 16


def spreads(images: Sequence[Places]) -> dict[str, Tensor]:
    """Standard deviation of each kind of output over the places of all images.

    Localisation at anchors is in units of its level ``(L, )``, since heads may predict pixels;
    everything else has one spread ``(1, )``.
    """
    found = {}
    for name in dict.fromkeys(name for places in images for name in places.said):
        values = [places.said[name] for places in images if name in places.said]
        every = _spread(torch.cat(values))
        if not _by_level(name, images[0]):
            found[name] = every[None]
            continue
        levels = torch.cat([places.levels for places in images])
        rows = torch.cat(values)
        found[name] = torch.stack([
            _spread(rows[levels == level]) if int((levels == level).sum()) >= _ENOUGH else every
            for level in range(int(levels.max()) + 1)])
    return found


def _by_level(name: str, places: Places) -> bool:
    return name.startswith(LOCALISATION) and len(places.said[name]) == len(places.levels)


def _spread(values: Tensor) -> Tensor:
    spread = values.std(correction=0)
    return spread if spread > 0 else torch.ones_like(spread)


def scaled(said: Mapping[str, Tensor], places: Places, spread: Mapping[str, Tensor]) -> Tensor:
    """All outputs of an image in one row, so that squared differences sum to its distortion."""
    rows = []
    for name, values in said.items():
        unit = spread[name]
        if len(unit) > 1:
            unit = unit[places.levels][:, None]
        rows.append((values / unit).flatten() / values.numel()**0.5)
    return torch.cat(rows)


@torch.no_grad()
def measure(model: nn.Module, images: Sequence[Places], spread: Mapping[str, Tensor]) -> float:
    """The true distortion of ``model``, in evaluation mode, against what ``images`` remember."""
    total = 0.
    for places in images:
        change = scaled(outputs(model, places), places, spread) - scaled(
            places.said, places, spread)
        total += float(change.square().sum())
    return total / len(images)


def predict(model: nn.Module, images: Sequence[Places], spread: Mapping[str, Tensor],
            changes: Mapping[str, Tensor], probes: int, seed: int,
            progress: Callable[[Iterable], Iterable] = iter) -> dict[str, Tensor]:
    """Distortion of each change of a layer's weight, to second order.

    ``changes`` are ``(D, *weight.shape)`` by module name, and so are the results ``(D, )``.
    ``probes``: random combinations of the outputs (and backward passes) an image.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {name: model.get_submodule(name).weight for name in changes}
    rows = {name: change.flatten(1) for name, change in changes.items()}
    total = {name: torch.zeros(len(change)) for name, change in changes.items()}
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            for places in progress(images):
                values = scaled(outputs(model, places), places, spread)
                for probe in range(probes):
                    sign = torch.randint(2, values.shape, generator=generator).to(values) * 2 - 1
                    gradients = torch.autograd.grad(
                        (values * sign).sum(), list(weights.values()), allow_unused=True,
                        retain_graph=probe + 1 < probes)
                    for name, gradient in zip(weights, gradients, strict=True):
                        if gradient is not None:
                            total[name] += (rows[name] @ gradient.flatten()).square().cpu()
    finally:
        for parameter, trained in wanted:
            parameter.requires_grad_(trained)
    return {name: values / (probes * len(images)) for name, values in total.items()}


def bar(title: str) -> Callable[[Iterable], Iterable]:
    """A progress bar on the terminal."""
    from rich.console import Console

    return lambda items: track(items, title, console=Console(stderr=True), transient=True)

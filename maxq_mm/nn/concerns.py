"""What is likely to go wrong with a model's sparse layers, or has."""

from collections.abc import Mapping

from ..functional.masks import satisfies
from .layers import MaxQLayer

# An output that keeps fewer weights than this can hardly be learned.
_FEW_WEIGHTS = 8


def bypass(layers: Mapping[str, MaxQLayer]) -> str | None:
    """What is wrong if a weight has a gradient though no layer has ever run with it; or None."""
    called = {id(layer.weight) for layer in layers.values() if layer.maxq.called}
    for name, layer in layers.items():
        grad = layer.weight.grad
        if grad is not None and id(layer.weight) not in called and grad.any():
            return (f'{name} was never called, but its weight has a gradient: another module reads '
                    f'the weight, past its mask; leave the layer dense with exclude=({name!r}, )')
    return None


def few_weights(layers: Mapping[str, MaxQLayer]) -> list[str]:
    """A sentence on layers that can hardly learn, if there are any."""
    kept = {}
    for name, layer in layers.items():
        n, m = layer.settings.pattern
        per_output = layer.weight[0].numel()
        if n < m and per_output * n // m < _FEW_WEIGHTS:
            kept[name] = per_output * n // m
    if not kept:
        return []
    worst = min(kept, key=kept.get)
    subject = '1 layer keeps' if len(kept) == 1 else f'{len(kept)} layers keep'
    return [f'{subject} fewer than {_FEW_WEIGHTS} weights for each output, at worst {kept[worst]} '
            f'({worst}, {layers[worst].settings.pattern}): consider to exclude such layers']


def masked_already(layers: Mapping[str, MaxQLayer]) -> dict[str, MaxQLayer]:
    """Layers that queries would scale, and whose raw weights satisfy their pattern already."""
    # Weights that start as zeros satisfy any pattern.
    return {name: layer for name, layer in layers.items()
            if layer.settings.axes and not layer.settings.fixed
            and not layer.settings.pattern.is_dense and not layer.weight.is_meta
            and layer.weight.any() and satisfies(layer.weight.detach(), layer.settings.pattern)}


def rescaled(layers: Mapping[str, MaxQLayer], total: int, instead: str) -> list[str]:
    """A sentence on the start of ``layers``, of ``total`` sparse ones, if there are any."""
    if not layers:
        return []
    return [f'the weights of {len(layers)} of {total} layers, such as {next(iter(layers))}, '
            'satisfy their pattern before training, as those of a folded checkpoint: the queries '
            f'multiply the kept ones by up to 3 at once; {instead}']

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


def concerns(layers: Mapping[str, MaxQLayer]) -> list[str]:
    """What is likely to go wrong in training, in sentences, by what it starts from."""
    return [*_few_weights(layers), *_masked_already(layers)]


def _few_weights(layers: Mapping[str, MaxQLayer]) -> list[str]:
    kept = {}
    for name, layer in layers.items():
        n, m = layer.settings.pattern
        per_output = layer.weight[0].numel()
        if n < m and per_output * n // m < _FEW_WEIGHTS:
            kept[name] = per_output * n // m
    if not kept:
        return []
    worst = min(kept, key=kept.get)
    return [f'{len(kept)} layers keep fewer than {_FEW_WEIGHTS} weights for each output, such as '
            f'{worst} ({layers[worst].settings.pattern}: {kept[worst]}); consider to exclude them']


def _masked_already(layers: Mapping[str, MaxQLayer]) -> list[str]:
    scaled = {name: layer for name, layer in layers.items()
              if layer.settings.axes and not layer.settings.pattern.is_dense
              and not layer.weight.is_meta}
    # Weights that start as zeros satisfy any pattern.
    masked = [name for name, layer in scaled.items() if layer.weight.any()
              and satisfies(layer.weight.detach(), layer.settings.pattern)]
    if not masked:
        return []
    return [f'the weights of {len(masked)} of {len(scaled)} layers, such as {masked[0]}, satisfy '
            'their pattern before training, as those of a folded checkpoint: the queries multiply '
            'the kept ones by up to 3 at once; start from raw weights (the unfolded checkpoint), '
            'or without queries (axes=())']

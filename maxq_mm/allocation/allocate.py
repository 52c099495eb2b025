"""A plan for a trained detector, from a few images."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..functional.masks import satisfies
from ..functional.pattern import Pattern
from ..nn.layers import MaxQLayer
from ..nn.select import select
from ..nn.settings import SparsitySettings
from ..utils.errors import InputError
from .costs import check_cost, costs
from .distortion import bar, predict, spreads
from .images import evaluating, look
from .moments import SAMPLES, Moments, is_linear_map, sample, watching
from .one_shot import check_saliency, one_shot
from .outputs import Places, outputs
from .plan import DENSE, Plan, check_affordable, check_budget, make_plan

PATTERNS = ('2:4', '1:4', '1:8', '1:16')


def allocate(model: nn.Module, data: Iterable[dict], patterns: Sequence[str] = PATTERNS,
             budget: float = 0.25, cost: str = 'macs', *, include: Sequence[str] = (),
             exclude: Sequence[str] = (), saliency: str = 'magnitude', compensate: bool = True,
             probes: int = 2, seed: int = 0, progress: bool = False) -> Plan:
    """The pattern of each layer that changes a trained detector's detections least.

    ``model`` is a dense mmdet detector (Faster or Mask R-CNN, or of one stage with maps of classes
    and boxes); it is left as it was. ``data`` gives what mmdet's test pipelines make of some tens
    of images; no annotations are needed. ``patterns`` are the candidates beside dense; a layer
    takes those that divide its input channels. ``budget`` is the share, in (0, 1], of the dense
    cost of all layers that can be sparse; ``cost`` is ``'macs'`` (kept multiply-accumulates of an
    image), ``'bytes'`` (of the weights in a compact file) or ``'ms'`` (of the N:M runtime, measured
    layer by layer on this machine; the plan's costs are nanoseconds then). ``include`` and
    ``exclude`` are prefixes of module names; frozen layers stay dense.

    The distortion is predicted for weights pruned as :func:`.one_shot.one_shot` does with
    ``saliency`` and ``compensate``, from ``probes`` backward passes an image. The same ``seed``
    gives the same plan on the same machine.

    Raises:
        InputError: a detector that cannot be read or is sparse already, no images, or a bad
            pattern, budget, cost, name or number of probes, named.
    """
    check_budget(budget)
    check_cost(cost)
    check_saliency(saliency)
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise InputError(f'probes must be a whole number of at least 1, got {probes!r}')
    candidates = find_candidates(model, patterns, include, exclude)
    with evaluating(model):
        images = look(model, data, bar('detections') if progress else iter)
        price = costs(cost, model, images, candidates)
        check_affordable(price, budget)  # before the long part
        distortions = predict_all(model, images, candidates, saliency, compensate, probes, seed,
                                  progress)
    return make_plan(cost, candidates, price, distortions, budget)


def find_candidates(model: nn.Module, patterns: Sequence[str], include: Sequence[str] = (),
                    exclude: Sequence[str] = ()) -> dict[str, list[Pattern]]:
    """What each layer can be, in the model's order: dense first, then the patterns that fit it.

    Raises:
        InputError: no or repeated patterns, bad names, a layer that is sparse already.
    """
    if isinstance(patterns, str) or not isinstance(patterns, Sequence) or not patterns:
        raise InputError(f'patterns must be a sequence of N:M, got {patterns!r}')
    parsed = [Pattern.parse(pattern) for pattern in patterns]
    if len(set(parsed)) < len(parsed):
        raise InputError(f'patterns must be distinct, got {tuple(map(str, parsed))}')
    found: dict[str, list[Pattern]] = {}
    for pattern in parsed:
        settings = SparsitySettings(pattern, include=include, exclude=exclude, predictors=True)
        for name in select(model, settings).sparse:
            found.setdefault(name, [DENSE]).append(pattern)
    for name, layer_patterns in found.items():
        module = model.get_submodule(name)
        sparse = next((pattern for pattern in layer_patterns[1:] if not pattern.is_dense and (
            isinstance(module, MaxQLayer) or satisfies(module.weight, pattern))), None)
        if sparse is not None:
            raise InputError(f'the network is sparse already: {name} is {sparse}; a plan starts '
                             'from a dense one')
    return {name: found[name] for name, _ in model.named_modules() if name in found}


def predict_all(model: nn.Module, images: Sequence[Places],
                candidates: Mapping[str, Sequence[Pattern]], saliency: str, compensate: bool,
                probes: int, seed: int, progress: bool = False) -> dict[str, list[float]]:
    """Predicted distortion of every candidate of every layer, that of the dense ones being 0."""
    moments = {}
    if compensate or saliency != 'magnitude':
        moments = collect_moments(model, images, candidates, seed)
    changes = {}
    for name, patterns in (bar('pruning each layer') if progress else iter)(candidates.items()):
        weight = model.get_submodule(name).weight.detach()
        changes[name] = torch.stack([
            one_shot(weight, pattern, moments.get(name), saliency, compensate) - weight
            for pattern in patterns[1:]])
        moments.pop(name, None)
    predicted = predict(model, images, spreads(images), changes, probes, seed,
                        bar('backward passes') if progress else iter)
    return {name: [0., *values.tolist()] for name, values in predicted.items()}


@torch.no_grad()
def collect_moments(model: nn.Module, images: Sequence[Places], names: Iterable[str],
                    seed: int) -> dict[str, Moments]:
    """Moments of the inputs of all layers whose output is linear in their weight, in one pass."""
    layers = {model.get_submodule(name): name for name in names}
    layers = {module: name for module, name in layers.items() if is_linear_map(module)}
    moments = {name: Moments(module.weight[0].numel()) for module, name in layers.items()}
    most = -(-SAMPLES // len(images))

    def see(module: nn.Module, inputs: Tensor) -> None:
        moments[layers[module]].add(sample(module, inputs, most, seed))

    with watching(layers, see):
        for places in images:
            outputs(model, places)
    return moments

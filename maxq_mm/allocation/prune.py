"""A trained detector pruned without training, layer by layer.

Each layer in the order in which the network runs it, with inputs from the network that is pruned
up to there, and outputs of the dense one as the aim: what earlier layers spoil, later ones mend as
far as they can (after SparseGPT, arXiv 2301.00774, whose aim are outputs for the pruned network's
inputs).
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..engine.checkpoint import KEY, VERSION
from ..functional.pattern import Pattern
from ..functional.ramp import Ramp
from ..nn.layers import shape_reason
from ..nn.settings import MaskSettings
from ..nn.stand_ins import sparse_type
from ..utils.errors import InputError
from .distortion import bar, measure, spreads
from .images import evaluating, look
from .moments import SAMPLES, Moments, Reached, calls, is_linear_map, watching
from .one_shot import check_saliency, one_shot
from .outputs import Places, outputs

# Layers whose dense inputs are kept at a time.
_AT_ONCE = 4


@torch.no_grad()
def prune(model: nn.Module, data: Iterable[dict], patterns: Mapping[str, str | None], *,
          saliency: str = 'magnitude', compensate: bool = True, norms: bool = True, seed: int = 0,
          progress: bool = False) -> float:
    """Prune layers of a trained detector in place, without training.

    ``patterns`` by module name (None: dense), such as a plan's; ``data`` as in
    :func:`maxq_mm.allocate`; ``saliency`` and ``compensate`` as in :func:`.one_shot.one_shot`.
    ``norms``: batch norm's statistics are measured again on the images, behind every layer that
    they follow.

    Returns:
        the true distortion of what it detects, as :mod:`.distortion` defines it.

    Raises:
        InputError: a detector that cannot be read, no images, a bad name, pattern or saliency.
    """
    check_saliency(saliency)
    wanted = _check_patterns(model, patterns)
    with evaluating(model):
        images = look(model, data, bar('detections') if progress else iter)
        prune_at(model, images, wanted, saliency, compensate, norms, seed,
                 bar('pruning') if progress else iter)
        return measure(model, images, spreads(images))


def pruned_checkpoint(model: nn.Module, patterns: Mapping[str, str], meta: dict) -> dict:
    """A folded checkpoint of a pruned model, laid out as :mod:`maxq_mm.engine.checkpoint` says."""
    modules = {model.get_submodule(name): pattern for name, pattern in patterns.items()}
    # Every name of a module that has several, as training stores them.
    names = {name: modules[module]
             for name, module in model.named_modules(remove_duplicate=False) if module in modules}
    settings = {name: MaskSettings(pattern, axes=(), fixed=True).as_dict()
                for name, pattern in names.items()}
    return dict(meta=meta, state_dict=model.state_dict(), **{KEY: dict(
        version=VERSION, layers=settings, ramp=asdict(Ramp.parse(None)))})


def prune_at(model: nn.Module, images: Sequence[Places], patterns: Mapping[str, Pattern],
             saliency: str, compensate: bool, norms: bool, seed: int,
             progress: Callable[[Iterable], Iterable] = iter) -> None:
    """:func:`prune` in evaluation mode, with places of the images that are known."""
    dense = copy.deepcopy(model) if compensate else model
    layers = {model.get_submodule(name): name for name in patterns}
    # In the image in which most parts of the network have something to look at.
    fullest = max(images, key=lambda places: len(places.said))
    order = _order(model, fullest, [module for module in model.modules() if module in layers
                                    or (norms and _is_measurable(module))])
    first = next((place for place, (module, _) in enumerate(order) if module in layers), 0)
    needs_moments = [module for module, _ in order if module in layers and is_linear_map(module)
                     and (compensate or saliency != 'magnitude')]
    most = -(-SAMPLES // len(images))
    aims: dict[nn.Module, list[Tensor]] = {}
    for module, times in progress(order[first:]):
        if module not in layers:
            _measure(module, model, images, times)
            continue
        name, moments = layers[module], None
        if module in needs_moments:
            if compensate and module not in aims:
                place = needs_moments.index(module)
                aims = _aims(dense, layers, needs_moments[place:place + _AT_ONCE], images,
                             most, seed)
            moments = _moments(module, aims.pop(module, None), model, images, times, most, seed)
        module.weight.copy_(one_shot(module.weight, patterns[name], moments, saliency, compensate))
    called = dict(order)
    for module, name in layers.items():
        if module not in called:  # nothing was detected for it to look at
            module.weight.copy_(one_shot(module.weight, patterns[name]))


def _check_patterns(model: nn.Module, patterns: Mapping[str, str | None]) -> dict[str, Pattern]:
    modules = dict(model.named_modules())
    strange = next((name for name in patterns if name not in modules), None)
    if strange is not None:
        raise InputError(f'patterns has {strange!r}, which is no layer of the model')
    wanted = {name: Pattern.parse(text) for name, text in patterns.items() if text is not None}
    if not wanted:
        raise InputError('patterns leaves every layer dense: there is nothing to prune')
    for name, pattern in wanted.items():
        if sparse_type(modules[name]) is None:
            raise InputError(f'{name} is no layer with an N:M pattern: it is a '
                             f'{type(modules[name]).__name__}')
        reason = shape_reason(modules[name], pattern)
        if reason is not None:
            raise InputError(f'{name}: {reason}')
    return wanted


def _is_measurable(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _order(model: nn.Module, places: Places,
           modules: Sequence[nn.Module]) -> list[tuple[nn.Module, int]]:
    """Modules in the order in which they first run, and how often an image calls them."""
    called: dict[nn.Module, int] = {}

    def see(module: nn.Module, _: Tensor) -> None:
        called[module] = called.get(module, 0) + 1

    with watching(modules, see):
        outputs(model, places)
    return list(called.items())


def _aims(dense: nn.Module, layers: Mapping[nn.Module, str], wanted: Sequence[nn.Module],
          images: Sequence[Places], most: int, seed: int) -> dict[nn.Module, list[Tensor]]:
    """What the dense counterparts of the ``wanted`` layers see, by image."""
    twins = {dense.get_submodule(layers[module]): module for module in wanted}
    found: dict[nn.Module, list[Tensor]] = {module: [] for module in wanted}
    for places in images:
        seen = calls(list(twins), lambda at=places: outputs(dense, at), most, seed)
        for twin, module in twins.items():
            found[module].append(seen[twin])
    return found


def _moments(module: nn.Module, aim: Sequence[Tensor] | None, model: nn.Module,
             images: Sequence[Places], times: int, most: int, seed: int) -> Moments:
    """Of the inputs of ``module``, against those that its dense counterpart gets (``aim``)."""
    moments = Moments(module.weight[0].numel())
    for number, places in enumerate(images):
        seen = calls([module], lambda at=places: outputs(model, at), most, seed, times)[module]
        moments.add(seen, None if aim is None else aim[number])
    return moments


def _measure(norm: _BatchNorm, model: nn.Module, images: Sequence[Places], times: int) -> None:
    """Set a batch norm's statistics to those of its inputs on all images together."""
    total = square = torch.zeros_like(norm.running_mean, dtype=torch.float64)
    count = called = 0

    def see(_: nn.Module, inputs: Tensor) -> None:
        nonlocal total, square, count, called
        rows = inputs.transpose(0, 1).flatten(1).double()
        total, square = total + rows.sum(1), square + rows.square().sum(1)
        count, called = count + rows.shape[1], called + 1
        if called == times:
            raise Reached

    with watching([norm], see):
        for places in images:
            called = 0
            with suppress(Reached):
                outputs(model, places)
    if count:
        mean = total / count
        norm.running_mean.copy_(mean)
        norm.running_var.copy_((square / count - mean.square()).clamp(min=0))

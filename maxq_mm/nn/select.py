"""Which layers of a model become sparse, with which pattern, and why the others stay dense."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from ..functional.pattern import Pattern
from ..utils.errors import InputError
from .layers import MaxQLayer, shape_reason
from .predictors import predicting_layers
from .settings import SparsitySettings
from .stand_ins import sparse_type

# Modules that read the weights of these layers of theirs without calling them.
_READERS = {
    ('torch.nn.modules.transformer', 'TransformerEncoderLayer'): ('linear1', 'linear2'),
    ('mmdet.models.dense_heads.tood_head', 'TaskDecomposition'): ('reduction_conv.conv', )}

_PREDICTS = 'predicts, and is not named'


@dataclass(frozen=True)
class Selection:
    """``sparse``: pattern by module name; ``skipped``: reason by module name."""

    sparse: dict[str, Pattern]
    skipped: dict[str, str]


def _within(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + '.') for prefix in prefixes)


def _nearest(word: str, names: Iterable[str]) -> str:
    parents = {'.'.join(name.split('.')[:depth])
               for name in names for depth in range(1, name.count('.') + 2)}
    # Order by likeness alone, so that the best match is named first.
    nearest = difflib.get_close_matches(word, sorted(parents), n=3, cutoff=0)
    return f'the nearest names are {", ".join(nearest)}' if nearest else 'the model has no layers'


def _read_directly(model: nn.Module) -> dict[nn.Module, str]:
    """Layers whose weight another module reads without calling them, past any mask: by whom."""
    found = {}
    for module in model.modules():
        for kind in type(module).__mro__:
            for name in _READERS.get((kind.__module__, kind.__qualname__), ()):
                found[module.get_submodule(name)] = kind.__qualname__
    return found


def _named(name: str, predictor: str, settings: SparsitySettings) -> bool:
    """Whether the user means this layer by its name, or by that of the ``predictor`` it ends.

    By ``include`` or by an override that matches into it, not by those of what it is in.
    """
    if any(_within(prefix, (predictor, )) for prefix in settings.include):
        return True
    match = settings.override_of(name)
    return match is not None and match.end() > predictor.rfind('.') + 1


def _reason(module: nn.Module, name: str, pattern: Pattern | None,
            settings: SparsitySettings) -> str | None:
    """Why a layer stays dense; None if it becomes sparse."""
    if settings.include and not _within(name, settings.include):
        return 'not in include'
    if _within(name, settings.exclude):
        return 'in exclude'
    if not isinstance(module, MaxQLayer):
        if isinstance(module, nn.MultiheadAttention):
            return 'in-projection of attention, no layer of its own'
        if sparse_type(module) is None:
            return f'{type(module).__name__} computes with its weight in its own way'
        if 'weight' not in module._parameters:
            return 'its weight is no parameter'
        if 'forward' in vars(module):
            return ('its forward is one of the instance, as activation_checkpointing sets it: '
                    'name a module around the layer there')
    if pattern is None:
        return 'dense by overrides'
    return shape_reason(module, pattern) or (
        None if module.weight.requires_grad else 'frozen')


def select(model: nn.Module, settings: SparsitySettings) -> Selection:
    """Choose the layers that become sparse; :class:`SparsitySettings` says how.

    Layers that were built as MaxQ layers (``conv_cfg``) keep their own pattern unless an override
    names them, also where they predict. Every module with a weight matrix or kernel is in one of
    the two results.

    Raises:
        InputError: an ``include``, ``exclude`` or ``overrides`` key that matches no layer (the
            nearest names are given); no layer at all that can be sparse.
    """
    layers = {name: module for name, module in model.named_modules()
              if any(p.ndim >= 2 for p in module.parameters(recurse=False))}
    _check_names(layers, settings)
    read_directly, predicting = _read_directly(model), predicting_layers(model)
    sparse, skipped = {}, {}
    for name, module in layers.items():
        built = isinstance(module, MaxQLayer) and module.maxq.built
        wanted = settings.pattern_of(
            name, module.settings.pattern if built else settings.pattern)
        reason = _reason(module, name, wanted, settings)
        if reason is None and module in read_directly:
            reason = f'its {read_directly[module]} reads the weight without calling the layer'
        if reason is None and module in predicting and not (
                built or settings.predictors or _named(name, predicting[module], settings)):
            reason = _PREDICTS
        if reason is None:
            sparse[name] = wanted
        else:
            skipped[name] = reason
    for name, reason in _tied(model, sparse).items():
        del sparse[name]
        skipped[name] = reason
    if not sparse:
        reasons = sorted(set(skipped.values())) or ['the model has no layers']
        raise InputError(f'no layer can be {settings.pattern} with include={settings.include}, '
                         f'exclude={settings.exclude}: ' + '; '.join(reasons[:5]))
    return Selection(sparse, skipped)


def _tied(model: nn.Module, sparse: dict[str, Pattern]) -> dict[str, str]:
    """Layers of ``sparse`` whose weight is one that a module with another mask, or none, has, too.

    Such a module reads the raw values, and one tensor of a folded model cannot be both.
    """
    holders: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(parameter, []).append(name)
    found = {}
    for name, pattern in sparse.items():
        other = next((other for other in holders[model.get_submodule(name).weight]
                      if sparse.get(other) != pattern), None)
        if other is not None:
            found[name] = f'its weight is also that of {other}, which is not {pattern}'
    return found


def _check_names(layers: Iterable[str], settings: SparsitySettings) -> None:
    """Raises InputError if something that should name layers names none."""
    for argument in ('include', 'exclude'):
        for prefix in getattr(settings, argument):
            if not any(_within(name, (prefix,)) for name in layers):
                raise InputError(f'{argument} has {prefix!r}, which matches no layer; '
                                 + _nearest(prefix, layers))
    eligible = [name for name in layers
                if not settings.include or _within(name, settings.include)]
    for regex, _ in settings.overrides:
        if not any(regex.search(name) for name in eligible):
            raise InputError(f"overrides has '{regex.pattern}', which matches no layer; "
                             + _nearest(regex.pattern.replace('\\', ''), eligible))

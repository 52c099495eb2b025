"""Which layers of a model become sparse, with which pattern, and why the others stay dense."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ..functional.pattern import Pattern
from ..utils.errors import InputError
from .layers import MaxQLayer, structural_reason
from .types import sparse_type


@dataclass(frozen=True)
class Selection:
    """``sparse``: pattern by module name; ``skipped``: reason by module name."""

    sparse: dict[str, Pattern]
    skipped: dict[str, str]


def _names(argument: str, value: Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable) or not all(
            isinstance(name, str) for name in value):
        raise InputError(f'{argument} must be a sequence of module names, got {value!r}')
    return tuple(value)


def _within(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + '.') for prefix in prefixes)


def _nearest(word: str, names: Iterable[str]) -> str:
    parents = {'.'.join(name.split('.')[:depth])
               for name in names for depth in range(1, name.count('.') + 2)}
    # Order by likeness alone, so that the best match is named first.
    nearest = difflib.get_close_matches(word, sorted(parents), n=3, cutoff=0)
    return f'the nearest names are {", ".join(nearest)}' if nearest else 'the model has no layers'


def _parse_overrides(overrides: Mapping | None) -> list[tuple[re.Pattern, Pattern | None]]:
    if overrides is None:
        return []
    if not isinstance(overrides, Mapping):
        raise InputError(f'overrides must map module-name regexes to patterns, got {overrides!r}')
    parsed = []
    for regex, pattern in overrides.items():
        try:
            parsed.append((re.compile(regex), None if pattern is None else Pattern.parse(pattern)))
        except (re.error, TypeError) as error:
            raise InputError(f'overrides key {regex!r} is no regular expression: {error}') from None
        except InputError as error:
            raise InputError(f'overrides[{regex!r}]: {error}') from None
    return parsed


def check_selection(pattern: str | Pattern, include: Sequence[str] = (),
                    exclude: Sequence[str] = (), overrides: Mapping | None = None) -> None:
    """What can be said of the arguments without a model.

    Raises:
        InputError: a malformed pattern, name list, regex or override, named.
    """
    Pattern.parse(pattern)
    _names('include', include)
    _names('exclude', exclude)
    _parse_overrides(overrides)


def _reason(module: nn.Module, name: str, pattern: Pattern | None, include: Sequence[str],
            exclude: Sequence[str]) -> str | None:
    """Why a layer stays dense; None if it becomes sparse."""
    if isinstance(module, MaxQLayer):
        return module.dense_reason or (None if module.weight.requires_grad else 'frozen')
    if include and not _within(name, include):
        return 'not in include'
    if _within(name, exclude):
        return 'in exclude'
    if isinstance(module, nn.MultiheadAttention):
        return 'in-projection of attention, no layer of its own'
    if sparse_type(module) is None:
        return f'{type(module).__name__} computes with its weight in its own way'
    if 'weight' not in module._parameters:
        return 'its weight is no parameter'
    if pattern is None:
        return 'dense by overrides'
    return structural_reason(module, pattern) or (
        None if module.weight.requires_grad else 'frozen')


def select(model: nn.Module, pattern: str | Pattern, include: Sequence[str] = (),
           exclude: Sequence[str] = (), overrides: Mapping | None = None) -> Selection:
    """Choose the layers that an N:M pattern applies to.

    ``include`` and ``exclude`` are prefixes of module names (an empty ``include`` is the whole
    model); ``overrides`` maps regexes, searched in the module name, to a pattern or to None for
    dense; the first that matches counts. Layers that are MaxQ layers already (``conv_cfg``) keep
    their own pattern. Every module with a weight matrix or kernel is in one of the two results.

    Raises:
        InputError: a malformed argument; an ``include``, ``exclude`` or ``overrides`` key that
            matches no layer (the nearest names are given); no layer at all that can be sparse.
    """
    default = Pattern.parse(pattern)
    include, exclude = _names('include', include), _names('exclude', exclude)
    parsed = _parse_overrides(overrides)
    layers = {name: module for name, module in model.named_modules()
              if any(p.ndim >= 2 for p in module.parameters(recurse=False))}
    for argument, prefixes in (('include', include), ('exclude', exclude)):
        for prefix in prefixes:
            if not any(_within(name, (prefix,)) for name in layers):
                raise InputError(f'{argument} has {prefix!r}, which matches no layer; '
                                 + _nearest(prefix, layers))
    eligible = [name for name in layers if not include or _within(name, include)]
    for regex, _ in parsed:
        if not any(regex.search(name) for name in eligible):
            raise InputError(f"overrides has '{regex.pattern}', which matches no layer; "
                             + _nearest(regex.pattern.replace('\\', ''), eligible))

    # torch's encoder layer reads its linear layers' weights without calling them.
    read_directly = {id(layer) for module in model.modules()
                     if isinstance(module, nn.TransformerEncoderLayer)
                     for layer in (module.linear1, module.linear2)}
    sparse, skipped = {}, {}
    for name, module in layers.items():
        if isinstance(module, MaxQLayer):
            wanted = module.settings.pattern
        else:
            wanted = next((p for regex, p in parsed if regex.search(name)), default)
        reason = _reason(module, name, wanted, include, exclude)
        if reason is None and id(module) in read_directly:
            reason = 'its TransformerEncoderLayer reads the weight without calling the layer'
        if reason is None:
            sparse[name] = wanted
        else:
            skipped[name] = reason
    if not sparse:
        reasons = sorted(set(skipped.values())) or ['the model has no layers']
        raise InputError(f'no layer can be {default} with include={include}, exclude={exclude}: '
                         + '; '.join(reasons[:5]))
    return Selection(sparse, skipped)

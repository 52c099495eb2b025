"""Tracing and replacing what a model computes at a place."""

from collections.abc import Callable, Iterable

from torch import nn

from .calls import FEATURES
from .compiled import Compiled
from .decisions import Decisions, Place
from .detectors import install_around, reads_pixels
from .fuse import fuse
from .graphs import from_plain, to_plain
from .install import Trunk, install_forward, install_trunk, seal
from .trace import Trace, trace


def name_of(model: nn.Module, place: Place) -> str:
    """What reports call it."""
    if place.is_trunk:
        return FEATURES if place.head is None else f'{FEATURES} and {place.head}'
    return place.module or type(model).__name__


def function_at(model: nn.Module, place: Place) -> Callable:
    """What is computed there; of a trunk, features and the head's outputs."""
    if not place.is_trunk:
        return model.get_submodule(place.module).forward
    head = None if place.head is None else model.get_submodule(place.head)

    def function(*args, **kwargs):
        features = model.extract_feat(*args, **kwargs)
        return features, () if head is None else head(features)

    return function


def trace_at(model: nn.Module, place: Place, args: tuple, kwargs: dict) -> Trace:
    """The graph of that, layers as single operators.

    Raises:
        Untraceable: it has none.
    """
    module = model.get_submodule(place.module)
    found = trace(module, function_at(model, place), args, kwargs)
    found.stored = to_plain(found, module)
    fuse(found)
    return found


def stored_at(model: nn.Module, place: Place, stored: dict) -> Trace:
    """The same, of what was stored of it.

    Raises:
        AttributeError: the model has no such place.
        InputError: it is not sound, or not of this model.
    """
    function_at(model, place)
    return from_plain(stored, model.get_submodule(place.module))


def install(model: nn.Module, ready: Iterable[tuple[Place, Compiled]], decisions: Decisions
            ) -> tuple[tuple[str, str], ...]:
    """Have each ``Compiled`` compute what is at its place from now on, and seal the model.

    Returns the names of the modules around them that kernels compute too, and what of each.
    """
    ready = list(ready)
    for place, compiled in ready:
        _install_one(model, place, compiled)
    replaced = install_around(model)
    if reads_pixels(model):
        for place, compiled in ready:
            if place.is_trunk:
                compiled.make_channels_last()
    seal(model, decisions)
    return replaced


def _install_one(model: nn.Module, place: Place, compiled: Compiled) -> None:
    if place.is_trunk:
        head = None if place.head is None else model.get_submodule(place.head)
        install_trunk(model, head, Trunk(compiled))
    else:
        install_forward(model.get_submodule(place.module), compiled)

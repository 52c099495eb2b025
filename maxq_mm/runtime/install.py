"""Modules that compute by compiled parts: what becomes of a model's modules in place.

They stay what they were, with all their methods and weights, but for the methods that are compiled,
and they refuse what would make the compiled parts wrong: training, other weights, other types.
"""

import threading
import weakref
from functools import cache

from torch import Tensor, nn

from ..nn.accelerated import Accelerated
from .compiled import Compiled
from .decisions import Decisions
from .trace import flatten


class _Forward(Accelerated):
    """Its forward is compiled."""

    def forward(self, *args, **kwargs):
        compiled = vars(self)['_compiled']
        tensors, _ = flatten(args, kwargs)
        if compiled.holds(tensors):
            return compiled(tensors)
        return super().forward(*args, **kwargs)


class Trunk:
    """Backbone and neck of a detector, with the head that takes their features, in one part.

    The head's outputs wait for its call with just these features, in the thread that made them.
    """

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        self._waiting = threading.local()

    def features(self, tensors: list[Tensor]):
        """What ``extract_feat`` returns."""
        features, outputs = self.compiled(tensors)
        self._waiting.outputs = ([weakref.ref(x) for x in flatten((features, ), {})[0]], outputs)
        return features

    def outputs(self, tensors: list):
        """The head's outputs of these features, in a list; an empty one if they are others."""
        references, outputs = vars(self._waiting).pop('outputs', ((), None))
        same = len(references) == len(tensors) and all(
            reference() is x for reference, x in zip(references, tensors, strict=True))
        return [outputs] if same and references else []

    def __getstate__(self) -> dict:
        return {'compiled': self.compiled}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)


class _Features(Accelerated):
    """A detector whose backbone and neck are compiled."""

    def extract_feat(self, *args, **kwargs):
        trunk = vars(self)['_trunk']
        tensors, _ = flatten(args, kwargs)
        if trunk.compiled.holds(tensors):
            return trunk.features(tensors)
        return super().extract_feat(*args, **kwargs)


class _Head(Accelerated):
    """The head whose outputs the features' part computes, too."""

    def forward(self, *args, **kwargs):
        found = vars(self)['_trunk'].outputs(flatten(args, kwargs)[0])
        return found[0] if found else super().forward(*args, **kwargs)


@cache
def _of_its_kind(kind: type[nn.Module], mixin: type) -> type[nn.Module]:
    name = kind.__name__ if issubclass(kind, Accelerated) else f'Accelerated{kind.__name__}'
    return type(name, (mixin, kind), {'__module__': __name__})


def install_forward(module: nn.Module, compiled: Compiled) -> None:
    become(module, _Forward)
    vars(module)['_compiled'] = compiled


def install_trunk(model: nn.Module, head: nn.Module | None, trunk: Trunk) -> None:
    """``extract_feat`` of a detector and, if the part has it, the forward of its first head."""
    for module, mixin in ((model, _Features), (head, _Head)):
        if module is not None:
            become(module, mixin)
            vars(module)['_trunk'] = trunk


def seal(model: nn.Module, decisions: Decisions) -> None:
    """Have the whole model refuse what its compiled parts refuse, and know what was decided."""
    if not isinstance(model, Accelerated):
        become(model, Accelerated)
    vars(model)['_decisions'] = decisions


def decisions_of(model: nn.Module) -> Decisions | None:
    """What :func:`seal` was given of ``model``; None if it was given nothing."""
    return vars(model).get('_decisions')


def become(module: nn.Module, mixin: type) -> None:
    """Have the methods of ``mixin``, an :class:`Accelerated`, before the module's own."""
    module.__class__ = _of_its_kind(type(module), mixin)

"""What was decided about a model on the machine where it was measured: plain values.

With them and the weights, :mod:`.rebuild` makes the accelerated model anew, in any process.
"""

from dataclasses import asdict, dataclass

from torch.utils import _pytree as pytree

from ..functional.pattern import Pattern
from ..utils.errors import InputError
from .partition import WAYS


@dataclass(frozen=True)
class Place:
    """What of a model becomes a program: a module's forward; by default, the model's own.

    With ``is_trunk`` a detector's ``extract_feat`` and the forward of ``head``, which takes its
    features; None: no head.
    """

    module: str = ''
    is_trunk: bool = False
    head: str | None = None


@dataclass(frozen=True)
class LayerDecision:
    """How a layer is computed, by its weight's name; '': it is no parameter of the model.

    Of an int8 layer, by output channels, ``scales`` are those of its integers, and the model's
    weight is the same integers times ``factors``: a batch norm stands between them. A transposed
    convolution has no ``factors``; a layer that takes an image has the scales of its ``channels``
    in its integers, too.
    """

    weight: str
    way: str
    pattern: str | None
    scales: tuple[float, ...] = ()
    factors: tuple[float, ...] = ()
    channels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise InputError(f'{self.weight} is computed in an unknown way, {self.way!r}')
        if self.pattern is not None:
            Pattern.parse(self.pattern)


@dataclass(frozen=True)
class PartDecision:
    """A part that is traced: where, with which arguments, and how its layers are computed.

    ``structure`` is how the arguments are put together of tensors of ``shapes``, as torch's pytree
    writes it; ``layers`` are in the order of the graph. ``quantizations`` are scale and zero point
    of values that may be bytes, by names of nodes of the graph with this ``fingerprint``; of an
    image's channels, both are tuples. ``graph`` is that graph, if it has a form of
    :mod:`.graphs`.
    """

    place: Place
    structure: str
    shapes: tuple[tuple[int, ...], ...]
    layers: tuple[LayerDecision, ...]
    fingerprint: str = ''
    quantizations: tuple[tuple[str, float | tuple[float, ...], int | tuple[float, ...]], ...] = ()
    graph: dict | None = None


@dataclass(frozen=True)
class Decisions:
    """All parts, and what was measured on: ``instruction_set`` None is a machine without kernels.
    """

    parts: tuple[PartDecision, ...]
    instruction_set: str | None
    threads: int

    def as_dict(self) -> dict:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict) -> 'Decisions':
        """The inverse of :meth:`as_dict`.

        Raises:
            TypeError, KeyError, InputError: what it can never have made.
        """
        parts = tuple(
            PartDecision(Place(**part['place']), part['structure'],
                         tuple(tuple(shape) for shape in part['shapes']),
                         tuple(LayerDecision(**{name: _tuples(value)
                                                for name, value in layer.items()})
                               for layer in part['layers']),
                         part['fingerprint'],
                         tuple(_tuples(value) for value in part['quantizations']), part['graph'])
            for part in plain['parts'])
        return cls(**{**plain, 'parts': parts})


def _tuples(value):
    """With tuples in place of lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def structure_of(arguments: pytree.TreeSpec) -> str:
    """What :class:`PartDecision` has of the arguments' structure."""
    return pytree.treespec_dumps(arguments)


def arguments_of(structure: str, leaves: list) -> tuple[tuple, dict]:
    """Arguments and keyword arguments of this structure."""
    return pytree.tree_unflatten(leaves, pytree.treespec_loads(structure))

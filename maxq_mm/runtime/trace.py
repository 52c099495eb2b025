"""The graph of ATen operators that a part of a model computes, for any batch and image size."""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..utils.errors import first_line
from .quantization import ChannelQuantization, Quantization

# Axes whose size may differ from call to call, by the number of axes; a batch and positions.
_DYNAMIC = {1: (), 2: (0, ), 3: (0, 1), 4: (0, 2, 3)}


class Untraceable(Exception):
    """Why a part has no graph."""


@dataclass(frozen=True)
class Value:
    """What is known of a tensor in a graph; sizes that differ from call to call are expressions.

    ``channels`` is the size of its second axis, that of the traced call if that is an expression.
    """

    dtype: torch.dtype
    shape: tuple[int | str, ...]
    channels: int | None

    @property
    def ndim(self) -> int:
        return len(self.shape)


@dataclass
class Trace:
    """``graph`` takes and gives flat lists of tensors, which ``meta['val']`` of a node describes.

    ``tensors`` are those of the model, by the target of their ``get_attr`` nodes; ``guards`` raises
    AssertionError for tensors that the graph does not hold for; ``results`` is the structure of
    what the part returns; ``quantizations`` are of values that may be bytes, by names of nodes;
    ``stored`` is what :mod:`.graphs` made of it, before anything of it was fused.
    """

    graph: fx.Graph
    tensors: dict[str, Tensor]
    guards: Callable
    results: pytree.TreeSpec
    quantizations: dict[str, Quantization | ChannelQuantization] = field(default_factory=dict)
    stored: dict | None = None

    @property
    def fingerprint(self) -> str:
        """Of its nodes, their operators and names, which another torch may give otherwise."""
        def name(target) -> str:
            return target if isinstance(target, str) else str(
                getattr(target, '__name__', None) or target)
        text = '\n'.join(f'{node.name} {node.op} {name(node.target)} {node.all_input_nodes}'
                         for node in self.graph.nodes)
        return hashlib.sha256(text.encode()).hexdigest()


class _Part(nn.Module):
    """A function of tensors that calls modules of ``model``."""

    def __init__(self, model: nn.Module, function: Callable) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.function(*tensors)


def flatten(args: tuple, kwargs: dict) -> tuple[list, pytree.TreeSpec]:
    """The leaves of a call's arguments, and their structure."""
    return pytree.tree_flatten((args, kwargs))


def trace(model: nn.Module, function: Callable, args: tuple, kwargs: dict) -> Trace:
    """Trace ``function``, which calls modules of ``model``, with arguments alike but for sizes.

    Raises:
        Untraceable: data-dependent control flow, arguments other than float32 tensors, or results
            other than tensors.
    """
    leaves, arguments = flatten(args, kwargs)
    unlike = [leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in leaves
              if not isinstance(leaf, Tensor) or leaf.dtype != torch.float32]
    if unlike or not leaves:
        raise Untraceable(f'takes a {unlike[0]}, not only float32 tensors' if unlike
                          else 'takes nothing')
    axes = [_DYNAMIC.get(leaf.ndim, (0, )) for leaf in leaves]
    # Sizes 0 and 1 would be taken for constants.
    examples = [leaf.new_zeros([max(size, 2) if axis in free else size
                                for axis, size in enumerate(leaf.shape)])
                for leaf, free in zip(leaves, axes, strict=True)]
    shapes = tuple(dict.fromkeys(free, torch.export.Dim.AUTO) for free in axes)
    results = []

    def part(*tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = pytree.tree_unflatten(tensors, arguments)
        leaves, spec = pytree.tree_flatten(function(*args, **kwargs))
        unlike = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)]
        if unlike:
            raise Untraceable(f'returns a {unlike[0]}, not only tensors')
        results.append(spec)
        return tuple(leaves)

    try:
        with torch.no_grad(), warnings.catch_warnings():
            # torch's own use of its structures, whenever it copies them
            warnings.filterwarnings('ignore', '.*LeafSpec', FutureWarning)
            program = torch.export.export(_Part(model, part), tuple(examples),
                                          dynamic_shapes=(shapes, ), strict=False)
            module = program.run_decompositions({}).module()
    except Untraceable:
        raise
    except Exception as error:  # of whatever the model's Python does
        raise Untraceable(first_line(error)) from error
    guards = _take_guards(module.graph)
    for node in module.graph.nodes:
        value = node.meta.get('val')
        node.meta = {'val': Value(value.dtype, tuple(map(_size, value.shape)), _channels(
            value))} if isinstance(value, Tensor) else {}
    tensors = {node.target: _attribute(module, node.target)
               for node in module.graph.nodes if node.op == 'get_attr'}
    return Trace(module.graph, tensors, getattr(module, guards) if guards else no_guards,
                 results[-1])


def _size(size: int | torch.SymInt) -> int | str:
    text = str(size)
    return int(text) if text.isdecimal() else text


def _channels(value: Tensor) -> int | None:
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    try:
        return int(value.shape[1]) if value.ndim > 1 else None
    except GuardOnDataDependentSymNode:  # it depends on more than sizes
        return None


def no_guards(*tensors: Tensor) -> None:
    """Holds for all."""


def _take_guards(graph: fx.Graph) -> str | None:
    """Take the calls that only check something out of the graph; the name of the guards."""
    name = None
    for node in list(graph.nodes):
        if node.op == 'call_module':
            name = node.target
            graph.erase_node(node)
        elif node.op == 'call_function' and '_assert' in str(node.target):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    return name


def _attribute(module: nn.Module, path: str) -> Tensor:
    *parents, name = path.split('.')
    for parent in parents:
        module = getattr(module, parent)
    return getattr(module, name)

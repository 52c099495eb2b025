"""Which layers of a traced part may be int8, and why the others stay float32."""

from collections import defaultdict
from collections.abc import Collection

from torch import Tensor, fx

from .fuse import Layer, layers_of
from .partition import fits, tensors
from .parts import Part
from .quantization import ChannelQuantization
from .trace import Trace, flatten


def has_ranges(node: fx.Node, trace: Trace) -> bool:
    """Whether it is known how a layer's inputs and its output are quantized."""
    x, residual, _ = node.args
    return all(value.name in trace.quantizations for value in (x, residual, node)
               if value is not None)


def image_nodes(part: Part, args: tuple) -> set[fx.Node]:
    """The images among the values of a part: no layer is between them and ``args``, the model's."""
    given = iter(flatten(part.calls[0].args, part.calls[0].kwargs)[0])
    images = set()
    for node in part.trace.graph.nodes:
        if node.op == 'placeholder':
            x = next(given)
            found = any(x is arg for arg in args)
        else:
            found = ('val' in node.meta
                     and not isinstance(node.target, Layer)
                     and any(arg in images for arg in tensors(node)))
        images |= {node} if found else set()
    return images


def stay_float(part: Part, args: tuple, predicting: Collection[Tensor]) -> dict[Layer, str]:
    """The layers of a calibrated part that stay float32, with the reason.

    ``args`` are the model's arguments, ``predicting`` the weights of the layers that predict.
    """
    reasons = {layer: 'predicts' for layer in layers_of(part.trace)
               if any(layer.source is weight for weight in predicting)}
    images = image_nodes(part, args)
    takes = defaultdict(set)  # how what a layer takes is quantized
    for node in part.trace.graph.nodes:
        if isinstance(node.target, Layer):
            takes[node.target].add(part.trace.quantizations.get(node.args[0].name))
    for node in part.trace.graph.nodes:
        if not isinstance(node.target, Layer):
            continue
        if any(arg in images for arg in tensors(node)) and not _by_channels(takes[node.target]):
            reasons.setdefault(node.target, 'takes the image')
        elif not fits(node):
            reasons.setdefault(node.target, 'some of its calls are not of a program')
        elif not has_ranges(node, part.trace):
            reasons.setdefault(node.target, 'no range: not called on calibration images')
    return reasons


def _by_channels(takes: set) -> bool:
    """Whether a layer takes nothing but images of the same scales: they are in its weights."""
    return len(takes) == 1 and isinstance(next(iter(takes)), ChannelQuantization)

"""Which layers of a traced part may be int8, and why the others stay float32."""

from collections.abc import Collection

from torch import Tensor, fx

from .fuse import Layer, layers_of
from .partition import fits, tensors
from .parts import Part
from .trace import Trace, flatten


def has_ranges(node: fx.Node, trace: Trace) -> bool:
    """Whether it is known how a layer's inputs and its output are quantized."""
    x, residual, _ = node.args
    return all(value.name in trace.quantizations for value in (x, residual, node)
               if value is not None)


def stay_float(part: Part, args: tuple, predicting: Collection[Tensor]) -> dict[Layer, str]:
    """The layers of a calibrated part that stay float32, with the reason.

    ``args`` are the model's arguments, ``predicting`` the weights of the layers that predict.
    """
    reasons = {layer: 'predicts' for layer in layers_of(part.trace)
               if any(layer.source is weight for weight in predicting)}
    given = iter(flatten(part.calls[0].args, part.calls[0].kwargs)[0])
    images = set()  # values with no layer between them and an argument of the model
    for node in part.trace.graph.nodes:
        if node.op == 'placeholder':
            x = next(given)
            if any(x is arg for arg in args):
                images.add(node)
            continue
        takes_image = any(arg in images for arg in tensors(node))
        if not isinstance(node.target, Layer):
            images |= {node} if takes_image else set()
            continue
        if takes_image:
            reasons.setdefault(node.target, 'takes the image')
        elif not fits(node):
            reasons.setdefault(node.target, 'some of its calls are not of a program')
        elif not has_ranges(node, part.trace):
            reasons.setdefault(node.target, 'no range: not called on calibration images')
    return reasons

"""Which layers of a traced part may be int8, and why the others stay float32."""

from collections.abc import Mapping

from torch import Tensor

from ..functional.calibration import DENSE_PREDICTORS, PREDICTORS, is_named
from .fuse import Layer, layers_of
from .partition import fits, tensors
from .parts import Part
from .trace import flatten


def stay_float(part: Part, args: tuple, names: Mapping[Tensor, str]) -> dict[Layer, str]:
    """The layers of a calibrated part that stay float32, with the reason.

    ``args`` are the model's arguments, ``names`` those of the modules by their weights.
    """
    reasons = {layer: 'predicts' for layer in layers_of(part.trace)
               if is_named(names.get(layer.source, ''), (*PREDICTORS, *DENSE_PREDICTORS))}
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
        x, residual, _ = node.args
        values = [value for value in (x, residual, node) if value is not None]
        if takes_image:
            reasons.setdefault(node.target, 'takes the image')
        elif not fits(node):
            reasons.setdefault(node.target, 'some of its calls are not of a program')
        elif any(value.name not in part.trace.quantizations for value in values):
            reasons.setdefault(node.target, 'no range: not called on calibration images')
    return reasons

"""An accelerated model made of what was decided about it: nothing is measured, no data are needed.
"""

from collections import defaultdict, deque
from collections.abc import Mapping

import torch
from torch import nn

from ..functional.pattern import Pattern
from ..utils.errors import InputError
from . import kernels
from .choose import Packer, possible_ways
from .compiled import Compiled
from .decisions import Decisions, LayerDecision, PartDecision, arguments_of
from .fuse import Layer, layers_of
from .partition import DENSE, DENSE_INT8, INT8, INT8_WAYS, SPARSE, TORCH
from .place import install, name_of, stored_at, trace_at
from .quantization import ChannelQuantization, Quantization
from .trace import Untraceable

# Where bytes cannot be computed with.
_FLOAT = {INT8: SPARSE, DENSE_INT8: DENSE}


@torch.no_grad()
def rebuild(model: nn.Module, decisions: Decisions, anew: bool = False) -> list[str]:
    """Accelerate ``model``, in place, by ``decisions`` about one with the same weights.

    With ``anew`` it is traced even if the graph was stored: it may compute something else.

    A layer whose kernel is not to be had here is torch's, and a part that cannot be traced here
    stays as it is: results are the same, but for int8 layers that compute in float32 then.

    Returns:
        What is otherwise than where it was measured, a sentence each.

    Raises:
        InputError: another model than that which was decided about.
    """
    problems = []
    found = kernels.instruction_set()
    if found != decisions.instruction_set:
        problems.append(f'it was measured with {decisions.instruction_set or "no kernels"}, this '
                        f'machine runs {found or "no kernels: its layers are dense"}')
    ready = []
    for part in decisions.parts:
        try:
            compiled, floats = _compiled(model, part, anew)
            ready.append((part.place, compiled))
            if floats:
                problems.append(f'{floats} int8 layers of {name_of(model, part.place)} compute in '
                                'float32 here')
        except Untraceable as error:
            problems.append(f'{name_of(model, part.place)} cannot be traced here and stays dense '
                            f'({error})')
        except AttributeError as error:
            raise InputError(f'the model has no {name_of(model, part.place)}') from error
    install(model, ready, decisions)
    return problems


def _compiled(model: nn.Module, part: PartDecision, anew: bool) -> tuple[Compiled, int]:
    """The part, and how many layers should be int8 and cannot."""
    if part.graph is None or anew:
        args, kwargs = arguments_of(part.structure, [torch.zeros(shape) for shape in part.shapes])
        trace = trace_at(model, part.place, args, kwargs)
    else:
        trace = stored_at(model, part.place, part.graph)
    decided = _decided(layers_of(trace), part, model)
    patterns = {layer: Pattern.parse(found.pattern) for layer, found in decided.items()
                if found.pattern is not None}
    if part.fingerprint == trace.fingerprint:
        trace.quantizations = {
            name: (ChannelQuantization if isinstance(scale, tuple) else Quantization)(
                scale, zero_point) for name, scale, zero_point in part.quantizations}
    ways = {}
    for layer, found in decided.items():
        possible, _ = possible_ways(layer, patterns.get(layer), bool(trace.quantizations))
        ways[layer] = next(way for way in (found.way, _FLOAT.get(found.way), TORCH)
                           if way in possible)
        if found.scales:
            layer.scales = torch.tensor(found.scales, dtype=torch.float64)
    floats = sum(found.way in INT8_WAYS and ways[layer] not in INT8_WAYS
                 for layer, found in decided.items())
    return Compiled(trace, ways, Packer(patterns)), floats


def _decided(layers: list[Layer], part: PartDecision, model: nn.Module
             ) -> Mapping[Layer, LayerDecision]:
    """By the weights' names; of a weight that is several layers', in their order."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    recorded = defaultdict(deque)
    for layer in part.layers:
        recorded[layer.weight].append(layer)
    found = {}
    for layer in layers:
        name = names.get(layer.source, '')
        # Another torch may trace more layers than were decided about.
        found[layer] = recorded[name].popleft() if recorded[name] else LayerDecision(
            name, TORCH, None)
    return found

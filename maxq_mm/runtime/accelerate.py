"""One function that puts a folded model's N:M layers onto the fastest kernels of its device."""

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..functional.pattern import Pattern
from ..nn.accelerated import is_accelerated
from ..nn.layers import MaxQLayer
from ..utils.errors import InputError
from . import kernels
from .calls import check_inputs
from .choose import Choice, choose
from .decisions import Decisions, LayerDecision
from .fuse import Layer
from .partition import SPARSE
from .parts import Part, Search
from .patterns import any_pattern, sparsest
from .place import install
from .report import AccelerationReport, LayerChoice
from .semi_structured import accelerate_on_gpu

PRECISIONS = ('float32', )
# Sums in another order differ by less than this share of the results' range.
TOLERANCE = 1e-4


def accelerate(model: nn.Module, inputs: tuple | Tensor, precision: str = 'float32'
               ) -> AccelerationReport:
    """Put the N:M layers of a folded ``model`` that get faster by it onto sparse kernels, in place.

    ``inputs`` are the arguments of ``model``'s forward, or the images ``(B, 3, H, W)`` of a
    detector of mmdet as its backbone gets them: of the size and batch that the model is to serve,
    and with objects in them. The model is run on them, what each layer takes is measured, and the
    fastest is taken, dense included; any other size and batch works afterwards. Which layers are
    N:M is read off their zeros.

    The device of ``model`` decides. On CPUs, what can be traced of the model becomes programs:
    batch norm folded, ReLUs and sums in the layers, no memory allocated between them. It computes
    in ``precision``, with torch's number of threads. On NVIDIA GPUs the 2:4 linear layers and 1x1
    convolutions of a float16 or bfloat16 model go onto sparse tensor cores.

    The model keeps its methods and its state dict, works after ``copy.deepcopy`` and from several
    threads, and refuses training, other weights, and other types and devices. Save it before.

    Raises:
        InputError: an unknown ``precision``; a model that is not folded, in training mode,
            accelerated already, or without a layer that is N:M; a pattern that no kernel takes;
            ``inputs`` that do not fit the model. The model is unchanged then.
        RuntimeError: a GPU without sparse tensor cores and cuSPARSELt.
    """
    if precision not in PRECISIONS:
        raise InputError(f'precision must be one of {", ".join(PRECISIONS)}, got {precision!r}')
    if not isinstance(model, nn.Module):
        raise InputError(f'model must be a torch.nn.Module, got {type(model).__name__}')
    layers = check_model(model)
    args = check_inputs(model, inputs)
    if any(parameter.device.type == 'cuda' for parameter in model.parameters()):
        return accelerate_on_gpu(model, args)
    patterns = find_patterns(layers)
    return _accelerate_on_cpu(model, args, layers, patterns)


def check_model(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and linear layers of a model that can be accelerated, by name.

    Raises:
        InputError: it is in training mode, accelerated already, or not folded.
    """
    if is_accelerated(model):
        raise InputError('the model is accelerated already')
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        raise InputError(f'the model{training and f" ({training})"} is in training mode: call '
                         'model.eval() first')
    layers = {name: module for name, module in model.named_modules()
              if isinstance(module, (nn.Conv2d, nn.Linear))}
    raw = [name for name, module in layers.items() if isinstance(module, MaxQLayer)]
    if raw:
        raise InputError(f'{len(raw)} layers are MaxQ layers, such as {raw[0]}: fold the model '
                         'first (maxq_mm.fold)')
    return layers


def find_patterns(layers: Mapping[str, nn.Module]) -> dict[nn.Module, Pattern]:
    """The N:M layers among ``layers`` with their patterns.

    Raises:
        InputError: there is none, none that is float32, or none whose pattern a kernel takes.
    """
    patterns = {module: pattern for module in layers.values()
                if (pattern := sparsest(module.weight.detach())) is not None}
    if not patterns:
        others = {name: pattern for name, module in layers.items()
                  if (pattern := any_pattern(module.weight.detach())) is not None}
        if others:
            name, pattern = next(iter(others.items()))
            raise InputError(f'no kernel takes the pattern {pattern} of {name}: M must be 2, 4, 8, '
                             '16 or 32, or I a multiple of one of them')
        raise InputError('no convolution or linear layer of the model is N:M: train it with '
                         'MaxQHook or maxq_mm.sparsify, and fold it')
    dtypes = {module.weight.dtype for module in patterns}
    if torch.float32 not in dtypes:
        raise InputError(f'precision float32 asks for float32 weights, and the N:M ones are '
                         f'{dtypes.pop()}: call model.float() first')
    return patterns


@torch.no_grad()
def _accelerate_on_cpu(model: nn.Module, args: tuple, layers: dict[str, nn.Module],
                       patterns: dict[nn.Module, Pattern]) -> AccelerationReport:
    search = Search(model, args, set(patterns))
    by_weight = {module.weight: pattern for module, pattern in patterns.items()}
    choices: dict[Tensor, list[Choice]] = defaultdict(list)
    names = {parameter: name for name, parameter in model.named_parameters()}
    ready: list[tuple] = []
    for part in search.parts:
        found = _layers(part, by_weight)
        compiled, chosen = choose(part.trace, part.tensors, found)
        off = part.difference(compiled)
        if not off <= TOLERANCE or math.isnan(off):
            search.untraced.append((part.name, f'its program differs by {off:.1e}'))
            continue
        ready.append((part, compiled, part.decision(tuple(
            LayerDecision(names.get(layer.source, ''), choice.way,
                          choice.pattern and str(choice.pattern))
            for layer, choice in chosen.items()))))
        for layer, choice in chosen.items():
            choices[layer.source].append(choice)
    rows = tuple(_row(name, module, choices.get(module.weight), by_weight.get(module.weight),
                      module in search.called) for name, module in layers.items())
    isa = kernels.instruction_set()
    traced = tuple(part.name for part, *_ in ready)
    # Nothing is changed before all is known.
    install(model, [(part.place, compiled) for part, compiled, _ in ready],
            Decisions(tuple(decision for *_, decision in ready), isa, torch.get_num_threads()))
    return AccelerationReport(rows, f'{isa or "no N:M kernel for this CPU"}, '
                              f'{torch.get_num_threads()} threads',
                              traced, tuple(search.untraced))


def _layers(part: Part, patterns: Mapping[Tensor, Pattern]) -> dict[Layer, Pattern]:
    return {node.target: patterns[node.target.source] for node in part.trace.graph.nodes
            if isinstance(node.target, Layer) and node.target.source in patterns}


def _row(name: str, module: nn.Module, choices: list[Choice] | None, pattern: Pattern | None,
         called: bool) -> LayerChoice:
    shape, text = tuple(module.weight.shape), pattern and str(pattern)
    if not choices:
        reason = ('not N:M' if pattern is None else 'not called' if not called
                  else f'{type(module).__name__} is not traced as a layer')
        return LayerChoice(name, shape, text, False, reason)
    used = any(choice.way == SPARSE for choice in choices)
    dense = sum(choice.dense_ms for choice in choices)
    if pattern is None:
        return LayerChoice(name, shape, None, False, 'not N:M', dense)
    refusal = next((choice.refusal for choice in choices if choice.refusal), None)
    if refusal is not None:
        return LayerChoice(name, shape, text, False, refusal, dense)
    sparse = sum(choice.times[SPARSE] for choice in choices)
    reason = 'faster' if sparse < dense else 'slower'
    if used != (sparse < dense):  # what it costs to leave a program and enter it again decides
        reason += f' alone, the whole is faster {"so" if used else "without"}'
    return LayerChoice(name, shape, text, used, reason, dense, sparse)

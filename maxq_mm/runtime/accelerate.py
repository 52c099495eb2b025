"""One function that puts a folded model's N:M layers onto the fastest kernels of its device."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..functional.pattern import Pattern
from ..nn.accelerated import is_accelerated
from ..nn.layers import MaxQLayer
from ..nn.predictors import predicting_layers
from ..utils.errors import InputError
from . import kernels
from .calibrate import calibrate
from .calls import check_inputs
from .candidates import stay_float
from .choose import Choice, choose
from .compiled import Compiled
from .decisions import Decisions, LayerDecision
from .fuse import Layer, layers_of
from .partition import INT8_WAYS
from .parts import Part, Search
from .patterns import any_pattern, sparsest
from .place import install
from .report import AccelerationReport, Rounding
from .rows import row
from .semi_structured import accelerate_on_gpu

PRECISIONS = ('float32', 'int8')
# Sums in another order differ by less than this share of the results' range.
TOLERANCE = 1e-4
# What int8 leaves of signal to noise, in dB, is far above this, and a wrong program's far below.
NOISY = 6.


def accelerate(model: nn.Module, inputs: tuple | Tensor, precision: str = 'float32',
               calibration: Iterable | None = None) -> AccelerationReport:
    """Put the layers of a folded ``model`` that get faster by it onto N:M kernels, in place.

    ``inputs`` are the arguments of ``model``'s forward, or the images ``(B, 3, H, W)`` of a
    detector of mmdet as its backbone gets them: of the size and batch that the model is to serve,
    and with objects in them. The model is run on them, what each layer takes is measured, and the
    fastest is taken, dense included; any other size and batch works afterwards. Which layers are
    N:M is read off their zeros.

    The device of ``model`` decides. On CPUs, what can be traced of the model becomes programs:
    batch norm folded, ReLUs and sums in the layers, no memory allocated between them, with torch's
    number of threads. On NVIDIA GPUs the 2:4 linear layers and 1x1 convolutions of a float16 or
    bfloat16 model go onto sparse tensor cores.

    ``precision`` ``'int8'`` lets layers compute in int8 where that is faster still, dense ones
    included, on CPUs: weights with a scale for each output channel, activations as bytes in ranges
    that ``calibration`` shows. These are some images that the model may meet, no annotations: an
    iterable of what ``inputs`` may be, or of what data sets and data loaders of mmdet give. The
    latter also say what a pixel can be, so that a layer that takes the image finds the very bytes
    it was made of; else the images' extremes do. The layers that predict stay float32, as in
    :mod:`maxq_mm.deploy.int8`. Results are not those of float32, but near; the report says how far.

    The model keeps its methods and its state dict, works after ``copy.deepcopy`` and from several
    threads, and refuses training, other weights, and other types and devices. Save it before.

    Raises:
        InputError: an unknown ``precision``; a model that is not folded, in training mode,
            accelerated already, or, in float32, without a layer that is N:M; a pattern that no
            kernel takes; ``inputs`` that do not fit the model; ``calibration`` that is missing,
            empty, constant, not finite or unlike ``inputs``. The model is unchanged then.
        RuntimeError: a GPU without sparse tensor cores and cuSPARSELt.
    """
    if precision not in PRECISIONS:
        raise InputError(f'precision must be one of {", ".join(PRECISIONS)}, got {precision!r}')
    int8 = precision == 'int8'
    if int8 != (calibration is not None):
        raise InputError('precision int8 needs calibration: some images as inputs are' if int8 else
                         f'calibration is for precision int8, not for {precision}')
    if not isinstance(model, nn.Module):
        raise InputError(f'model must be a torch.nn.Module, got {type(model).__name__}')
    layers = check_model(model)
    args = check_inputs(model, inputs)
    if any(parameter.device.type == 'cuda' for parameter in model.parameters()):
        if int8:
            raise InputError('precision int8 is for CPUs, the model is on cuda')
        return accelerate_on_gpu(model, args)
    patterns = find_patterns(layers, dense_too=int8)
    return _accelerate_on_cpu(model, args, layers, patterns, calibration)


def check_model(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions, transposed ones too, and linear layers of a model, by name.

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
              if isinstance(module, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d))}
    raw = [name for name, module in layers.items() if isinstance(module, MaxQLayer)]
    if raw:
        raise InputError(f'{len(raw)} layers are MaxQ layers, such as {raw[0]}: fold the model '
                         'first (maxq_mm.fold)')
    return layers


def find_patterns(layers: Mapping[str, nn.Module], dense_too: bool = False
                  ) -> dict[nn.Module, Pattern]:
    """The N:M layers among ``layers`` with their patterns.

    Raises:
        InputError: there is none, unless ``dense_too``, none that is float32, or none whose pattern
            a kernel takes.
    """
    # Transposed convolutions have their inputs along another axis, and no pattern: none is trained.
    layers = {name: module for name, module in layers.items()
              if not isinstance(module, nn.ConvTranspose2d)}
    patterns = {module: pattern for module in layers.values()
                if (pattern := sparsest(module.weight.detach())) is not None}
    if not patterns and not dense_too:
        others = {name: pattern for name, module in layers.items()
                  if (pattern := any_pattern(module.weight.detach())) is not None}
        if others:
            name, pattern = next(iter(others.items()))
            raise InputError(f'no kernel takes the pattern {pattern} of {name}: M must be 2, 4, 8, '
                             '16 or 32, or I a multiple of one of them')
        raise InputError('no convolution or linear layer of the model is N:M: train it with '
                         'MaxQHook or maxq_mm.sparsify, and fold it')
    dtypes = {module.weight.dtype for module in (layers.values() if dense_too else patterns)}
    if not dtypes:
        raise InputError('the model has no convolution or linear layer')
    if torch.float32 not in dtypes:
        raise InputError(f'the weights are {dtypes.pop()}, and precision '
                         f'{"int8" if dense_too else "float32"} asks for float32 weights: call '
                         'model.float() first')
    return patterns


@torch.no_grad()
def _accelerate_on_cpu(model: nn.Module, args: tuple, layers: dict[str, nn.Module],
                       patterns: dict[nn.Module, Pattern], calibration: Iterable | None
                       ) -> AccelerationReport:
    int8 = calibration is not None
    search = Search(model, args, set(layers.values() if int8 else patterns))
    if int8:
        calibrate(model, search.parts, args, calibration)
    predicting = [module.weight for module in predicting_layers(model)
                  if module in {*layers.values()}]
    by_weight = {module.weight: pattern for module, pattern in patterns.items()}
    choices: dict[Tensor, list[Choice]] = defaultdict(list)
    parameters = {parameter: name for name, parameter in model.named_parameters()}
    kept: dict[Tensor, str] = {}
    ready: list[tuple] = []
    rounding = []
    for part in search.parts:
        found = layers_of(part.trace)
        reasons = stay_float(part, args, predicting) if int8 else {}
        compiled, chosen = choose(part.trace, part.tensors,
                                  {layer: by_weight[layer.source] for layer in found
                                   if layer.source in by_weight},
                                  [layer for layer in found if int8 and layer not in reasons])
        if any(choice.way in INT8_WAYS for choice in chosen.values()):
            rounding.append(_rounding(part, compiled))
        elif not (off := part.agreement(compiled, part.calls[0]).difference) <= TOLERANCE:
            search.untraced.append((part.name, f'its program differs by {off:.1e}'))
            continue
        ready.append((part, compiled, part.decision(tuple(
            _decision(layer, choice, parameters.get(layer.source, ''))
            for layer, choice in chosen.items()))))
        for layer, choice in chosen.items():
            choices[layer.source].append(choice)
        kept.update((layer.source, reason) for layer, reason in reasons.items())
    rows = tuple(row(name, module, choices.get(module.weight), by_weight.get(module.weight),
                     module in search.called, kept.get(module.weight))
                 for name, module in layers.items())
    isa = kernels.instruction_set()
    traced = tuple(part.name for part, *_ in ready)
    # Nothing is changed before all is known.
    replaced = install(
        model, [(part.place, compiled) for part, compiled, _ in ready],
        Decisions(tuple(decision for *_, decision in ready), isa, torch.get_num_threads()))
    return AccelerationReport(rows, f'{isa or "no N:M kernel for this CPU"}, '
                              f'{torch.get_num_threads()} threads',
                              traced, tuple(search.untraced), tuple(rounding), replaced)


def _decision(layer: Layer, choice: Choice, weight: str) -> LayerDecision:
    pattern = choice.pattern and str(choice.pattern)
    if choice.way not in INT8_WAYS:
        return LayerDecision(weight, choice.way, pattern)
    if layer.block is not None:  # the model's weight has its outputs along another axis
        return LayerDecision(weight, choice.way, pattern, tuple(choice.scales.tolist()))
    source, scaled = (x.detach().double().flatten(1) for x in (layer.source, layer.weight))
    norm = (source * scaled).sum(1) / source.square().sum(1)
    factors = torch.where(norm.isfinite() & (norm != 0), choice.scales / norm, choice.scales)
    return LayerDecision(weight, choice.way, pattern, tuple(choice.scales.tolist()),
                         tuple(factors.tolist()), choice.channels)


def _rounding(part: Part, compiled: Compiled) -> Rounding:
    """What int8 costs a part on its samples.

    Raises:
        RuntimeError: so much in all of them that the program must be wrong.
    """
    found = [part.agreement(compiled, call) for call in part.samples or part.calls[:1]]
    if not max(one.decibels for one in found) >= NOISY:
        raise RuntimeError(f'{part.name}: the signal to noise of the int8 results is '
                           f'{max(one.decibels for one in found):.1f} dB, which no rounding '
                           'explains: its program is wrong')
    return Rounding(part.name, max(one.difference for one in found),
                    min(one.decibels for one in found))

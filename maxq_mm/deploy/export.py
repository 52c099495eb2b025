"""A detector as an ONNX file: standard operators, batch norm folded, N:M zeros exact and checked.

Weights keep their state-dict keys as initializer names. Inputs: ``image`` ``(1, 3, H, W)``,
float32, as mmdet's pipeline gives it (0 to 255, before the data preprocessor, whose work is in the
graph), padded at the right and at the bottom with anything; ``image_size`` ``(2, )``, int64, height
and width without the padding. Outputs: those of :func:`.detectors.detect`, by name, or of
:func:`.detectors.features` as ``features_0``, ``features_1``, ... What stands between a detector's
stages bears the names of :func:`.detectors.stages` in the graph, without being its outputs.
"""

import copy
import io
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import torch
from mmcv.cnn import fuse_conv_bn
from onnx import numpy_helper
from torch import Tensor, nn

from ..functional.masks import satisfies
from ..nn.fold import fold
from ..utils.errors import InputError, first_line
from . import detectors, metadata
from .metadata import Metadata, SparseLayer

OPSET = 17
INPUTS = ('image', 'image_size')
_STANDARD_DOMAINS = ('', 'ai.onnx')
# In the name of a weight that torch has computed from a module's.
_TORCHS_OWN = '::'
# The parts of a detector that make its feature maps.
_FEATURE_PARTS = ('backbone.', 'neck.')


def prepared(model: nn.Module, patterns: Mapping[str, str], half: bool = False) -> nn.Module:
    """A copy of ``model`` as it is exported: without MaxQ, batch norm folded into convolutions.

    ``half``: its modules compute in float16; what lies between them stays float32.

    Raises:
        InputError: a layer of ``patterns`` is not there or does not satisfy its pattern.
    """
    model = fold(copy.deepcopy(model)).eval().requires_grad_(False)
    check_patterns(model, patterns)
    model = fuse_conv_bn(model)
    for name in patterns:  # 0 times a negative factor is -0.0
        model.get_submodule(name).weight.data.add_(0.)
    for name, part in model.named_children():
        if half and name != 'data_preprocessor':
            part.half()
    return model


def check_patterns(model: nn.Module, patterns: Mapping[str, str]) -> None:
    """Raises InputError naming the first layer of ``model`` that does not satisfy its pattern."""
    modules = dict(model.named_modules(remove_duplicate=False))  # some heads share layers
    missing = [name for name in patterns if not hasattr(modules.get(name), 'weight')]
    if missing:
        raise InputError(f'the model has no layer {missing[0]}, which the checkpoint calls sparse')
    unlike = [name for name, pattern in patterns.items()
              if not satisfies(modules[name].weight.detach(), pattern)]
    if unlike:
        raise InputError(
            f'{len(unlike)} of {len(patterns)} layers do not satisfy their pattern, such as '
            f'{unlike[0]} ({patterns[unlike[0]]}): export a checkpoint from after the ramp')


def to_onnx(model: nn.Module, about: Metadata, patterns: Mapping[str, str],
            trace_size: tuple[int, int], image: Tensor | None = None) -> onnx.ModelProto:
    """Export ``model``, which :func:`prepared` gave, by a run on an image of ``trace_size``.

    A random one, 0 to 255, unless ``image`` ``(1, 3, *trace_size)`` is given. The model must find
    regions in it: mmdet decodes none in another way.

    Raises:
        InputError: torch cannot export it, or only with operators that are no standard ones.
        RuntimeError: a weight is lost in what torch exported.
    """
    if image is None:
        image = torch.rand(1, 3, *trace_size) * 255
    found = onnx.load_from_string(_trace(model, about, image))
    _name_shared(found.graph)
    _hide_stages(found.graph, about.kind)
    foreign = sorted({f'{node.domain}::{node.op_type}' for node in found.graph.node
                      if node.domain not in _STANDARD_DOMAINS})
    if foreign:
        raise InputError(f'{type(model).__name__} needs {foreign[0]}, no standard ONNX operator')
    layers = {}
    for name, pattern in patterns.items():
        layer = _find(found, name, pattern, model.get_submodule(name).weight)
        if layer is not None:
            layers[name] = layer
        elif about.kind == 'detector' or name.startswith(_FEATURE_PARTS):
            raise RuntimeError(f'{name}.weight is not to be found in what torch exported')
    for output in found.graph.output:
        if output.name == 'boxes':  # torch does not infer the 4
            output.type.tensor_type.shape.dim[1].dim_value = 4
    metadata.write(found, replace(about, layers=layers))
    try:
        onnx.checker.check_model(found, full_check=True)
    except Exception as error:  # the checker raises kinds of its own
        raise InputError(f'what torch exports of this {type(model).__name__} is no valid ONNX: '
                         f'{first_line(error)}') from error
    return found


def _trace(model: nn.Module, about: Metadata, image: Tensor) -> bytes:
    size = tuple(image.shape[2:])
    image_size = torch.tensor(size)
    dynamic = about.size is None
    graph = (partial(detectors.stages, dynamic=dynamic) if about.kind == 'detector'
             else detectors.features)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the tracer, about shapes that are fixed
        try:
            outputs = graph(model, image, image_size)
        except RuntimeError as error:
            raise InputError(f'{type(model).__name__} cannot run on an image of {size[0]} x '
                             f'{size[1]} ({first_line(error)})') from error
        buffer = io.BytesIO()
        # A plain function of two arguments: torch fills in any further ones by their defaults.
        model.forward = lambda image, image_size: tuple(graph(model, image, image_size).values())
        try:
            torch.onnx.export(
                model, (image, image_size), buffer, dynamo=False, opset_version=OPSET,
                input_names=list(INPUTS), output_names=list(outputs),
                dynamic_axes=_axes(outputs, dynamic))
        except Exception as error:  # torch raises many kinds
            raise InputError(f'torch cannot export this {type(model).__name__}: '
                             f'{first_line(error)}') from error
        finally:
            del model.forward
    return buffer.getvalue()


def _axes(outputs: Iterable[str], dynamic: bool) -> dict[str, dict[int, str]]:
    """Names of the axes that differ from image to image, by input and output."""
    axes = {name: {0: 'detections'} for name in detectors.OUTPUTS if name in outputs}
    if dynamic:
        axes['image'] = {2: 'height', 3: 'width'}
        axes |= {name: {2: f'height_{name}', 3: f'width_{name}'} for name in outputs
                 if name.startswith('features_')}
    return axes


def _hide_stages(graph: onnx.GraphProto, kind: str) -> None:
    """Leave the outputs that a file of this ``kind`` has; the others keep their names."""
    if kind == 'detector':
        wanted = [output for output in graph.output if output.name in detectors.OUTPUTS]
        del graph.output[:]
        graph.output.extend(wanted)


def _name_shared(graph: onnx.GraphProto) -> None:
    """Give equal weights, of which torch keeps one and names the others after it, their own."""
    stored = {initializer.name: initializer for initializer in graph.initializer}
    for node in [node for node in graph.node if node.op_type == 'Identity']:
        if node.input[0] in stored:
            own = graph.initializer.add()
            own.CopyFrom(stored[node.input[0]])
            own.name = node.output[0]
            graph.node.remove(node)


def _find(model: onnx.ModelProto, name: str, pattern: str, weight: Tensor) -> SparseLayer | None:
    """Where ``model`` holds the ``weight`` of a layer; a name that torch gave it is put right.

    It makes a weight anew where it turns a linear layer's, or folds batch norm in that mmcv could
    not; the zeros tell which it was.
    """
    key = f'{name}.weight'
    stored = {initializer.name: initializer for initializer in model.graph.initializer}
    if key in stored:
        return SparseLayer(pattern, key)
    for initializer in stored.values():
        if _TORCHS_OWN not in initializer.name:
            continue
        for axis, wanted in ((1, weight), (0, weight.movedim(1, 0))):
            if tuple(initializer.dims) == wanted.shape and (
                    _same_zeros(numpy_helper.to_array(initializer), wanted.numpy())):
                for node in model.graph.node:
                    node.input[:] = [key if i == initializer.name else i for i in node.input]
                initializer.name = key
                return SparseLayer(pattern, key, axis)
    return None


def _same_zeros(stored: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether what was zero still is, and next to nothing else (float16 has an end)."""
    return not stored[wanted == 0].any() and (stored == 0).mean() - (wanted == 0).mean() < 0.01


def check_zeros(model: onnx.ModelProto, weights: Mapping[str, Tensor],
                patterns: Mapping[str, str]) -> str:
    """Hold the N:M layers of ``model`` to their patterns and zeros; says in one line what it found.

    ``weights`` are those of the checkpoint by state-dict key, ``patterns`` those by module name.

    Raises:
        InputError: a layer does not satisfy its pattern, or has lost a zero.
    """
    layers = metadata.read(model).layers
    found = expected = 0
    for name, layer in layers.items():
        stored, wanted = metadata.layer_weight(model, layer), weights[f'{name}.weight']
        lost = int((stored[wanted == 0] != 0).sum())
        if lost or not satisfies(stored, layer.pattern):
            raise InputError(f'{name} does not satisfy {layer.pattern} in the ONNX file: '
                             f'{lost} of its zeros are lost')
        found += int((stored == 0).sum())
        expected += int((wanted == 0).sum())
    if not patterns:
        return 'no N:M layers: the checkpoint tells of none'
    return (f'{len(layers)} of {len(patterns)} N:M layers are in the file and satisfy their '
            f'pattern, with {found:,} zeros ({expected:,} in the checkpoint)')

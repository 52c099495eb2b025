"""An exported detector with int8 weights and activations: onnxruntime's static QDQ form.

Weights are symmetric around 0, with a scale for each output channel, so that a pruned weight stays
exactly 0. Activations are uint8, in ranges found in calibration images. Convolutions and matrix
products become int8, with the ReLU and pooling that follow; decoding, non-maximum suppression,
RoIAlign, deconvolution, the layer that takes the image and those of PREDICTORS stay float32. The
image is wider spread than what other layers take: on dark microscope images its rounding alone cost
a point of segm mAP.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX
from torch import Tensor

from ..functional.calibration import PREDICTORS, is_named, mean_range
from ..functional.masks import satisfies
from ..utils.errors import InputError
from . import metadata
from .metadata import Metadata, SparseLayer
from .onnx_detector import make_session, read_file

PRECISION = 'int8'
_LAYERS = ('Conv', 'Gemm', 'MatMul')
# These take and give the layers' integers; ReLU becomes the lower end of a layer's range.
_FOLLOWERS = ('Relu', 'MaxPool')

Ranges = Mapping[str, tuple[float, float]]


def read_float(path: str | Path) -> tuple[ModelProto, Metadata]:
    """An exported float32 file, and what it says of itself.

    Raises:
        InputError: no such file, or one that is int8 or float16 already.
    """
    content, about = read_file(path)
    model = onnx.load_from_string(content)
    if about.precision == PRECISION or any(
            node.op_type in ('QuantizeLinear', 'DequantizeLinear') for node in model.graph.node):
        raise InputError(f'{path} is quantised already')
    if about.precision != 'float32':
        raise InputError(f'{path} is {about.precision}: quantise a float32 export')
    return model, about


def check_names(model: ModelProto, names: Sequence[str]) -> None:
    """Whether ``names`` can stay float32, for :func:`quantize`.

    Raises:
        InputError: one of them is no part of any layer's name, or they leave no layer for int8.
    """
    layers = list(_layers(model))
    for name in names:
        if not name or not any(_is_named(node, (name, )) for node in layers):
            raise InputError(f'{name!r} is no layer of the file, nor a part of its name')
    if names and all(_is_named(node, names) for node in layers):
        raise InputError(f'{", ".join(map(repr, names))} would leave no layer for int8')


def default_float(model: ModelProto) -> tuple[str, ...]:
    """What stays float32 unless told otherwise: the layer that takes the image, and PREDICTORS."""
    first = next(_layers(model), None)
    return (*([] if first is None else [first.input[1].removesuffix('.weight')]), *PREDICTORS)


def measure_ranges(model: ModelProto, feeds: Iterable[dict[str, np.ndarray]]) -> Ranges:
    """Ranges in ``feeds`` of all that layers take and give.

    What was empty in an image (no detections) is not counted; in all of them, it has no range.
    """
    # onnxruntime's MinMaxCalibrater has one rule for tensors of all sizes, and knows no empty ones.
    nodes = (node for node in model.graph.node if node.op_type in (*_LAYERS, *_FOLLOWERS))
    names = _activations(nodes, _stored(model))
    probe = ModelProto()
    probe.CopyFrom(model)
    outputs = [_measured(probe.graph, name, kind) for name in names
               for kind in ('ReduceMin', 'ReduceMax', 'Size')]
    session = make_session(probe.SerializeToString())
    # (images, names, 3)
    found = np.array([[value.item() for value in session.run(outputs, feed)]
                      for feed in feeds]).reshape(-1, len(names), 3)
    ranges = {name: mean_range(torch.from_numpy(rows))
              for name, rows in zip(names, found.swapaxes(0, 1), strict=True)}
    return {name: pair for name, pair in ranges.items() if pair is not None}


def _measured(graph: onnx.GraphProto, name: str, kind: str) -> str:
    """Make ``kind`` of the tensor ``name`` an output of the graph; returns the output's name."""
    output = f'{name}/{kind}'
    options = {} if kind == 'Size' else dict(keepdims=1)
    number = onnx.TensorProto.INT64 if kind == 'Size' else onnx.TensorProto.FLOAT
    graph.node.append(helper.make_node(kind, [name], [output], **options))
    graph.output.append(helper.make_tensor_value_info(output, number, None))
    return output


def quantize(model: ModelProto, ranges: Ranges,
             keep_float: Sequence[str] | None = None) -> ModelProto:
    """The int8 form of a float32 ``model``, which stays as it is.

    ``keep_float``: layers that have one of these as a part of their names (``fc_cls``,
    ``backbone.conv1``) stay float32, and so does one without a range. None: those of
    :func:`default_float`.
    """
    keep_float = default_float(model) if keep_float is None else keep_float
    source = ModelProto()
    source.CopyFrom(model)
    excluded = [node.name for node in _layers(source) if _is_named(node, keep_float)
                or not all(name in ranges for name in _activations([node], _stored(source)))]
    data = TensorsData(CalibrationMethod.MinMax, {
        name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()})
    quantizer = QDQQuantizer(
        source, per_channel=True, reduce_range=False, weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8, tensors_range=data, nodes_to_quantize=[],
        nodes_to_exclude=excluded, op_types_to_quantize=[*_LAYERS, *_FOLLOWERS],
        extra_options=dict(WeightSymmetric=True, ActivationSymmetric=False,
                           MatMulConstBOnly=True))
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    result = quantizer.model.model
    kept = [entry for entry in result.metadata_props if not entry.key.startswith('onnx.')]
    del result.metadata_props[:]
    result.metadata_props.extend(kept)
    about = metadata.read(model)
    if about is not None:
        metadata.write(result, replace(about, precision=PRECISION, layers={
            name: _moved(result, layer) for name, layer in about.layers.items()}))
    onnx.checker.check_model(result)
    return result


def count_layers(model: ModelProto, quantized: ModelProto) -> tuple[int, list[str]]:
    """How many layers of ``model`` are int8 in ``quantized``, and the names of the others."""
    stored, kept = _stored(model), _stored(quantized)
    weights = {node.input[1]: None for node in _layers(model) if node.input[1] in stored}
    floats = [weight.removesuffix('.weight') for weight in weights if weight in kept]
    return len(weights) - len(floats), floats


def check_zeros(model: ModelProto, quantized: ModelProto) -> str:
    """Hold the N:M layers of ``quantized`` to the zeros of ``model``; says in one line what it
    found.

    Raises:
        InputError: a pruned weight is not exactly 0, or a layer does not satisfy its pattern.
    """
    before, after = metadata.read(model).layers, metadata.read(quantized).layers
    kept = pruned = 0
    for name, layer in before.items():
        wanted = metadata.layer_weight(model, layer) == 0
        found = _zeros(quantized, after[name])
        lost = int((wanted & ~found).sum())
        if lost or not satisfies(~found, layer.pattern):
            raise InputError(f'{name} does not satisfy {layer.pattern} in int8: {lost} of its '
                             'zeros are lost')
        pruned += int(wanted.sum())
        kept += int((wanted & found).sum())
    if not before:
        return 'no N:M layers: the file has none'
    return (f'{kept:,} of {pruned:,} pruned weights are 0, '
            f'{len(before)} of {len(before)} N:M layers satisfy their pattern')


def _stored(model: ModelProto) -> set[str]:
    return {initializer.name for initializer in model.graph.initializer}


def _layers(model: ModelProto) -> Iterator[NodeProto]:
    return (node for node in model.graph.node if node.op_type in _LAYERS)


def _activations(nodes: Iterable[NodeProto], stored: set[str]) -> list[str]:
    """What the nodes take and give that is no weight, each once."""
    return list({name: None for node in nodes for name in (*node.input, *node.output)
                 if name and name not in stored})


def _is_named(node: NodeProto, names: Sequence[str]) -> bool:
    """Whether one of ``names`` is a part of the name of the node's module."""
    return is_named(f'{node.input[1]}.{node.name.replace("/", ".")}', names)


def _moved(quantized: ModelProto, layer: SparseLayer) -> SparseLayer:
    """Where the layer is now; where it was if it stayed float."""
    name = layer.initializer + TENSOR_NAME_QUANT_SUFFIX
    return layer._replace(initializer=name) if name in _stored(quantized) else layer


def _zeros(quantized: ModelProto, layer: SparseLayer) -> Tensor:
    """Bool ``(O, I, *K)``: where the graph computes with a weight of exactly 0.

    Raises:
        RuntimeError: an int8 weight has a zero point other than 0, or a scale that is no number.
    """
    for node in quantized.graph.node:
        if node.op_type == 'DequantizeLinear' and node.input[0] == layer.initializer:
            scale, zero_point = (
                numpy_helper.to_array(initializer) for name in node.input[1:]
                for initializer in quantized.graph.initializer if initializer.name == name)
            if zero_point.any() or not np.isfinite(scale).all():
                raise RuntimeError(f'{layer.initializer} is not symmetric around 0')
    return metadata.layer_weight(quantized, layer) == 0

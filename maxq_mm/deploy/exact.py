"""int8 products without overflow, on every x86 CPU.

There, sums of two products of uint8 and int8 overflow 16 bits without VNNI, and onnxruntime lets
them. It computes exactly if asked to, but then stumbles over a weight that several layers share, as
those of an RPN's levels do.
"""

from collections import defaultdict

import onnx
from onnx import GraphProto, NodeProto
from onnxruntime import SessionOptions

_PRECISION = ('session.x64quantprecision', '1')


def compute_exactly(content: bytes, options: SessionOptions) -> bytes:
    """A file's ``content`` for a session with ``options``, which are told to compute exactly;
    weights of int8 that layers share have a copy for each. Another file stays as it is.

    Raises:
        DecodeError: protobuf's, where it is no ONNX file.
    """
    model = onnx.load_from_string(content)
    if not any(node.op_type == 'DequantizeLinear' for node in model.graph.node):
        return content
    options.add_session_config_entry(*_PRECISION)
    _unshare(model.graph)
    return model.SerializeToString()


def _unshare(graph: GraphProto) -> None:
    stored = {initializer.name: initializer for initializer in graph.initializer}
    readers: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
    for node in graph.node:
        for index, name in enumerate(node.input):
            readers[name].append((node, index))
    copies = []
    for node in graph.node:
        if node.op_type == 'DequantizeLinear' and all(name in stored for name in node.input):
            for number, (reader, index) in enumerate(readers[node.output[0]][1:], 2):
                copy = NodeProto()
                copy.CopyFrom(node)
                copy.name, copy.output[0] = f'{node.name}/{number}', f'{node.output[0]}/{number}'
                copy.input[:] = [f'{name}/{number}' for name in node.input]
                reader.input[index] = copy.output[0]
                for own, name in zip(copy.input, node.input, strict=True):
                    weight = graph.initializer.add()
                    weight.CopyFrom(stored[name])
                    weight.name = own
                copies.append(copy)
    nodes = [*copies, *graph.node]  # copies first: they need weights alone
    del graph.node[:]
    graph.node.extend(nodes)

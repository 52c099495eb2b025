"""An exported detector cut open between its stages, to be held to mmdet one stage at a time.

Where a stage is fed with what the stage before has found, rounding in the one decides what the
other is asked: which proposals survive, which boxes get a mask. In the cut file each stage reads
what it is given instead.
"""

import re

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor

from ..utils.errors import InputError, first_line
from .onnx_detector import make_session

# What :func:`.detectors.stages` calls the inputs of stages; all that it names can be seen.
_CUTS = r'(features|rpn_logits|rpn_deltas|regions|class_logits|box_deltas|mask_logits)_\d+'
_DETECTIONS = {'labels': TensorProto.INT64, 'boxes': TensorProto.FLOAT}
_SEEN = (rf'{_CUTS}|rpn_(index|boxes|scores|kept)_\d+|class_(scores|boxes)|kept_(labels|regions)|'
         r'labels|boxes|scores|masks')


class StagedFile:
    """``model`` in onnxruntime, as :func:`.export.to_onnx` gave it, cut open; it stays as it is."""

    def __init__(self, model: ModelProto) -> None:
        model, (given, seen) = cut(model)
        self.given = given
        self.seen = seen
        self.session = make_session(model.SerializeToString())

    def run(self, inputs: dict[str, np.ndarray], given: dict[str, Tensor]) -> dict[str, Tensor]:
        """All that the stages make of ``inputs``, the file's own, and of ``given``, what the
        stages behind a cut read, by name.

        Raises:
            InputError: onnxruntime fails, as where shapes do not fit.
        """
        feeds = inputs | {_input(name): value.numpy() for name, value in given.items()}
        try:
            values = self.session.run(self.seen, feeds)
        except Exception as error:  # onnxruntime raises kinds of its own
            raise InputError(f'onnxruntime cannot run a stage of the file '
                             f'({first_line(error)})') from error
        return {name: torch.from_numpy(value)
                for name, value in zip(self.seen, values, strict=True)}


def cut(model: ModelProto) -> tuple[ModelProto, tuple[list[str], list[str]]]:
    """A copy in which the consumers of a stage's result read an input of the graph instead; the
    names of these results, and of all that is now an output."""
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    read = {name for node in graph.node for name in node.input}
    seen = [name for node in graph.node for name in node.output if re.fullmatch(_SEEN, name)]
    given = [name for name in seen if name in read
             and (name in _DETECTIONS or re.fullmatch(_CUTS, name))]
    for node in graph.node:
        node.input[:] = [_input(name) if name in given else name for name in node.input]
    graph.input.extend(helper.make_tensor_value_info(
        _input(name), _DETECTIONS.get(name, TensorProto.FLOAT), None) for name in given)
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in seen)
    return copy, (given, seen)


def _input(name: str) -> str:
    return f'{name}.given'

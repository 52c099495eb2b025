"""An exported file in OpenVINO, an optional dependency, behaving like an onnxruntime session."""

import io
from collections.abc import Mapping
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import onnx
import torch

from ..utils.errors import InputError, first_line


def is_installed() -> bool:
    return find_spec('openvino') is not None


class OpenvinoSession:
    """A compiled file on this CPU, computed in ``precision`` (OpenVINO's names: f32, bf16).

    int8 is what the file says. As many threads as torch has, unless told otherwise.

    Raises:
        InputError: it is not installed, or cannot run this.
    """

    def __init__(self, content: bytes, threads: int | None = None, precision: str = 'f32') -> None:
        if not is_installed():
            raise InputError('OpenVINO is not installed: pip install openvino')
        import openvino

        settings = {'INFERENCE_PRECISION_HINT': precision, 'PERFORMANCE_HINT': 'LATENCY',
                    'INFERENCE_NUM_THREADS': threads or torch.get_num_threads()}
        core = openvino.Core()
        try:
            self._compiled = core.compile_model(core.read_model(io.BytesIO(content)), 'CPU',
                                                settings)
        except RuntimeError as error:
            raise InputError(f'OpenVINO cannot run the network ({first_line(error)})') from error
        self._request = self._compiled.create_infer_request()
        self._names = [output.name for output in onnx.load_from_string(content).graph.output]

    def get_outputs(self) -> list[SimpleNamespace]:
        """The outputs, each with its ``name``."""
        return [SimpleNamespace(name=next(name for name in self._names
                                          if name in output.get_names()))  # it may have several
                for output in self._compiled.outputs]

    def run(self, _: None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """All outputs; their memory is used again by the next run."""
        self._request.infer(dict(feeds), share_inputs=True)
        return [self._request.get_output_tensor(i).data
                for i in range(len(self._compiled.outputs))]

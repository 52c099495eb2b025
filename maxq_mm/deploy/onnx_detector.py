"""An exported detector in onnxruntime, behaving like an mmdet model at test time.

Shapes: image ``(3, h, w)`` as mmdet's pipeline gives it; k detections.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from mmdet.models.roi_heads import FCNMaskHead
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import scale_boxes
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from ..utils.errors import InputError, first_line
from . import metadata
from .exact import compute_exactly
from .metadata import Metadata

# onnxruntime's warnings are about its own optimisations.
_ERRORS_ONLY = 3


def read_file(path: str | Path) -> tuple[bytes, Metadata]:
    """The content of an exported file, and what it says of itself.

    Raises:
        InputError: no such file, no ONNX file, a truncated one, or one from elsewhere.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f'file not found: {path}')
    content = path.read_bytes()
    try:
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and the checker raise kinds of their own
        raise InputError(f'not a readable ONNX file: {path} ({first_line(error)})') from error
    try:
        about = metadata.read(model)
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    if about is None:
        raise InputError(f'{path} has no {metadata.KEY!r} metadata: tools/export_onnx.py did not '
                         'write it')
    return content, about


def make_session(content: bytes, threads: int | None = None) -> onnxruntime.InferenceSession:
    """A session on CPUs, with as many threads as torch has unless told otherwise.

    Raises:
        InputError: onnxruntime cannot run this.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = _ERRORS_ONLY
    try:
        content = compute_exactly(content, options)
        return onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # onnxruntime raises kinds of its own
        raise InputError(f'onnxruntime cannot run the file ({first_line(error)})') from error


Session = Callable[[bytes, int | None], object]  # make_session, or such as .openvino has


def feeds(image: Tensor, about: Metadata) -> dict[str, np.ndarray]:
    """The file's inputs for an image ``(3, h, w)``, padded to the size that the file takes.

    Raises:
        InputError: it is too large for the file.
    """
    height, width = image.shape[-2:]
    canvas = np.zeros((1, 3, *about.canvas(height, width)), dtype=np.float32)
    canvas[0, :, :height, :width] = image
    return dict(image=canvas, image_size=np.array([height, width]))


class OnnxDetector:
    """What :mod:`.export` wrote of a detector; :meth:`test_step` is that of an mmdet model.

    ``session`` makes what runs it, of a file's content and a number of threads.

    Raises:
        InputError: the file has only feature maps, or the engine cannot run it.
    """

    def __init__(self, content: bytes, about: Metadata, threads: int | None = None,
                 session: Session = make_session) -> None:
        if about.kind != 'detector':
            raise InputError('the file holds backbone and neck only: it detects nothing')
        self.about = about
        self.session = session(content, threads)
        self.outputs = [output.name for output in self.session.get_outputs()]
        # Without weights of use: mmdet pastes masks in a method of this class.
        self._paster = FCNMaskHead(num_convs=0, in_channels=1, conv_out_channels=1, num_classes=1,
                                   class_agnostic=True)

    @classmethod
    def from_file(cls, path: str | Path, threads: int | None = None,
                  session: Session = make_session) -> 'OnnxDetector':
        """Read an exported file; see also :func:`read_file`.

        Raises:
            InputError: it cannot be used, with its path.
        """
        content, about = read_file(path)
        try:
            return cls(content, about, threads, session)
        except InputError as error:
            raise InputError(f'{path}: {error}') from error

    def run(self, image: Tensor) -> dict[str, np.ndarray]:
        """The file's outputs by name: boxes ``(k, 4)`` in the image's pixels and so on.

        Raises:
            InputError: the image is too large for the file.
        """
        found = self.session.run(None, feeds(image, self.about))
        return {name: value.copy() for name, value in zip(self.outputs, found, strict=True)}

    def test_step(self, data: dict) -> list[DetDataSample]:
        """Detections of a batch of mmdet's dataloader, in pixels of the original images."""
        samples = []
        for image, sample in zip(data['inputs'], data['data_samples'], strict=True):
            sample.pred_instances = self._instances(self.run(image), sample.metainfo)
            samples.append(sample)
        return samples

    def _instances(self, found: dict[str, np.ndarray], meta: dict) -> InstanceData:
        instances = InstanceData(
            bboxes=torch.from_numpy(found['boxes']), scores=torch.from_numpy(found['scores']),
            labels=torch.from_numpy(found['labels']))
        if 'masks' not in found:
            instances.bboxes = scale_boxes(instances.bboxes,
                                           [1 / scale for scale in meta['scale_factor']])
            return instances
        test_cfg = ConfigDict(mask_thr_binary=self.about.mask_threshold)
        return self._paster.predict_by_feat(
            (found['masks'][:, None], ), [instances], [meta], test_cfg, rescale=True,
            activate_map=True)[0]

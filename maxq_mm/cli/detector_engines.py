"""The dense engines that run a whole detector of mmdet on this CPU, from :mod:`..deploy`'s files.

What is timed is the same for all, and for the detector itself (``torch``, and accelerated): from
images ``(B, 3, H, W)`` as the backbone gets them, normalised, to the boxes, scores, labels and
masks of mmdet's samples, the masks pasted into the image. An engine computes from the image to
masks of the boxes, 28 x 28, one image after the other; mmdet pastes them, as it does for
``torch``. What the data preprocessor does (normalising, padding) is in none of them, so any kind
of it will do.
"""

import copy

from mmdet.models.data_preprocessors import DetDataPreprocessor
from torch import Tensor, nn

from ..deploy import export, support
from ..deploy.metadata import Metadata
from ..deploy.onnx_detector import OnnxDetector, feeds
from ..runtime.calls import samples_of
from ..utils.errors import InputError
from .engines import Engine, detections, files, in_torch


def detector_engines(model: nn.Module, images: Tensor, threads: int) -> dict[str, Engine]:
    """All engines of a detector, by name; ``images`` are calibrated on.

    Raises:
        InputError: it cannot be exported as a whole, or an engine cannot run it.
    """
    reason = support.why_not_whole(model)
    if reason is not None:
        raise InputError(reason)
    about = Metadata(
        kind='detector', config='', classes=(), size=tuple(images.shape[2:]),
        mask_threshold=(model.roi_head.test_cfg.mask_thr_binary if model.roi_head.with_mask
                        else None))
    exported = copy.deepcopy(model)
    exported.data_preprocessor = DetDataPreprocessor()  # takes images as they are
    exported = export.to_onnx(export.prepared(exported, {}), about, {}, about.size, images[:1])
    return {'torch': in_torch(model)} | {
        name: _engine(OnnxDetector(content, about, threads, session))
        for name, content, session in files(exported, (feeds(image, about) for image in images))}


def _engine(detector: OnnxDetector) -> Engine:
    return lambda images: detections(detector.test_step(
        dict(inputs=images, data_samples=samples_of(images))))

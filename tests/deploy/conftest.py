"""Small detectors, and what is exported of them."""

from collections.abc import Callable
from functools import cache

import onnx
import pytest

from maxq_mm.deploy import export
from maxq_mm.deploy.onnx_detector import OnnxDetector

from . import small

CONFIGS = {'Mask R-CNN': small.model_config, 'Cascade R-CNN': small.cascade_config,
           'Faster R-CNN': lambda: small.model_config(**small.NO_MASKS)}


@pytest.fixture(scope='session')
def built():
    """Model and patterns by detector; tests leave them as they are."""
    return {name: small.build(config()) for name, config in CONFIGS.items()}


@pytest.fixture(params=CONFIGS)
def detector(built, request):
    return built[request.param]


@pytest.fixture(scope='session')
def mask_rcnn(built):
    return built['Mask R-CNN']


@pytest.fixture(scope='session')
def file(mask_rcnn) -> onnx.ModelProto:
    """Mask R-CNN for images of one size; tests leave it as it is."""
    model, patterns = mask_rcnn
    return export.to_onnx(export.prepared(model, patterns), small.about(), patterns, small.SIZE)


@pytest.fixture(scope='session')
def sized(built) -> Callable[[str, str], onnx.ModelProto]:
    """Gives a file for images of any size by detector and precision; tests leave it as it is."""

    @cache
    def make(name: str, precision: str) -> onnx.ModelProto:
        model, patterns = built[name]
        prepared = export.prepared(model, patterns, half=precision == 'float16')
        return export.to_onnx(prepared, small.about(precision=precision, size=None), patterns,
                              small.SIZE)

    return make


@pytest.fixture(scope='session')
def runtime(file) -> OnnxDetector:
    return OnnxDetector(file.SerializeToString(), small.about())

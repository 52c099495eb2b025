"""The engines that run a network on this CPU, and how fast and alike they are.

Each is a function from images ``(B, 3, H, W)``, float32 as the backbone gets them, to a list of
arrays. OpenVINO takes part if it is installed.
"""

import copy
import io
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import onnx
import torch
from mmdet.structures import DetDataSample
from mmengine.model.utils import revert_sync_batchnorm
from torch import Tensor, nn

from ..runtime.calls import check_inputs, run, takes_images

Engine = Callable[[Tensor], list[np.ndarray]]
OPENVINO = {'OpenVINO float32': 'f32', 'OpenVINO bfloat16': 'bf16'}


def network(model: nn.Module, scope: str) -> nn.Module:
    """What is compared of a detector: its backbone, that and the neck, or all of it."""
    model = revert_sync_batchnorm(model).eval().requires_grad_(False)
    if scope == 'detector':
        return model
    names = ('backbone', ) if scope == 'backbone' else ('backbone', 'neck')
    return nn.Sequential(OrderedDict((name, getattr(model, name)) for name in names)).eval()


def in_torch(model: nn.Module) -> Engine:
    """The module itself, or a detector of mmdet that finds objects, masks pasted into the image."""
    @torch.no_grad()
    def engine(images: Tensor) -> list[np.ndarray]:
        found = run(model, check_inputs(model, images))
        return detections(found) if takes_images(model) else [x.numpy() for x in found]
    return engine


def detections(samples: Sequence[DetDataSample]) -> list[np.ndarray]:
    """Rows ``(k, 6)`` of each of mmdet's samples: box, score and label, which are compared."""
    return [torch.cat([found.bboxes, found.scores[:, None], found.labels[:, None]], 1).numpy()
            for found in (sample.pred_instances for sample in samples)]


def sessions() -> dict[str, tuple[bool, Callable]]:
    """By engine that there is: whether its file is int8, and what makes a session of its content
    and a number of threads."""
    from ..deploy import openvino
    from ..deploy.onnx_detector import make_session

    found = {'onnxruntime float32': (False, make_session), 'onnxruntime int8': (True, make_session)}
    if openvino.is_installed():
        found |= {name: (False, partial(openvino.OpenvinoSession, precision=hint))
                  for name, hint in OPENVINO.items()}
        found['OpenVINO int8'] = (True, openvino.OpenvinoSession)
    return found


def dense_engines(model: nn.Module, images: Tensor, threads: int) -> dict[str, Engine]:
    """All engines of a network that returns feature maps, by name; ``images`` are calibrated on.

    Raises:
        InputError: an engine cannot run the network.
    """
    engines = {'torch': in_torch(model)}
    for name, content, make in files(_to_onnx(model, images), [{'images': images.numpy()}]):
        session = make(content, threads)
        engines[name] = lambda x, session=session: session.run(None, {'images': x.numpy()})
    return engines


def files(exported: onnx.ModelProto, feeds: Iterable[dict[str, np.ndarray]]
          ) -> Iterator[tuple[str, bytes, Callable]]:
    """Of each engine its name, the content of the file it runs, float32 or int8 with the ranges of
    ``feeds``, and what makes a session of that content and a number of threads."""
    from ..deploy import int8

    quantized = int8.quantize(exported, int8.measure_ranges(exported, feeds)).SerializeToString()
    content = exported.SerializeToString()
    for name, (is_int8, make) in sessions().items():
        yield name, quantized if is_int8 else content, make


def _to_onnx(model: nn.Module, images: Tensor) -> onnx.ModelProto:
    from ..deploy.export import OPSET, prepared

    file = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the tracer, about shapes that are fixed
        torch.onnx.export(prepared(copy.deepcopy(model), {}), (images, ), file, dynamo=False,
                          opset_version=OPSET, input_names=['images'])
    return onnx.load_from_string(file.getvalue())


def difference(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    """The largest difference as a share of each array's range; 1 if another number was found."""
    if [a.shape for a in expected] != [b.shape for b in found]:
        return 1.
    return max((float(np.abs(a - b).max() / max(np.ptp(a), 1e-12))
                for a, b in zip(expected, found, strict=True) if a.size), default=0.)


def detection_difference(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    """The like of what :func:`detections` gives, of the ranges of boxes and of scores.

    Each detection is compared with the nearest that was found, as scores that are equal but for
    rounding stand in any order; 1 at most, as for another label.
    """
    if [a.shape for a in expected] != [b.shape for b in found]:
        return 1.
    apart = [0.]
    for a, b in zip(expected, found, strict=True):
        if len(a):
            ranges = np.array([*[np.ptp(a[:, :4])] * 4, max(np.ptp(a[:, 4]), 1e-12), 1.])
            distance = np.abs(a[:, None] - b[None]) / ranges
            apart.append(float(distance.max(2).min(1).max()))
    return min(max(apart), 1.)


def peak(seconds: Callable[[Callable], float], size: int = 384) -> float:
    """Multiply-adds a second of a dense product, the most that torch gets out of the CPU.

    One so small that some of them run undisturbed on a machine that is shared.
    """
    a, b = torch.randn(2, size, size)
    return size**3 / seconds(lambda: a @ b)


def plot(rows: list[dict], title: str, path) -> None:
    """Milliseconds against pattern; dense engines are lines."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout='constrained')
    for precision, style in (('float32', '-'), ('int8', ':')):
        sparse = [row for row in rows if row['pattern'] and row['precision'] == precision]
        if sparse:
            axes.plot([row['pattern'] for row in sparse], [row['median_s'] * 1e3 for row in sparse],
                      marker='o', linewidth=2.5, linestyle=style, color='black', zorder=3,
                      label=f'maxq_mm {precision}')
    for number, row in enumerate(row for row in rows if not row['pattern']):
        axes.axhline(row['median_s'] * 1e3, color=f'C{number}', linestyle='--',
                     label=f'{row["variant"]}, dense')
    axes.set(xlabel='pattern', ylabel='ms', ylim=(0, None), title=title)
    axes.legend(fontsize='small', ncols=2)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)

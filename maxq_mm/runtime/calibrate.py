"""Ranges of what lies between the layers of a model, over calibration images.

The model runs on each image; in float32, so that heads get what the detector finds there.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from ..functional.calibration import mean_range
from ..utils.errors import InputError, first_line
from .calls import FEATURES, Call, check_inputs, run, takes_images
from .compiled import Compiled
from .fuse import layers_of
from .partition import TORCH, fits
from .parts import Part
from .quantization import Quantization
from .trace import flatten

# Calls of each part that are kept to be compared on.
SAMPLES = 3


def calibrate(model: nn.Module, parts: list[Part], args: tuple, calibration: Iterable) -> None:
    """Give the traces of ``parts`` their quantizations, and the parts ``samples``.

    ``args`` are the model's arguments, which those in ``calibration`` must be like.

    Raises:
        InputError: as :func:`images`.
    """
    observed = [_Observed(part) for part in parts]
    with ExitStack() as stack:
        for one in observed:
            stack.enter_context(one.watching())
        for found in images(model, args, calibration):
            run(model, found)
            for one in observed:
                one.end_image()
    for one in observed:
        one.part.trace.quantizations = one.quantizations()


def images(model: nn.Module, args: tuple, calibration: Iterable) -> Iterator[tuple]:
    """Arguments of ``model`` for each image of ``calibration``; batches of images are split.

    Its items are tensors or tuples like ``args``, or for a detector of mmdet what its data sets and
    data loaders give: a dict with images under ``inputs``, which its data preprocessor prepares.

    Raises:
        InputError: ``calibration`` is no such iterable, is empty, or all its images are constant;
            an item is unlike ``args`` or not finite.
    """
    calibration = [calibration] if isinstance(calibration, Tensor) else calibration
    if not isinstance(calibration, Iterable) or isinstance(calibration, str | bytes | Mapping):
        raise InputError('calibration must be an iterable of images such as inputs are, got '
                         f'{type(calibration).__name__}')
    count, varied = 0, False
    for number, item in enumerate(calibration):
        try:
            found = _arguments(model, args, item)
        except InputError as error:
            raise InputError(f'calibration[{number}]: {error}') from error
        is_batch = len(found) == 1 and isinstance(found[0], Tensor) and found[0].ndim == 4
        for each in ([(x, ) for x in found[0].split(1)] if is_batch else [found]):
            count += 1
            varied |= any(x.numel() and bool((x != x.flatten()[0]).any()) for x in each
                          if isinstance(x, Tensor))
            yield each
    if not count:
        raise InputError('calibration has no images')
    if not varied:
        raise InputError(f'calibration: each of the {count} images has the same value everywhere')


def _arguments(model: nn.Module, args: tuple, item: object) -> tuple:
    if isinstance(item, Mapping) and takes_images(model) and 'inputs' in item:
        item = _prepared(model, item['inputs'])
    found = check_inputs(model, item)
    if len(found) != len(args):
        raise InputError(f'{len(found)} arguments, inputs have {len(args)}')
    for x, like in zip(found, args, strict=True):
        if not isinstance(x, Tensor) or not isinstance(like, Tensor):
            continue
        if x.ndim != like.ndim or x.shape[1:2] != like.shape[1:2]:
            raise InputError(f'shape {tuple(x.shape)} is unlike that of inputs, '
                             f'{tuple(like.shape)}')
        if not torch.isfinite(x).all():
            raise InputError('some values are not finite')
    return found


def _prepared(model: nn.Module, pictures: object) -> Tensor:
    """What a detector's data preprocessor makes of an image ``(3, H, W)`` or several."""
    one = isinstance(pictures, Tensor) and pictures.ndim == 3
    data = dict(inputs=[pictures] if one else pictures, data_samples=None)
    try:
        return model.data_preprocessor(data, False)['inputs']
    except Exception as error:  # it says in many ways that images are not what it expects
        raise InputError('the data preprocessor of the model does not take it '
                         f'({first_line(error)})') from error


class _Observed:
    """A part that torch computes, operator by operator, while the extremes of values are taken."""

    def __init__(self, part: Part) -> None:
        self.part = part
        graph = part.trace.graph
        self.compiled = Compiled(part.trace, dict.fromkeys(layers_of(part.trace), TORCH), None)
        read = {arg for node in graph.nodes if fits(node) for arg in node.all_input_nodes}
        self.names = {place: node.name for place, node in enumerate(graph.nodes)
                      if (node in read or fits(node)) and 'val' in node.meta
                      and node.op != 'get_attr' and node.meta['val'].dtype == torch.float32}
        self.seen: dict[str, list[Tensor]] = defaultdict(list)  # in this image
        self.rows: dict[str, list[tuple]] = defaultdict(list)  # of all images

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Have the model's calls of the part computed here."""
        module, name = self.part.module, FEATURES if self.part.place.is_trunk else 'forward'
        original = getattr(module, name)

        def call(*args, **kwargs):
            tensors, _ = flatten(args, kwargs)
            if not self.compiled.holds(tensors):
                return original(*args, **kwargs)
            if len(self.part.samples) < SAMPLES and all(x.numel() for x in tensors):
                self.part.samples.append(Call(args, kwargs, None))
            results = self._compute(tensors)
            return results[0] if self.part.place.is_trunk else results

        vars(module)[name] = call
        try:
            yield
        finally:
            del vars(module)[name]

    def _compute(self, tensors: list[Tensor]) -> object:
        def watch(place: int, value: object) -> None:
            if place in self.names and value.numel():
                self.seen[self.names[place]].append(torch.stack(
                    [*torch.aminmax(value), value.new_tensor(value.numel())]).double())

        for place, x in zip(self.compiled.inputs, tensors, strict=True):
            watch(place, x)
        return tree_unflatten(self.compiled.run(tensors, watch), self.compiled.results)

    def end_image(self) -> None:
        """Sum up what was seen since the last call."""
        for name, rows in self.seen.items():
            lows, highs, sizes = torch.stack(rows).T
            self.rows[name].append((lows.min().item(), highs.max().item(), sizes.sum().item()))
        self.seen.clear()

    def quantizations(self) -> dict[str, Quantization]:
        """Of all values that were there in some image."""
        found = {}
        for name, rows in self.rows.items():
            try:
                found[name] = Quantization.of_range(*mean_range(rows))
            except InputError as error:  # not finite, or too large
                raise InputError(f'calibration: what {self.part.name} computes of it cannot be '
                                 f'int8 ({error})') from error
        return found


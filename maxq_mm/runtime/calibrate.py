"""Ranges of what lies between the layers of a model, over calibration images.

The model runs on each image; in float32, so that heads get what the detector finds there.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_unflatten

from ..functional.calibration import mean_range
from ..utils.errors import InputError, first_line
from .calls import FEATURES, Call, check_inputs, run, takes_images
from .candidates import image_nodes
from .compiled import Compiled
from .fuse import Layer, layers_of
from .partition import TORCH, fits, ndim
from .parts import Part
from .quantization import ChannelQuantization, Quantization
from .trace import flatten

# Calls of each part that are kept to be compared on.
SAMPLES = 3


class Shown(NamedTuple):
    """An image: the model's arguments and, of a picture of bytes, what its pixels can be.

    ``limits`` ``(C, 2)``: what a detector's data preprocessor makes of the least and the greatest.
    """

    args: tuple
    limits: Tensor | None


def calibrate(model: nn.Module, parts: list[Part], args: tuple, calibration: Iterable) -> None:
    """Give the traces of ``parts`` their quantizations, and the parts ``samples``.

    The images themselves are quantized by channels, in the range that pixels can have where that is
    known, else in that of all images.

    ``args`` are the model's arguments, which those in ``calibration`` must be like.

    Raises:
        InputError: as :func:`images`.
    """
    observed = [_Observed(part, args) for part in parts]
    with ExitStack() as stack:
        for one in observed:
            stack.enter_context(one.watching())
        for found in images(model, args, calibration):
            run(model, found.args)
            for one in observed:
                one.end_image(found.limits)
    for one in observed:
        one.part.trace.quantizations = one.quantizations()


def images(model: nn.Module, args: tuple, calibration: Iterable) -> Iterator[Shown]:
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
    count, varied, limits = 0, False, None
    for number, item in enumerate(calibration):
        try:
            pictures = _pictures(model, item)
            found = _arguments(model, args, item if pictures is None
                               else _prepared(model, pictures))
            of_bytes = pictures is not None and all(x.dtype == torch.uint8 for x in pictures)
            if of_bytes and limits is None:
                limits = _limits(model, pictures)
        except InputError as error:
            raise InputError(f'calibration[{number}]: {error}') from error
        is_batch = len(found) == 1 and isinstance(found[0], Tensor) and found[0].ndim == 4
        for each in ([(x, ) for x in found[0].split(1)] if is_batch else [found]):
            count += 1
            varied |= any(x.numel() and bool((x != x.flatten()[0]).any()) for x in each
                          if isinstance(x, Tensor))
            yield Shown(each, limits if of_bytes else None)
    if not count:
        raise InputError('calibration has no images')
    if not varied:
        raise InputError(f'calibration: each of the {count} images has the same value everywhere')


def _arguments(model: nn.Module, args: tuple, item: object) -> tuple:
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


def _pictures(model: nn.Module, item: object) -> object:
    """Those ``(C, H, W)`` of an item for a detector's data preprocessor; None if it is none."""
    if not (isinstance(item, Mapping) and takes_images(model) and 'inputs' in item):
        return None
    found = item['inputs']
    return [found] if isinstance(found, Tensor) and found.ndim == 3 else found


def _limits(model: nn.Module, pictures: Iterable[Tensor]) -> Tensor:
    """What a pixel becomes, at least and at most, by channels; of pictures of bytes."""
    picture = next(iter(pictures))
    ends = [_prepared(model, [torch.full_like(picture, value)])[0, :, 0, 0] for value in (0, 255)]
    return torch.stack(ends, 1).double().sort(1).values


def _prepared(model: nn.Module, pictures: object) -> Tensor:
    """What a detector's data preprocessor makes of pictures ``(3, H, W)``."""
    data = dict(inputs=pictures, data_samples=None)
    try:
        return model.data_preprocessor(data, False)['inputs']
    except Exception as error:  # it says in many ways that images are not what it expects
        raise InputError('the data preprocessor of the model does not take it '
                         f'({first_line(error)})') from error


class _Observed:
    """A part that torch computes, operator by operator, while the extremes of values are taken."""

    def __init__(self, part: Part, args: tuple) -> None:
        self.part = part
        graph = part.trace.graph
        self.compiled = Compiled(part.trace, dict.fromkeys(layers_of(part.trace), TORCH), None)
        read = {arg for node in graph.nodes if fits(node) for arg in node.all_input_nodes}
        self.names = {place: node.name for place, node in enumerate(graph.nodes)
                      if (node in read or fits(node)) and 'val' in node.meta
                      and node.op != 'get_attr' and node.meta['val'].dtype == torch.float32}
        self.images = {node.name for node in image_nodes(part, args) if _by_channels(node)}
        self.pixels: dict[str, Tensor] = {}  # extremes of these (C, 2)
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
            name = self.names.get(place)
            if name in self.images and value.numel():
                low, high = value.double().transpose(0, 1).flatten(1).aminmax(dim=1)
                self._widen(name, torch.stack([low, high], 1))
            elif name is not None and value.numel():
                self.seen[name].append(torch.stack(
                    [*torch.aminmax(value), value.new_tensor(value.numel())]).double())

        for place, x in zip(self.compiled.inputs, tensors, strict=True):
            watch(place, x)
        return tree_unflatten(self.compiled.run(tensors, watch), self.compiled.results)

    def _widen(self, name: str, extremes: Tensor) -> None:
        """Have the range of each channel hold ``extremes``, too."""
        both = torch.cat([self.pixels.get(name, extremes), extremes], 1)
        self.pixels[name] = torch.stack(both.aminmax(dim=1), 1)

    def end_image(self, limits: Tensor | None) -> None:
        """Sum up what was seen since the last call; ``limits`` of the image's pixels."""
        for node in self.part.trace.graph.nodes if limits is not None else ():
            if node.op == 'placeholder' and node.name in self.pixels:
                self._widen(node.name, limits)
        for name, rows in self.seen.items():
            lows, highs, sizes = torch.stack(rows).T
            self.rows[name].append((lows.min().item(), highs.max().item(), sizes.sum().item()))
        self.seen.clear()

    def quantizations(self) -> dict[str, Quantization | ChannelQuantization]:
        """Of all values that were there in some image."""
        found = {}
        for name in (*self.pixels, *self.rows):
            try:
                found[name] = (ChannelQuantization.of_ranges(self.pixels[name].tolist())
                               if name in self.pixels else
                               Quantization.of_range(*mean_range(self.rows[name])))
            except InputError as error:  # not finite, or too large
                raise InputError(f'calibration: what {self.part.name} computes of it cannot be '
                                 f'int8 ({error})') from error
        return found


def _by_channels(node: fx.Node) -> bool:
    """Whether only layers that multiply it read this value as bytes, never one that adds it."""
    return ndim(node) == 4 and not any(isinstance(user.target, Layer) and user.args[1] is node
                                       for user in node.users)

"""What an exported file says of itself, as JSON under one key of its ``metadata_props``.

Tools that rewrite a file (quantisers, optimisers) should carry the key over: :func:`read`, then
:func:`write`.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from ..functional.pattern import Pattern
from ..utils.errors import InputError

KEY = 'maxq_mm'
VERSION = 1
KINDS = ('detector', 'features')


class SparseLayer(NamedTuple):
    """Where the file holds an N:M layer: an initializer with its input channels along ``axis``."""

    pattern: str
    initializer: str
    axis: int = 1


@dataclass(frozen=True)
class Metadata:
    """All that is needed to run a file beside the file.

    ``size`` is height and width of the input; None: any multiples of ``divisor``. ``precision`` is
    that of weights and activations. ``mask_threshold`` makes masks of probabilities. ``layers``
    are the N:M layers by module name.
    """

    kind: str
    config: str
    classes: tuple[str, ...]
    size: tuple[int, int] | None
    divisor: int = 1
    precision: str = 'float32'
    mask_threshold: float | None = None
    layers: dict[str, SparseLayer] = field(default_factory=dict)

    @property
    def patterns(self) -> dict[str, str]:
        """Pattern by module name."""
        return {name: layer.pattern for name, layer in self.layers.items()}

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """The input's height and width for an image of this size.

        Raises:
            InputError: the image does not fit into the file's fixed size.
        """
        if self.size is None:
            return tuple(-(-side // self.divisor) * self.divisor for side in (height, width))
        if height > self.size[0] or width > self.size[1]:
            needed = [max(-(-side // self.divisor) * self.divisor, fixed)
                      for side, fixed in zip((height, width), self.size, strict=True)]
            raise InputError(
                f'an image of {height} x {width} pixels does not fit into the file, which takes '
                f'{self.size[0]} x {self.size[1]}: export it with --size {needed[0]} {needed[1]} '
                'or larger')
        return self.size

    def as_json(self) -> str:
        return json.dumps(dict(version=VERSION, **{
            **asdict(self), 'layers': {n: layer._asdict() for n, layer in self.layers.items()}}))

    @classmethod
    def from_json(cls, text: str) -> 'Metadata':
        """Inverse of :meth:`as_json`.

        Raises:
            InputError: not such a text, or of another version.
        """
        try:
            values = json.loads(text)
            version = values.pop('version')
            layers = {n: SparseLayer(**layer) for n, layer in values.pop('layers').items()}
            size = values.pop('size')
            metadata = cls(**{**values, 'classes': tuple(values['classes']), 'layers': layers,
                              'size': size and tuple(size)})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f'its {KEY!r} metadata is damaged') from error
        if version != VERSION or metadata.kind not in KINDS:
            raise InputError(f'its {KEY!r} metadata is not of version {VERSION}')
        _check(metadata)
        return metadata


def _check(about: Metadata) -> None:
    """InputError for values that no exported file has."""
    for name, value, sound in (
            ('divisor', about.divisor, _whole(about.divisor)),
            ('size', about.size, about.size is None
             or len(about.size) == 2 and all(map(_whole, about.size))),
            ('config', about.config, isinstance(about.config, str)),
            ('classes', about.classes, all(isinstance(name, str) for name in about.classes)),
            ('precision', about.precision, isinstance(about.precision, str)),
            ('mask_threshold', about.mask_threshold,
             about.mask_threshold is None or isinstance(about.mask_threshold, (int, float)))):
        if not sound:
            raise InputError(f'its {KEY!r} metadata is damaged: {name} is {value!r}')
    for name, layer in about.layers.items():
        Pattern.parse(layer.pattern)
        if not isinstance(layer.initializer, str) or layer.axis not in (0, 1):
            raise InputError(f'its {KEY!r} metadata is damaged: layer {name} is {layer}')


def _whole(number: object) -> bool:
    return type(number) is int and number > 0


def read(model: onnx.ModelProto) -> Metadata | None:
    """What ``model`` says of itself; None of a file from elsewhere.

    Raises:
        InputError: it is damaged, or of another version.
    """
    texts = [entry.value for entry in model.metadata_props if entry.key == KEY]
    return Metadata.from_json(texts[0]) if texts else None


def write(model: onnx.ModelProto, metadata: Metadata) -> None:
    """Make ``model`` say this of itself, in place of what it said."""
    kept = [entry for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=KEY, value=metadata.as_json())


def layer_weight(model: onnx.ModelProto, layer: SparseLayer) -> Tensor:
    """The weight of a layer, ``(O, I, *K)`` whichever way the file holds it.

    Raises:
        InputError: the file has no such initializer.
    """
    for initializer in model.graph.initializer:
        if initializer.name == layer.initializer:
            weight = torch.from_numpy(numpy_helper.to_array(initializer).copy())
            return weight.movedim(layer.axis, 1)
    raise InputError(f'the file has no weight {layer.initializer}')

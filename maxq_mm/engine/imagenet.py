"""ImageNet classifiers, as the published training code stores them, under mmdet's names.

MaxQ's code (its SR-STE and dense variants, too) has one module for a convolution and its batch
norm. mmdet's ResNet has two, with torchvision's names, in which SR-STE's own code stores::

    convbn1.conv.weight      conv1.weight           in a block layerS.B, also 2 and 3
    convbn1.scale.*          bn1.*
    downsample.conv.weight   downsample.0.weight    in layerS.0
    downsample.scale.*       downsample.1.*

Stem and head (``conv1``, ``bn1``, ``fc``) agree. The weights in such a file are raw ones: the mask
beside them is a buffer. It is left out here, since :func:`maxq_mm.soft_mask` gives it anew.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.errors import InputError

# What DataParallel, DistributedDataParallel and torch.compile put before every name.
_WRAPPERS = re.compile(r'(?:(?:module|_orig_mod)\.)*')
# mmdet's name of a weight in a block -> the published code's.
_PUBLISHED = (
    (re.compile(r'\.conv(\d)\.(\w+)$'), r'.convbn\1.conv.\2'),
    (re.compile(r'\.bn(\d)\.(\w+)$'), r'.convbn\1.scale.\2'),
    (re.compile(r'\.downsample\.0\.(\w+)$'), r'.downsample.conv.\1'),
    (re.compile(r'\.downsample\.1\.(\w+)$'), r'.downsample.scale.\1'),
)
_HEAD = 'fc.'
_OPTIONAL = 'num_batches_tracked'  # old files lack it, and torch does without
_MAX_LISTED = 10


class Imported(NamedTuple):
    """Weights by mmdet's name, and the names in the file of what was left out."""

    state_dict: dict[str, Tensor]
    masks: list[str]
    head: list[str]


def import_classifier(checkpoint: Mapping, shapes: Mapping[str, Sequence[int]]) -> Imported:
    """The weights of an ImageNet classifier as a backbone of ``shapes`` loads them.

    ``checkpoint`` is a state dict or holds one under ``state_dict``, in the published layout or in
    mmdet's own; ``shapes`` has every weight of the backbone by mmdet's name. Values stay as they
    are; of types narrower than float32 they become float32.

    Raises:
        InputError: no state dict, or one with other names or shapes, that has a weight twice, or
            that holds something else than finite floating-point numbers.
    """
    stored = _stored_weights(checkpoint)
    names = {source: name for name in shapes for source in (name, _published(name))}
    masked = _masked_modules(shapes)
    sources, twice, extra, masks, head = {}, [], [], [], []
    for key in stored:
        bare = _bare(key)
        if bare in names:
            first = sources.setdefault(names[bare], key)
            if first != key:
                twice.append(f'{first} and {key}')
        elif bare.startswith(_HEAD):
            head.append(key)
        elif bare.endswith('.mask') and bare.startswith(masked):
            masks.append(key)
        else:
            extra.append(key)
    missing = [name for name in shapes if name not in sources and not name.endswith(_OPTIONAL)]
    unlike = [f'{key} {tuple(stored[key].shape)} instead of {tuple(shapes[name])}'
              for name, key in sources.items() if stored[key].shape != torch.Size(shapes[name])]
    problems = [f'{len(entries)} {what}: {_listed(entries)}' for what, entries in (
        ('given twice', twice), ('missing', _as_in_file(missing, sources)), ('unknown', extra),
        ('of another shape', unlike)) if entries]
    if problems:
        raise InputError('; '.join(problems))
    for name, key in sources.items():
        _check_numbers(key, stored[key], floating=not name.endswith(_OPTIONAL))
    weights = {name: _plain(stored[sources[name]]) for name in shapes if name in sources}
    return Imported(weights, masks, head)


def _stored_weights(checkpoint: Mapping) -> Mapping[str, Tensor]:
    stored = checkpoint.get('state_dict', checkpoint)
    if not isinstance(stored, Mapping):
        raise InputError(f'its state_dict is a {type(stored).__name__}')
    if not stored:
        raise InputError('it holds no weights')
    for key, value in stored.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(f'no state dict: it has {key!r} with a {type(value).__name__}')
        if value.layout != torch.strided or value.is_meta:
            raise InputError(f'{key} is no tensor with plain numbers')
    return stored


def _bare(key: str) -> str:
    return key[_WRAPPERS.match(key).end():]


def _published(name: str) -> str:
    """The published code's name for mmdet's, which is the same outside of blocks."""
    for pattern, replacement in _PUBLISHED:
        name = pattern.sub(replacement, name)
    return name


def _masked_modules(shapes: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """What the name of a convolution's mask starts with, in either layout."""
    convs = [name for name, shape in shapes.items() if len(shape) == 4]
    return tuple(f"{source.removesuffix('.weight').removesuffix('.conv')}."
                 for source in (*convs, *map(_published, convs)))


def _as_in_file(missing: list[str], sources: dict[str, str]) -> list[str]:
    """mmdet's names as the file would have them, going by those that it has (``sources``)."""
    published = any(_bare(key) != name for name, key in sources.items())
    wrappers = {key.removesuffix(_bare(key)) for key in sources.values()}
    before = wrappers.pop() if len(wrappers) == 1 else ''
    return [before + (_published(name) if published else name) for name in missing]


def _listed(entries: list[str]) -> str:
    more = len(entries) - _MAX_LISTED
    return ', '.join(entries[:_MAX_LISTED]) + (f' and {more} more' if more > 0 else '')


def _check_numbers(key: str, value: Tensor, floating: bool) -> None:
    if floating and not value.is_floating_point():
        raise InputError(f'{key} is of type {value.dtype}, not of a floating one')
    if value.is_floating_point() and not _at_least_float32(value).isfinite().all():
        raise InputError(f'{key} has values that are NaN or infinite')


def _at_least_float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() and value.element_size() < 4 else value


def _plain(value: Tensor) -> Tensor:
    """A copy of its own: what is stored may be a parameter, or a view of something larger."""
    return _at_least_float32(value.detach()).clone(memory_format=torch.contiguous_format)

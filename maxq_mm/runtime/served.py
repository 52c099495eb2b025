"""A file to serve a detector from: its config, its weights without zeros, and what was decided.

It is one with a checksum (:mod:`maxq_mm.utils.sealed`) of a dict of plain values and tensors::

    config        what inference needs of the config: the model, the test pipeline, ...
    state_dict    the folded model's, with None in place of each packed weight, and integers where
                  an int8 layer has them
    packed        these, as in compact files
    dataset_meta  classes and palette
    decisions     of :mod:`.decisions`
    versions      of the packages that wrote it

No code is in it: the config names classes of mmengine's registries, and nothing else.
"""

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.utils import import_modules_from_strings
from torch import Tensor, nn

from ..engine.compact import pack_state, part_of, unpack_state
from ..utils.errors import InputError
from ..utils.files import load_file, save_file
from ..utils.sealed import Format, other_format
from .decisions import Decisions, LayerDecision
from .install import decisions_of
from .patterns import sparsest
from .rebuild import rebuild
from .served_config import check_types, for_inference

FORMAT = Format('maxq_accelerated', 2, 'an accelerated file',
                'load it with maxq_mm.load_accelerated, or test it with tools/test.py')
_PACKAGES = ('maxq_mm', 'torch', 'mmengine', 'mmcv', 'mmdet')
_HOW = 'tools/accelerate.py CONFIG CHECKPOINT OUT makes one of a folded checkpoint'


@dataclass(frozen=True)
class Served:
    """What a file holds, sound in itself; the weights are all there."""

    config: dict
    state_dict: Mapping[str, Tensor]
    dataset_meta: dict
    decisions: Decisions
    versions: dict[str, str]

    @property
    def checkpoint(self) -> dict:
        """As a folded checkpoint."""
        return dict(meta=dict(dataset_meta=self.dataset_meta), state_dict=self.state_dict)


def save_accelerated(model: nn.Module, path: str | Path) -> None:
    """Write an accelerated detector for :func:`load_accelerated`, whole or not at all.

    Args:
        model: what :func:`maxq_mm.accelerate` was given on a CPU, with the attributes ``cfg`` and
            ``dataset_meta``, as mmdet's ``init_detector`` sets them.
        path: the file, in place of one that is there.

    Raises:
        InputError: not accelerated, without config or classes, or with a config that holds more
            than plain values and registered names.
        OSError: it cannot be written.
    """
    decisions = decisions_of(model)
    if decisions is None:
        raise InputError('the model is not accelerated: call maxq_mm.accelerate first, on a CPU')
    missing = [name for name in ('cfg', 'dataset_meta') if getattr(model, name, None) is None]
    if missing:
        raise InputError(f"the model has no {missing[0]}: give one of mmdet's init_detector")
    config = for_inference(model.cfg)
    check_types(config)
    patterns = {f'{name}.weight': pattern
                for name, module in model.named_modules(remove_duplicate=False)
                if isinstance(module, nn.Conv2d | nn.Linear)
                and (pattern := sparsest(module.weight.detach())) is not None}
    state = model.state_dict()
    _to_integers(state, decisions)
    packed = pack_state(state, patterns)
    save_file(FORMAT.seal(dict(
        config=config, state_dict=state, packed=packed,
        dataset_meta=_plain_meta(model.dataset_meta), decisions=decisions.as_dict(),
        versions=_versions())), path)


def _int8_layers(decisions: Decisions) -> list[LayerDecision]:
    """Those whose weight is nobody else's."""
    layers = [layer for part in decisions.parts for layer in part.layers]
    uses = Counter(layer.weight for layer in layers)
    return [layer for layer in layers if layer.factors and layer.weight and uses[layer.weight] == 1]


def _to_integers(state: dict[str, Tensor], decisions: Decisions) -> None:
    """Put integers in place of the weights that kernels read as such."""
    for layer in _int8_layers(decisions):
        weight = state[layer.weight]
        integers = weight.detach().double() / _factors(layer, weight)
        state[layer.weight] = integers.round().clamp(-127, 127).to(torch.int8)


def _from_integers(state: dict[str, Tensor], decisions: Decisions) -> None:
    """Put the weights back, as the integers have it."""
    for layer in _int8_layers(decisions):
        weight = state[layer.weight]
        state[layer.weight] = (weight.double() * _factors(layer, weight)).float()


def _factors(layer: LayerDecision, weight: Tensor) -> Tensor:
    """From integers to the weight; like it but for the kernel's positions."""
    factors = torch.tensor(layer.factors, dtype=torch.float64).view(-1, *[1] * (weight.ndim - 1))
    if not layer.channels:
        return factors
    channels = torch.tensor(layer.channels, dtype=torch.float64)
    return factors / channels.view(-1, *[1] * (weight.ndim - 2))


def _plain_meta(meta: Mapping) -> dict:
    """Classes and palette, without what else a data set says of itself."""
    if not meta.get('classes'):
        raise InputError("the model's dataset_meta has no classes")
    plain = dict(classes=tuple(str(name) for name in meta['classes']))
    palette = meta.get('palette')
    if palette is not None:
        plain['palette'] = palette if isinstance(palette, str) else [
            tuple(int(value) for value in colour) for colour in palette]
    return plain


def _versions() -> dict[str, str]:
    found = {'maxq_mm': import_module('maxq_mm').__version__, 'torch': str(torch.__version__)}
    for name in _PACKAGES:
        if name not in found:
            try:
                found[name] = version(name)
            except PackageNotFoundError:  # a detector without mmcv, say
                continue
    return found


def is_accelerated_file(path: str | Path) -> bool:
    """Whether :func:`read_accelerated` is what reads it; errors: those of ``load_file``."""
    return FORMAT.key in load_file(path, mapped=True)


def read_accelerated(path: str | Path) -> Served:
    """What :func:`save_accelerated` wrote.

    Raises:
        FileNotFoundError: nothing of that name.
        InputError: another kind of file, one of another version, or a damaged one; with its name.
    """
    path = Path(path)
    if path.suffix == '.onnx' and path.is_file():
        raise InputError(f'{path} is an ONNX file: run it with tools/test_onnx.py; {_HOW}')
    stored = load_file(path)
    if FORMAT.key not in stored:
        other = other_format(stored)
        what = other or 'a checkpoint' if 'state_dict' in stored else 'not of maxq_mm'
        raise InputError(f'not an accelerated file: {path} is {what}; {_HOW}')
    inner = FORMAT.open(stored, path)
    try:
        parts = {name: part_of(inner, name) for name in (
            'config', 'state_dict', 'packed', 'dataset_meta', 'decisions', 'versions')}
        unpack_state(parts['state_dict'], parts.pop('packed'))
        parts['decisions'] = Decisions.from_dict(parts['decisions'])
        _from_integers(parts['state_dict'], parts['decisions'])
    except Exception as error:  # what is in a dict can be anything
        raise FORMAT.unsound(path, error) from error
    return Served(**parts)


def load_accelerated(path: str | Path) -> nn.Module:
    """The detector of a file that ``tools/accelerate.py`` or :func:`save_accelerated` wrote.

    It is ready for mmdet's ``inference_detector``, and for ``DetInferencer`` as its ``model``.
    Nothing is measured, and no data are needed. Where the instruction set that it was measured
    with is not to be had, layers run on a lower one or on torch, with a warning; what it finds is
    the same but for the order of sums. What the config's ``custom_imports`` names is imported.

    Raises:
        FileNotFoundError: no such file.
        InputError: another kind of file, one of another version, a damaged one, or a detector that
            cannot be built here; with the file's name.
    """
    served = read_accelerated(path)
    cfg = Config(served.config)
    try:
        if cfg.get('custom_imports'):
            import_modules_from_strings(**cfg.custom_imports)
        check_types(served.config)
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
        model.load_state_dict(served.state_dict)
    except (ImportError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise InputError(f'{path} holds a detector that cannot be built here (it was written with '
                         f'{_list(served.versions)}): {" ".join(str(error).split())[:200]}'
                         ) from error
    model.cfg, model.dataset_meta = cfg, dict(served.dataset_meta)
    use_decisions(model, served.decisions, path)
    return model


def use_decisions(model: nn.Module, decisions: Decisions, path: str | Path, anew: bool = False
                  ) -> None:
    """Accelerate a model with the weights of ``path`` as was decided; warns of what is otherwise.

    ``anew``: the model is of another config, which may compute otherwise with them.

    Raises:
        InputError: another model than the file's.
    """
    try:
        problems = rebuild(model, decisions, anew)
    except InputError as error:
        raise InputError(f'{path} does not fit the model: {error}') from error
    if problems:
        warnings.warn(f'{path}: {"; ".join(problems)}', stacklevel=3)


def _list(versions: Mapping[str, str]) -> str:
    return ', '.join(f'{name} {number}' for name, number in versions.items())

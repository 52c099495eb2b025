"""What a file to serve from keeps of a config: plain values, and names of registered classes."""

import re
from collections.abc import Mapping
from importlib import import_module

from mmengine.config import Config
from mmengine.registry import MODELS

from ..utils.errors import InputError

# What building a detector, its test pipeline and DetInferencer's pictures ask for.
_KEPT = ('default_scope', 'custom_imports', 'model', 'visualizer')
# Where a data set's files are is nobody's business but the training's.
_PLACES = ('ann_file', 'data_root', 'data_prefix', 'proposal_file', 'indices')


def for_inference(cfg: Config) -> dict:
    """The part of a detector's config that inference reads.

    Raises:
        InputError: no test pipeline, or a value that is not plain.
    """
    whole = cfg.to_dict()
    dataset = _with_pipeline((whole.get('test_dataloader') or {}).get('dataset'))
    if dataset is None:
        raise InputError("the config's test data have no pipeline to prepare images with")
    kept = {key: whole[key] for key in _KEPT if whole.get(key) is not None}
    own = {key: value for key, value in dataset.items() if key not in _PLACES}
    kept['test_dataloader'] = dict(dataset=own)
    return _plain(kept, 'the config')


def _with_pipeline(dataset: Mapping | None) -> Mapping | None:
    """The data set that has the pipeline, in its wrappers, the one that mmdet takes."""
    while isinstance(dataset, Mapping) and 'pipeline' not in dataset:
        dataset = dataset.get('dataset') or (dataset.get('datasets') or [None])[0]
    return dataset


def _plain(value, where: str):
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, f'{where}.{key}') for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item, where) for item in value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise InputError(f'a file can hold plain values, and {where} has a {type(value).__name__}')


def check_types(config) -> None:
    """InputError unless every ``type`` is a name of a registry: ``Name`` or ``scope.Name``.

    mmengine takes any callable by its path, too, and a file to serve from should call none.
    """
    if isinstance(config, Mapping):
        if 'type' in config and not _is_registered_name(config['type']):
            raise InputError(f'type {config["type"]!r} is no name of a registry of mmengine')
        config = config.values()
    elif not isinstance(config, list | tuple):
        return
    for item in config:
        check_types(item)


def _is_registered_name(name) -> bool:
    found = re.fullmatch(r'(?:(\w+)\.)?\w+', name) if isinstance(name, str) else None
    if found is None:
        return False
    scope = found[1]
    if scope in (None, MODELS.scope) or scope in MODELS.children:
        return True
    try:
        import_module(f'{scope}.registry')  # as mmengine does
    except ImportError:
        return False
    return scope in MODELS.children

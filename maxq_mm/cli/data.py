"""The data sets of a config: are they there, and pointing them elsewhere."""

import json
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config, ConfigDict

from ..utils.errors import InputError, first_line


def check_data(cfg: Config, *splits: str) -> None:
    """InputError naming the first annotation file or image folder that is not there."""
    for split in splits:
        for dataset in datasets(cfg.get(f'{split}_dataloader')):
            if dataset.get('backend_args') is not None:
                continue  # not on this machine's disk
            root = Path(dataset.get('data_root') or '')
            paths = [dataset.get('ann_file'), *(dataset.get('data_prefix') or {}).values()]
            for path in paths:
                if path and not (root / path).exists():
                    raise InputError(f'{split} data not found: {root / path}')
        for evaluator in _evaluators(cfg, split):
            path = evaluator.get('ann_file')
            if path and evaluator.get('backend_args') is None and not Path(path).is_file():
                raise InputError(f'{split} annotations not found: {path}')


def use_data_root(cfg: Config, root: Path) -> None:
    """Point every data set and metric of ``cfg`` to ``root``, and take over its classes."""
    old = Path(cfg.get('data_root') or '.')
    cfg.data_root = f'{root}/'
    classes = None
    for split in ('train', 'val', 'test'):
        for dataset in datasets(cfg.get(f'{split}_dataloader')):
            old = Path(dataset.get('data_root') or old)
            dataset.data_root = cfg.data_root
            if classes is None:
                classes = _read_classes(root / dataset.ann_file)
            dataset.metainfo = dict(classes=classes)
        for evaluator in _evaluators(cfg, split):
            for key in ('ann_file', 'seg_prefix'):
                path = Path(evaluator.get(key) or '')
                if evaluator.get(key) and path.is_relative_to(old):
                    evaluator[key] = str(root / path.relative_to(old))
    if classes is not None and not _set_num_classes(cfg.model, len(classes)):
        raise InputError(f'--data-root cannot tell a {cfg.model.get("type")} its number of classes')


def datasets(node: dict | list | None) -> Iterator[ConfigDict]:
    """The data sets in a dataloader's config that read files, out of their wrappers."""
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from datasets(item)
    elif isinstance(node, dict):
        if 'ann_file' in node:
            yield node
        else:
            for key in ('dataset', 'datasets'):
                yield from datasets(node.get(key))


def _evaluators(cfg: Config, split: str) -> list[ConfigDict]:
    evaluators = cfg.get(f'{split}_evaluator') or []
    return [evaluators] if isinstance(evaluators, dict) else evaluators


def _read_classes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise InputError(f'annotations not found: {path}')
    try:
        return tuple(category['name'] for category in json.loads(path.read_text())['categories'])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'not COCO annotations: {path} ({first_line(error)})') from error


def _set_num_classes(node: dict | list, number: int) -> int:
    """Set every ``num_classes`` below ``node``; returns how many there were."""
    found = 0
    if isinstance(node, dict):
        if 'num_classes' in node:
            node['num_classes'] = number
            found += 1
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        found += sum(_set_num_classes(value, number) for value in node)
    return found

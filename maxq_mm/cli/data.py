"""The data sets of a config: are they there, and pointing them elsewhere."""

import json
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config, ConfigDict

from ..utils.errors import InputError, first_line

SPLITS = ('train', 'val', 'test')


def check_data(cfg: Config, *splits: str) -> None:
    """InputError naming the first annotation file or image folder that is not there."""
    for split in splits:
        for dataset in datasets(cfg.get(f'{split}_dataloader')):
            if dataset.get('backend_args') is not None:
                continue  # not on this machine's disk
            root = Path(dataset.get('data_root') or '')
            if dataset.get('ann_file') and not (root / dataset.ann_file).is_file():
                raise InputError(f'{split} data not found: {root / dataset.ann_file}')
            for path in (dataset.get('data_prefix') or {}).values():
                if path and not (root / path).is_dir():
                    raise InputError(f'{split} data not found: {root / path}')
        for evaluator in evaluators(cfg, split):
            path = evaluator.get('ann_file')
            if path and evaluator.get('backend_args') is None and not Path(path).is_file():
                raise InputError(f'{split} annotations not found: {path}')


def use_data_root(cfg: Config, root: Path, *splits: str) -> None:
    """Point every data set and metric of ``cfg`` to ``root``, and take over its classes.

    They are those of the first of ``splits``; without any, of the first split that is there.

    Raises:
        InputError: annotations that are not there or damaged, ``splits`` whose classes differ, or
            a model that has no number of classes to set.
    """
    old = Path(cfg.get('data_root') or '.')
    cfg.data_root = f'{root}/'
    files: dict[str, list[Path]] = {split: [] for split in SPLITS}
    own = []
    for split in SPLITS:
        for dataset in datasets(cfg.get(f'{split}_dataloader')):
            old = Path(dataset.get('data_root') or old)
            dataset.data_root = cfg.data_root
            files[split].append(root / dataset.ann_file)
            own.append(dataset)
        for evaluator in evaluators(cfg, split):
            for key in ('ann_file', 'seg_prefix'):
                path = Path(evaluator.get(key) or '')
                if evaluator.get(key) and path.is_relative_to(old):
                    evaluator[key] = str(root / path.relative_to(old))
    needed = [file for split in splits for file in files[split]]
    others = [file for split in SPLITS for file in files[split]]
    named = needed or [file for file in others if file.is_file()][:1] or others[:1]
    if not named:
        return
    classes = _common_classes(list(dict.fromkeys(named)))
    for dataset in own:
        dataset.metainfo = dict(classes=classes)
    if not _set_num_classes(cfg.model, len(classes)):
        raise InputError(f'--data-root cannot tell a {cfg.model.get("type")} its number of classes')


def _common_classes(files: list[Path]) -> tuple[str, ...]:
    """The classes of the first file; InputError if another has not the same, in the same order.

    mmdet numbers the classes of a file in the order of the file.
    """
    classes = _read_classes(files[0])
    for file in files[1:]:
        others = tuple(name for name in _read_classes(file) if name in classes)
        if others != classes:
            raise InputError(f'{file} has the classes {some(others)}, {files[0]} {some(classes)}: '
                             'they must be the same, in the same order')
    return classes


def some(names: tuple[str, ...]) -> str:
    """A few of many names, and how many they are."""
    return f'{len(names)} ({", ".join(names[:3])}{", ..." * (len(names) > 3)})'


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


def evaluators(cfg: Config, split: str) -> list[ConfigDict]:
    """The configs of a split's metrics."""
    found = cfg.get(f'{split}_evaluator') or []
    return [found] if isinstance(found, dict) else found


def read_annotations(path: Path) -> dict:
    """COCO annotations; InputError unless the file holds lists of images, objects and classes."""
    if not path.is_file():
        raise InputError(f'annotations not found: {path}')
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f'not COCO annotations: {path} ({first_line(error)})') from error
    for key in ('images', 'annotations', 'categories'):
        part = content.get(key) if isinstance(content, dict) else None
        if not isinstance(part, list) or not all(isinstance(item, dict) for item in part):
            raise InputError(f'not COCO annotations: {path} has no list of {key}')
    unnamed = [item for item in content['categories']
               if not isinstance(item.get('name'), str) or 'id' not in item]
    if unnamed:
        raise InputError(f'not COCO annotations: {path} has a category without id or name')
    return content


def _read_classes(path: Path) -> tuple[str, ...]:
    names = tuple(category['name'] for category in read_annotations(path)['categories'])
    if not names:
        raise InputError(f'not COCO annotations to learn from: {path} has no categories')
    return names


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

"""What would stop a training or test in the middle, found in its data sets once they are built."""

from collections.abc import Callable, Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from ..utils.errors import InputError
from .data import datasets, evaluators, read_annotations, some

# Images whose objects are looked at, evenly spread over a data set.
_LOOKED_AT = 1000
# What mmdet reads of each entry.
_NEEDED = dict(images=('id', 'file_name', 'width', 'height'),
               annotations=('id', 'image_id', 'category_id', 'bbox', 'area'))


def build_data(runner: Runner, *splits: str) -> None:
    """Build the data sets of ``splits``, as the runner does later, and look through them.

    Raises:
        InputError: one without images, without objects to learn from, without the masks that the
            config asks for, or with more classes than the model. Later, of an image that cannot be
            read, when it is its turn.
    """
    for split in splits:
        if runner.cfg.get(f'{split}_dataloader') is None:
            continue
        try:
            built = getattr(runner, f'{split}_dataloader').dataset
        except Exception:  # mmdet and numpy raise many kinds
            explain(runner.cfg, split)
            raise
        check_built(built, runner.cfg, split)


def build_dataset(cfg: Config, split: str, build: Callable[[dict], BaseDataset]) -> BaseDataset:
    """The same for a data set alone, which ``build`` makes of its config."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    try:
        built = build(cfg[f'{split}_dataloader'].dataset)
    except Exception:
        explain(cfg, split)
        raise
    check_built(built, cfg, split)
    return built


def explain(cfg: Config, split: str) -> None:
    """InputError if it is for its annotations that a COCO data set cannot be built."""
    for dataset in datasets(cfg.get(f'{split}_dataloader')):
        if 'Coco' not in str(dataset.get('type')) or dataset.get('backend_args') is not None:
            continue
        path = Path(dataset.get('data_root') or '') / dataset.ann_file
        content = read_annotations(path)
        for part, keys in _NEEDED.items():
            for item in content[part]:
                missing = [key for key in keys if key not in item]
                if missing:
                    raise InputError(f'not COCO annotations: {path} has no {missing[0]} in an '
                                     f'entry of {part}, {str(item)[:80]}')
        if not content['images']:
            raise InputError(f'{split} data are empty: {path} lists no images')
        wanted = (dataset.get('metainfo') or {}).get('classes')
        names = tuple(category['name'] for category in content['categories'])
        ids = {category['id'] for category in content['categories']
               if wanted is None or category['name'] in wanted}
        if not any(item.get('category_id') in ids for item in content['annotations']):
            asked = '' if wanted is None else f', and metainfo.classes is {some(tuple(wanted))}'
            raise InputError(f'{split} data have no objects to learn from: {path} has '
                             f'{len(content["annotations"])} annotations, of the classes '
                             f'{some(names)}{asked}')


def check_built(built, cfg: Config, split: str) -> None:
    """InputError for a data set that mmdet builds, but that the config cannot use."""
    from mmcv.transforms import LoadImageFromFile  # tools without data sets need no mmcv

    masks = any('segm' in (evaluator.get('metric') or ()) for evaluator in evaluators(cfg, split))
    most = min(_num_classes(cfg.model), default=None)
    for dataset in _leaves(built):
        where = f'{split} data {getattr(dataset, "ann_file", "")}'
        classes = len(getattr(dataset, 'cat_ids', [None]))
        if not len(dataset) or not classes:
            explain(cfg, split)
            raise InputError(f'{where}: no image is left that has objects of the classes '
                             f'{some(tuple(dataset.metainfo.get("classes", ())))}')
        if most is not None and classes > most:
            raise InputError(f'{where}: {classes} classes, but a head of the model has '
                             f'num_classes={most}')
        transforms = dataset.pipeline.transforms
        if masks or any(getattr(transform, 'with_mask', False) for transform in transforms):
            _check_masks(dataset, where)
        transforms[:] = [_Reading(transform, split) if isinstance(transform, LoadImageFromFile)
                         else transform for transform in transforms]


def _leaves(dataset) -> Iterator[BaseDataset]:
    """The data sets that read files, out of their wrappers."""
    for inner in getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]:
        if inner is not None:
            yield from _leaves(inner)
    if isinstance(dataset, BaseDataset):
        yield dataset


def _num_classes(node, head: bool = False) -> Iterator[int]:
    """``num_classes`` of every head below ``node`` that the labels of objects are given to."""
    if isinstance(node, dict):
        if head and isinstance(node.get('num_classes'), int) and not node.get('class_agnostic'):
            yield node['num_classes']
        for key, value in node.items():
            yield from _num_classes(value, key in ('bbox_head', 'mask_head'))
    elif isinstance(node, (list, tuple)):  # a head a stage
        for value in node:
            yield from _num_classes(value, head)


def _check_masks(dataset: BaseDataset, where: str) -> None:
    for index in range(0, len(dataset), -(-len(dataset) // _LOOKED_AT)):
        info = dataset.get_data_info(index)
        if any('mask' not in instance for instance in info.get('instances', ())):
            raise InputError(f'{where}: objects of {Path(info["img_path"]).name} have no '
                             'segmentation, and the config asks for masks: give them, or take a '
                             'detector of boxes')


class _Reading:
    """Reads an image; InputError naming one that cannot be read."""

    def __init__(self, transform: Callable[[dict], dict | None], split: str) -> None:
        self.transform, self.split = transform, split

    def __call__(self, results: dict) -> dict | None:
        try:
            return self.transform(results)
        except FileNotFoundError as error:
            raise InputError(f'{self.split} image not found: {results["img_path"]}') from error
        except Exception as error:  # of cv2 and mmcv, which assert that there is an image
            raise InputError(f'{self.split} image cannot be read: {results["img_path"]}') from error

    def __repr__(self) -> str:
        return repr(self.transform)

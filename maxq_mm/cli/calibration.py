"""Looking at a trained detector with some images: of a config's train set, or of a folder, as the
test pipeline prepares them.

Needs mmdet, and so only the tools that use it import it.
"""

import argparse
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import mmdet.datasets  # noqa: F401  registers data sets and their transforms
from mmcv.transforms import Compose
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.progress import track
from torch.utils.data import ConcatDataset

from ..engine.checkpoint import layer_patterns
from ..utils.errors import InputError
from .checkpoints import read_checkpoint
from .data import check_data, datasets
from .run import positive

_PICTURES = {'.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'}


class Images(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


def calibration_set(cfg: Config) -> ConcatDataset:
    """The train set as the test pipeline prepares it, images without objects included.

    Raises:
        InputError: no data, no images, or no test pipeline.
    """
    check_data(cfg, 'train')
    pipeline = _test_pipeline(cfg)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    sets = [DATASETS.build(dict(copy.deepcopy(dataset), pipeline=pipeline, test_mode=True,
                                serialize_data=False))  # an empty set cannot be serialized
            for dataset in datasets(cfg.get('train_dataloader'))]
    if not sum(map(len, sets)):
        raise InputError('the train set has no images to calibrate with')
    return ConcatDataset([dataset for dataset in sets if len(dataset)])


def pictures(folder: Path) -> list[Path]:
    """The picture files in a folder and below, by name.

    Raises:
        InputError: no folder, or none in it.
    """
    if not folder.is_dir():
        raise InputError(f'image folder not found: {folder}')
    found = sorted(path for path in folder.rglob('*') if path.suffix.lower() in _PICTURES)
    if not found:
        raise InputError(f'no images in {folder}')
    return found


class ImageFolder:
    """The pictures in a folder and below, by name, as the test pipeline prepares them.

    Raises:
        InputError: no folder, no pictures in it, or no test pipeline.
    """

    def __init__(self, cfg: Config, folder: Path) -> None:
        self.paths = pictures(folder)
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        self.prepare = Compose([step for step in _test_pipeline(cfg)
                                if step.get('type') != 'LoadAnnotations'])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict:
        return self.prepare(dict(img_path=str(self.paths[index]), img_id=index))


def evenly_spread(images: Images, count: int) -> Iterator[dict]:
    """``count`` of the images, evenly spread; all, if there are no more."""
    count = min(count, len(images))
    for number in range(count):
        yield images[(2 * number + 1) * len(images) // (2 * count)]


def add_ranges_argument(parser: argparse.ArgumentParser) -> None:
    """The argument of the tools that quantize."""
    parser.add_argument('--calib-images', type=positive, default=64, metavar='N',
                        help='how many images the ranges are taken from (default: 64)')


def images_for_ranges(dataset: Images, args: argparse.Namespace) -> Iterator[dict]:
    """So many as the argument of :func:`add_ranges_argument` asks for, with a progress bar.

    Raises:
        InputError: there are not so many.
    """
    count = args.calib_images
    if count > len(dataset):
        raise InputError(f'--calib-images {count}: the train set has {len(dataset)} images')
    return iter(track(evenly_spread(dataset, count), 'calibrating', total=count,
                      console=Console(stderr=True), transient=True))


def _test_pipeline(cfg: Config) -> Sequence[dict]:
    tested = next(datasets(cfg.get('test_dataloader')), {})
    if not tested.get('pipeline'):
        raise InputError("the config's test data have no pipeline to prepare images with")
    return tested.pipeline


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the tools that look at a detector with some images."""
    parser.add_argument('--images', type=positive, default=64, metavar='N',
                        help='images of the train set to look at, evenly spread (default: 64)')
    parser.add_argument('--image-dir', type=Path, metavar='DIR',
                        help='take them from this folder instead; no annotations are needed')
    parser.add_argument('--seed', type=int, default=0, help='of what is drawn at random')
    parser.add_argument('--device', default='cpu')


def read_dense(path: Path) -> dict:
    """A checkpoint's content; InputError if its network is sparse."""
    checkpoint = read_checkpoint(path)
    patterns = layer_patterns(checkpoint)
    if patterns:
        name, pattern = next(iter(patterns.items()))
        raise InputError(f'{path} is sparse already ({name}: {pattern}): give a dense checkpoint')
    return checkpoint


def images(cfg: Config, args: argparse.Namespace) -> list[dict]:
    """The images that the arguments of :func:`add_image_arguments` ask for."""
    found = calibration_set(cfg) if args.image_dir is None else ImageFolder(cfg, args.image_dir)
    return list(evenly_spread(found, args.images))

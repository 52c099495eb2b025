"""Turn the nuclei of the 2018 Data Science Bowl into a data set in COCO format.

    python projects/nuclei/prepare_nuclei.py STAGE1_TRAIN [OUT]

STAGE1_TRAIN is the unpacked stage1_train.zip of BBBC038 (Broad Bioimage Benchmark Collection,
CC0): a folder an image, with images/ID.png and masks/*.png, one mask a nucleus. The images taken,
those of at most 360 px a side, and their split are the ones of projects/nuclei/split.json.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from maxq_mm import cli
from maxq_mm.cli.coco_files import Split, written_folder

SPLIT = Path(__file__).with_name('split.json')
CLASSES = ('nucleus', )
ID_LENGTH = 16  # of the 64 digits of an image's name; enough to tell them apart


def find_images(source: Path) -> dict[str, Path]:
    """The folder of each image, by the first digits of its name."""
    return {path.name[:ID_LENGTH]: path for path in source.iterdir() if (path / 'masks').is_dir()}


def read_nuclei(folder: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """The image (H, W, 3) uint8 BGR and the bool masks (H, W) of its nuclei; empty ones left out.

    Raises:
        InputError: a file that is missing, cannot be read, or does not fit the others.
    """
    paths = sorted((folder / 'images').glob('*.png'))
    if len(paths) != 1:
        raise cli.InputError(f'{folder}/images holds {len(paths)} PNG files instead of 1')
    image = _read(paths[0], cv2.IMREAD_COLOR)
    masks = []
    for path in sorted((folder / 'masks').glob('*.png')):
        mask = _read(path, cv2.IMREAD_GRAYSCALE) > 0
        if mask.shape != image.shape[:2]:
            raise cli.InputError(f'{path} is of {mask.shape} pixels, its image of '
                                 f'{image.shape[:2]}')
        if mask.any():
            masks.append(mask)
    return image, masks


def _read(path: Path, mode: int) -> np.ndarray:
    image = cv2.imread(str(path), mode)
    if image is None:
        raise cli.InputError(f'not a readable image: {path}')
    return image


def convert(source: Path, out: Path, splits: dict[str, list[str]]) -> dict[str, tuple[int, int]]:
    """Write the data set; returns the numbers of images and nuclei of each split."""
    folders = find_images(source)
    missing = [name for names in splits.values() for name in names if name not in folders]
    if missing:
        raise cli.InputError(f'{source}: {len(missing)} of the images are not there, such as '
                             f'{missing[0]}*')
    counts, first = {}, 1
    with written_folder(out) as beside:
        for name, ids in splits.items():
            split = Split(beside, name, first)
            for image_id in track(ids, description=name):
                image, masks = read_nuclei(folders[image_id])
                split.add(f'{image_id}.png', image, [(1, mask) for mask in masks])
            counts[name] = len(ids), split.finish(CLASSES)
            first += counts[name][1]
    return counts


def read_splits(path: Path) -> dict[str, list[str]]:
    """The image ids of the splits; InputError for anything else."""
    try:
        splits = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise cli.InputError(f'not a readable split: {path} ({error})') from error
    if not isinstance(splits, dict) or set(splits) != {'train', 'val'} or not all(
            isinstance(ids, list) and ids and all(isinstance(i, str) for i in ids)
            for ids in splits.values()):
        raise cli.InputError(f'not a split: {path} holds no lists of image ids "train" and "val"')
    everything = [image_id for ids in splits.values() for image_id in ids]
    twice = next((image_id for image_id in everything if everything.count(image_id) > 1), None)
    if twice is not None:
        raise cli.InputError(f'not a split: {path} has the image {twice} twice')
    return splits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path, metavar='STAGE1_TRAIN', help='the unpacked download')
    parser.add_argument('out', type=Path, nargs='?', default=Path('data/nuclei'),
                        help='folder to write (default: data/nuclei)')
    parser.add_argument('--split', type=Path, default=SPLIT,
                        help='JSON of the image ids of each split')
    args = parser.parse_args()
    if not args.source.is_dir():
        raise cli.InputError(f'not a folder: {args.source}')
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise cli.InputError(f'{args.out} is there already')
    splits = read_splits(args.split)
    with cli.writing(args.out):
        counts = convert(args.source, args.out, splits)
    for name, (images, nuclei) in counts.items():
        print(f'{args.out}/{name}: {images} images, {nuclei} nuclei')


if __name__ == '__main__':
    cli.run(main)

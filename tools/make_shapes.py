"""Draw the sample data set: textured discs, boxes and triangles, in COCO format.

    python tools/make_shapes.py data/shapes

Objects overlap (the mask of a hidden part is taken away), differ in size from 18 to 64 pixels and
carry textures of their own on textured backgrounds. The same seed gives the same files.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

from maxq_mm import cli
from maxq_mm.cli.coco_files import Split, written_folder

CLASSES = ('disc', 'box', 'triangle')
MIN_COLOUR_DISTANCE = 70  # of an object from the background, so that it can be seen
MAX_TURN = np.radians(20)  # of boxes and triangles from upright
MIN_VISIBLE = 0.6  # a shape hidden further than this is not annotated, and is not drawn
SIZES = 16, 4096  # pixels a side
LAYOUT = 'shapes-1'  # changes with the drawing, so that old data is drawn anew


def texture(rng: np.random.Generator, size: int, colour: np.ndarray, contrast: float) -> np.ndarray:
    """Smooth noise ``(size, size, 3)`` float32 around a colour ``(3,)``, in [0, 255]."""
    noise = np.zeros((size, size, 3), np.float32)
    for cells in (4, 12, 40):
        coarse = rng.normal(0, 1, (cells, cells, 3)).astype(np.float32)
        noise += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.5:  # stripes
        angle, period = rng.uniform(0, np.pi), rng.uniform(4, 12)
        y, x = np.mgrid[:size, :size]
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
        noise += 1.5 * wave[..., None].astype(np.float32)
    return np.clip(colour + contrast * noise, 0, 255).astype(np.float32)


def silhouette(rng: np.random.Generator, kind: str, size: int) -> np.ndarray:
    """Bool ``(size, size)``: one randomly placed, scaled and turned shape."""
    radius = np.exp(rng.uniform(np.log(9), np.log(32)))
    centre = rng.uniform(0.5 * radius, size - 0.5 * radius, 2)
    canvas = np.zeros((size, size), np.uint8)
    middle = tuple(int(v) for v in centre.round())
    if kind == 'disc':
        axes = (round(radius), round(radius * rng.uniform(0.75, 1)))
        cv2.ellipse(canvas, middle, axes, rng.uniform(0, 180), 0, 360, 1, -1)
    else:
        corners, upright = (4, np.pi / 4) if kind == 'box' else (3, -np.pi / 2)
        turn = upright + rng.uniform(-MAX_TURN, MAX_TURN)
        angles = turn + np.arange(corners) * 2 * np.pi / corners
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * radius
        cv2.fillPoly(canvas, [(centre + points).round().astype(np.int32)], 1)
    return canvas.astype(bool)


def draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """One image ``(size, size, 3)`` uint8 and its ``(class index, visible mask)`` pairs."""
    background = rng.uniform(40, 215, 3)
    image = texture(rng, size, background, 12)
    objects: list[tuple[int, np.ndarray, int]] = []
    for _ in range(rng.integers(3, 8)):
        index = int(rng.integers(len(CLASSES)))
        shape = silhouette(rng, CLASSES[index], size)
        hidden = [(c, m & ~shape, area) for c, m, area in objects]
        if shape.sum() < 40 or any(m.sum() < MIN_VISIBLE * area for _, m, area in hidden):
            continue
        objects = [*hidden, (index, shape, int(shape.sum()))]
        colour = background
        while np.linalg.norm(colour - background) < MIN_COLOUR_DISTANCE:
            colour = rng.uniform(20, 235, 3)
        fill = texture(rng, size, colour, 18)
        edge = cv2.GaussianBlur(shape.astype(np.float32), (3, 3), 0)[..., None]
        image = image * (1 - edge) + fill * edge
    image += rng.normal(0, 6, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), [(c, m) for c, m, _ in objects]


def make_split(root: Path, name: str, images: int, size: int, seed: int) -> int:
    """Write one split into the data set at ``root``; returns the object count."""
    split = Split(root, name)
    for image_id in range(1, images + 1):
        # A generator an image: a longer split only adds images.
        rng = np.random.default_rng((seed, name == 'val', image_id))
        image, objects = draw(rng, size)
        split.add(f'{image_id:05d}.png', image, [(c + 1, mask) for c, mask in objects])
    return split.finish(CLASSES)


def make(root: Path, train: int, val: int, size: int, seed: int) -> str:
    """Draw the data set into ``root`` unless it is there already; returns what was done."""
    stamp = root / 'made-with.json'
    settings = dict(layout=LAYOUT, train=train, val=val, size=size, seed=seed)
    if stamp.is_file() and stamp.read_text(errors='replace') == json.dumps(settings):
        return f'{root}: already drawn'
    if root.exists() and not (root.is_dir() and (stamp.is_file() or not any(root.iterdir()))):
        raise cli.InputError(f'{root} is there already, and was not made by this tool')
    with written_folder(root) as beside:
        counts = [make_split(beside, split, images, size, seed)
                  for split, images in (('train', train), ('val', val))]
        (beside / stamp.name).write_text(json.dumps(settings))
    return (f'{root}: {train} training and {val} validation images of {size} x {size} pixels, '
            f'{counts[0]} and {counts[1]} objects of {len(CLASSES)} classes, seed {seed}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('root', type=Path, help='folder to write')
    parser.add_argument('--train', type=cli.positive, default=640, help='training images')
    parser.add_argument('--val', type=cli.positive, default=100, help='validation images')
    parser.add_argument('--size', type=cli.positive, default=128,
                        help=f'pixels a side, {SIZES[0]} to {SIZES[1]}')
    parser.add_argument('--seed', type=cli.natural, default=0)
    args = parser.parse_args()
    if not SIZES[0] <= args.size <= SIZES[1]:
        raise cli.InputError(f'--size must be from {SIZES[0]} to {SIZES[1]}, got {args.size}')
    with cli.writing(args.root):
        print(make(args.root, args.train, args.val, args.size, args.seed))


if __name__ == '__main__':
    cli.run(main)

"""Writing a data set in COCO format: annotations/SPLIT.json beside the images in SPLIT/."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask


@contextmanager
def written_folder(root: Path) -> Iterator[Path]:
    """A folder beside ``root`` to write in, which takes its place once all is written."""
    root = root.resolve()
    root.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=root.parent, prefix=f'.{root.name}.'))
    try:
        yield beside
        beside.chmod(0o755)
        shutil.rmtree(root, ignore_errors=True)
        beside.rename(root)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


class Split:
    """One split of a data set, image by image; ids of annotations go on over several splits."""

    def __init__(self, root: Path, name: str, first_annotation: int = 1) -> None:
        self.root, self.name = root, name
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self._first = first_annotation
        (root / name).mkdir()
        (root / 'annotations').mkdir(exist_ok=True)

    def add(self, file_name: str, image: np.ndarray, objects: list[tuple[int, np.ndarray]]) -> None:
        """Write an image (H, W, 3) uint8 BGR; objects are (category id, mask (H, W)) pairs."""
        path = self.root / self.name / file_name
        if not cv2.imwrite(str(path), image):
            raise OSError(f'cannot write {path}')
        height, width = image.shape[:2]
        number = len(self.images) + 1
        self.images.append(dict(id=number, file_name=file_name, width=width, height=height))
        for category, mask in objects:
            self.annotations.append(annotation(
                category, mask, number, self._first + len(self.annotations)))

    def finish(self, classes: tuple[str, ...]) -> int:
        """Write the annotations; returns how many there are."""
        categories = [dict(id=i, name=name) for i, name in enumerate(classes, 1)]
        (self.root / 'annotations' / f'{self.name}.json').write_text(json.dumps(dict(
            images=self.images, annotations=self.annotations, categories=categories)))
        return len(self.annotations)


def annotation(category: int, mask: np.ndarray, image_id: int, number: int) -> dict:
    """A COCO annotation with its mask as compressed RLE."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(id=number, image_id=image_id, category_id=category, iscrowd=0,
                area=int(mask.sum()), bbox=coco_mask.toBbox(rle).tolist(),
                segmentation=dict(size=list(mask.shape), counts=rle['counts'].decode()))

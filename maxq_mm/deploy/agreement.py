"""How far an exported file and mmdet agree on whole detections, for people to read.

It decides nothing: rounding in a feature map lets another proposal survive suppression, and then
detections differ that are both right. :mod:`.verify` holds the file to mmdet.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from mmengine.structures import InstanceData
from torch import Tensor

# Two detections of one label are the same if they are this near: in pixels, and of score.
_BOX, _SCORE = 1., 0.05


@dataclass
class Agreement:
    """``pairs`` of detections with their largest differences; how many are ``alone``.
    ``mask_pixels``: how many are in one mask of a pair only, of how many.
    """

    pairs: int = 0
    box: float = 0.
    score: float = 0.
    mask_pixels: tuple[int, int] = (0, 0)
    alone: int = 0

    def add(self, other: 'Agreement') -> None:
        """Take in those of another image."""
        self.box, self.score = max(self.box, other.box), max(self.score, other.score)
        self.mask_pixels = tuple(map(sum, zip(self.mask_pixels, other.mask_pixels, strict=True)))
        self.pairs, self.alone = self.pairs + other.pairs, self.alone + other.alone

    def __str__(self) -> str:
        differing, pixels = self.mask_pixels
        masks = f', masks equal but for {differing / max(pixels, 1):.2%} of their pixels'
        return (f'{self.pairs} detections in both, boxes within {self.box:.1e} px, scores within '
                f'{self.score:.1e}{masks * bool(pixels)}; in one only: {self.alone}')


def compare(expected: InstanceData, found: InstanceData) -> Agreement:
    """Compare detections of one image."""
    pairs = torch.tensor(list(_pairs(expected, found)), dtype=torch.long).reshape(-1, 2)
    a, b = expected[pairs[:, 0]], found[pairs[:, 1]]
    masks = (0, 0)
    if 'masks' in expected:
        masks = int((a.masks ^ b.masks).sum()), int((a.masks | b.masks).sum())
    return Agreement(len(pairs), _largest(a.bboxes - b.bboxes), _largest(a.scores - b.scores),
                     masks, len(expected) + len(found) - 2 * len(pairs))


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item() if difference.numel() else 0.


def _pairs(expected: InstanceData, found: InstanceData) -> Iterator[tuple[int, int]]:
    """Indices of what belongs together, nearest boxes first."""
    distance = torch.cdist(expected.bboxes, found.bboxes, p=torch.inf)
    distance[expected.labels[:, None] != found.labels] = torch.inf
    distance[(expected.scores[:, None] - found.scores).abs() > _SCORE] = torch.inf
    for _ in range(min(distance.shape)):
        nearest = int(distance.argmin())
        a, b = divmod(nearest, distance.shape[1])
        if distance[a, b] > _BOX:
            return
        yield a, b
        distance[a], distance[:, b] = torch.inf, torch.inf

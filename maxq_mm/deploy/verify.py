"""Whether an exported file and mmdet say the same of an image.

Detections are pairs of the same label with the nearest boxes. One without a partner is tolerated
where a difference in rounding decides whether it is there at all: at the score threshold, at the
last of ``max_per_img``, or at the overlap from which non-maximum suppression removes a box.

Shapes: k detections; image ``(3, h, w)``.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..utils.errors import InputError
from .metadata import Metadata


class Tolerance(NamedTuple):
    """How far apart may be: boxes (pixels), scores, masks (share of the pixels of all), overlaps at
    the threshold of suppression, feature maps (share of the largest value).

    ``share`` of the detections may lack a partner without a reason: a proposal was another one.
    """

    box: float
    score: float
    mask: float
    overlap: float
    features: float
    share: float


TOLERANCES = {'float32': Tolerance(0.05, 1e-3, 1e-2, 1e-3, 1e-4, 0.01),
              'float16': Tolerance(0.5, 2e-2, 5e-2, 2e-2, 2e-2, 0.05)}


@dataclass
class Differences:
    """``pairs`` of detections with their largest differences; ``borderline`` and ``unexplained``
    ones without a partner. ``mask_pixels``: how many are in one mask of a pair only, of how many.
    """

    pairs: int = 0
    box: float = 0.
    score: float = 0.
    mask_pixels: tuple[int, int] = (0, 0)
    borderline: int = 0
    unexplained: int = 0

    @property
    def mask(self) -> float:
        return self.mask_pixels[0] / max(self.mask_pixels[1], 1)

    def add(self, other: 'Differences') -> None:
        """Take in those of another image."""
        self.box, self.score = max(self.box, other.box), max(self.score, other.score)
        self.mask_pixels = tuple(map(sum, zip(self.mask_pixels, other.mask_pixels, strict=True)))
        for name in ('pairs', 'borderline', 'unexplained'):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def __str__(self) -> str:
        alone = self.borderline + self.unexplained
        masks = f', masks equal but for {self.mask:.2%} of their pixels' * bool(self.mask_pixels[1])
        return (f'{self.pairs} detections in both, boxes within {self.box:.1e} px, scores within '
                f'{self.score:.1e}{masks}; in one only: {alone}')

    def check(self, limits: Tolerance) -> None:
        """Raises InputError if more differs than rounding explains."""
        total = self.pairs + self.unexplained + self.borderline
        if self.unexplained > limits.share * total:
            raise InputError(
                f'onnxruntime and mmdet disagree: {self.unexplained} of {total} detections have '
                f'no partner within {limits.box} px and {limits.score} of score')
        if self.borderline > max(2, total / 10):
            raise InputError(f'onnxruntime and mmdet find {self.borderline} of {total} detections '
                             'that the other does not, of equal scores or at thresholds')
        if self.mask > limits.mask:
            raise InputError(f'onnxruntime and mmdet disagree in {self.mask:.2%} of the pixels of '
                             f'masks, more than {limits.mask:.2%}')


@torch.no_grad()
def predict(model: nn.Module, data: dict, about: Metadata) -> InstanceData:
    """mmdet's own detections in a batch of one image, padded to what the file takes."""
    data = model.data_preprocessor(copy.deepcopy(data))
    sample = data['data_samples'][0]
    inputs = _padded(model, data['inputs'], about.canvas(*sample.img_shape))
    sample.set_metainfo(dict(batch_input_shape=tuple(inputs.shape[-2:]),
                             pad_shape=tuple(inputs.shape[-2:])))
    return model.predict(inputs, [sample])[0].pred_instances


@torch.no_grad()
def feature_maps(model: nn.Module, data: dict, about: Metadata) -> tuple[Tensor, ...]:
    """mmdet's own feature maps of a batch of one image, padded to what the file takes."""
    inputs = model.data_preprocessor(copy.deepcopy(data))['inputs']
    maps = model.extract_feat(_padded(model, inputs, about.canvas(*data['inputs'][0].shape[-2:])))
    return tuple(maps) if isinstance(maps, (tuple, list)) else (maps, )


def _padded(model: nn.Module, inputs: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = inputs.shape[-2:]
    return F.pad(inputs, (0, size[1] - width, 0, size[0] - height),
                 value=model.data_preprocessor.pad_value)


def check_features(difference: float, limits: Tolerance) -> None:
    """Raises InputError if more differs than rounding explains; nan does."""
    if not difference <= limits.features:
        raise InputError(f'onnxruntime and mmdet disagree: feature maps differ by {difference:.1e} '
                         f'of their largest value, more than {limits.features:.1e}')


def feature_difference(expected: Sequence[Tensor], found: Sequence[np.ndarray]) -> float:
    """The largest difference of two sets of maps, relative to the largest value of each level."""
    return max(((a - torch.from_numpy(b)).abs().max() / a.abs().max().clamp(min=1e-12)).item()
               for a, b in zip(expected, found, strict=True))


def compare(expected: InstanceData, found: InstanceData, limits: Tolerance,
            test_cfg: dict) -> Differences:
    """Compare detections of one image; ``test_cfg`` is that of the RoI head."""
    pairs = torch.tensor(list(_pairs(expected, found, limits)), dtype=torch.long).reshape(-1, 2)
    reasons = [_is_borderline(own, other, index, limits, test_cfg)
               for own, other, taken in ((expected, found, pairs[:, 0]),
                                         (found, expected, pairs[:, 1]))
               for index in set(range(len(own))).difference(taken.tolist())]
    a, b = expected[pairs[:, 0]], found[pairs[:, 1]]
    masks = (0, 0)
    if 'masks' in expected:
        masks = int((a.masks ^ b.masks).sum()), int((a.masks | b.masks).sum())
    return Differences(len(pairs), _largest(a.bboxes - b.bboxes), _largest(a.scores - b.scores),
                       masks, sum(reasons), len(reasons) - sum(reasons))


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item() if difference.numel() else 0.


def _pairs(expected: InstanceData, found: InstanceData,
           limits: Tolerance) -> Iterator[tuple[int, int]]:
    """Indices of what belongs together, nearest boxes first."""
    distance = torch.cdist(expected.bboxes, found.bboxes, p=torch.inf)
    distance[expected.labels[:, None] != found.labels] = torch.inf
    distance[(expected.scores[:, None] - found.scores).abs() > limits.score] = torch.inf
    for _ in range(min(distance.shape)):
        nearest = int(distance.argmin())
        a, b = divmod(nearest, distance.shape[1])
        if distance[a, b] > limits.box:
            return
        yield a, b
        distance[a], distance[:, b] = torch.inf, torch.inf


def _is_borderline(own: InstanceData, other: InstanceData, index: int, limits: Tolerance,
                   test_cfg: dict) -> bool:
    score = own.scores[index]
    if score < test_cfg.score_thr + limits.score:
        return True
    most = test_cfg.max_per_img
    if 0 < most <= len(other) and score < other.scores.min() + limits.score:
        return True
    rivals = [side.bboxes[(side.labels == own.labels[index])
                          & (side.scores > score - limits.score)] for side in (own, other)]
    overlaps = bbox_overlaps(own.bboxes[index][None], torch.cat(rivals))
    return bool(((overlaps - test_cfg.nms.iou_threshold).abs() < limits.overlap).any())

"""Whether an exported file computes what mmdet computes, stage by stage.

Each stage of the file is fed with what mmdet's is fed with and held to it value by value: feature
maps, the RPN's outputs, the heads' of the same regions, scores, boxes and masks decoded from the
same outputs. What suppression keeps is held to its definition (:mod:`.suppression`). So a stage may
differ by its own rounding alone, and no decision that rounding could turn comes between.

How much that is: a result is rounded to the file's precision, with a relative error of ``eps``, and
a sum of n products in float32 by about ``sqrt(n)`` roundings. Those of d layers, one after another,
are independent of each other: together they grow with ``sqrt(d)``. Four times that is allowed, of
the largest value. What a wrong file computes differs by about that value itself.
"""

from collections.abc import Callable, Iterable
from math import sqrt

import torch
from onnx import ModelProto
from torch import Tensor, nn

from ..utils.errors import InputError
from . import onnx_detector
from .detectors import as_list
from .metadata import Metadata
from .reference import Reference, features
from .staged import StagedFile
from .suppression import check_best, check_kept

_EPS = {name: torch.finfo(getattr(torch, name)).eps for name in ('float32', 'float16')}
_SAFETY = 4
# Decoding and the like: some dozen operations in float32, on numbers up to about 1.
_DECODED = 64 * _EPS['float32']
FEATURES, RPN, PROPOSALS, BOX_HEAD = 'feature maps', 'RPN', 'proposals', 'box head'
REFINED, DETECTIONS, MASK_HEAD, MASKS = 'refined regions', 'detections', 'mask head', 'masks'


def rounding(parts: Iterable[nn.Module], precision: str) -> float:
    """How much of their largest value the results of ``parts``, in ``precision``, may differ."""
    weights = [weight for part in parts for weight in part.parameters() if weight.dim() > 1]
    terms = max((weight[0].numel() for weight in weights), default=1)
    own = _EPS[precision] + _EPS['float32'] * sqrt(terms)
    return _SAFETY * sqrt(len(weights) + 1) * own  # 1: what they take is rounded, too


class Verifier:
    """Holds ``file``, an export of ``model``, to it; ``worst`` has the largest difference of each
    stage so far, and how much is allowed: of the largest value, or of the image's longer side.

    Raises:
        InputError: onnxruntime cannot run the file.
    """

    def __init__(self, model: nn.Module, file: ModelProto, about: Metadata) -> None:
        self.model, self.about = model, about
        self.file = StagedFile(file)
        self.worst: dict[str, tuple[float, float]] = {}

    def check(self, data: dict) -> None:
        """Compare on ``data``, a batch of one image.

        Raises:
            InputError: more differs than rounding explains; names the stage.
        """
        inputs = onnx_detector.feeds(data['inputs'][0], self.about)
        if self.about.kind == 'features':
            found = self.file.run(inputs, {})
            self._check_features(features(self.model, data, self.about), found)
            return
        reference = Reference(self.model, data, self.about)
        found = self.file.run(inputs, {name: reference.given[name] for name in self.file.given})
        self._check_features(reference.features, found)
        self._check_rpn(reference, found)
        self._check_boxes(reference, found)
        if reference.mask_outputs:
            self._check_masks(reference, found)

    def _check_features(self, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
        model = self.model
        parts = [model.backbone, *([model.neck] if model.with_neck else [])]
        for name, map_ in expected.items():
            self._compare(FEATURES, name, map_, found[name], rounding(parts, self.about.precision))

    def _check_rpn(self, reference: Reference, found: dict[str, Tensor]) -> None:
        limit = rounding([reference.rpn], self.about.precision)
        for kind, maps in zip(('rpn_logits', 'rpn_deltas'), reference.rpn_maps, strict=True):
            # The levels share the layers, and some are too small to have a largest value.
            self._compare(RPN, kind, _flat(maps), _flat(
                found[f'{kind}_{level}'] for level in range(len(maps))), limit)

        cfg, kept = reference.rpn.test_cfg, []
        most, smallest = cfg.get('nms_pre', -1), cfg.get('min_bbox_size', -1)
        for level, (scores, boxes) in enumerate(reference.anchors()):
            index, own_scores, own_boxes, own_kept = (
                found[f'rpn_{kind}_{level}'] for kind in ('index', 'scores', 'boxes', 'kept'))
            name = f'rpn_index_{level}'
            if len(index.unique()) != (min(most, len(scores)) if most > 0 else len(scores)):
                raise _wrong(PROPOSALS, f'{name} has {len(index.unique())} of {len(scores)} '
                             f'anchors, where nms_pre is {most}')
            rest = torch.ones(len(scores), dtype=torch.bool)
            rest[index] = False
            if rest.any() and scores[rest].max() > scores[index].min() + _DECODED:
                raise _wrong(PROPOSALS, f'{name} has not the best anchors')
            self._compare(PROPOSALS, f'rpn_boxes_{level}', boxes[index], own_boxes,
                          _DECODED, self._side(reference))
            large = (own_boxes[:, 2:] - own_boxes[:, :2] > smallest).all(dim=1) | (smallest < 0)
            self._compare(PROPOSALS, f'rpn_scores_{level}',
                          torch.where(large, scores[index], -1.), own_scores, _DECODED, 1.)
            self._held(PROPOSALS, check_kept, own_boxes, own_scores, own_kept, cfg.max_per_img,
                       cfg.nms.iou_threshold, 0.)
            kept.append((own_boxes[own_kept], own_scores[own_kept]))
        self._held(PROPOSALS, check_best, found['regions_0'],
                   *(torch.cat(part) for part in zip(*kept, strict=True)), cfg.max_per_img)

    def _check_boxes(self, reference: Reference, found: dict[str, Tensor]) -> None:
        head, side = reference.head, self._side(reference)
        limit = rounding([*reference.stages, *_shared(head)], self.about.precision)
        for name, value in reference.box_outputs.items():
            self._compare(BOX_HEAD, name, value, found[name], limit)
        for name, value in reference.refined().items():
            self._compare(REFINED, name, value, found[name], _DECODED, side)
        scores, boxes = reference.candidates()
        self._compare(DETECTIONS, 'class_scores', scores, found['class_scores'], _DECODED, 1.)
        self._compare(DETECTIONS, 'class_boxes', boxes, found['class_boxes'], _DECODED, side)

        cfg, (labels, regions) = head.test_cfg, (found['kept_labels'], found['kept_regions'])
        scores, boxes = found['class_scores'], found['class_boxes']
        most = cfg.max_per_img if cfg.max_per_img > 0 else scores.numel()
        for label in range(len(scores)):
            self._held(DETECTIONS, check_kept, boxes[label], scores[label],
                       regions[labels == label], most, cfg.nms.iou_threshold, cfg.score_thr)
        self._held(DETECTIONS, check_best, _rows(found['labels'], found['boxes'], found['scores']),
                   _rows(labels, boxes[labels, regions], scores[labels, regions]),
                   scores[labels, regions], most)

    def _check_masks(self, reference: Reference, found: dict[str, Tensor]) -> None:
        head = reference.head
        limit = rounding([*as_list(head.mask_head), *_shared(head)], self.about.precision)
        for name, value in reference.mask_outputs.items():
            self._compare(MASK_HEAD, name, value, found[name], limit)
        self._compare(MASKS, 'masks', reference.masks(), found['masks'], _DECODED, 1.)

    def _compare(self, stage: str, name: str, expected: Tensor, found: Tensor, limit: float,
                 largest: float | None = None) -> None:
        """Differences of at most ``limit`` times ``largest``, by default of what is expected."""
        if expected.shape != found.shape:
            raise _wrong(stage, f'{name} is {list(found.shape)} there, not {list(expected.shape)}')
        if not expected.numel():
            return
        if largest is None:
            largest = max(expected.abs().max().item(), torch.finfo(torch.float32).tiny)
        difference = (expected - found).abs().max().item() / largest
        worst, _ = self.worst.get(stage, (0., limit))
        self.worst[stage] = max(worst, difference), limit
        if not difference <= limit:  # nan is not
            raise _wrong(stage, f'{name} differs by {difference:.1e} of its range, rounding '
                         f'explains {limit:.1e}')

    @staticmethod
    def _held(stage: str, check: Callable, *arguments) -> None:
        try:
            check(*arguments)
        except InputError as error:
            raise _wrong(stage, f'suppression {error}') from error

    @staticmethod
    def _side(reference: Reference) -> float:
        """The longer side of the image in pixels, which boxes are differed by."""
        return float(max(reference.meta['img_shape']))


def _wrong(stage: str, reason: str) -> InputError:
    return InputError(f'onnxruntime and mmdet disagree in the stage {stage!r}: {reason}')


def _shared(head: nn.Module) -> list[nn.Module]:
    return [head.shared_head] if head.with_shared_head else []


def _flat(maps: Iterable[Tensor]) -> Tensor:
    return torch.cat([map_.flatten() for map_ in maps])


def _rows(labels: Tensor, boxes: Tensor, scores: Tensor) -> Tensor:
    return torch.cat([labels[:, None], boxes, scores[:, None]], dim=1)

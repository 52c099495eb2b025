"""What mmdet itself computes of an image, whole and stage by stage, in float32.

Shapes: R regions; C classes; boxes ``(x1, y1, x2, y2)`` in pixels of the image. Names of stages:
:func:`.detectors.stages`.
"""

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .detectors import as_list, numbered
from .metadata import Metadata

# Of one image; a mask head takes about ten times as long for a box as a box head.
_MOST_REGIONS, _MOST_MASKS = 100, 20


@torch.no_grad()
def predict(model: nn.Module, data: dict, about: Metadata) -> InstanceData:
    """Detections in a batch of one image, padded to what the file takes."""
    inputs, samples = _prepared(model, data, about)
    return model.predict(inputs, samples)[0].pred_instances


@torch.no_grad()
def features(model: nn.Module, data: dict, about: Metadata) -> dict[str, Tensor]:
    """Feature maps of a batch of one image, padded to what the file takes."""
    return _features(model, _prepared(model, data, about)[0])


def _features(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    maps = model.extract_feat(inputs)
    return numbered('features', maps if isinstance(maps, (tuple, list)) else (maps, ))


def _prepared(model: nn.Module, data: dict, about: Metadata) -> tuple[Tensor, list]:
    data = model.data_preprocessor(copy.deepcopy(data))
    inputs, sample = data['inputs'], data['data_samples'][0]
    height, width = inputs.shape[-2:]
    canvas = about.canvas(*sample.img_shape)
    inputs = F.pad(inputs, (0, canvas[1] - width, 0, canvas[0] - height),
                   value=model.data_preprocessor.pad_value)
    sample.set_metainfo(dict(batch_input_shape=canvas, pad_shape=canvas))
    return inputs, [sample]


class Reference:
    """A detector's stages on a batch of one image; the names of results are those of the file.

    ``given`` is what each stage reads. Features and regions are mmdet's own of the image. What only
    decoding and suppression read is drawn at random, so that they are asked all they could be,
    whatever the network finds in the image: logits of both signs, boxes moved by a fifth of their
    size, each region twice.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, data: dict, about: Metadata) -> None:
        self.rpn, self.head = model.rpn_head, model.roi_head
        self._random = torch.Generator().manual_seed(0)
        inputs, samples = _prepared(model, data, about)
        self.meta = samples[0].metainfo
        self.features = _features(model, inputs)
        self.maps = tuple(self.features.values())
        proposals = self.rpn.predict(self.maps, samples, rescale=False)[0].bboxes
        most = self.head.test_cfg.max_per_img
        half = (min(most, _MOST_REGIONS) if most > 0 else _MOST_REGIONS) // 2
        self.regions = proposals[:max(half, 1)].repeat(2, 1)
        self.stages = as_list(self.head.bbox_head)
        self.boxes = self.regions[:_MOST_MASKS]
        self.labels = torch.arange(len(self.boxes)) % self.stages[-1].num_classes

        #: What the networks make of features, regions and boxes.
        self.rpn_maps = self.rpn(self.maps)
        self.box_outputs = self._box_outputs()
        self.mask_outputs = self._mask_outputs() if self.head.with_mask else {}
        self.given = self.features | self._given()

    def _forward(self, kind: str, stage: int, boxes: Tensor) -> dict:
        """mmdet's RoI head; a cascade's takes the stage, too."""
        forward = getattr(self.head, f'_{kind}_forward')
        stages = (stage, ) if isinstance(self.head.bbox_head, nn.ModuleList) else ()
        return forward(*stages, self.maps, bbox2roi([boxes]))

    def _box_outputs(self) -> dict[str, Tensor]:
        found = [self._forward('bbox', stage, self.regions) for stage in range(len(self.stages))]
        return (numbered('class_logits', [one['cls_score'] for one in found])
                | numbered('box_deltas', [one['bbox_pred'] for one in found]))

    def _mask_outputs(self) -> dict[str, Tensor]:
        return numbered('mask_logits', [
            self._forward('mask', stage, self.boxes)['mask_preds']
            for stage in range(len(as_list(self.head.mask_head)))])

    def _given(self) -> dict[str, Tensor]:
        """Inputs of the stages but the features, for those that have them."""
        logits, deltas = self.rpn_maps
        given = numbered('rpn_logits', [2 * self._noise(level) for level in logits])
        given |= numbered('rpn_deltas', [
            self._deltas(self.rpn, level.reshape(-1, 4, *level.shape[2:]).movedim(1, -1)
                         ).movedim(-1, 1).reshape(level.shape) for level in deltas])
        given |= numbered('regions', [self.regions] * len(self.stages))
        for number, stage in enumerate(self.stages):
            logits = self.box_outputs[f'class_logits_{number}']
            deltas = self.box_outputs[f'box_deltas_{number}']
            given |= {f'class_logits_{number}': 3 * self._noise(logits), f'box_deltas_{number}':
                      self._deltas(stage, deltas.reshape(-1, 4)).reshape(deltas.shape)}
        given |= dict(boxes=self.boxes, labels=self.labels)
        return given | {name: 2 * self._noise(value) for name, value in self.mask_outputs.items()}

    def _noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._random)

    def _deltas(self, head: nn.Module, like: Tensor) -> Tensor:
        return 0.2 * self._noise(like) / like.new_tensor(head.bbox_coder.stds)

    def anchors(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Scores ``(A, )`` and boxes ``(A, 4)`` of all anchors, level by level."""
        sizes = [map_.shape[-2:] for map_ in self.rpn_maps[0]]
        for level, priors in enumerate(self.rpn.prior_generator.grid_priors(sizes, device='cpu')):
            logits, deltas = (self.given[f'rpn_{kind}_{level}'][0].permute(1, 2, 0)
                              for kind in ('logits', 'deltas'))
            logits = logits.reshape(-1, self.rpn.cls_out_channels)
            scores = (logits.sigmoid() if self.rpn.use_sigmoid_cls
                      else logits.softmax(-1)[:, :-1]).reshape(-1)
            yield scores, self.rpn.bbox_coder.decode(priors, deltas.reshape(-1, 4),
                                                     max_shape=self.meta['img_shape'])

    def refined(self) -> dict[str, Tensor]:
        """The regions that each of a cascade's stages makes for the next."""
        return {f'regions_{number + 1}': stage.regress_by_class(
            self.regions, self.given[f'class_logits_{number}'][:, :-1].argmax(dim=1),
            self.given[f'box_deltas_{number}'], self.meta)
            for number, stage in enumerate(self.stages[:-1])}

    def candidates(self) -> tuple[Tensor, Tensor]:
        """Scores ``(C, R)`` and boxes ``(C, R, 4)`` before suppression."""
        numbers = range(len(self.stages))
        logits = sum(self.given[f'class_logits_{number}'] for number in numbers) / len(numbers)
        stage = self.stages[-1]
        found = stage.predict_by_feat(
            bbox2roi([self.regions])[None], logits[None],
            self.given[f'box_deltas_{numbers[-1]}'][None], [self.meta], rcnn_test_cfg=None)[0]
        boxes = found.bboxes.reshape(len(self.regions), -1, 4).transpose(0, 1)
        return found.scores[:, :-1].t(), boxes.expand(stage.num_classes, -1, -1)

    def masks(self) -> Tensor:
        """Masks ``(k, h, w)`` in [0, 1] of the boxes' classes."""
        found = []
        for name, stage in zip(self.mask_outputs, as_list(self.head.mask_head), strict=True):
            labels = torch.zeros_like(self.labels) if stage.class_agnostic else self.labels
            found.append(self.given[name].sigmoid()[torch.arange(len(labels)), labels])
        return torch.stack(found).mean(dim=0)

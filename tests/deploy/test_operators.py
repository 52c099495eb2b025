"""What is traced computes in onnxruntime what mmcv computes."""

import io

import onnxruntime
import pytest
import torch
from mmcv.ops import RoIAlign, batched_nms
from torch import nn

from maxq_mm.deploy.operators import align_regions, non_max_suppression

pytestmark = pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning',
                                        'ignore::DeprecationWarning')


class Function(nn.Module):

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def in_onnxruntime(function, *inputs, dynamic=None):
    """Exports ``function`` of ``inputs``; returns a callable that runs it on others."""
    buffer = io.BytesIO()
    names = [f'input{i}' for i in range(len(inputs))]
    torch.onnx.export(Function(function), inputs, buffer, dynamo=False, opset_version=17,
                      input_names=names, dynamic_axes=dynamic)
    session = onnxruntime.InferenceSession(buffer.getvalue())

    def run(*values):
        feeds = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feeds)]

    return run


def some_boxes(*shape):
    corner = torch.rand(*shape, 2) * 40
    return torch.cat([corner, corner + 2 + torch.rand(*shape, 2) * 20], dim=-1)


@pytest.mark.parametrize('seed', range(3))
def test_suppression_is_that_of_mmcv_for_each_class(seed):
    torch.manual_seed(seed)
    boxes, scores = some_boxes(3, 60), torch.rand(3, 60)

    def suppress(boxes, scores):
        return non_max_suppression(boxes, scores, 100, 0.5, 0.3)

    label, box = suppress(boxes, scores)
    found = in_onnxruntime(suppress, boxes, scores)(boxes, scores)
    above = scores.flatten() > 0.3
    labels = torch.arange(3).repeat_interleave(60)
    _, kept = batched_nms(boxes.reshape(-1, 4)[above], scores.flatten()[above], labels[above],
                          dict(type='nms', iou_threshold=0.5))
    expected = {(int(i) // 60, int(i) % 60) for i in above.nonzero()[:, 0][kept]}
    assert 30 < len(expected) < above.sum()
    assert set(zip(label.tolist(), box.tolist(), strict=True)) == expected
    assert set(zip(*(part.tolist() for part in found), strict=True)) == expected


def test_suppression_keeps_at_most_so_many_of_each_class():
    boxes, scores = some_boxes(2, 50) + 100 * torch.arange(50)[:, None], torch.rand(2, 50)

    def suppress(boxes, scores):
        return non_max_suppression(boxes, scores, 7, 0.5, 0.)

    for label, box in (suppress(boxes, scores), in_onnxruntime(suppress, boxes, scores)(
            boxes, scores)):
        assert label.bincount().tolist() == [7, 7]
        assert torch.equal(box[label == 1].sort()[0], scores[1].topk(7)[1].sort()[0])


def test_suppression_of_nothing():
    def suppress(boxes, scores):
        return non_max_suppression(boxes, scores, 100, 0.5, 0.3)

    boxes, scores = some_boxes(2, 5), torch.rand(2, 5)
    run = in_onnxruntime(suppress, boxes, scores, dynamic={'input0': {1: 'n'}, 'input1': {1: 'n'}})
    for inputs in ((boxes, torch.zeros(2, 5)), (boxes[:, :0], scores[:, :0])):
        for label, box in (suppress(*inputs), run(*inputs)):
            assert label.shape == box.shape == (0, )


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_pooling_is_that_of_mmcv(aligned, ratio):
    layer = RoIAlign(output_size=(5, 7), spatial_scale=1 / 4, sampling_ratio=ratio,
                     aligned=aligned)
    features, boxes = torch.rand(1, 3, 16, 18), some_boxes(9)
    rois = torch.cat([torch.zeros(9, 1), boxes], dim=1)

    def pool(features, boxes):
        return align_regions(layer, features, boxes)

    run = in_onnxruntime(pool, features, boxes, dynamic={'input1': {0: 'regions'}})
    assert torch.equal(pool(features, boxes), layer(features, rois))
    torch.testing.assert_close(run(features, boxes)[0], layer(features, rois), atol=1e-5, rtol=0)
    assert run(features, boxes[:0])[0].shape == (0, 3, 5, 7)

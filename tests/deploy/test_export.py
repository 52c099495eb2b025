"""The file: its names, zeros and operators; test_verify.py tells what it computes."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from maxq_mm import satisfies
from maxq_mm.deploy import export, metadata, verify
from maxq_mm.deploy.onnx_detector import OnnxDetector, feeds, make_session

from . import small


def exported(built, half=False, **fields):
    model, patterns = built
    about = small.about(precision='float16' if half else 'float32', **fields)
    return export.to_onnx(export.prepared(model, patterns, half=half), about, patterns,
                          small.SIZE)


def test_float16(mask_rcnn, sized):
    file = sized('Mask R-CNN', 'float16')
    kinds = {initializer.data_type for initializer in file.graph.initializer
             if initializer.name in mask_rcnn[0].state_dict()}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert [value.type.tensor_type.elem_type for value in (*file.graph.input, *file.graph.output)
            ] == [onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT64,
                  *[onnx.TensorProto.FLOAT] * 3]


def test_inputs_and_outputs(file):
    shapes = {value.name: [side.dim_param or side.dim_value
                           for side in value.type.tensor_type.shape.dim]
              for value in (*file.graph.input, *file.graph.output)}
    assert shapes == {
        'image': [1, 3, *small.SIZE], 'image_size': [2], 'labels': ['detections'],
        'boxes': ['detections', 4], 'scores': ['detections'], 'masks': ['detections', 28, 28]}


def test_operators_are_standard_and_batch_norm_is_folded(file):
    assert {node.domain for node in file.graph.node} == {''}
    kinds = {node.op_type for node in file.graph.node}
    assert {'NonMaxSuppression', 'RoiAlign', 'Conv'} <= kinds
    assert not kinds & {'BatchNormalization', 'If', 'Loop'}
    assert [opset.version for opset in file.opset_import] == [17]


def test_weights_keep_their_names(mask_rcnn, file):
    model, _ = mask_rcnn
    wanted = {f'{name}.{part}' for name, module in model.named_modules()
              if isinstance(module, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d))
              for part in ('weight', 'bias')}
    assert wanted <= {initializer.name for initializer in file.graph.initializer}


def test_zeros_are_exactly_those_of_the_checkpoint(mask_rcnn, file):
    model, patterns = mask_rcnn
    about, state = metadata.read(file), model.state_dict()
    assert about.patterns == patterns
    assert len(patterns) == 19
    for layer in about.layers.values():
        weight = metadata.layer_weight(file, layer)
        assert torch.equal(weight == 0, state[layer.initializer] == 0)
        assert (weight == 0).float().mean() == 0.5
        assert not weight.signbit()[weight == 0].any()  # no -0.0
        assert satisfies(weight, layer.pattern)
    line = export.check_zeros(file, state, patterns)
    zeros = sum(int((state[f'{name}.weight'] == 0).sum()) for name in patterns)
    assert line.startswith('19 of 19 N:M layers')
    assert f'{zeros:,} zeros ({zeros:,} in the checkpoint)' in line


def test_a_lost_zero_is_noticed(mask_rcnn, file):
    model, patterns = mask_rcnn
    file = copy.deepcopy(file)
    name = 'backbone.layer2.0.conv1'
    for initializer in file.graph.initializer:
        if initializer.name == f'{name}.weight':
            weight = numpy_helper.to_array(initializer).copy()
            weight[tuple(np.argwhere(weight == 0)[0])] = 1e-30
            initializer.CopyFrom(numpy_helper.from_array(weight, initializer.name))
    with pytest.raises(ValueError, match=f'{name} does not satisfy 2:4 .* 1 of its zeros'):
        export.check_zeros(file, model.state_dict(), patterns)


def test_layers_that_do_not_satisfy_their_pattern_are_refused(mask_rcnn):
    model, patterns = copy.deepcopy(mask_rcnn)
    with torch.no_grad():
        model.get_submodule('backbone.layer3.1.conv2').weight.fill_(1.)
    with pytest.raises(ValueError, match=r'1 of 19 layers .* backbone.layer3.1.conv2 \(2:4\)'):
        export.prepared(model, patterns)
    with pytest.raises(ValueError, match='no layer backbone.gone'):
        export.prepared(model, {'backbone.gone': '2:4'})


def test_a_dense_model_has_no_layers_to_check(mask_rcnn):
    model, _ = mask_rcnn
    file = exported((model, {}), kind='features')
    assert metadata.read(file).layers == {}
    assert export.check_zeros(file, model.state_dict(), {}).startswith('no N:M layers')


def test_an_image_without_detections(built):
    for name, outputs in (('Mask R-CNN', 4), ('Faster R-CNN', 3)):
        model, patterns = copy.deepcopy(built[name])
        model.roi_head.test_cfg.score_thr = 0.9999
        file = exported((model, patterns))
        runtime = OnnxDetector(file.SerializeToString(), metadata.read(file))
        found = runtime.run(small.noise())
        assert len(found) == outputs
        assert {len(value) for value in found.values()} == {0}
        assert found['boxes'].shape == (0, 4)
        verify.Verifier(model, file, metadata.read(file)).check(small.batch(small.noise()))


def test_an_image_without_proposals(mask_rcnn):
    model, patterns = copy.deepcopy(mask_rcnn)
    model.rpn_head.test_cfg.min_bbox_size = 1000
    file = exported((model, patterns))
    assert len(OnnxDetector(file.SerializeToString(), metadata.read(file)).run(
        small.noise())['boxes']) == 0


def test_feature_maps(mask_rcnn):
    for half in (False, True):
        file = exported(mask_rcnn, half, kind='features')
        about, data = metadata.read(file), small.batch(small.noise(50, 70))
        found = make_session(file.SerializeToString()).run(None, feeds(data['inputs'][0], about))
        assert [value.name for value in file.graph.output] == [f'features_{i}' for i in range(4)]
        assert all(a.dtype == np.float32 for a in found)
        assert not any(i.name.startswith('roi_head') for i in file.graph.initializer)
        assert len(about.layers) == 19


class Turned(nn.Module):
    """A backbone with weights that torch stores in another way: a linear layer on three axes, and
    batch norm that mmcv does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.convs = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(8)])
        self.linear = nn.Linear(8, 12)

    def forward(self, x):
        x = self.norms[0](self.convs[0](self.stem(x))).flatten(2).transpose(1, 2)
        return (self.linear(x), )


def test_weights_that_torch_turns_are_found(mask_rcnn):
    model, _ = copy.deepcopy(mask_rcnn)
    model.backbone, model.neck = Turned(), nn.Identity()
    nn.init.uniform_(model.backbone.norms[0].weight, -2, 2)
    patterns = {'backbone.convs.0': '2:4', 'backbone.linear': '1:4'}
    with torch.no_grad():
        for name, pattern in patterns.items():
            weight = model.get_submodule(name).weight
            kept = torch.arange(8) % 4 < int(pattern[0])
            weight *= kept.reshape(1, 8, *[1] * (weight.dim() - 2))
    file = exported((model.eval(), patterns), kind='features')
    layers = metadata.read(file).layers
    assert {name: (layer.initializer, layer.axis) for name, layer in layers.items()} == {
        'backbone.convs.0': ('backbone.convs.0.weight', 1),
        'backbone.linear': ('backbone.linear.weight', 0)}
    assert torch.equal(metadata.layer_weight(file, layers['backbone.linear']),
                       model.backbone.linear.weight)
    assert export.check_zeros(file, model.state_dict(), patterns).startswith('2 of 2')


class Foreign(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def symbolic(g, x):
        return g.op('elsewhere::Copy', x)


class Special(nn.Module):

    def __init__(self, function) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.function = function

    def forward(self, x):
        return (self.function(self.conv(x)), )


@pytest.mark.parametrize(('function', 'reason'), [
    (Foreign.apply, 'elsewhere::Copy, no standard ONNX operator'),
    (torch.special.i1, 'torch cannot export this MaskRCNN: .*i1'),
])
def test_what_onnx_does_not_have_is_refused(mask_rcnn, function, reason):
    model, _ = copy.deepcopy(mask_rcnn)
    model.backbone, model.neck = Special(function), nn.Identity()
    with pytest.raises(ValueError, match=reason) as error:
        exported((model, {}), kind='features')
    assert '\n' not in str(error.value)

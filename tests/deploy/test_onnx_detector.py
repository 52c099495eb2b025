import onnx
import pytest
import torch
from onnx import helper

from maxq_mm.deploy import metadata, reference
from maxq_mm.deploy.onnx_detector import OnnxDetector, feeds, read_file

from . import small


@pytest.fixture(scope='module')
def path(file, tmp_path_factory):
    path = tmp_path_factory.mktemp('onnx') / 'model.onnx'
    path.write_bytes(file.SerializeToString())
    return path


@torch.no_grad()
def test_detections_are_those_of_mmdet_in_the_original_image(mask_rcnn, path):
    """An image that the pipeline has shrunk; the batch has two."""
    model, _ = mask_rcnn
    runtime = OnnxDetector.from_file(path, threads=1)
    meta = dict(ori_shape=(128, 240), scale_factor=(0.4, 0.5))
    images = [small.noise(64, 96, seed=seed) for seed in (1, 2)]
    data = [small.batch(image, **meta) for image in images]
    together = {key: [one[key][0] for one in data] for key in ('inputs', 'data_samples')}
    found = [sample.pred_instances for sample in runtime.test_step(together)]
    for one, own in zip(data, found, strict=True):
        expected = reference.predict(model, one, runtime.about)
        assert own.masks.shape == expected.masks.shape == (30, 128, 240)
        assert own.masks.dtype == torch.bool
        assert torch.equal(own.labels, expected.labels)
        torch.testing.assert_close(own.bboxes, expected.bboxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(own.scores, expected.scores)
        assert (own.masks ^ expected.masks).sum() < 1e-3 * expected.masks.sum()


def test_inputs_are_padded_to_the_file(path):
    _, about = read_file(path)
    image = small.noise(40, 50)
    found = feeds(image, about)
    assert found['image'].shape == (1, 3, *small.SIZE)
    assert (found['image'][0, :, :40, :50] == image.numpy()).all()
    assert found['image_size'].tolist() == [40, 50]
    with pytest.raises(ValueError, match='--size 96 96'):
        feeds(small.noise(70, 50), about)


def test_padding_does_not_matter(runtime):
    inputs = feeds(small.noise(40, 50), runtime.about)
    first = runtime.session.run(None, inputs)
    inputs['image'][0, :, 40:] = 255
    assert all((a == b).all() for a, b in zip(first, runtime.session.run(None, inputs),
                                              strict=True))


def test_files_that_are_none(path, tmp_path):
    with pytest.raises(ValueError, match='file not found: .*gone.onnx'):
        read_file(tmp_path / 'gone.onnx')
    content = path.read_bytes()
    for number, broken in enumerate((b'', b'no model', content[:-1], content[:5000],
                                     content[:len(content) // 2])):
        damaged = tmp_path / f'{number}.onnx'
        damaged.write_bytes(broken)
        with pytest.raises(ValueError, match='not a readable ONNX file: .*onnx') as error:
            OnnxDetector.from_file(damaged)
        assert '\n' not in str(error.value)


def test_files_from_elsewhere(path, tmp_path):
    own = tmp_path / 'other.onnx'
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in 'xy']
    model = helper.make_model(helper.make_graph(
        [helper.make_node('Relu', ['x'], ['y'])], 'graph', values[:1], values[1:]))
    onnx.save(model, own)
    with pytest.raises(ValueError, match="other.onnx has no 'maxq_mm' metadata"):
        OnnxDetector.from_file(own)
    model.metadata_props.add(key=metadata.KEY, value='{}')
    onnx.save(model, own)
    with pytest.raises(ValueError, match='other.onnx: .* damaged'):
        OnnxDetector.from_file(own)
    del model.metadata_props[:]
    metadata.write(model, small.about(kind='features'))
    onnx.save(model, own)
    with pytest.raises(ValueError, match='other.onnx: .*backbone and neck only'):
        OnnxDetector.from_file(own)

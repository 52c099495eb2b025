import json

import onnx
import pytest

from maxq_mm.deploy import metadata
from maxq_mm.deploy.metadata import Metadata, SparseLayer

from . import small

LAYERS = {'backbone.conv': SparseLayer('2:4', 'backbone.conv.weight'),
          'neck.linear': SparseLayer('1:16', 'neck.linear.weight', axis=0)}


@pytest.mark.parametrize('fields', [
    dict(layers=LAYERS), dict(size=None), dict(precision='float16', mask_threshold=None)])
def test_round_trip_through_a_file(fields):
    about = small.about(**fields)
    model = onnx.ModelProto()
    model.metadata_props.add(key='author', value='someone')
    for _ in range(2):
        metadata.write(model, about)
    assert metadata.read(onnx.load_from_string(model.SerializeToString())) == about
    assert [entry.key for entry in model.metadata_props] == ['author', metadata.KEY]


def test_patterns():
    assert small.about(layers=LAYERS).patterns == {'backbone.conv': '2:4', 'neck.linear': '1:16'}


def test_a_file_from_elsewhere_says_nothing():
    assert metadata.read(onnx.ModelProto()) is None


def test_damaged_texts_are_refused():
    text = small.about().as_json()
    for damaged in ('', '[]', text[:-9], text.replace('kind', 'sort'), '{"version": 1}'):
        with pytest.raises(ValueError, match='damaged'):
            Metadata.from_json(damaged)
    with pytest.raises(ValueError, match='not of version 1'):
        Metadata.from_json(json.dumps({**json.loads(text), 'version': 2}))


def test_canvas_of_an_image():
    fixed = small.about(size=(64, 96))
    assert fixed.canvas(64, 96) == fixed.canvas(1, 1) == (64, 96)
    assert small.about(size=None).canvas(33, 64) == (64, 64)
    with pytest.raises(ValueError, match='64 x 97 pixels .* takes 64 x 96: .* --size 64 128'):
        fixed.canvas(64, 97)

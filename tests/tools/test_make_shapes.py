import json

import cv2
import make_shapes
import pytest
from pycocotools.coco import COCO

from maxq_mm.utils.errors import InputError


def test_same_seed_same_files(tmp_path):
    for name in 'ab':
        make_shapes.make(tmp_path / name, train=3, val=2, size=64, seed=5)
    files = sorted(path.relative_to(tmp_path / 'a') for path in (tmp_path / 'a').rglob('*.*'))
    assert len(files) == 3 + 2 + 2 + 1
    assert all((tmp_path / 'a' / f).read_bytes() == (tmp_path / 'b' / f).read_bytes()
               for f in files)


def test_annotations_fit_the_images(shapes):
    coco = COCO(shapes / 'annotations/train.json')
    assert len(coco.getImgIds()) == 8
    ids = [annotation['id'] for annotation in coco.dataset['annotations']]
    assert len(set(ids)) == len(ids) > 16
    assert {a['category_id'] for a in coco.dataset['annotations']} == {1, 2, 3}
    for image in coco.dataset['images']:
        picture = cv2.imread(str(shapes / 'train' / image['file_name']))
        assert picture.shape == (64, 64, 3)
        taken = 0
        for annotation in coco.loadAnns(coco.getAnnIds(image['id'])):
            mask = coco.annToMask(annotation)
            assert mask.sum() == annotation['area'] > 0
            x, y, w, h = (round(v) for v in annotation['bbox'])
            assert mask[y:y + h, x:x + w].sum() == mask.sum()
            assert (taken * mask == 0).all(), 'visible masks share pixels'
            taken = taken + mask


def test_training_and_validation_differ(shapes):
    assert ((shapes / 'train/00001.png').read_bytes() != (shapes / 'val/00001.png').read_bytes())


def test_draws_anew_only_when_asked_for_something_else(tmp_path):
    root = tmp_path / 'shapes'
    make_shapes.make(root, train=2, val=1, size=64, seed=0)
    assert 'already drawn' in make_shapes.make(root, train=2, val=1, size=64, seed=0)
    assert 'seed 1' in make_shapes.make(root, train=2, val=1, size=64, seed=1)
    assert json.loads((root / 'made-with.json').read_text())['seed'] == 1
    assert [path.name for path in tmp_path.iterdir()] == ['shapes']


def test_never_replaces_what_it_did_not_make(tmp_path):
    (tmp_path / 'thesis.txt').write_text('x')
    with pytest.raises(InputError, match='there already'):
        make_shapes.make(tmp_path, train=1, val=1, size=64, seed=0)
    assert (tmp_path / 'thesis.txt').read_text() == 'x'

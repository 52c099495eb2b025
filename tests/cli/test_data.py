"""Data that a training or test would stop at in the middle, refused before."""

import json
import re
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
from mmdet.registry import DATASETS

from maxq_mm import cli
from maxq_mm.utils.errors import InputError

from ..running import ROOT

CONFIG = ROOT / 'configs/quickstart_mask_rcnn_r18.py'
CLASSES = ('disc', 'box', 'triangle')


@pytest.fixture
def root(shapes, tmp_path):
    """A copy of the sample data to spoil."""
    return Path(shutil.copytree(shapes, tmp_path / 'data'))


def change(root, change, *splits):
    for split in splits or ('train', 'val'):
        path = root / f'annotations/{split}.json'
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


def read(root, *splits):
    return cli.read_config(Namespace(config=CONFIG, data_root=root, cfg_options=None), *splits)


def built(root, split='train'):
    return cli.build_dataset(read(root, split), split, DATASETS.build)


def remove(part, key):
    return lambda content: [item.pop(key) for item in content[part]]


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_sound_data_are_taken(root, split):
    dataset = built(root, split)
    assert dataset.metainfo['classes'] == CLASSES
    assert dataset[0]['inputs'].shape[0] == 3


@pytest.mark.parametrize(('spoil', 'said'), [
    (lambda content: content.update(images=[], annotations=[]),
     'train data are empty: .*train.json lists no images'),
    (lambda content: content.update(annotations=[]),
     'train data have no objects to learn from: .*train.json has 0 annotations'),
    (remove('annotations', 'segmentation'), 'have no segmentation, and the config asks for masks'),
    (remove('images', 'width'), 'train.json has no width in an entry of images'),
    (remove('annotations', 'bbox'), 'train.json has no bbox in an entry of annotations'),
    (remove('annotations', 'image_id'), 'train.json has no image_id in an entry of annotations'),
], ids=['no images', 'no objects', 'no masks', 'no width', 'no bbox', 'no image_id'])
def test_data_to_learn_nothing_from(root, spoil, said):
    change(root, spoil)
    with pytest.raises(InputError, match=said):
        built(root)


def test_objects_of_other_classes(root):
    cfg = read(root, 'train')
    cfg.train_dataloader.dataset.metainfo = dict(classes=('cat', 'dog'))
    with pytest.raises(InputError, match=r'no objects to learn from: .* of the classes 3 \(disc, '
                                         r'box, triangle\), and metainfo.classes is 2 \(cat, dog'):
        cli.build_dataset(cfg, 'train', DATASETS.build)


def test_validation_without_masks(root):
    change(root, remove('annotations', 'segmentation'), 'val')
    built(root, 'train')
    with pytest.raises(InputError, match='val data .* have no segmentation'):
        built(root, 'val')


@pytest.mark.parametrize('head', ['bbox_head', 'mask_head'])
def test_more_classes_than_a_head(root, head):
    cfg = read(root, 'train')
    cfg.model.rpn_head.num_classes = 1  # of objects, whatever they are
    dataset = cli.build_dataset(cfg, 'train', DATASETS.build)
    settings = cfg.model.roi_head[head]
    settings.num_classes = 2
    for heads in (settings, [settings, settings]):  # as in a Cascade R-CNN
        cfg.model.roi_head[head] = heads
        with pytest.raises(InputError, match='train data .*: 3 classes, but a head of the model '
                                             'has num_classes=2'):
            cli.check_built(dataset, cfg, 'train')


@pytest.mark.parametrize(('spoil', 'said'), [
    (lambda path: path.write_bytes(path.read_bytes()[:60]), 'cannot be read'),
    (lambda path: path.write_bytes(b''), 'cannot be read'),
    (lambda path: path.unlink(), 'not found')], ids=['cut short', 'empty', 'gone'])
def test_an_image_that_cannot_be_read_is_named(root, spoil, said):
    dataset = built(root)
    path = Path(dataset.get_data_info(1)['img_path'])
    spoil(path)
    dataset[0]
    with pytest.raises(InputError, match=f'train image {said}: {re.escape(str(path))}'):
        dataset[1]


@pytest.mark.parametrize(('text', 'said'), [
    ('{"a"', 'not COCO annotations'), ('[]', 'has no list of images'), ('null', 'has no list of'),
    ('{"images": [], "annotations": [], "categories": [1]}', 'has no list of categories'),
    ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', 'without id or name'),
    ('{"images": [], "annotations": [], "categories": []}', 'has no categories'),
    ('\udcff', 'not COCO annotations')])
def test_annotations_that_are_none(root, text, said):
    path = root / 'annotations/train.json'
    path.write_bytes(text.encode(errors='surrogateescape'))
    with pytest.raises(InputError, match=said) as error:
        read(root, 'train')
    assert str(path) in str(error.value)


def test_a_tool_asks_for_the_splits_alone_that_it_needs(root):
    (root / 'annotations/train.json').unlink()
    cfg = read(root, 'test')
    assert cfg.test_dataloader.dataset.metainfo.classes == CLASSES
    assert cfg.model.roi_head.bbox_head.num_classes == 3
    assert read(root).train_dataloader.dataset.metainfo.classes == CLASSES
    with pytest.raises(InputError, match='annotations not found: .*train.json'):
        read(root, 'train', 'val')
    shutil.rmtree(root)
    with pytest.raises(InputError, match='annotations not found: .*train.json'):
        read(root)


def test_training_and_validation_in_another_order(root):
    change(root, lambda content: content['categories'].reverse(), 'val')
    assert read(root, 'val').val_dataloader.dataset.metainfo.classes == CLASSES[::-1]
    with pytest.raises(InputError, match=r'val.json has the classes 3 \(triangle, box, disc\), '
                                         r'.*train.json 3 \(disc, box, triangle\): they must'):
        read(root, 'train', 'val')
    change(root, lambda content: content['categories'].reverse(), 'val')
    change(root, lambda content: content['categories'].append(dict(id=9, name='more')), 'val')
    assert read(root, 'train', 'val').val_dataloader.dataset.metainfo.classes == CLASSES


def test_folders_for_files(root):
    cfg = read(root, 'train')
    cli.check_data(cfg, 'train')
    path = root / 'annotations/train.json'
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=f'train data not found: {path}'):
        cli.check_data(cfg, 'train')
    cfg.train_dataloader.dataset.data_prefix.img = 'annotations/val.json'
    path.rmdir()
    path.write_text('')
    with pytest.raises(InputError, match=f'train data not found: {root}/annotations/val.json'):
        cli.check_data(cfg, 'train')

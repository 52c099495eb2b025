import json
import shutil

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from ..running import ROOT, run_tool

TOOL = 'projects/nuclei/prepare_nuclei.py'


def unpack(coco: COCO, images, root) -> dict[str, str]:
    """A data set in the download's layout, from one in COCO format; ids by image."""
    names = {}
    for image in coco.dataset['images']:
        names[image['id']] = f'{image["id"]:064x}'
        folder = root / names[image['id']]
        (folder / 'images').mkdir(parents=True)
        (folder / 'masks').mkdir()
        picture = cv2.imread(str(images / image['file_name']))
        opaque = np.full((*picture.shape[:2], 1), 255, np.uint8)  # the download's have alpha
        cv2.imwrite(str(folder / f'images/{folder.name}.png'),
                    np.concatenate([picture, opaque], 2))
        for annotation in coco.loadAnns(coco.getAnnIds(image['id'])):
            cv2.imwrite(str(folder / f'masks/{annotation["id"]:05d}.png'),
                        255 * coco.annToMask(annotation))
    return names


@pytest.fixture
def download(shapes, tmp_path):
    """An unpacked download, a split of it, and the COCO data that it was made from."""
    coco = COCO(shapes / 'annotations/train.json')
    names = unpack(coco, shapes / 'train', tmp_path / 'stage1_train')
    ids = [f'{n:016x}' for n in range(len(names))]
    assert all(len(name) == 64 for name in names.values())
    for number, name in zip(ids, names.values(), strict=True):  # digits that tell them apart
        (tmp_path / 'stage1_train' / name).rename(
            tmp_path / 'stage1_train' / (number + name[16:]))
    split = tmp_path / 'split.json'
    split.write_text(json.dumps(dict(train=ids[:5], val=ids[5:7])))  # one is not taken
    return tmp_path / 'stage1_train', split, coco


def test_converts_there_and_back(download, tmp_path, shapes):
    source, split, coco = download
    out = tmp_path / 'nuclei'
    printed = run_tool(TOOL, source, out, '--split', split)
    assert f'{out}/train: 5 images' in printed
    assert f'{out}/val: 2 images' in printed
    everything = coco.dataset['annotations']
    first = 1
    for name, ids in (('train', [1, 2, 3, 4, 5]), ('val', [6, 7])):
        made = json.loads((out / f'annotations/{name}.json').read_text())
        assert made['categories'] == [dict(id=1, name='nucleus')]
        expected = [a for a in everything if a['image_id'] in ids]
        assert len(made['annotations']) == len(expected)
        for got, annotation in zip(made['annotations'], expected, strict=True):
            same = dict(annotation, id=first, image_id=annotation['image_id'] - ids[0] + 1,
                        category_id=1)
            assert got == same
            first += 1
        for image, original in zip(made['images'], ids, strict=True):
            picture = cv2.imread(str(out / name / image['file_name']))
            assert (picture == cv2.imread(str(shapes / f'train/{original:05d}.png'))).all()
    assert not list(tmp_path.glob('.nuclei.*'))


def test_split_of_the_project():
    split = json.loads((ROOT / 'projects/nuclei/split.json').read_text())
    train, val = map(set, (split['train'], split['val']))
    assert (len(train), len(val)) == (353, 99) == (len(split['train']), len(split['val']))
    assert not train & val
    assert all(len(name) == 16 for name in train | val)


@pytest.mark.parametrize('spoil, words', [
    (lambda folder: shutil.rmtree(folder), '1 of the images are not there'),
    (lambda folder: next(folder.glob('masks/*')).write_bytes(b'no'), 'not a readable image'),
    (lambda folder: next(folder.glob('images/*')).unlink(), 'holds 0 PNG files'),
    (lambda folder: cv2.imwrite(str(next(folder.glob('masks/*'))), np.ones((3, 4), np.uint8)),
     'of (3, 4) pixels'),
], ids=['gone', 'broken', 'no image', 'size'])
def test_incomplete_download(download, tmp_path, refuse, spoil, words):
    source, split, _ = download
    spoil(next(path for path in sorted(source.iterdir())[2:3]))
    assert words in refuse(TOOL, source, tmp_path / 'out', '--split', split)
    assert not [*tmp_path.glob('out*'), *tmp_path.glob('.out*')]


def test_refusals(download, tmp_path, refuse):
    source, split, _ = download
    assert 'not a folder' in refuse(TOOL, tmp_path / 'nowhere', tmp_path / 'out')
    assert 'is there already' in refuse(TOOL, source, tmp_path, '--split', split)
    assert 'not a readable split' in refuse(TOOL, source, tmp_path / 'out',
                                            '--split', tmp_path / 'none.json')
    for twice in ('{"train": ["a", "a"], "val": ["b"]}', '{"train": ["a"], "val": ["b", "a"]}'):
        split.write_text(twice)
        assert 'has the image a twice' in refuse(TOOL, source, tmp_path / 'out', '--split', split)
    assert 'not a readable split' in refuse(TOOL, source, tmp_path / 'out', '--split', tmp_path)
    split.write_text('{"train": 5}')
    assert 'holds no lists of image ids' in refuse(TOOL, source, tmp_path / 'out',
                                                   '--split', split)

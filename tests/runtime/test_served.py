"""Files to serve from: the same results in any process, and one clear line for what is no file."""

import copy
import os
import re
import subprocess
import sys
import warnings

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

import maxq_mm
from maxq_mm import accelerate, load_accelerated, save_accelerated
from maxq_mm.engine.compact import load_any
from maxq_mm.runtime import kernels, rebuild, served, trace
from maxq_mm.runtime.install import decisions_of
from maxq_mm.runtime.library import library
from maxq_mm.runtime.partition import INT8, SPARSE
from maxq_mm.runtime.trace import Untraceable
from maxq_mm.utils.errors import InputError
from maxq_mm.utils.files import load_file, save_file

from ..running import ROOT
from .test_accelerate import assert_alike, force, leaves, sparse
from .tiny import CLASSES, config

IMAGES = torch.randn(1, 3, 64, 96)
needs_int8 = pytest.mark.skipif(library(int8=True) is None, reason='no int8 kernels here')


def built(**changes) -> nn.Module:
    cfg = Config(config(**changes))
    torch.manual_seed(0)
    model = sparse(MODELS.build(cfg.model), '1:16', exclude=('last', ))
    model.cfg, model.dataset_meta = cfg, dict(classes=CLASSES, palette=[(1, 2, 3), (4, 5, 6)])
    return model


@pytest.fixture(scope='module')
def folded():
    return built()


@pytest.fixture(scope='module')
def accelerated(folded):
    model = copy.deepcopy(folded)
    with pytest.MonkeyPatch.context() as patch:
        force(patch, SPARSE)
        accelerate(model, IMAGES)
    return model


@pytest.fixture(scope='module')
def written(accelerated, tmp_path_factory):
    path = tmp_path_factory.mktemp('served') / 'a.pth'
    save_accelerated(accelerated, path)
    return path


@pytest.fixture
def path(written, tmp_path):
    """A copy to do harm to."""
    found = tmp_path / 'a.pth'
    found.write_bytes(written.read_bytes())
    return found


def quietly(path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return load_accelerated(path)


@torch.no_grad()
def assert_same_bits(model, expected, x):
    assert all(torch.equal(a, b) for a, b in zip(leaves(model(x)), leaves(expected(x)),
                                                 strict=True))


def test_loaded_is_what_was_saved(folded, accelerated, written):
    model = quietly(written)
    for size in ((1, 3, 64, 96), (2, 3, 96, 33)):
        assert_same_bits(model, accelerated, torch.randn(size))
    assert_alike(model, folded, torch.randn(1, 3, 1, 1))
    assert decisions_of(model) == decisions_of(accelerated)
    assert [part.place.head for part in decisions_of(model).parts] == ['head']
    assert model.state_dict().keys() == folded.state_dict().keys()
    assert all(torch.equal(value, folded.state_dict()[key])
               for key, value in model.state_dict().items())
    assert model.dataset_meta == dict(classes=CLASSES, palette=[(1, 2, 3), (4, 5, 6)])
    with pytest.raises(InputError, match='accelerated'):
        model.train()
    save_accelerated(model, written.with_name('again.pth'))
    assert_same_bits(quietly(written.with_name('again.pth')), model, IMAGES)


def test_only_what_inference_needs_is_kept(written):
    found = served.read_accelerated(written)
    assert found.config.keys() == {'default_scope', 'custom_imports', 'model', 'test_dataloader'}
    assert found.config['test_dataloader']['dataset'] == dict(
        type='Images', pipeline=[dict(type='Resize', scale=(64, 96)), dict(type='Pack')])
    assert b'secret' not in written.read_bytes()
    assert found.versions['maxq_mm'] == maxq_mm.__version__


def test_size(folded, written):
    sparse_layers = (folded.body[0].weight, folded.head.conv.weight)
    dense = sum(weight.nbytes for weight in sparse_layers)
    inner = served.FORMAT.open(load_file(written), written)
    packed = sum(entry[part].nbytes for entry in inner['packed'].values()
                 for part in ('values', 'indices', 'signs'))
    assert len(inner['packed']) == len(sparse_layers)
    assert packed <= dense * (1 / 16 + 4 / 16 / 32) + 8  # values, and 4 bits for each


CODE = '''
import sys, warnings, torch
from maxq_mm import load_accelerated
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter('always')
    model = load_accelerated(sys.argv[1])
print([str(w.message) for w in found if 'a.pth' in str(w.message)])
x = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save([model(x), [layer.way for part in model._decisions.parts for layer in part.layers]],
               sys.argv[3])
assert 'mmdet' not in sys.modules
'''


@pytest.mark.parametrize('forced', ['emulated', 'none', None])
def test_another_process_with_another_instruction_set(accelerated, written, tmp_path, forced):
    """Lower kernels, no kernels, and the same: one warning, the same results."""
    torch.save(IMAGES, tmp_path / 'x.pth')
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore'}
    if forced is not None:
        environment['MAXQ_ISA'] = forced
    said = subprocess.run(
        [sys.executable, '-c', CODE, written, tmp_path / 'x.pth', tmp_path / 'y.pth'],
        text=True, stdout=subprocess.PIPE, cwd=tmp_path, env=environment, check=True).stdout
    results, _ = torch.load(tmp_path / 'y.pth')
    with torch.no_grad():
        for a, b in zip(results, accelerated(IMAGES), strict=True):
            assert float((a - b).abs().max()) <= 1e-4 * float(b.max() - b.min())
    here = kernels.instruction_set()
    if forced in (None, here) or (forced == 'none' and here is None):
        assert said.strip() == '[]'
    else:
        assert said.count('it was measured with') == 1
        assert f'measured with {here or "no kernels"}' in said


def refuse(*args):
    raise Untraceable('another torch')


def test_nothing_is_traced(written, accelerated, monkeypatch):
    monkeypatch.setattr(rebuild, 'trace_at', refuse)
    assert_same_bits(quietly(written), accelerated, IMAGES)


def test_a_graph_that_is_not_stored_is_traced(path, accelerated, folded, monkeypatch):
    rewrite(path, lambda inner: inner['decisions']['parts'][0].update(graph=None))
    assert_same_bits(quietly(path), accelerated, IMAGES)
    monkeypatch.setattr(rebuild, 'trace_at', refuse)
    with pytest.warns(UserWarning, match=r'extract_feat and head cannot be traced here and stays '
                                         r'dense \(another torch\)'):
        model = load_accelerated(path)
    assert_same_bits(model, folded, IMAGES)


def test_another_config_is_traced_anew(accelerated, folded):
    """Which may compute otherwise with the same weights."""
    model = copy.deepcopy(folded)
    model.body[0].dilation = model.body[0].padding = (2, 2)
    expected = copy.deepcopy(model)
    assert rebuild.rebuild(model, decisions_of(accelerated), anew=True) == []
    assert_alike(model, expected, IMAGES)


@pytest.fixture(scope='module')
def of_bytes(folded, tmp_path_factory):
    """An int8 detector and its file."""
    model = copy.deepcopy(folded)
    with pytest.MonkeyPatch.context() as patch:
        force(patch, INT8)
        accelerate(model, IMAGES, 'int8', torch.randn(4, 3, 64, 96))
    path = tmp_path_factory.mktemp('int8') / 'a.pth'
    save_accelerated(model, path)
    return model, path


@needs_int8
def test_int8_is_what_was_saved(folded, of_bytes):
    model, path = of_bytes
    loaded = quietly(path)
    for size in ((1, 3, 64, 96), (2, 3, 96, 33)):
        assert_same_bits(loaded, model, torch.randn(size))
    assert decisions_of(loaded) == decisions_of(model)
    ways = {layer.weight: layer.way for part in decisions_of(loaded).parts for layer in part.layers}
    assert ways['body.0.weight'] == ways['head.conv.weight'] == INT8
    inner = served.FORMAT.open(load_file(path), path)
    for key in ('body.0.weight', 'head.conv.weight'):
        weight, values = folded.state_dict()[key], inner['packed'][key]['values']
        assert values.dtype == torch.int8
        assert values.numel() == weight.numel() // 16
        assert 60 < values.abs().max() <= 127
        off = (loaded.state_dict()[key] - weight).abs().flatten(1).amax(1)
        assert bool((off <= weight.abs().flatten(1).amax(1) / 120).all())  # half a step
    save_accelerated(loaded, path.with_name('again.pth'))
    assert_same_bits(quietly(path.with_name('again.pth')), model, IMAGES)


@needs_int8
def test_int8_layers_compute_in_float32_where_they_must(of_bytes, monkeypatch):
    model, path = of_bytes
    monkeypatch.setattr(trace.Trace, 'fingerprint', 'of another torch')
    with pytest.warns(UserWarning, match='2 int8 layers of extract_feat and head compute in '
                                         'float32 here'):
        loaded = load_accelerated(path)
    with torch.no_grad():
        for a, b in zip(loaded(IMAGES), model(IMAGES), strict=True):
            assert float((a - b).abs().max()) <= 0.1 * float(b.max() - b.min())


def refused(path, match):
    with pytest.raises(InputError, match=match) as error:
        load_accelerated(path)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)


def test_damage_is_refused_or_harmless(accelerated, path):
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path, 'a.pth')
    for position in range(1200, len(whole) - 1200, len(whole) // 20):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        refused(path, 'a.pth')


def test_other_kinds_of_files(folded, path, tmp_path):
    with pytest.raises(FileNotFoundError, match='gone.pth'):
        load_accelerated(tmp_path / 'gone.pth')
    refused(tmp_path, 'is a folder or a device')
    os.mkfifo(tmp_path / 'pipe')
    refused(tmp_path / 'pipe', 'is a folder or a device')
    plain = tmp_path / 'plain.pth'
    save_file(dict(meta={}, state_dict=folded.state_dict()), plain)
    refused(plain, r'is a checkpoint; tools/accelerate.py CONFIG CHECKPOINT OUT makes one')
    save_file(dict(weights=3), plain)
    refused(plain, 'not of maxq_mm')
    settings = dict(version=1, layers={'body.0': dict(pattern='1:16')})
    maxq_mm.save_compact(dict(state_dict=folded.state_dict(), maxq=settings), plain)
    refused(plain, 'is a compact file of maxq_mm: .*; tools/accelerate.py CONFIG CHECKPOINT OUT')
    onnx = tmp_path / 'model.onnx'
    onnx.write_bytes(b'\x08\x08')
    refused(onnx, 'is an ONNX file')
    save_file({**load_file(path), 'maxq_accelerated': 3}, path)
    refused(path, 'an accelerated file of another version than 2: 3')


def test_it_is_no_checkpoint_for_others(written):
    with pytest.raises(InputError, match='no checkpoint: .*a.pth is an accelerated file'):
        load_any(written)


def rewrite(path, change):
    """A sound file of something else."""
    stored = load_file(path)
    inner = served.FORMAT.open(stored, path)
    change(inner)
    save_file(served.FORMAT.seal(inner), path)


@pytest.mark.parametrize(('change', 'match'), [
    (lambda inner: inner.pop('decisions'), 'it has no decisions'),
    (lambda inner: inner['packed'].popitem(), 'weight is missing'),
    (lambda inner: inner['decisions'].pop('threads'), 'threads'),
    (lambda inner: inner['decisions']['parts'][0]['layers'][0].update(way='magic'), "'magic'"),
    (lambda inner: inner['decisions']['parts'][0]['graph']['nodes'].pop(),
     'does not fit the model: its graph is not sound'),
    (lambda inner: inner['config']['model'].update(type='os.getcwd'),
     "type 'os.getcwd' is no name of a registry"),
    (lambda inner: inner['config']['model'].update(type='NoDetector'), 'NoDetector'),
    (lambda inner: inner['config'].update(custom_imports=dict(imports=['no.such'])), 'no'),
    (lambda inner: inner['config']['model'].update(channels=16), 'cannot be built here .*torch '),
    (lambda inner: inner['decisions']['parts'][0]['place'].update(head='gone'),
     'has no extract_feat and gone'),
])
def test_content_that_is_not_sound(path, change, match):
    rewrite(path, change)
    refused(path, match)


def test_what_cannot_be_saved_harms_nothing(folded, accelerated, path, monkeypatch):
    before = path.read_bytes()
    with pytest.raises(InputError, match='not accelerated'):
        save_accelerated(folded, path)
    for name in ('cfg', 'dataset_meta'):
        model = copy.deepcopy(accelerated)
        delattr(model, name)
        with pytest.raises(InputError, match=f'the model has no {name}'):
            save_accelerated(model, path)
    model = copy.deepcopy(accelerated)
    model.dataset_meta = dict(palette='random')
    with pytest.raises(InputError, match='no classes'):
        save_accelerated(model, path)
    model.dataset_meta = dict(classes=CLASSES)
    for changes, match in ((dict(test_dataloader=None), 'no pipeline'),
                           (dict(model=dict(type='a.b.C')), "type 'a.b.C'"),
                           (dict(model=dict(x={1})), 'the config.model.x has a set')):
        model.cfg = Config(config(**changes))
        with pytest.raises(InputError, match=match):
            save_accelerated(model, path)
    save = torch.save

    def broken(content, file):
        if served.FORMAT.key not in content:  # the content alone, which goes to memory
            return save(content, file)
        file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(torch, 'save', broken)
    with pytest.raises(OSError, match='disk full'):
        save_accelerated(accelerated, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ['a.pth']


def test_weights_without_a_name(monkeypatch):
    """A layer whose weight is no parameter has decisions, too."""
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('weight', torch.randn(8, 32))
            self.linear = nn.Linear(32, 32)

        def forward(self, x):
            return nn.functional.linear(self.linear(x), self.weight)

    model = sparse(Constant(), '2:4')
    force(monkeypatch, SPARSE)
    accelerate(model, torch.randn(4, 32))
    part, = decisions_of(model).parts
    assert [layer.weight for layer in part.layers] == ['linear.weight', '']
    assert re.fullmatch('2:4|1:.*', part.layers[0].pattern)

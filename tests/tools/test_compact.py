"""Compact files by the tools: the same detector, in about half the bytes."""

import json
import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import maxq_mm
from maxq_mm.engine.checkpoint import layer_patterns
from maxq_mm.functional.compact import compact_bytes
from maxq_mm.utils.files import load_file, save_file

from ..running import ROOT, run_tool
from .conftest import CONFIG


@pytest.fixture(scope='module')
def compacted(trained) -> tuple[Path, str]:
    """A compact file, and what the tool printed."""
    out = trained / 'compact.pth'
    return out, run_tool('tools/fold.py', trained / 'epoch_40.pth', out, '--compact')


@pytest.fixture
def call(capsys, monkeypatch):
    """Run a tool in this process; returns what it printed."""

    def run(tool, *arguments):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        monkeypatch.chdir(ROOT)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
        return capsys.readouterr().out

    return run


def test_it_gives_back_the_folded_checkpoint(compacted, folded, trained):
    dense, loaded = load_file(folded), maxq_mm.load_compact(compacted[0])
    assert list(loaded) == list(dense)
    assert loaded['meta'] == dense['meta']
    assert loaded['maxq'] == dense['maxq']
    a, b = loaded['state_dict'], dense['state_dict']
    assert list(a) == list(b)
    assert a._metadata == b._metadata
    original = load_file(trained / 'epoch_40.pth')['state_dict']
    for key in b:
        assert a[key].dtype == b[key].dtype
        assert torch.equal(a[key], original[key])
        assert torch.equal(a[key].signbit(), b[key].signbit())


def test_size(compacted, folded):
    out, text = compacted
    ratio = out.stat().st_size / folded.stat().st_size
    assert f'{ratio:.3f}' == re.search(r'compact .* MiB / dense .* MiB = ([0-9.]+)', text)[1]
    state = load_file(folded)['state_dict']
    weights = {name: state[f'{name}.weight'] for name in layer_patterns(load_file(folded))}
    saved = sum(weight.nbytes - compact_bytes(weight.shape, '2:4', weight.dtype)
                for weight in weights.values())
    assert saved == sum(weight.nbytes for weight in weights.values()) * (1 / 2 - 1 / 32)
    assert folded.stat().st_size - out.stat().st_size == pytest.approx(saved, rel=0.02)


def test_straight_into_the_plain_model(compacted, trained):
    cfg = Config.fromfile(trained / Path(CONFIG).name)
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    loaded = maxq_mm.load_compact(compacted[0])
    model.load_state_dict(loaded['state_dict'], strict=True)
    assert all(maxq_mm.satisfies(model.get_submodule(name).weight, pattern)
               for name, pattern in layer_patterns(loaded).items())


def test_testing_it_gives_what_validation_printed(compacted, trained, tmp_path):
    text = run_tool('tools/test.py', trained / Path(CONFIG).name, compacted[0],
                    '--work-dir', tmp_path)
    assert '19 of 19 sparse layers satisfy' in text
    assert f'Load checkpoint from compact:{compacted[0]}' in text
    rows = [json.loads(line) for line in
            next(trained.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    validated = next(row for row in rows if 'coco/bbox_mAP' in row)
    tested = json.loads(next(tmp_path.glob('*/*.json')).read_text().splitlines()[-1])
    scores = {name: value for name, value in tested.items() if name.startswith('coco/')}
    assert len(scores) > 8
    assert scores == {name: validated[name] for name in scores}


def test_other_tools_read_it(call, compacted, folded, trained, tmp_path):
    assert '19/19' in call('report.py', trained / Path(CONFIG).name, compacted[0])
    call('fold.py', compacted[0], tmp_path / 'dense.pth')
    a, b = (load_file(path)['state_dict'] for path in (tmp_path / 'dense.pth', folded))
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) for key in b)


def test_zeros_lose_their_sign(call, compacted, folded, tmp_path):
    """Where torch alone applied a mask there are -0.0, which take room and say nothing."""
    checkpoint = load_file(folded)
    for name in layer_patterns(checkpoint):
        weight = checkpoint['state_dict'][f'{name}.weight']
        weight[weight == 0] = -0.
    save_file(checkpoint, tmp_path / 'negative.pth')
    out = tmp_path / 'compact.pth'
    call('fold.py', tmp_path / 'negative.pth', out, '--compact')
    assert abs(out.stat().st_size - compacted[0].stat().st_size) < 1000
    state = maxq_mm.load_compact(out)['state_dict']
    for name in layer_patterns(checkpoint):
        weight = state[f'{name}.weight']
        assert not (weight.signbit() & (weight == 0)).any()


def test_refusals(refuse, shapes, trained, compacted, tmp_path):
    out = tmp_path / 'out.pth'
    save_file(dict(precious=1), out)
    half_way = trained / 'epoch_20.pth'
    error = refuse('fold.py', half_way, out, '--compact')
    assert '19 of 19 layers do not satisfy their pattern, such as backbone.layer1' in error
    whole = compacted[0].read_bytes()
    damaged = tmp_path / 'damaged.pth'
    damaged.write_bytes(whole[:10**6] + bytes([whole[10**6] ^ 1]) + whole[10**6 + 1:])
    for tool, *rest in (('test.py', '--work-dir', tmp_path / 'work'), ('report.py', ),
                        ('draw.py', tmp_path / 'a.png')):
        error = refuse(tool, CONFIG, damaged, *rest, '--data-root', shapes)
        assert f'{damaged} is damaged' in error
    assert f'{damaged} is damaged' in refuse('fold.py', damaged, out)
    (tmp_path / 'file').write_text('')
    assert 'cannot write' in refuse('fold.py', compacted[0], tmp_path / 'file/a.pth', '--compact')
    assert load_file(out) == dict(precious=1)

import io

import pytest
import torch
from mmengine.runner import load_checkpoint
from torch import nn

import maxq_mm
from maxq_mm.engine import compact
from maxq_mm.engine.checkpoint import fold_checkpoint, store_effective
from maxq_mm.utils.files import load_file, save_file
from maxq_mm.utils.sealed import sha256

OVERRIDES = {'2': '1:16', '3': '2:2'}


def network():
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 96, 1),
                          nn.Conv2d(96, 8, 1), nn.Conv2d(8, 4, 1))
    model.shared = model[0]
    return model


@pytest.fixture
def folded():
    """2:4, 1:16, one that keeps all, one that is too small to gain, and one under two names."""
    model = network()
    handle = maxq_mm.sparsify(model, '2:4', overrides=OVERRIDES)
    checkpoint = dict(meta=dict(epoch=3, cfg='a = 1'), state_dict=model.state_dict())
    store_effective(checkpoint, handle)
    # torch's own product with a mask makes zeros like these, the C++ one does not
    weight = checkpoint['state_dict']['2.weight']
    weight.copysign_(torch.randn_like(weight))
    return fold_checkpoint(checkpoint)


@pytest.fixture
def path(folded, tmp_path):
    maxq_mm.save_compact(folded, tmp_path / 'new/a.pth')
    return tmp_path / 'new/a.pth'


def inner_of(path):
    return torch.load(io.BytesIO(load_file(path)['content'].numpy()), weights_only=True)


def write_inner(inner, path):
    """A file with a right checksum of whatever it holds."""
    buffer = io.BytesIO()
    torch.save(inner, buffer)
    content = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
    save_file({**load_file(path), 'content': content, 'sha256': sha256(content)}, path)


def raw_bytes(tensor):
    return tensor.contiguous().flatten().view(torch.uint8)


def assert_same(loaded, folded):
    assert list(loaded) == list(folded)
    assert loaded['meta'] == folded['meta']
    assert loaded['maxq'] == folded['maxq']
    a, b = loaded['state_dict'], folded['state_dict']
    assert list(a) == list(b)
    assert a._metadata == b._metadata
    for key in b:
        assert a[key].dtype == b[key].dtype
        assert torch.equal(raw_bytes(a[key]), raw_bytes(b[key])), key


def test_round_trip(folded, path):
    weight = folded['state_dict']['2.weight']
    assert not (weight.signbit() & (weight == 0)).any(), 'folding clears the signs of zeros'
    assert_same(maxq_mm.load_compact(path), folded)
    assert_same(compact.load_any(path), folded)


def test_what_is_packed(path):
    assert set(inner_of(path)['packed']) == {'0.weight', 'shared.weight', '2.weight'}


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(folded, tmp_path, dtype):
    state = folded['state_dict']
    for key in ('0.weight', '2.weight'):
        state[key] = state[key].to(dtype)
    state['0.weight'][0, 0] = torch.nan
    state['0.weight'][0, 1:4] = 0.
    maxq_mm.save_compact(folded, tmp_path / 'a.pth')
    assert_same(maxq_mm.load_compact(tmp_path / 'a.pth'), folded)
    assert '0.weight' in inner_of(tmp_path / 'a.pth')['packed']


def test_size(tmp_path):
    model = nn.Sequential(nn.Conv2d(256, 256, 3, bias=False))
    handle = maxq_mm.sparsify(model, '2:4')
    checkpoint = dict(meta={}, state_dict=model.state_dict())
    store_effective(checkpoint, handle)
    weight = checkpoint['state_dict']['0.weight']
    for zero in (-0., 0.):
        checkpoint['state_dict']['0.weight'] = weight.where(weight != 0, zero)
        maxq_mm.save_compact(checkpoint, tmp_path / 'a.pth')
        assert_same(maxq_mm.load_compact(tmp_path / 'a.pth'), fold_checkpoint(checkpoint))
        size = (tmp_path / 'a.pth').stat().st_size / weight.nbytes
        assert size == pytest.approx(1 / 2 + 1 / 32, abs=0.004)


def test_saving_leaves_the_checkpoint_alone_and_folds(folded, path, tmp_path):
    training = {**folded, 'optimizer': {}, 'maxq': {**folded['maxq'], 'raw': {}}}
    weights = list(folded['state_dict'].values())
    maxq_mm.save_compact(training, tmp_path / 'b.pth')
    assert all(a is b for a, b in zip(folded['state_dict'].values(), weights, strict=True))
    assert_same(maxq_mm.load_compact(tmp_path / 'b.pth'), folded)


def test_mmengine_reads_it_by_its_prefix(folded, path):
    model = network()
    load_checkpoint(model, f'compact:{path}', strict=True)
    assert torch.equal(model[0].weight, folded['state_dict']['0.weight'])
    assert compact.name_for_mmengine(str(path)) == f'compact:{path}'
    assert_same(compact.load_any(f'compact:{path}'), folded)
    with pytest.raises(AttributeError):  # not a model without its weights
        load_checkpoint(model, str(path))


def test_other_files(folded, tmp_path):
    save_file(folded, tmp_path / 'plain.pth')
    assert_same(compact.load_any(tmp_path / 'plain.pth'), folded)
    assert compact.name_for_mmengine(str(tmp_path / 'plain.pth')) == str(tmp_path / 'plain.pth')
    assert compact.name_for_mmengine('https://a/b.pth') == 'https://a/b.pth'
    with pytest.raises(ValueError, match='not a compact file: .*plain.pth'):
        maxq_mm.load_compact(tmp_path / 'plain.pth')
    with pytest.raises(FileNotFoundError, match='gone.pth'):
        maxq_mm.load_compact(tmp_path / 'gone.pth')


def test_damage_is_refused_or_harmless(folded, path):
    """A bit flipped anywhere: refused with the file's name, but where no reader looks."""
    whole = path.read_bytes()
    refused = 0
    positions = [*range(0, 1200, 40), *range(1200, len(whole) - 1200, len(whole) // 40),
                 *range(len(whole) - 1200, len(whole), 40)]
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            loaded = maxq_mm.load_compact(path)
        except ValueError as error:
            assert str(path) in str(error)
            assert '\n' not in str(error)
            refused += 1
        else:
            assert_same(loaded, folded)
            assert not 1200 <= position < len(whole) - 1200, 'damaged content was read'
    assert refused > 40


def test_truncation_is_refused(path):
    whole = path.read_bytes()
    for size in (0, 1, 100, 1000, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match='a.pth'):
            maxq_mm.load_compact(path)


@pytest.mark.parametrize(('changes', 'named'), [
    (dict(maxq_compact=2), 'another version than 1: 2'),
    (dict(maxq_compact=True), 'another version than 1: of type bool'),
    (dict(maxq_compact=torch.ones(2)), 'of type Tensor'),
    (dict(content=None), 'without content'),
    (dict(content=torch.zeros(5)), 'without content'),
    (dict(content=torch.zeros(5, dtype=torch.uint8)), 'damaged'),
    (dict(sha256=None), 'damaged'),
])
def test_containers_that_are_not_sound(path, changes, named):
    save_file({**load_file(path), **changes}, path)
    with pytest.raises(ValueError, match=named) as error:
        maxq_mm.load_compact(path)
    assert str(path) in str(error.value)


def without(key):
    return lambda inner: inner.pop(key)


@pytest.mark.parametrize(('change', 'named'), [
    (without('packed'), 'it has no packed'),
    (without('checkpoint'), 'it has no checkpoint'),
    (lambda inner: inner['checkpoint'].pop('state_dict'), 'it has no state_dict'),
    (lambda inner: inner['packed'].pop('2.weight'), '2.weight is missing'),
    (lambda inner: inner['packed']['2.weight'].pop('indices'), '2.weight must have'),
    (lambda inner: inner['packed'].update(other=inner['packed']['2.weight']), 'other is packed'),
    (lambda inner: inner['checkpoint']['state_dict'].update({'2.weight': torch.ones(1)}),
     '2.weight is packed'),
    (lambda inner: inner['packed']['2.weight'].update(shape=(1, 2)), '2.weight: .*input channels'),
    (lambda inner: inner['packed']['2.weight'].update(pattern='x'), '2.weight: pattern'),
    (lambda inner: inner['packed']['0.weight']['indices'].zero_(), '0.weight: indices must incre'),
    (lambda inner: inner['packed'].update({'2.weight': 3}), '2.weight must have'),
])
def test_content_that_is_not_sound(path, change, named):
    inner = inner_of(path)
    change(inner)
    write_inner(inner, path)
    with pytest.raises(ValueError, match=named) as error:
        maxq_mm.load_compact(path)
    assert str(path) in str(error.value)


def test_content_of_another_kind(path):
    for inner in ([1], print):
        write_inner(inner, path)
        with pytest.raises(ValueError, match='a.pth is not sound as a compact file'):
            maxq_mm.load_compact(path)


def test_what_cannot_be_saved_harms_nothing(folded, path, monkeypatch):
    before = path.read_bytes()
    state = folded['state_dict']
    with pytest.raises(ValueError, match='no MaxQ checkpoint'):
        maxq_mm.save_compact(dict(state_dict=state), path)
    changed = {**folded, 'state_dict': {**state, '2.weight': torch.ones(96, 64, 1, 1)}}
    with pytest.raises(ValueError, match='2.weight: the weight does not satisfy 1:16'):
        maxq_mm.save_compact(changed, path)
    del changed['state_dict']['2.weight']
    with pytest.raises(ValueError, match='has no 2.weight'):
        maxq_mm.save_compact(changed, path)
    with pytest.raises(ValueError, match='has no 0.weight'):
        maxq_mm.save_compact(dict(maxq=folded['maxq']), path)
    save = torch.save

    def broken(content, file):
        if compact.FORMAT.key not in content:  # the content alone, which goes to memory
            return save(content, file)
        file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(torch, 'save', broken)
    with pytest.raises(OSError, match='disk full'):
        maxq_mm.save_compact(folded, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ['a.pth']

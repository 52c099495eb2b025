import copy
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import nn

from maxq_mm import fold, load_compact, satisfies, save_compact, sparsify
from maxq_mm.engine import checkpoint as ckpt
from maxq_mm.utils.files import load_file, save_file


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1))


@pytest.fixture
def stored(model):
    handle = sparsify(model, '2:4', overrides={'2': '1:8'})
    checkpoint = dict(meta=dict(epoch=1), state_dict=model.state_dict(), optimizer={})
    ckpt.store_effective(checkpoint, handle)
    return checkpoint


def test_effective_weights_beside_raw_ones(model, stored):
    for name in ('0', '2'):
        assert torch.equal(stored['state_dict'][f'{name}.weight'], model[int(name)].effective)
        assert torch.equal(stored['maxq']['raw'][f'{name}.weight'], model[int(name)].weight)
    assert torch.equal(ckpt.raw_weights(stored)['0.weight'], model[0].weight)
    assert ckpt.layer_patterns(stored) == {'0': '2:4', '2': '1:8'}
    assert list(stored['state_dict']) == list(model.state_dict())
    assert not satisfies(model[0].weight, '2:4'), 'the model itself was changed'


def test_a_dense_checkpoint_has_neither():
    assert ckpt.raw_weights(dict(state_dict={})) == {}
    assert ckpt.layer_patterns({}) == {}


@pytest.mark.parametrize('maxq', [dict(version=2), 'x'])
def test_unknown_version(maxq):
    with pytest.raises(ValueError, match='version'):
        ckpt.raw_weights(dict(maxq=maxq))


def test_fold_leaves_inference(stored):
    folded = ckpt.fold_checkpoint(stored)
    assert set(folded) == {'meta', 'state_dict', 'maxq'}
    assert 'raw' not in folded['maxq']
    again = ckpt.fold_checkpoint(folded)
    assert again['maxq'] == folded['maxq']
    assert all(torch.equal(again['state_dict'][key], value)
               for key, value in folded['state_dict'].items())
    with pytest.raises(ValueError, match='no MaxQ checkpoint'):
        ckpt.fold_checkpoint(dict(state_dict={}))


def test_folding_a_file_is_folding_its_model(model, stored):
    """Also in the signs of zeros, in a compact file, and without touching what is folded."""
    for key in ('0.weight', '2.weight'):  # what a negative weight times 0 is
        stored['state_dict'][key][stored['state_dict'][key] == 0] = -0.
    before = {key: value.clone() for key, value in stored['state_dict'].items()}
    folded = ckpt.fold_checkpoint(stored)
    packed = load_compact_state(stored)
    state = fold(model).state_dict()
    for key, value in state.items():
        for other in (folded['state_dict'][key], packed[key]):
            assert torch.equal(value.signbit(), other.signbit()), key
            assert torch.equal(value, other), key
        assert torch.equal(stored['state_dict'][key].signbit(), before[key].signbit())
    assert folded['state_dict']._metadata == stored['state_dict']._metadata


def load_compact_state(checkpoint):
    with TemporaryDirectory() as folder:
        save_compact(checkpoint, Path(folder) / 'a.pth')
        return load_compact(Path(folder) / 'a.pth')['state_dict']


@pytest.mark.parametrize(('part', 'named'), [
    (dict(layers=['0']), 'maxq.layers is a list'), (dict(layers={'0': 3}), "no pattern for '0'"),
    (dict(raw=[1]), 'maxq.raw is a list'),
    (dict(raw={'a': 1}), r"maxq.raw\['a'\] is a int, no tensor"),
    (dict(ramp='x'), 'maxq.ramp is a str'), (dict(settings={}), 'maxq.settings is a dict'),
    (dict(settings=[3]), 'an entry without a ramp'), (dict(settings=[{}]), 'without a ramp')])
def test_parts_of_wrong_types(part, named):
    for read in (ckpt.raw_weights, ckpt.layer_patterns, ckpt.trained_ramp, ckpt.fold_checkpoint):
        with pytest.raises(ValueError, match=named):
            read(dict(maxq=dict(version=1, **part), state_dict={}))


def test_a_sparse_layer_knows_that_its_checkpoint_is_effective(tmp_path, model, stored):
    save_file(stored, tmp_path / 'a.pth')
    loaded = load_file(tmp_path / 'a.pth')['state_dict']
    x = torch.randn(1, 8, 5, 5)
    model.eval()
    expected = model(x)
    twin = copy.deepcopy(model)  # its layers are MaxQ layers, as a conv_cfg would build them
    twin.load_state_dict(loaded)
    assert torch.equal(twin(x), expected), 'masked twice'
    with pytest.warns(UserWarning, match='masked a second time'):
        twin.train()(x)  # from now on its weights are raw ones
    assert not torch.equal(twin.eval()[0].effective, loaded['0.weight'])


def test_saving_never_harms_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    save_file(dict(a=1), path)

    def broken(content, file):
        file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(torch, 'save', broken)
    with pytest.raises(OSError, match='disk full'):
        save_file(dict(a=2), path)
    assert load_file(path) == dict(a=1)
    assert [p.name for p in tmp_path.iterdir()] == ['a.pth']


def test_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        load_file(tmp_path / 'nowhere.pth')
    path = tmp_path / 'a.pth'
    path.write_bytes(b'')
    with pytest.raises(ValueError, match='a.pth'):
        load_file(path)
    torch.save(dict(a=torch.zeros(10000)), path)
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(ValueError, match='a.pth'):
        load_file(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match='list'):
        load_file(path)

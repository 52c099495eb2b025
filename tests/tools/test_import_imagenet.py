"""The imported file makes of an mmdet backbone the network that the classifier's body was."""

import contextlib
import io
import os
import pickle
import re
import runpy
import sys
from functools import cache

import import_imagenet
import pytest
import torch
from mmdet.models.backbones import ResNet
from mmengine.config import Config

import maxq_mm
from maxq_mm.utils.files import load_file, save_file

from ..running import ROOT, run_tool

TOOL = 'import_imagenet.py'
PREFIXES = ['', 'module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.']


@cache
def original(depth: int) -> dict[str, torch.Tensor]:
    """Random weights, different ones in batch norm, too, that keep activations in range."""
    torch.manual_seed(depth)
    state = ResNet(depth).state_dict()
    for name, value in state.items():
        if name.endswith('num_batches_tracked'):
            value.random_(1, 10**6)
        elif name.endswith('running_var'):
            value.uniform_(0.5, 1.5)
        elif value.dim() == 1:
            value.uniform_(-1, 1)
        else:
            value.normal_(0, value[0].numel()**-0.5)
    return state


def publish(state: dict, prefix: str = '', masks: str | None = 'mask') -> dict:
    """``state`` in the published layout, with masks that fit nothing and a classifier."""
    published = {}
    for name, value in state.items():
        *block, module, leaf = name.split('.')
        if block[-1:] == ['downsample']:
            path = [*block, {'0': 'conv', '1': 'scale'}[module]]
        elif block:
            kind, number = module[:-1], module[-1]
            path = [*block, f'convbn{number}', {'conv': 'conv', 'bn': 'scale'}[kind]]
        else:
            path = [module]
        published['.'.join([*path, leaf])] = value
        if path[-1] == 'conv' and masks is not None:
            published['.'.join([*path[:-1], masks])] = torch.zeros(()).expand(value.shape)
    published['fc.weight'] = torch.randn(1000, 8)
    published['fc.bias'] = torch.randn(1000)
    return {prefix + name: value for name, value in published.items()}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Import a checkpoint's content; returns the written file and what was printed."""

    def run(checkpoint, depth=50, out=tmp_path / 'out.pth'):
        save_file(checkpoint, tmp_path / 'in.pth')
        arguments = [TOOL, tmp_path / 'in.pth', out, '--depth', depth]
        monkeypatch.setattr(sys, 'argv', list(map(str, arguments)))
        # not capsys: mmengine's logger, made later in the test, would keep its stream
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            import_imagenet.main()
        return out, printed.getvalue()

    return run


@pytest.fixture
def refuse(monkeypatch, capsys, tmp_path):
    """Import a file that must be refused; returns the one line of complaint."""
    out = tmp_path / 'out.pth'

    def refuse(path, depth=50, out=out):
        if isinstance(path, dict):
            save_file(path, tmp_path / 'in.pth')
            path = tmp_path / 'in.pth'
        (tmp_path / 'out.pth').write_bytes(b'precious')
        files = sorted(tmp_path.iterdir())
        arguments = [TOOL, path, out, '--depth', depth]
        monkeypatch.setattr(sys, 'argv', list(map(str, arguments)))
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(ROOT / 'tools' / TOOL), run_name='__main__')
        captured = capsys.readouterr()
        error = captured.err.strip()
        assert exit.value.code == 2, error
        assert error.startswith('error: ')
        assert '\n' not in error
        assert captured.out == ''
        assert (tmp_path / 'out.pth').read_bytes() == b'precious'
        assert sorted(tmp_path.iterdir()) == files
        return error

    return refuse


def backbone(path, depth: int) -> ResNet:
    """The backbone that a config with this checkpoint starts from."""
    torch.manual_seed(1)
    model = ResNet(depth, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    model.init_weights()
    model.eval()  # mmdet's returns None
    return model


def assert_same(model: ResNet, depth: int) -> None:
    """``model`` has the weights of ``original(depth)`` and computes the same from them."""
    expected = original(depth)
    state = model.state_dict()
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    twin = ResNet(depth)
    twin.load_state_dict(expected)
    twin.eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        outputs = list(zip(model(image), twin(image), strict=True))
    assert len(outputs) == 4
    assert all(torch.equal(a, b) and a.isfinite().all() and a.any() for a, b in outputs)


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('prefix', PREFIXES)
def test_published_layout(run, depth, prefix):
    stored = publish(original(depth), prefix)
    out, _ = run(dict(epoch=120, arch='resnet', best_acc1=77.5, state_dict=stored,
                      optimizer=dict(state={}, param_groups=[])), depth)
    assert_same(backbone(out, depth), depth)


@pytest.mark.parametrize(('depth', 'masks'), [
    (18, None), (18, 'mask'), (18, 'conv.mask'), (50, 'conv.mask')])
def test_bare_state_dict_with_and_without_masks(run, depth, masks):
    out, printed = run(publish(original(depth), masks=masks), depth)
    assert_same(backbone(out, depth), depth)
    number = {18: 19, 50: 52}[depth]  # all convolutions but the stem
    assert (f'dropped {number} masks' in printed) == (masks is not None)
    for name, value in load_file(out)['state_dict'].items():
        assert value.dim() != 4 or value.count_nonzero() > 0.99 * value.numel(), name


@pytest.mark.parametrize('depth', [18, 50])
def test_torchvision_layout(run, depth):
    state = {**original(depth), 'fc.weight': torch.randn(1000, 8), 'fc.bias': torch.randn(1000)}
    out, printed = run(state, depth)
    assert_same(backbone(out, depth), depth)
    assert 'masks' not in printed
    assert 'dropped 2 weights of the classifier' in printed


def test_mmdets_own_names(run):
    out, printed = run(dict(meta={}, state_dict=original(18)), 18)
    assert_same(backbone(out, 18), 18)
    assert 'dropped' not in printed
    again, _ = run(load_file(out), 18)
    assert_same(backbone(again, 18), 18)


@pytest.mark.parametrize('depth', import_imagenet.DEPTHS)
def test_names_of_every_depth(depth):
    # one number stands for all of a tensor: what counts here is which names and shapes fit
    shapes = import_imagenet.backbone_shapes(depth)
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    imported = import_imagenet.import_classifier(publish(state), shapes)
    assert {name: value.shape for name, value in imported.state_dict.items()} == shapes
    assert len(imported.masks) == sum(len(shape) == 4 for shape in shapes.values()) - 1


def test_file_and_summary(run, tmp_path):
    out, printed = run(dict(state_dict=publish(original(50))), 50, tmp_path / "new/it's.pth")
    written = load_file(out)
    assert written['meta'] == dict(source='in.pth', depth=50)
    assert set(written) == {'meta', 'state_dict'}
    assert list(written['state_dict']) == list(original(50))
    assert 'init_cfg=' in printed
    config = Config.fromstring(printed.splitlines()[-1], '.py')
    assert config.model == dict(backbone=dict(
        depth=50, init_cfg=dict(type='Pretrained', checkpoint=str(out))))
    assert printed.splitlines()[:3] == [
        f'{out}: 318 weights of a ResNet-50', 'dropped 52 masks: training computes them anew',
        'dropped 2 weights of the classifier (fc): a detector has none']


def test_half_precision_and_no_batch_counts(run):
    stored = {name: value.half() if value.is_floating_point() else value
              for name, value in publish(original(18)).items()
              if not name.endswith('num_batches_tracked')}
    out, _ = run(stored, 18)
    written = load_file(out)['state_dict']
    assert {value.dtype for value in written.values()} == {torch.float32}
    state = backbone(out, 18).state_dict()
    for name, value in original(18).items():
        if not name.endswith('num_batches_tracked'):
            assert torch.equal(state[name], value.half().float()), name


def test_sparsifies_to_the_masks_of_the_raw_weights(run):
    out, _ = run(publish(original(50)))
    model = backbone(out, 50)
    handle = maxq_mm.sparsify(model, '2:4')
    assert len(handle.layers) == 52
    for name, layer in handle.layers.items():
        raw = original(50)[f'{name}.weight']
        assert torch.equal(layer.weight, raw)
        assert torch.equal(layer.effective, maxq_mm.soft_mask(raw, '2:4') * raw), name
        assert maxq_mm.satisfies(layer.effective, '2:4')


def test_as_a_user_runs_it(tmp_path):
    save_file(dict(state_dict=publish(original(18), 'module.')), tmp_path / 'in.pth')
    output = run_tool(f'tools/{TOOL}', tmp_path / 'in.pth', tmp_path / 'out.pth', '--depth', 18)
    assert f'{tmp_path / "out.pth"}: 120 weights of a ResNet-18' in output
    assert_same(backbone(tmp_path / 'out.pth', 18), 18)


def test_names_that_do_not_fit(refuse, tmp_path):
    stored = publish(original(50), 'module.')
    for name in ('layer2.1.convbn3.conv.weight', 'layer3.0.downsample.scale.bias'):
        del stored[f'module.{name}']
    stored['module.layer5.0.convbn1.conv.weight'] = torch.ones(1)
    stored['module.conv1.weight'] = torch.ones(64, 3, 3, 3)
    error = refuse(dict(state_dict=stored))
    assert error == (
        f'error: {tmp_path / "in.pth"} does not fit a ResNet-50: 2 missing: '
        'module.layer2.1.convbn3.conv.weight, module.layer3.0.downsample.scale.bias; '
        '1 unknown: module.layer5.0.convbn1.conv.weight; '
        '1 of another shape: module.conv1.weight (64, 3, 3, 3) instead of (64, 3, 7, 7)')


def test_a_weight_in_both_layouts(refuse):
    stored = publish(original(18))
    stored['layer1.0.conv1.weight'] = original(18)['layer1.0.conv1.weight']
    assert ('1 given twice: layer1.0.convbn1.conv.weight and layer1.0.conv1.weight'
            in refuse(stored, 18))


@pytest.mark.parametrize(('depth', 'asked'), [(18, 50), (50, 18), (50, 101)])
def test_another_depth(refuse, depth, asked):
    error = refuse(publish(original(depth)), asked)
    assert f'does not fit a ResNet-{asked}: ' in error
    assert error.endswith(f'; it fits --depth {depth}')


def test_another_network(refuse):
    error = refuse(dict(state_dict={'features.0.weight': torch.ones(3)}))
    missing = re.search(r'(\d+) missing: (.*) and (\d+) more; ', error)
    weights = [name for name in original(50) if 'tracked' not in name]
    assert int(missing[1]) == len(weights)
    assert missing[2].split(', ') == weights[:10]
    assert int(missing[3]) == len(weights) - 10
    assert error.endswith('1 unknown: features.0.weight')


def test_values_that_are_no_numbers(refuse):
    stored = publish(original(18))
    name = 'layer4.1.convbn2.scale.running_var'
    stored[name] = stored[name].clone()
    stored[name][7] = torch.nan
    assert f'{name} has values that are NaN or infinite' in refuse(stored, 18)
    assert "it has 'a\\nb' with a int" in refuse({'a\nb': 3}, 18)
    assert '1 unknown: a b' in refuse({**original(18), 'a\nb': torch.ones(1)}, 18)
    assert 'it holds no weights' in refuse(dict(state_dict={}), 18)


def test_files_that_cannot_be_read(refuse, tmp_path):
    assert 'checkpoint not found: ' in refuse(tmp_path / 'gone.pth')
    assert 'checkpoint not found: ' in refuse(tmp_path)
    path = tmp_path / 'cut.pth'
    save_file(dict(state_dict=publish(original(18))), path)
    whole = path.read_bytes()
    for size in (0, 10, 10**6, len(whole) - 100):
        path.write_bytes(whole[:size])
        assert f'not a readable checkpoint: {path}' in refuse(path, 18)
    torch.save([torch.ones(1)], path)
    assert f'not a checkpoint: {path} holds a list' in refuse(path)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path, )


@pytest.mark.parametrize('where', ['beside', 'inside'])
@pytest.mark.parametrize('write', [torch.save, lambda value, path: path.write_bytes(
    pickle.dumps(value, protocol=2))])
def test_a_file_with_code_is_refused_and_not_run(refuse, tmp_path, where, write):
    trap = Hostile(tmp_path / 'trap')
    state = dict(original(18))
    checkpoint = dict(state_dict=state)
    (state if where == 'inside' else checkpoint)['extra'] = trap
    write(checkpoint, tmp_path / 'hostile.pth')
    assert 'not a readable checkpoint: ' in refuse(tmp_path / 'hostile.pth', 18)
    assert not (tmp_path / 'trap').exists()


def test_files_that_cannot_be_written(refuse, tmp_path):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'folder').mkdir()
    for out in (tmp_path / 'file/out.pth', tmp_path / 'folder'):
        assert f'cannot write {out}: ' in refuse(publish(original(18)), 18, out)
    path = tmp_path / 'in.pth'
    before = path.read_bytes()
    assert f'{path} is the input itself' in refuse(path, 18, path)
    assert path.read_bytes() == before


def test_a_write_that_breaks_off(run, monkeypatch, tmp_path):
    out = tmp_path / 'out.pth'
    out.write_bytes(b'precious')
    save = torch.save

    def broken(value, file):
        if 'meta' not in value:  # the test's own file
            return save(value, file)
        file.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', broken)
    with pytest.raises(import_imagenet.cli.InputError, match='No space left on device'):
        run(publish(original(18)), 18)
    assert out.read_bytes() == b'precious'
    assert {path.name for path in tmp_path.iterdir()} == {'in.pth', 'out.pth'}


def test_depths_that_there_are_none_of(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [TOOL, 'a.pth', 'b.pth', '--depth', '20'])
    with pytest.raises(SystemExit) as exit:
        import_imagenet.main()
    assert exit.value.code == 2
    assert 'choose from 18, 34, 50, 101, 152' in capsys.readouterr().err.replace("'", '')

"""torch.compile: the same numbers, in one graph that is traced once."""

import copy

import pytest
import torch
from torch import nn

from maxq_mm import satisfies, sparsify

RAMP = dict(type='linear', begin=0, end=3)


def resnet() -> nn.Module:
    backbones = pytest.importorskip('mmdet.models.backbones')
    torch.manual_seed(0)
    return backbones.ResNet(18, base_channels=16, frozen_stages=1, norm_eval=False)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1),
                         nn.Flatten(), nn.Linear(8 * 36, 8))


@pytest.fixture(autouse=True, scope='module')
def _own_cache(tmp_path_factory):
    """The compiler's own is one for all of a machine's instruction sets, forced ones, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path_factory.mktemp('inductor')))
        yield


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def outputs(model, x):
    y = model(x)
    return y if isinstance(y, tuple) else (y, )


def assert_close(a, b):
    for one, other in zip(a, b, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


# The R18 backbone tells graph breaks and recompilation, the small network what C++ makes of it.
# In float64 rounding turns no mask of two nearly equal weights; inductor's C++ of it does not
# compile under ATEN_CPU_CAPABILITY=default, and the small network has few weights.
@pytest.mark.parametrize(('build', 'size', 'backend', 'dtype'), [
    (resnet, 64, 'aot_eager', torch.float64), (small, 8, 'inductor', torch.float32)])
def test_trains_like_eager(build, size, backend, dtype):
    models = [build().to(dtype)]
    models.append(copy.deepcopy(models[0]))
    for model in models:
        model.train()
    handles = [sparsify(model, '2:4', ramp=RAMP, decay=0.05) for model in models]
    optimizers = [torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05,
                                  momentum=0.9) for model in models]
    for handle, optimizer in zip(handles, optimizers, strict=True):
        handle.attach(optimizer)
    calls = [models[0], torch.compile(models[1], fullgraph=True, backend=backend)]
    x = torch.randn(4, 3, size, size, dtype=dtype)
    for step in range(5):
        results = []
        for call, handle, optimizer in zip(calls, handles, optimizers, strict=True):
            with torch._dynamo.config.patch(error_on_recompile=step > 0):
                handle.set_progress(step)
                y = outputs(call, x)
                optimizer.zero_grad()
                sum(part.square().mean() for part in y).backward()
            results.append((y, [p.grad.clone() for p in models[len(results)].parameters()
                                if p.grad is not None]))
            optimizer.step()
        for eager, compiled in zip(*results, strict=True):
            assert_close(eager, compiled)
    assert torch._dynamo.utils.counters['graph_break'] == {}
    for model in models:
        model.eval()
    with torch.no_grad():
        assert_close(outputs(models[0], x), outputs(calls[1], x))
    for layer in handles[1].layers.values():
        assert satisfies(layer.effective, '2:4')


def test_follows_loaded_weights():
    model, other = small(), small()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-2)
    sparsify(model, '2:4')
    compiled = torch.compile(model.eval(), fullgraph=True, backend='aot_eager')
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        compiled(x)
        model.load_state_dict(other.state_dict())
        sparsify(other, '2:4')
        assert torch.equal(compiled(x), other.eval()(x))


def test_follows_a_refresh():
    """A weight written by hand is the one change that compiled code has to be told of."""
    model = small().eval()
    handle = sparsify(model, '2:4')
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        compiled(x)
        model[3].weight.neg_()
        handle.refresh()
        assert torch.equal(compiled(x), model(x))


def test_starts_from_the_present_weights():
    """Compiled after the raw weight has changed behind the layer's back."""
    model = small().eval()
    sparsify(model, '2:4')
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        model(x)
        model[3].weight.neg_()
        compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
        assert torch.equal(compiled(x), model(x))


def test_a_copy_compiles_too():
    model = small().eval()
    sparsify(model, '2:4')
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
        again = copy.deepcopy(model)
        assert torch.equal(torch.compile(again, fullgraph=True, backend='aot_eager')(x), expected)


def test_training_needs_an_attached_optimizer():
    """Nobody else would tell compiled code of a step."""
    model = small().train()
    handle = sparsify(model, '2:4', decay=0.)
    compiled = torch.compile(model, backend='aot_eager')
    x = torch.randn(4, 3, 8, 8)
    with pytest.raises(Exception, match='call handle.attach') as error:
        compiled(x)
    assert 'RuntimeError' in repr(error.value) or isinstance(error.value, RuntimeError)
    torch._dynamo.reset()
    handle.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    assert_close([compiled(x)], [model(x)])


def test_a_compiled_layer_that_another_handle_took_over_follows_its_optimizer():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsify(model, '2:4', include=('3', '5')).attach(optimizer)
    compiled, x = torch.compile(model, backend='aot_eager'), torch.randn(2, 3, 8, 8)
    compiled(x)
    sparsify(model, '1:4', include=('5', ))
    compiled(x).square().sum().backward()
    optimizer.step()
    output = compiled(x)
    assert_close([output], [model(x)])

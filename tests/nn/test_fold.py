import torch
from torch import nn

from maxq_mm import MaxQConv2d, fold, satisfies, sparsify


def test_outputs_stay_and_zeros_are_exact():
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(256, 4))
    x = torch.randn(3, 8, 6, 6)
    parameters = list(model.parameters())
    handle = sparsify(model, '1:4')
    effective = [layer.effective.clone() for layer in handle.layers.values()]
    model.eval()
    before = model(x)
    assert fold(model) is model
    assert [type(m) for m in model] == [nn.Conv2d, nn.BatchNorm2d, nn.Flatten, nn.Linear]
    assert torch.equal(model(x), before)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model[0].weight, effective[0])
    assert torch.equal(model[3].weight, effective[1])
    assert satisfies(model[0].weight, '1:4')
    assert not [name for name in vars(model[0]) if 'maxq' in name or name in ('settings', '_keep')]


def test_layers_that_stayed_dense_fold_too():
    model = nn.Sequential(MaxQConv2d(3, 8, 3, pattern='2:4'))
    weight = model[0].weight.detach().clone()
    fold(model)
    assert type(model[0]) is nn.Conv2d
    assert torch.equal(model[0].weight, weight)


def test_a_weight_that_layers_share_is_masked_once():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
    model[2].weight = model[0].weight
    sparsify(model, '2:4')
    x = torch.randn(5, 8)
    with torch.no_grad():
        before = model(x)
        fold(model)
        assert torch.equal(model(x), before)


def test_zeros_have_no_sign():
    """So that files of the same network are equal, whichever way they were folded."""
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    sparsify(model, '2:4', axes=(), fixed=True)
    assert model[0].effective.signbit()[model[0].effective == 0].any()
    fold(model)
    assert not model[0].weight.signbit()[model[0].weight == 0].any()

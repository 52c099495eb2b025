import pytest
import torch
from mmcv.cnn.bricks.wrappers import Conv2d as WrappedConv2d
from mmcv.cnn.bricks.wrappers import Linear as WrappedLinear
from torch import nn

from maxq_mm.functional.pattern import Pattern
from maxq_mm.nn.select import Selection
from maxq_mm.nn.select import select as select_by
from maxq_mm.nn.settings import SparsitySettings


def select(model: nn.Module, pattern: str, **settings) -> Selection:
    return select_by(model, SparsitySettings(pattern, **settings))


class Scaled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


class Net(nn.Module):

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict(dict(
            stem=nn.Conv2d(3, 16, 7), conv=nn.Conv2d(16, 32, 3, bias=False),
            grouped=nn.Conv2d(32, 32, 3, groups=4), norm=nn.BatchNorm2d(32),
            frozen=nn.Conv2d(32, 32, 1).requires_grad_(False), own=Scaled(32, 32, 1),
            wrapped=WrappedConv2d(32, 32, 1)))
        self.head = nn.ModuleDict(dict(
            attention=nn.MultiheadAttention(32, 4), fc=nn.Linear(32, 8),
            wrapped=WrappedLinear(32, 8), transposed=nn.ConvTranspose2d(32, 8, 2),
            embedding=nn.Embedding(10, 32)))


def test_every_layer_is_sparse_or_has_a_reason():
    selection = select(Net(), '2:4')
    assert selection.sparse == dict.fromkeys(
        ['backbone.conv', 'backbone.wrapped', 'head.fc', 'head.wrapped'], Pattern(2, 4))
    expected = {
        'backbone.stem': '3 input channels, not divisible by 4',
        'backbone.grouped': 'grouped (4 groups)',
        'backbone.frozen': 'frozen',
        'backbone.own': 'Scaled computes with its weight in its own way',
        'head.attention': 'in-projection of attention, no layer of its own',
        'head.attention.out_proj':
            'NonDynamicallyQuantizableLinear computes with its weight in its own way',
        'head.transposed': 'ConvTranspose2d computes with its weight in its own way',
        'head.embedding': 'Embedding computes with its weight in its own way',
    }
    assert selection.skipped == expected


def test_include_and_exclude_are_module_prefixes():
    selection = select(Net(), '2:4', include=('backbone', 'head.fc'),
                       exclude=('backbone.wrapped', ))
    assert list(selection.sparse) == ['backbone.conv', 'head.fc']
    assert selection.skipped['head.wrapped'] == 'not in include'
    assert selection.skipped['backbone.wrapped'] == 'in exclude'
    with pytest.raises(ValueError, match="'back'"):  # a name, not a string prefix
        select(Net(), '2:4', include=('back', ))


def test_overrides_take_the_first_match():
    selection = select(Net(), '2:4', overrides={r'\.conv$': '1:16', 'backbone': None,
                                                'head': '1:4'})
    assert selection.sparse == {'backbone.conv': (1, 16), 'head.fc': (1, 4),
                                'head.wrapped': (1, 4)}
    assert selection.skipped['backbone.wrapped'] == 'dense by overrides'


@pytest.mark.parametrize(('arguments', 'named'), [
    (dict(include=('backbon', )), ["include has 'backbon'", 'are backbone']),
    (dict(exclude=('head.fcs', )), ["exclude has 'head.fcs'", 'head.fc']),
    (dict(overrides={r'backbone\.layer4': '1:4'}), ['overrides has', 'layer4', 'backbone.']),
    (dict(include=('backbone', ), overrides={'head': '1:4'}), ["overrides has 'head'"]),
    (dict(overrides={'backbone': '5:4'}), ["overrides['backbone']", '5:4']),
    (dict(overrides={'(': '1:4'}), ["overrides key '('"]),
    (dict(overrides=['backbone']), ['overrides', "['backbone']"]),
    (dict(include='backbone'), ["include", "'backbone'"]),
    (dict(include=(3, )), ['include', '3']),
    (dict(pattern='1:7'), ['no layer can be 1:7', 'not divisible by 7']),
    (dict(include=('backbone.grouped', )), ['no layer can be 2:4', 'grouped']),
])
def test_bad_arguments(arguments, named):
    with pytest.raises(ValueError) as error:
        select(Net(), **{'pattern': '2:4', **arguments})
    assert all(text in str(error.value) for text in named), error.value


def detector() -> nn.Module:
    def mlp() -> nn.Module:
        return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4), nn.ReLU())

    return nn.ModuleDict(dict(
        neck=nn.Conv2d(16, 32, 1),
        rpn=nn.ModuleDict(dict(rpn_conv=nn.Conv2d(32, 32, 3), rpn_cls=nn.Conv2d(32, 4, 1))),
        head=nn.ModuleDict(dict(
            fc=nn.Linear(32, 32), fc_cls=nn.Linear(32, 4), reg_branches=nn.ModuleList(
                [mlp(), mlp()])))))


PREDICTING = ['rpn.rpn_cls', 'head.fc_cls', 'head.reg_branches.0.2', 'head.reg_branches.1.2']


@pytest.mark.parametrize(('settings', 'sparse'), [
    (dict(), []),
    (dict(include=('rpn', 'head')), []),
    (dict(include=('neck', 'rpn.rpn_cls')), ['rpn.rpn_cls']),
    (dict(include=('neck', 'head.reg_branches')), PREDICTING[2:]),
    (dict(include=('neck', 'head.reg_branches.1.2')), PREDICTING[3:]),
    (dict(overrides={'head': '1:4'}), []),
    (dict(overrides={r'head\.': '1:4'}), []),
    (dict(overrides={'fc': '1:4'}), ['head.fc_cls']),
    (dict(overrides={'fc': None}), []),
    (dict(overrides={'head': '1:4', 'fc_cls': '1:8'}), []),  # the first that matches counts
    (dict(overrides={'.*': '1:4'}), PREDICTING),
    (dict(predictors=True), PREDICTING),
    (dict(predictors=True, exclude=('head.fc_cls', )), [PREDICTING[0], *PREDICTING[2:]]),
])
def test_layers_that_predict_stay_dense_unless_named(settings, sparse):
    selection = select(detector(), '2:4', **settings)
    assert [name for name in PREDICTING if name in selection.sparse] == sparse
    reasons = {selection.skipped[name] for name in PREDICTING if name not in sparse}
    assert reasons <= {'predicts, and is not named', 'not in include', 'in exclude',
                       'dense by overrides'}
    assert sparse or 'predicts, and is not named' in reasons
    assert len(selection.sparse) > len(sparse)  # the layers before them


def test_a_predicting_layer_that_was_built_sparse_is_meant():
    from maxq_mm import MaxQLinear
    model = nn.ModuleDict(dict(fc_cls=MaxQLinear(32, 8, pattern='1:4'), fc_reg=nn.Linear(32, 4),
                               fc=nn.Linear(32, 8)))
    assert select(model, '2:4').sparse == {'fc_cls': (1, 4), 'fc': (2, 4)}


def test_a_model_without_layers():
    with pytest.raises(ValueError, match='no layers'):
        select(nn.ReLU(), '2:4')


def test_shared_module_is_one_layer():
    layer = nn.Linear(8, 8)
    assert list(select(nn.ModuleList([layer, layer]), '2:4').sparse) == ['0']


def test_encoder_layers_that_torch_runs_past_their_linear_layers():
    model = nn.ModuleDict(dict(encoder=nn.TransformerEncoderLayer(16, 2, 32), fc=nn.Linear(16, 4)))
    selection = select(model, '2:4')
    assert list(selection.sparse) == ['fc']
    assert 'without calling' in selection.skipped['encoder.linear1']


def test_frozen_sparse_layers_are_dense():
    from maxq_mm import MaxQLinear, sparsify
    model = nn.ModuleList([MaxQLinear(8, 8, pattern='2:4').requires_grad_(False),
                           MaxQLinear(8, 8, pattern='2:4')])
    handle = sparsify(model, '2:4')
    assert handle.skipped == {'0': 'frozen'}
    assert torch.equal(model[0].effective, model[0].weight)


def tied(first: nn.Module, second: nn.Module) -> nn.Module:
    second.weight = first.weight
    return nn.ModuleDict(dict(first=first, second=second, other=nn.Linear(16, 16)))


def test_a_weight_that_another_module_reads_raw_stays_dense():
    model = tied(nn.Embedding(16, 16), nn.Linear(16, 16))
    selection = select(model, '2:4')
    assert list(selection.sparse) == ['other']
    assert selection.skipped['second'] == 'its weight is also that of first, which is not 2:4'


@pytest.mark.parametrize('settings', [dict(overrides={'second': '1:4'}), dict(exclude=('second', )),
                                      dict(overrides={'first': None})])
def test_layers_of_one_weight_are_alike_or_dense(settings):
    """What holds for the model holds for the folded one, which has a single weight for both."""
    model = tied(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    assert list(select(model, '2:4').sparse) == ['first', 'second', 'other']
    selection = select(model, '2:4', **settings)
    assert list(selection.sparse) == ['other']
    assert {'first', 'second'} == set(selection.skipped)

"""Checkpoints whose parts are not what they have to be, and starts from random weights."""

import pytest
import torch
from torch import nn

from maxq_mm import cli
from maxq_mm.utils.errors import InputError
from maxq_mm.utils.files import save_file

LAYER = dict(pattern='2:4')
SOUND = dict(
    meta=dict(epoch=1, iter=2, dataset_meta=dict(classes=('a', 'b'))),
    message_hub=dict(log_scalars={}), optimizer={}, state_dict={'a.weight': torch.zeros(2, 4)},
    maxq=dict(version=1, layers=dict(a=LAYER), raw={'a.weight': torch.zeros(2, 4)}, ramp={}))


def read(tmp_path, **changes):
    save_file({**SOUND, **changes}, tmp_path / 'a.pth')
    return cli.read_checkpoint(tmp_path / 'a.pth')


@pytest.mark.parametrize(('changes', 'named'), [
    (dict(state_dict=[1]), 'has a list as its state_dict'),
    (dict(state_dict={'a.weight': 'x'}), 'has a str in place of the weight a.weight'),
    (dict(state_dict={1: torch.zeros(1)}), 'has the key 1'),
    (dict(meta=[]), 'has a list as its meta'),
    (dict(meta=dict(dataset_meta=[1])), 'has a list as its meta.dataset_meta'),
    (dict(message_hub=3), 'has a int as its message_hub'),
    (dict(message_hub=dict(log_scalars=dict(loss=3))), 'in place of the history of loss'),
    (dict(maxq=3), "'maxq' part is not of version 1"),
    (dict(maxq=dict(SOUND['maxq'], layers=[1])), 'maxq.layers is a list, no dict'),
    (dict(maxq=dict(SOUND['maxq'], layers=dict(a=3))), "maxq.layers has no pattern for 'a'"),
    (dict(maxq=dict(SOUND['maxq'], layers=dict(a=dict(pattern=4)))), "no pattern for 'a'"),
    (dict(maxq=dict(SOUND['maxq'], raw=[1])), 'maxq.raw is a list, no dict'),
    (dict(maxq=dict(SOUND['maxq'], raw={'a.weight': 1})),
     "maxq.raw['a.weight'] is a int, no tensor"),
    (dict(maxq=dict(SOUND['maxq'], ramp=[1])), 'maxq.ramp is a list, no dict'),
], ids=str)
def test_parts_of_other_types(tmp_path, changes, named):
    read(tmp_path)
    with pytest.raises(InputError) as error:
        read(tmp_path, **changes)
    assert named in str(error.value)
    assert str(tmp_path / 'a.pth') in str(error.value)


def test_a_bare_state_dict_may_hold_more_than_weights(tmp_path):
    save_file({'a.weight': torch.zeros(1), 'epoch': 3}, tmp_path / 'a.pth')
    assert cli.read_checkpoint(tmp_path / 'a.pth')['epoch'] == 3


@pytest.mark.parametrize(('changes', 'named'), [
    (dict(meta={}), 'meta.epoch'), (dict(meta=dict(epoch='x', iter=1)), 'meta.epoch'),
    (dict(meta=dict(epoch=1)), 'meta.iter'),
    (dict(message_hub={}), 'message_hub.log_scalars')], ids=str)
def test_resume_needs_to_know_where(tmp_path, changes, named):
    cli.check_resumable(read(tmp_path), 'a.pth')
    with pytest.raises(InputError, match=f'cannot resume from a.pth: it has no {named}'):
        cli.check_resumable(read(tmp_path, **changes), 'a.pth')


def test_a_start_from_no_weight_at_all():
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    cli.check_start(model, dict(state_dict=model.state_dict()), 'a.pth')
    cli.check_start(model, {f'module.{k}': v for k, v in model.state_dict().items()}, 'a.pth')
    cli.check_start(model, {'0.bias': torch.zeros(2)}, 'a.pth')
    counter = '1.num_batches_tracked'
    for stored in ({}, {'x': torch.zeros(2)}, {'0.weight': torch.zeros(4, 2)},
                   {counter: model.state_dict()[counter]}):
        with pytest.raises(InputError, match='a.pth: none of the . weights of the checkpoint fits'):
            cli.check_start(model, stored, 'a.pth')


class Data:
    def __init__(self, classes):
        self.metainfo = dict(classes=classes)


def test_the_order_of_classes_counts(tmp_path):
    trained = cli.trained_classes(read(tmp_path))
    cli.check_classes(trained, 'a.pth', Data(('a', 'b')))
    for unknown in ({}, dict(meta=dict(dataset_meta=[1]))):
        cli.check_classes(cli.trained_classes(unknown), 'a.pth', Data(('b', 'a')))
    with pytest.raises(InputError, match=r'a.pth finds the classes 2 \(a, b\), the data has in '
                                         r'another order: 2 \(b, a\)'):
        cli.check_classes(trained, 'a.pth', Data(('b', 'a')))
    with pytest.raises(InputError, match=r'the data has 1 \(a\)'):
        cli.check_classes(trained, 'a.pth', Data(['a']))

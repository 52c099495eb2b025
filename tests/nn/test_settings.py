"""Settings are parsed and checked once; what is wrong is named."""

import dataclasses
import inspect

import pytest

from maxq_mm import MaxQConv2d, MaxQHook, MaxQLinear, soft_mask, sparsify
from maxq_mm.functional.pattern import Pattern
from maxq_mm.functional.ramp import Ramp
from maxq_mm.nn.settings import MaskSettings, SparsitySettings


def test_everything_is_parsed():
    settings = SparsitySettings('2:4', axes=['filter'], include=['a'], overrides={'b.*': '1:4',
                                                                                  'c': None},
                                ramp=dict(type='cubic', end=3))
    assert settings.pattern == Pattern(2, 4)
    assert settings.axes == ('filter', )
    assert settings.include == ('a', )
    assert settings.ramp == Ramp('cubic', 0, 3)
    assert settings.pattern_of('bb', settings.pattern) == (1, 4)
    assert settings.pattern_of('c', settings.pattern) is None
    assert settings.pattern_of('x', settings.pattern) == (2, 4)
    assert settings.mask(Pattern(1, 4)) == MaskSettings('1:4', axes=('filter', ))
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.decay = 1.


def test_plain_values_give_the_same_settings_again():
    settings = SparsitySettings('1:8', include=('a', ), overrides={'b': '1:4', 'c': None},
                                ramp=dict(end=2, by_epoch=False), decay=1, order='random',
                                predictors=True)
    assert SparsitySettings(**settings.as_dict()) == settings


@pytest.mark.parametrize(('wrong', 'right'), [
    ('patern', 'pattern'), ('includes', 'include'), ('temprature', 'temperature'),
    ('override', 'overrides'), ('axis', 'axes')])
def test_a_misspelt_argument_is_named_with_the_nearest(wrong, right):
    from mmengine.registry import HOOKS

    for build in (MaxQHook, lambda **arguments: HOOKS.build(dict(type='MaxQHook', **arguments))):
        with pytest.raises(ValueError, match=f"argument '{wrong}'; the nearest is '{right}'"):
            build(**{'pattern': '2:4', wrong: 1} if wrong != 'patern' else {wrong: '2:4'})


def test_a_hook_needs_a_pattern():
    with pytest.raises(ValueError, match='pattern must be .*None'):
        MaxQHook()


def test_defaults_are_the_same_everywhere():
    """Of layers, of sparsify, of the hook and of the pure function."""
    settings = MaxQHook('2:4').settings
    assert settings == SparsitySettings('2:4', include=('backbone', ))
    for function in (sparsify, soft_mask, MaxQConv2d.__init__, MaxQLinear.__init__):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in ('axes', 'temperature', 'order', 'fixed', 'decay', 'predictors'):
                assert parameter.default == getattr(settings, name), name

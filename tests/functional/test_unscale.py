"""An N:M weight is the effective one of a raw weight, which is found."""

import pytest
import torch

from maxq_mm import keep_mask, satisfies
from maxq_mm.functional.masks import AXES, effective_weight
from maxq_mm.functional.pattern import Pattern
from maxq_mm.functional.unscale import unscaled

from .test_native import KINDS, draw


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('pattern', ['2:4', '1:16'])
@pytest.mark.parametrize('axes', [AXES, ('filter', )])
def test_the_raw_weight_of_an_effective_one(kind, pattern, axes):
    """Of weights in units of the temperature from far below to far above 1."""
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1., 30.):
        for shape in ((24, 32, 3, 3), (16, 64)):
            weight = (draw(generator, shape, kind) * scale).clamp(-1e20, 1e20)
            for given in (weight * keep_mask(weight, pattern),
                          effective_weight(weight, pattern, 0., axes)):
                raw = unscaled(given, Pattern.parse(pattern), axes, 1e-2)
                assert torch.allclose(effective_weight(raw, pattern, 0., axes), given, rtol=1e-5,
                                      atol=1e-38)
                assert torch.allclose(effective_weight(raw, pattern, 1., axes), given, rtol=1e-5,
                                      atol=1e-38)  # at the start of a ramp
                assert satisfies(raw, pattern)
                assert (raw.abs() <= given.abs()).all()


def test_a_weight_by_hand():
    """One filter of 2, the threshold at half the smaller: w (1 + sigmoid((w - t) / 0.01)) = e."""
    raw = unscaled(torch.tensor([[0.02, 0, 0, -0.05]]), Pattern(2, 4), ('filter', ), 1e-2)[0]
    assert raw[1] == raw[2] == 0
    small, large = raw[0], -raw[3]
    for value, wanted in ((small, 0.02), (large, 0.05)):
        query = torch.sigmoid((value - small / 2) / 1e-2)
        assert value * (1 + query) == pytest.approx(wanted, rel=1e-5)
    assert torch.equal(unscaled(raw[None], Pattern(2, 4), (), 1e-2)[0], raw)  # nothing scales


def test_numbers_that_are_not_finite():
    weight = torch.tensor([[torch.nan, 0, 0, 1.]])
    assert unscaled(weight, Pattern(2, 4), AXES, 1e-2) is None

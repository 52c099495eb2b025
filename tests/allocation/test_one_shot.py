import pytest
import torch

from maxq_mm.allocation import moments as moments_module
from maxq_mm.allocation.moments import Moments, sample
from maxq_mm.allocation.one_shot import least_squares, one_shot
from maxq_mm.functional.masks import keep_mask
from maxq_mm.utils.errors import InputError


@pytest.fixture
def correlated():
    """Samples ``(500, 40)`` with strong correlations and a mean."""
    return torch.randn(500, 8) @ torch.randn(8, 40) + 0.3 * torch.randn(500, 40) + 1


def test_least_squares_is_the_closed_form(correlated):
    x, rows, keep = correlated.double(), torch.randn(6, 40).double(), torch.rand(6, 40) > 0.5
    gram = x.t() @ x
    damped = gram + 1e-2 * gram.diagonal().mean() * torch.eye(40)
    found = least_squares(rows, keep, gram)
    for row, kept, solved in zip(rows, keep, found, strict=True):
        expected = torch.linalg.solve(damped[kept][:, kept], damped[kept] @ row)
        torch.testing.assert_close(solved[kept], expected, rtol=1e-4, atol=1e-5)
        assert not solved[~kept].any()


def test_all_kept_is_the_weight_itself(correlated):
    rows = torch.randn(3, 40)
    found = least_squares(rows, torch.ones(3, 40, dtype=torch.bool), correlated.t() @ correlated)
    torch.testing.assert_close(found, rows)


def test_inputs_that_depend_on_each_other():
    """Their Gram matrix has negative eigenvalues by rounding, larger than the damping."""
    x = torch.randn(500, 1).expand(500, 40) + 1e-4 * torch.randn(500, 40)
    rows, keep = torch.randn(3, 40), torch.rand(3, 40) > 0.3
    found = least_squares(rows, keep, x.t() @ x, damping=1e-9)
    error = (x @ (found - rows).t()).square().mean()
    assert error < 1e-4 * (x @ (rows * ~keep).t()).square().mean()


def test_inputs_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match='inputs of a layer are not finite'):
        least_squares(torch.randn(2, 4), torch.ones(2, 4, dtype=torch.bool),
                      torch.full((4, 4), float('nan')))


def test_inputs_of_zero_change_nothing():
    rows, keep = torch.randn(2, 4), torch.tensor([[True, False] * 2] * 2)
    torch.testing.assert_close(least_squares(rows, keep, torch.zeros(4, 4)), rows * keep)


def test_mends_what_another_network_spoils(correlated):
    """With inputs that are half of the dense network's, weights become twice as large."""
    rows, keep = torch.randn(3, 40), torch.ones(3, 40, dtype=torch.bool)
    seen = correlated / 2
    found = least_squares(rows, keep, seen.t() @ seen, seen.t() @ correlated, damping=1e-6)
    error = (seen @ found.t() - correlated @ rows.t()).square().mean()
    assert error < 1e-3 * (correlated @ rows.t()).square().mean()


def collected(x: torch.Tensor) -> Moments:
    moments = Moments(x.shape[1])
    moments.add(x)
    return moments


@pytest.mark.parametrize('saliency', ['magnitude', 'second-order'])
def test_compensation_lowers_the_error_of_outputs(correlated, saliency):
    weight = torch.randn(5, 8, 1, 5)
    moments = collected(correlated)
    plain, mended = (one_shot(weight, '2:4', moments, saliency, compensate)
                     for compensate in (False, True))
    errors = [((pruned - weight).flatten(1) @ correlated.t()).square().mean()
              for pruned in (plain, mended)]
    assert errors[1] < 0.3 * errors[0]
    assert torch.equal(plain != 0, mended != 0)


def test_saliency_chooses():
    weight = torch.tensor([[3., 2., 1., -1.]])
    moments = collected(torch.tensor([[1., 1., 1., 9.]]))
    kept = [one_shot(weight, '1:4', moments, saliency, compensate=False).tolist()
            for saliency in ('magnitude', 'second-order')]
    assert kept == [[[3., 0., 0., 0.]], [[0., 0., 0., -1.]]]
    with pytest.raises(InputError, match="saliency must be one of .* got 'size'"):
        one_shot(weight, '1:4', saliency='size')


def test_without_moments_the_magnitude_decides_and_no_zero_is_negative():
    weight = -torch.rand(4, 8, 3, 3) - 0.1
    pruned = one_shot(weight, '1:4', None, 'second-order')
    assert torch.equal(pruned, torch.where(keep_mask(weight, '1:4'), weight, 0.))
    assert not torch.signbit(pruned[pruned == 0]).any()


def test_long_rows_are_handled_in_parts(correlated, monkeypatch):
    monkeypatch.setattr(moments_module, 'MAX_PART', 15)
    weight = torch.randn(2, 40)
    moments = collected(correlated)
    assert [part.stop - part.start for part in moments.parts] == [13, 13, 14]
    assert torch.allclose(moments.diagonal, correlated.square().mean(0), rtol=1e-4)
    pruned = one_shot(weight, '2:4', moments)
    for part in moments.parts:
        x = correlated[:, part]
        torch.testing.assert_close(pruned[:, part], least_squares(
            weight[:, part], keep_mask(weight, '2:4')[:, part], x.t() @ x))


@pytest.mark.parametrize('settings', [
    dict(kernel_size=3, stride=2, padding=1, dilation=2), dict(kernel_size=1),
    dict(kernel_size=(3, 1), padding='same'),
    dict(kernel_size=3, padding=1, padding_mode='reflect')])
def test_samples_times_weights_are_the_outputs(settings):
    conv = torch.nn.Conv2d(4, 5, **settings)
    inputs = torch.randn(2, 4, 9, 11)
    outputs = conv(inputs).movedim(1, -1).reshape(-1, 5)
    found = sample(conv, inputs, 10**6, seed=3) @ conv.weight.flatten(1).t() + conv.bias
    torch.testing.assert_close(found.sort(0).values, outputs.sort(0).values, rtol=1e-4, atol=1e-5)
    few = sample(conv, inputs, 7, seed=3)
    assert len(few) == 7
    assert torch.equal(few, sample(conv, inputs, 10**6, seed=3)[:7])


def test_samples_of_a_linear_layer():
    rows = torch.arange(24.).view(2, 3, 4)
    found = sample(torch.nn.Linear(4, 2), rows, 100, seed=0)
    assert torch.equal(found.sort(0).values, rows.view(6, 4))

"""Loss attribution: exact on a quadratic, of third order elsewhere, and honest about what it leaves over."""

import math

import numpy as np
import pytest

from fastgeom.analysis import attribution_residual, loss_attribution
from tests.trajectories import Descent

NAN, INF = math.nan, math.inf


@pytest.fixture
def descent() -> Descent:
    return Descent([0.1, 1.0, 7.0, 19.0], 0.1, start=[3.0, -2.0, 1.0, 0.5], steps=40)


def test_each_layer_of_a_quadratic_is_charged_with_its_own_loss(descent: Descent) -> None:
    """A diagonal quadratic is a sum over its coordinates, so that the change of each term is the truth."""
    parts = loss_attribution(descent.layer_grad_dot_update, descent.layer_next_grad_dot_update)
    terms = 0.5 * descent.eigenvalues * descent.x**2
    np.testing.assert_allclose(parts[:-1], np.diff(terms, axis=0), rtol=1e-9, atol=1e-15)
    assert np.isnan(parts[-1]).all()


def test_nothing_is_left_over_on_a_quadratic(descent: Descent) -> None:
    layers = loss_attribution(descent.layer_grad_dot_update, descent.layer_next_grad_dot_update)
    overall = loss_attribution(descent.grad_dot_update, descent.next_grad_dot_update)
    for parts in (layers, overall):
        residual = attribution_residual(parts, descent.loss)
        np.testing.assert_allclose(residual[:-1], 0.0, atol=1e-12)
        assert math.isnan(residual[-1])


def test_residual_is_of_third_order() -> None:
    """f = x^4 from 1 by h: f(1 + h) - f(1) - h (f' + f'') / 2 = -h^3 f'''/ 12 + ... = -2 h^3."""
    for h in (1e-2, 1e-3):
        after = 1 + h
        part = loss_attribution([4 * h, NAN], [4 * after**3 * h, NAN])
        assert attribution_residual(part, [1.0, after**4])[0] == pytest.approx(-2 * h**3, rel=2 * h)


def test_what_the_gradient_does_not_see_is_left_over(descent: Descent) -> None:
    parts = loss_attribution(descent.grad_dot_update, descent.next_grad_dot_update)
    drift = 0.25 * np.arange(41)
    np.testing.assert_allclose(attribution_residual(parts, descent.loss + drift)[:-1], 0.25, rtol=1e-9)


def test_unknown_changes_and_gaps() -> None:
    loss = [8.0, 4.0, 2.0, NAN, 1.0, INF, 0.5, 0.5]
    parts = [-4.0, -1.0, -1.0, -1.0, -1.0, -1.0, NAN, 0.0]
    expected = [0.0, -1.0, NAN, NAN, NAN, NAN, NAN, NAN]
    np.testing.assert_array_equal(attribution_residual(parts, loss), expected)
    np.testing.assert_array_equal(
        attribution_residual([0.0, 0.0, 0.0], [3.0, 2.0, 1.0], step=[0, 5, 6]), [NAN, -1.0, NAN]
    )
    np.testing.assert_array_equal(loss_attribution([INF, 1.0], [-INF, NAN]), [NAN, NAN])


@pytest.mark.parametrize("rows", [0, 1])
def test_too_little_gives_no_warning(rows: int) -> None:
    assert np.isnan(attribution_residual(np.ones(rows), np.ones(rows))).all()
    assert loss_attribution(np.ones(rows), np.ones(rows)).shape == (rows,)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"got grad_dot_update \(2,\), next_grad_dot_update \(1,\)"):
        loss_attribution([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"attribution: expected shape \(3,\) or \(3, layer\).*got \(2,\)"):
        attribution_residual([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"attribution: expected shape .*got \(3, 2, 2\)"):
        attribution_residual(np.ones((3, 2, 2)), [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"attribution: expected shape .* got a single number"):
        attribution_residual(1.0, [1.0])
    with pytest.raises(ValueError, match=r"loss: expected .* got shape \(1, 2\)"):
        attribution_residual([1.0, 2.0], [[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"step: expected strictly increasing"):
        attribution_residual([1.0, 2.0], [1.0, 2.0], step=[1, 1])

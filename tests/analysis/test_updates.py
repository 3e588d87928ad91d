"""Size, direction and angle of updates against the vectors themselves, and the angle against high precision."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest

from fastgeom.analysis import angular_update, update_cosine, update_ratio
from tests.trajectories import Descent

NAN, INF = math.nan, math.inf


def squares(start: list[float], update: list[float]) -> tuple[list[float], list[float]]:
    """param_sq and update_sq of one update, rounded to float64 only at the end."""
    with localcontext() as context:
        context.prec = 60
        x, u = [Decimal(v) for v in start], [Decimal(v) for v in update]
        after = [a + b for a, b in zip(x, u, strict=True)]
        of = [float(sum(v * v for v in vector)) for vector in (x, after, u)]
    return of[:2], [of[2], NAN]


def test_ratio_and_cosine_are_those_of_the_vectors() -> None:
    rng = np.random.default_rng(0)
    x, g, u = rng.standard_normal((3, 20, 7))
    grad_sq, update_sq, param_sq = ((v**2).sum(axis=1) for v in (g, u, x))
    np.testing.assert_allclose(update_ratio(update_sq, param_sq), np.linalg.norm(u, axis=1) / np.linalg.norm(x, axis=1))
    cosine = (-g * u).sum(axis=1) / np.linalg.norm(g, axis=1) / np.linalg.norm(u, axis=1)
    np.testing.assert_allclose(update_cosine((g * u).sum(axis=1), grad_sq, update_sq), cosine, rtol=1e-12)


def test_gradient_descent_goes_straight_down() -> None:
    descent = Descent([0.1, 1.0, 7.0, 19.0], 0.1, start=[3.0, -2.0, 1.0, 0.5], steps=20)
    cosine = update_cosine(descent.grad_dot_update, (descent.gradients**2).sum(axis=1), descent.update_sq)
    np.testing.assert_allclose(cosine[:-1], 1.0, rtol=1e-12)
    assert (cosine[:-1] <= 1.0).all() and math.isnan(cosine[-1])


def test_cosine_survives_squares_that_no_product_holds() -> None:
    np.testing.assert_allclose(update_cosine([-3e-300], [9e-300], [4e-300]), [0.5])
    np.testing.assert_allclose(update_cosine([3e300], [9e300], [4e300]), [-0.5])


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 0.1, 1.0, math.pi / 2, 3.0, math.pi])
@pytest.mark.parametrize("growth", [0.01, 1.0, 5.0])
def test_angle_of_a_turn(angle: float, growth: float) -> None:
    """Tiny turns keep their digits where the norm stays; where it grows too, down to the root of the rounding."""
    end = [growth * math.cos(angle), growth * math.sin(angle)]
    with localcontext() as context:
        context.prec = 60
        exact = [Decimal(end[0]) - 1, Decimal(end[1])]
        update_sq = float(sum(v * v for v in exact))
        param_sq = [1.0, float(sum(Decimal(v) ** 2 for v in end))]
    result = angular_update(param_sq, [update_sq, NAN])
    assert result[0] == pytest.approx(angle, rel=1e-9 if growth == 1.0 else 1e-7, abs=0 if growth == 1.0 else 5e-8)
    assert math.isnan(result[1])


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9, 1e-12])
def test_update_across_the_parameters_is_its_arctangent(size: float) -> None:
    """Where the arccosine has lost every digit long before."""
    result = angular_update(*squares([0.75, 0.0], [0.0, size]))[0]
    assert result == pytest.approx(math.atan(size / 0.75), rel=1e-6 if size < 1e-7 else 1e-9)


def test_angle_to_what_is_almost_the_origin_keeps_its_digits() -> None:
    """Sides 1, 1e-9 and 1: two that differ by less than the third has digits, if one takes the wrong difference."""
    assert angular_update([1.0, 1e-18], [1.0, NAN])[0] == pytest.approx(math.acos(5e-10), rel=1e-13)


def test_update_along_the_parameters_is_lost_below_the_stated_limit() -> None:
    result = angular_update(*squares([0.7, 0.1], [0.7e-3, 0.1e-3]))[0]
    assert 0 <= result < 3 * math.sqrt(2.0**-52 * 1e-3)


def test_angle_over_gaps_layers_and_zeros() -> None:
    param_sq, update_sq = [1.0, 1.0, 1.0, 0.0, 1.0], [2.0, 2.0, 1.0, 1.0, NAN]
    right = math.pi / 2
    np.testing.assert_allclose(angular_update(param_sq, update_sq), [right, right, NAN, NAN, NAN])
    np.testing.assert_allclose(angular_update(param_sq, update_sq, step=[0, 2, 3, 4, 5]), [NAN, right, NAN, NAN, NAN])
    layers = angular_update([[1.0, 1.0], [1.0, 1.0]], [[2.0, 4.0], [NAN, NAN]])
    np.testing.assert_allclose(layers, [[right, math.pi], [NAN, NAN]])


def test_a_triangle_that_rounding_has_opened_is_flat() -> None:
    assert angular_update([1.0, 4.0], [0.999, NAN])[0] == 0.0
    assert angular_update([1.0, 4.0], [9.001, NAN])[0] == math.pi


def test_unknown_zero_and_diverged_are_nan_without_a_warning() -> None:
    for bad in (NAN, INF):
        assert np.isnan(update_ratio([bad, 1.0], [1.0, bad])).all()
        assert np.isnan(update_cosine([bad, 1.0, 1.0], [1.0, bad, 1.0], [1.0, 1.0, bad])).all()
        assert np.isnan(angular_update([bad, 1.0, 1.0], [1.0, bad, 1.0])).all()
    np.testing.assert_array_equal(update_ratio([0.0, 1.0], [1.0, 0.0]), [0.0, NAN])
    assert np.isnan(update_cosine([0.0, 0.0], [0.0, 1.0], [1.0, 0.0])).all()
    assert angular_update([1.7e308, 1.7e308], [1.7e308, NAN])[0] == pytest.approx(math.pi / 3)
    assert update_ratio([], []).shape == update_cosine([], [], []).shape == angular_update([], []).shape == (0,)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"got update_sq \(2,\), param_sq \(1,\)"):
        update_ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"got grad_dot_update \(1,\), grad_sq \(1,\), update_sq \(2,\)"):
        update_cosine([1.0], [1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"got param_sq \(2,\), update_sq \(1,\)"):
        angular_update([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"param_sq: expected shape .* got a single number"):
        angular_update(1.0, [1.0])
    with pytest.raises(ValueError, match=r"step: expected one number for each of the 2 rows"):
        angular_update([1.0, 2.0], [1.0, 2.0], step=[1])

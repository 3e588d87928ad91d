"""Curvature along the path, against the closed forms of gradient descent on a quadratic."""

import math

import numpy as np
import pytest

from fastgeom.analysis import directional_curvature, path_smoothness, step_curvature

NAN = math.nan


class QuadraticDescent:
    """Gradient descent on x' A x / 2 in A's eigenbasis: x_t = (1 - eta a)^t x_0, and what a trace records of it."""

    def __init__(self, eigenvalues: list[float], eta: float, start: list[float], steps: int) -> None:
        self.eigenvalues, self.eta = np.array(eigenvalues), eta
        x = np.array(start) * (1 - eta * self.eigenvalues) ** np.arange(steps + 1)[:, None]
        g = self.eigenvalues * x
        u = np.diff(x, axis=0)
        self.gradients = g[:-1]
        self.loss = 0.5 * (self.eigenvalues * x**2).sum(axis=1)
        self.grad_dot_update = (g[:-1] * u).sum(axis=1)
        self.next_grad_dot_update = (g[1:] * u).sum(axis=1)
        self.update_sq = (u**2).sum(axis=1)
        self.diff_sq = np.concatenate([[NAN], (np.diff(g[:-1], axis=0) ** 2).sum(axis=1)])
        self.next_cosine = (g[1:] * g[:-1]).sum(axis=1) / np.linalg.norm(g[1:], axis=1) / np.linalg.norm(g[:-1], axis=1)
        self.rayleigh = (self.eigenvalues * g[:-1] ** 2).sum(axis=1) / (g[:-1] ** 2).sum(axis=1)


@pytest.fixture
def descent() -> QuadraticDescent:
    """Spectrum from far below to just below the edge 2 / eta = 20."""
    return QuadraticDescent([0.1, 1.0, 7.0, 19.0], eta=0.1, start=[3.0, -2.0, 1.0, 0.5], steps=60)


def test_directional_curvature_is_the_rayleigh_quotient(descent: QuadraticDescent) -> None:
    curvature = directional_curvature(descent.grad_dot_update, descent.next_grad_dot_update, descent.update_sq)
    np.testing.assert_allclose(curvature, descent.rayleigh, rtol=1e-9)


def test_step_curvature_is_eta_times_directional_curvature(descent: QuadraticDescent) -> None:
    kappa = step_curvature(descent.grad_dot_update, descent.next_grad_dot_update)
    np.testing.assert_allclose(kappa, descent.eta * descent.rayleigh, rtol=1e-12)


def test_adjacent_gradients_turn_back_exactly_where_kappa_exceeds_one(descent: QuadraticDescent) -> None:
    kappa = step_curvature(descent.grad_dot_update, descent.next_grad_dot_update)
    assert 0 < np.count_nonzero(kappa > 1) < len(kappa)
    np.testing.assert_array_equal(descent.next_cosine < 0, kappa > 1)


def test_loss_change_is_one_minus_half_kappa(descent: QuadraticDescent) -> None:
    kappa = step_curvature(descent.grad_dot_update, descent.next_grad_dot_update)
    np.testing.assert_allclose(np.diff(descent.loss), (1 - kappa / 2) * descent.grad_dot_update, rtol=1e-9)


def test_period_two_at_the_edge_of_stability() -> None:
    """One eigenvalue 2 / eta: x flips sign for ever, c = -1, r = 1, K = 2 / eta, kappa = 2, the loss stands still."""
    edge = QuadraticDescent([20.0], eta=0.1, start=[1.0], steps=10)
    np.testing.assert_allclose(edge.next_cosine, -1.0)
    np.testing.assert_allclose(step_curvature(edge.grad_dot_update, edge.next_grad_dot_update), 2.0, rtol=1e-12)
    curvature = directional_curvature(edge.grad_dot_update, edge.next_grad_dot_update, edge.update_sq)
    np.testing.assert_allclose(curvature, 2 / edge.eta, rtol=1e-12)
    np.testing.assert_allclose(np.diff(edge.loss), 0.0, atol=1e-12)


def test_path_smoothness_bounds_curvature_and_meets_its_formula(descent: QuadraticDescent) -> None:
    smoothness = path_smoothness(descent.diff_sq, descent.update_sq)
    norm = np.linalg.norm(descent.gradients, axis=1)
    r, c = norm[1:] / norm[:-1], descent.next_cosine[:-1]
    np.testing.assert_allclose(smoothness[:-1], np.sqrt(1 + r**2 - 2 * r * c) / descent.eta, rtol=1e-9)
    assert math.isnan(smoothness[-1])
    assert (smoothness[:-1] >= descent.rayleigh[:-1] * (1 - 1e-12)).all()
    assert smoothness[:-1].max() <= descent.eigenvalues.max() * (1 + 1e-12)


def test_path_smoothness_is_unknown_over_gaps() -> None:
    ones = np.ones(5)
    result = path_smoothness(4 * ones, ones, step=[0, 1, 3, 4, 9])
    np.testing.assert_array_equal(result, [2, NAN, 2, NAN, NAN])


def test_uphill_and_zero_steps_have_no_kappa() -> None:
    np.testing.assert_array_equal(step_curvature([0.5, 0.0, NAN, -1.0], [1.0, 1.0, 1.0, NAN]), [NAN] * 4)


def test_no_update_has_no_curvature() -> None:
    np.testing.assert_array_equal(directional_curvature([-1.0, NAN], [-1.0, 0.0], [0.0, NAN]), [NAN, NAN])
    np.testing.assert_array_equal(path_smoothness([1.0, 1.0], [0.0, 1.0]), [NAN, NAN])


def test_layers_are_measured_one_by_one(descent: QuadraticDescent) -> None:
    before = np.stack([descent.grad_dot_update, 3 * descent.grad_dot_update], axis=1)
    after = np.stack([descent.next_grad_dot_update, descent.next_grad_dot_update], axis=1)
    squared = np.stack([descent.update_sq, descent.update_sq], axis=1)
    differences = np.stack([descent.diff_sq, 4 * descent.diff_sq], axis=1)
    for layer in range(2):
        columns = before[:, layer], after[:, layer], squared[:, layer]
        np.testing.assert_array_equal(step_curvature(before, after)[:, layer], step_curvature(*columns[:2]))
        np.testing.assert_array_equal(
            directional_curvature(before, after, squared)[:, layer], directional_curvature(*columns)
        )
        np.testing.assert_array_equal(
            path_smoothness(differences, squared)[:, layer], path_smoothness(differences[:, layer], squared[:, layer])
        )


def test_all_nan_and_empty_stay_so_without_a_warning() -> None:
    nans = np.full(3, NAN)
    for result in (step_curvature(nans, nans), directional_curvature(nans, nans, nans), path_smoothness(nans, nans)):
        np.testing.assert_array_equal(result, nans)
    assert step_curvature([], []).shape == path_smoothness([], []).shape == (0,)


def test_diverged_values_do_not_warn() -> None:
    assert math.isnan(step_curvature([-math.inf], [math.inf])[0])
    assert math.isnan(directional_curvature([math.inf], [math.inf], [1.0])[0])


def test_shapes_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected arrays of one shape, got grad_dot_update \(2,\)"):
        step_curvature([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"update_sq \(1,\)"):
        directional_curvature([1.0, 2.0], [1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"diff_sq \(1,\), update_sq \(2,\)"):
        path_smoothness([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"diff_sq: expected shape .* got a single number"):
        path_smoothness(1.0, 1.0)

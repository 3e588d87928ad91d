"""Whole runs whose every quantity has a closed form: descent, rotation, independence, zigzag, and sketches of them."""

import math

import numpy as np
import pytest
import torch

import fastgeom
from fastgeom.analysis import (
    ZIGZAG,
    classify,
    coherence,
    dc_energy,
    displacement,
    effective_rank,
    flow_oscillation_split,
    lag_cosine,
    momentum_cosine,
    momentum_norm,
    nyquist_energy,
    participation_ratio,
    predictability,
    sketch_cosine,
    spectral_gap,
    step_curvature,
    tortuosity,
    two_cycle_index,
    window_cosine,
    window_gram,
    window_grams,
)
from tests.trajectories import Descent, differences_and_sums, recorded, rotation

EIGENVALUES, START = [0.1, 1.0, 7.0, 19.0], [3.0, -2.0, 1.0, 0.5]


def cosines(gradients: np.ndarray, window: int) -> np.ndarray:
    return lag_cosine(*recorded(gradients, window), np.arange(len(gradients)))


# Gradient descent on a quadratic: g_t = a x_0 (1 - eta a)^t for each eigenvalue a.


def spectral_sum(eta: float, power: int, exponents: np.ndarray) -> np.ndarray:
    """sum_a a^power x_0^2 (1 - eta a)^e, for each exponent e."""
    a, x = np.array(EIGENVALUES), np.array(START)
    return (a**power * x**2 * (1 - eta * a) ** exponents[:, None]).sum(axis=1)


@pytest.mark.parametrize("eta", [0.02, 0.1, 0.11])
def test_descent_has_the_cosines_and_curvatures_of_its_spectrum(eta: float) -> None:
    """Below, near and beyond the edge 2 / 19 = 0.105."""
    descent = Descent(EIGENVALUES, eta, START, steps=30)
    t = np.arange(31)
    cosine = cosines(descent.gradients, 3)
    for k in (1, 2, 3):
        dot = spectral_sum(eta, 2, 2 * t[k:] - k)
        norms = np.sqrt(spectral_sum(eta, 2, 2 * t[k:]) * spectral_sum(eta, 2, 2 * (t[k:] - k)))
        np.testing.assert_allclose(cosine[k:, k - 1], dot / norms, rtol=1e-9, atol=1e-12)
        assert np.isnan(cosine[:k, k - 1]).all()
    kappa = step_curvature(descent.grad_dot_update, descent.next_grad_dot_update)
    rayleigh = spectral_sum(eta, 3, 2 * t) / spectral_sum(eta, 2, 2 * t)
    np.testing.assert_allclose(kappa[:-1], eta * rayleigh[:-1], rtol=1e-9)
    np.testing.assert_array_equal(cosine[1:, 0] < 0, kappa[:-1] > 1)


@pytest.mark.parametrize("excess", [1.01, 1.5])
def test_beyond_the_edge_descent_ends_in_a_period_of_two_that_grows_by_its_rate(excess: float) -> None:
    """eta = excess 2 / a: c -> -1, kappa -> eta a = 2 excess, and each gradient 2 excess - 1 times the one before."""
    eta = 2 * excess / 19
    descent = Descent(EIGENVALUES, eta, START, steps=400 if excess < 1.1 else 100)
    norm = np.linalg.norm(descent.gradients, axis=1)
    assert norm[-1] / norm[-2] == pytest.approx(2 * excess - 1, rel=1e-9)
    assert cosines(descent.gradients, 2)[-1] == pytest.approx([-1.0, 1.0], rel=1e-9)
    kappa = step_curvature(descent.grad_dot_update, descent.next_grad_dot_update)
    assert kappa[-2] == pytest.approx(2 * excess, rel=1e-9)
    assert classify(cosines(descent.gradients, 1)[:, 0])[-1] == ZIGZAG


def test_below_the_edge_descent_ends_in_no_oscillation() -> None:
    """The slowest direction is what remains: c -> 1, kappa -> eta 0.1, each gradient 1 - eta 0.1 times the last."""
    descent = Descent(EIGENVALUES, 0.1, START, steps=600)
    norm = np.linalg.norm(descent.gradients, axis=1)
    assert norm[-1] / norm[-2] == pytest.approx(0.99, rel=1e-9)
    assert cosines(descent.gradients, 1)[-1, 0] == pytest.approx(1.0, rel=1e-9)
    kappa = step_curvature(descent.grad_dot_update, descent.next_grad_dot_update)
    assert kappa[-2] == pytest.approx(0.01, rel=1e-9)


@pytest.mark.parametrize("eta", [0.11, 0.15])
def test_one_stiff_direction_diverges_by_its_rate_from_the_first_step(eta: float) -> None:
    descent = Descent([19.0], eta, [1.0], steps=20)
    rate = abs(1 - eta * 19.0)
    np.testing.assert_allclose(np.abs(descent.gradients[1:, 0] / descent.gradients[:-1, 0]), rate, rtol=1e-12)
    np.testing.assert_allclose(descent.loss[1:] / descent.loss[:-1], rate**2, rtol=1e-12)
    kappa = step_curvature(descent.grad_dot_update, descent.next_grad_dot_update)
    np.testing.assert_allclose(kappa[:-1], eta * 19.0, rtol=1e-12)


def test_at_the_very_edge_everything_stands_still_but_the_sign() -> None:
    """Powers of two, so that the edge is met exactly: not one bit may differ."""
    descent = Descent([16.0], 0.125, [1.0], steps=12)
    np.testing.assert_array_equal(descent.x[:, 0], (-1.0) ** np.arange(13))
    grams = window_grams(*recorded(descent.gradients, 7))[7:]
    diff_sq, sum_sq = differences_and_sums(descent.gradients)
    assert (step_curvature(descent.grad_dot_update, descent.next_grad_dot_update)[:-1] == 2.0).all()
    assert (cosines(descent.gradients, 2)[2:] == [-1.0, 1.0]).all()
    assert (two_cycle_index(grams) == 1.0).all() and (nyquist_energy(grams) == 1.0).all()
    assert (displacement(grams, 0.125) == 0.0).all() and (tortuosity(grams) == math.inf).all()
    assert (flow_oscillation_split(sum_sq, diff_sq).share[1:] == 1.0).all()
    assert predictability(diff_sq, (descent.gradients**2).sum(axis=1)) == 4.0


# A gradient that turns by phi a step: G_ij = cos((i - j) phi), of eigenvalues (m +- sin(m phi) / sin(phi)) / 2.


def fejer(phi: float, m: int) -> float:
    """|sum_k exp(i k phi)|^2 / m."""
    return (math.sin(m * phi / 2) / math.sin(phi / 2)) ** 2 / m


@pytest.mark.parametrize("phi", [0.05, 0.3, 1.0, 2 * math.pi / 9, math.pi / 2, 2.5, 3.1])
@pytest.mark.parametrize("m", [4, 9])
def test_rotation(phi: float, m: int) -> None:
    gradients = rotation(phi, 20)
    cosine = cosines(gradients, m - 1)
    for k in range(1, m):
        np.testing.assert_allclose(cosine[k:, k - 1], math.cos(k * phi), rtol=1e-12, atol=1e-13)
    gram = window_grams(*recorded(gradients, m - 1))[15]
    swing = math.sin(m * phi) / math.sin(phi)
    first, second = (m + abs(swing)) / 2, (m - abs(swing)) / 2
    p, q = first / m, second / m
    assert coherence(gram).item() == pytest.approx(fejer(phi, m), abs=1e-12)
    assert dc_energy(gram).item() == pytest.approx(fejer(phi, m) / m, abs=1e-12)
    assert nyquist_energy(gram).item() == pytest.approx(fejer(phi + math.pi, m) / m, abs=1e-12)
    assert effective_rank(gram).item() == pytest.approx(p**-p * q**-q, rel=1e-9)
    assert participation_ratio(gram).item() == pytest.approx(1 / (p**2 + q**2), rel=1e-9)
    assert spectral_gap(gram).item() == pytest.approx(1 - second / first, abs=1e-12)
    assert two_cycle_index(gram).item() == pytest.approx((math.cos(2 * phi) - math.cos(phi)) / 2, abs=1e-12)
    assert 1 / tortuosity(gram).item() == pytest.approx(math.sqrt(fejer(phi, m) / m), rel=1e-6, abs=1e-7)
    weights = (1 - (0.8 * np.exp(-1j * phi)) ** m) / (1 - 0.8 * np.exp(-1j * phi))  # sum_k (0.8 e^{-i phi})^k
    assert momentum_norm(gram, 0.8).item() == pytest.approx(abs(weights), rel=1e-9)
    assert momentum_cosine(gram, 0.8).item() == pytest.approx(weights.real / abs(weights), rel=1e-9)


def test_rotation_through_whole_turns_is_of_rank_two_exactly_and_adds_up_to_nothing() -> None:
    gram = window_gram(*recorded(rotation(2 * math.pi / 8, 8), 7), at=7)
    assert effective_rank(gram).item() == pytest.approx(2.0, rel=1e-12)
    assert participation_ratio(gram).item() == pytest.approx(2.0, rel=1e-12)
    assert coherence(gram).item() == pytest.approx(0.0, abs=1e-12)
    assert spectral_gap(gram).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("phi", [0.3, 1.0, 2.5])
def test_predictability_and_split_of_a_rotation(phi: float) -> None:
    gradients = rotation(phi, 30)
    diff_sq, sum_sq = differences_and_sums(gradients)
    assert predictability(diff_sq, (gradients**2).sum(axis=1)).item() == pytest.approx(2 - 2 * math.cos(phi))
    split = flow_oscillation_split(sum_sq, diff_sq)
    np.testing.assert_allclose(split.share[1:], math.sin(phi / 2) ** 2, rtol=1e-12)
    np.testing.assert_allclose(split.flow[1:], math.cos(phi / 2) ** 2, rtol=1e-12)


# Independent Gaussian gradients in d dimensions; each bound is five standard deviations of what it bounds.

N_STEPS, DIMENSIONS, M = 400, 1000, 8


@pytest.fixture(scope="module")
def independent() -> np.ndarray:
    return np.random.default_rng(11).standard_normal((N_STEPS, DIMENSIONS))


def test_cosines_of_independent_gradients_are_normal_of_variance_one_over_d(independent: np.ndarray) -> None:
    cosine = cosines(independent, 5)
    z = cosine[~np.isnan(cosine)] * math.sqrt(DIMENSIONS)
    n = z.size
    assert n == 5 * N_STEPS - 15
    assert z.mean() == pytest.approx(0.0, abs=5 / math.sqrt(n))
    assert z.var() == pytest.approx(1.0, abs=5 * math.sqrt(2 / n))
    assert (z**4).mean() == pytest.approx(3.0, abs=5 * math.sqrt(96 / n))
    assert (np.abs(z) > 1.96).mean() == pytest.approx(0.05, abs=5 * math.sqrt(0.05 * 0.95 / n))


def test_predictability_of_independent_gradients_is_two(independent: np.ndarray) -> None:
    diff_sq, sum_sq = differences_and_sums(independent)
    error = 2 / math.sqrt(N_STEPS * DIMENSIONS)
    assert predictability(diff_sq, (independent**2).sum(axis=1)).item() == pytest.approx(2.0, abs=5 * error)
    share = flow_oscillation_split(sum_sq, diff_sq).share[1:].mean()
    assert share == pytest.approx(0.5, abs=5 / 2 / math.sqrt(N_STEPS * DIMENSIONS))


def test_windows_of_independent_gradients_add_up_as_noise_does(independent: np.ndarray) -> None:
    """Of G / d = 1 + E with E of variance 1 / d off and 2 / d on the diagonal: to first order in 1 / d.

    The mean of p^2 m^2 over the spectrum is 1 + (m + 1) / d - 2 / (m d), so that the entropy is short of ln m by half
    of what exceeds 1; windows that do not overlap are independent.
    """
    grams = window_grams(*recorded(independent, M - 1))[M - 1 :: M]
    windows = len(grams)
    error = math.sqrt(2 / DIMENSIONS / windows)
    assert coherence(grams).mean() == pytest.approx(1.0, abs=5 * error)
    assert (M * nyquist_energy(grams)).mean() == pytest.approx(1.0, abs=5 * error)
    assert two_cycle_index(grams).mean() == pytest.approx(0.0, abs=5 / math.sqrt(DIMENSIONS * windows * (M - 2)))
    excess = (M + 1 - 2 / M) / DIMENSIONS
    spread = excess * math.sqrt(4 / (M * (M + 1)) / windows)  # a sum of M (M + 1) / 2 squares, in each window
    assert (M / participation_ratio(grams)).mean() == pytest.approx(1 + excess, abs=5 * spread)
    assert np.log(M / effective_rank(grams)).mean() == pytest.approx(excess / 2, abs=5 * spread / 2)


# A perfect zigzag, of any even window.


@pytest.mark.parametrize("m", [4, 8, 32])
def test_perfect_zigzag(m: int) -> None:
    direction = np.random.default_rng(2).standard_normal(50)
    gradients = ((-1.0) ** np.arange(40))[:, None] * direction
    grams = window_grams(*recorded(gradients, m - 1))[m - 1 :]
    np.testing.assert_allclose(two_cycle_index(grams), 1.0, rtol=1e-12)
    np.testing.assert_allclose(nyquist_energy(grams), 1.0, rtol=1e-12)
    for nothing in (dc_energy(grams), coherence(grams), 1 - spectral_gap(grams)):
        np.testing.assert_allclose(nothing, 0.0, atol=1e-12)
    for one in (effective_rank(grams), participation_ratio(grams)):
        np.testing.assert_allclose(one, 1.0, rtol=1e-9)
    norm = np.linalg.norm(direction)
    np.testing.assert_allclose(momentum_norm(grams, 0.9), norm * (1 - 0.9**m) / 1.9, rtol=1e-9)
    np.testing.assert_allclose(momentum_cosine(grams, 0.9), 1.0, rtol=1e-9)
    diff_sq, sum_sq = differences_and_sums(gradients)
    assert predictability(diff_sq, (gradients**2).sum(axis=1)).item() == pytest.approx(4.0, rel=1e-12)
    np.testing.assert_array_equal(flow_oscillation_split(sum_sq, diff_sq).flow[1:], 0.0)


def test_of_an_odd_zigzag_one_gradient_is_left_over() -> None:
    sign = (-1.0) ** np.arange(5)
    gram = np.outer(sign, sign)
    assert coherence(gram).item() == pytest.approx(1 / 5)
    assert dc_energy(gram).item() == pytest.approx(1 / 25)


def test_smooth_is_the_other_end_of_everything() -> None:
    gram = np.ones((8, 8))
    assert (coherence(gram), dc_energy(gram), nyquist_energy(gram), two_cycle_index(gram)) == (8.0, 1.0, 0.0, 0.0)


def test_growth_moves_the_two_cycle_index_of_the_gram_but_not_of_the_cosines() -> None:
    """g = r^t (-1)^t: cosines are those of a perfect zigzag, products are not."""
    gradients = ((-1.3) ** np.arange(8))[:, None]
    lag_dot, grad_sq = recorded(gradients, 7)
    assert two_cycle_index(window_cosine(lag_dot, grad_sq, at=7)).item() == pytest.approx(1.0, rel=1e-12)
    r, m = 1.3, 8
    means = [r**-k * sum(r ** (2 * i) for i in range(k, m)) / (m - k) for k in (0, 1, 2)]
    expected = (means[2] + means[1]) / means[0] / 2
    assert two_cycle_index(window_gram(lag_dot, grad_sq, at=7)).item() == pytest.approx(expected, rel=1e-12)


# The package's own sketches.


def test_sketches_of_a_run_give_its_cosines_within_the_error_that_they_state() -> None:
    """Half of the gradients independent, half near to one another or near to opposite; errors against theory's."""
    rng = np.random.default_rng(3)
    independent = rng.standard_normal((30, 20_000))
    near = ((-1.0) ** np.arange(30))[:, None] * independent[0] + 0.3 * rng.standard_normal((30, 20_000))
    gradients = np.concatenate([independent, near]).astype(np.float32)
    rows = [fastgeom.count_sketch([torch.from_numpy(g)], size=512).numpy() for g in gradients]
    cosine, error = sketch_cosine(np.stack(rows))
    norm = np.linalg.norm(gradients.astype(np.float64), axis=1)
    exact = gradients.astype(np.float64) @ gradients.T.astype(np.float64) / norm[:, None] / norm
    assert exact[30:, 30:].min() < -0.9 and np.partition(exact[30:, 30:].ravel(), -31)[-31] > 0.9
    for block in (slice(0, 30), slice(30, 60)):
        pairs = np.triu_indices(30, 1)
        z = (cosine[block, block][pairs] - exact[block, block][pairs]) / error[block, block][pairs]
        assert np.abs(z).max() < 6
        assert 0.8 < math.sqrt((z**2).mean()) < 1.2

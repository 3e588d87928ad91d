"""Noise shares and the correlation behind the noise, on gradients whose signal is known."""

import itertools
import math

import numpy as np
import pytest

from fastgeom.analysis import cosine_attenuation, denoised_cosine, noise_share

NAN, INF = math.nan, math.inf


def test_share_by_hand() -> None:
    """Equal halves have no noise; orthogonal ones of one length nothing else; halves that point apart more than all."""
    np.testing.assert_allclose(noise_share([4.0, 0.0, -1.0], [4.0, 0.5, 2.0]), [0.0, 1.0, 1.5])


def test_attenuation_by_hand() -> None:
    np.testing.assert_allclose(cosine_attenuation([0.0, 0.75, 0.5], [0.0, 0.0, 0.92]), [1.0, 0.5, 0.2])
    np.testing.assert_allclose(denoised_cosine([-0.1, 0.2], [0.75, 0.0], [0.96, 0.0]), [-1.0, 0.2])


def test_zigzag_is_found_behind_the_noise() -> None:
    """True gradients +-s, noise of variance v an element: nu = v / (v + s^2), c = -(1 - nu), and behind it -1.

    The mean of c over n steps in d dimensions has a standard error of about 1 / sqrt(n d), that of nu likewise.
    """
    n, d, v = 400, 1000, 4.0
    rng = np.random.default_rng(0)
    signal = ((-1.0) ** np.arange(n))[:, None] * np.ones(d)
    a, b = signal + math.sqrt(2 * v) * rng.standard_normal((2, n, d))
    g = (a + b) / 2
    nu = noise_share((a * b).sum(axis=1), (g**2).sum(axis=1))
    assert nu.mean() == pytest.approx(v / (v + 1), abs=5 * 2 / math.sqrt(n * d))
    norm = np.linalg.norm(g, axis=1)
    c = (g[1:] * g[:-1]).sum(axis=1) / norm[1:] / norm[:-1]
    assert c.mean() == pytest.approx(-1 / (v + 1), abs=5 / math.sqrt(n * d))
    averages = denoised_cosine(c.mean(), nu.mean(), nu.mean())
    assert averages == pytest.approx(-1.0, abs=5 * 3 * (v + 1) / math.sqrt(n * d))


def test_one_step_may_leave_the_range_of_a_cosine() -> None:
    np.testing.assert_allclose(denoised_cosine([-0.9], [0.5], [0.5]), [-1.8])


def test_no_true_gradient_and_unknown_are_nan_without_a_warning() -> None:
    for bad in (1.0, 1.5, NAN, INF):
        assert np.isnan(cosine_attenuation([bad, 0.5], [0.5, bad])).all()
        assert np.isnan(denoised_cosine([0.1, 0.1], [bad, 0.5], [0.5, bad])).all()
    assert np.isnan(cosine_attenuation([1.5], [1.5])).all(), "two wrong signs make no right one"
    assert np.isnan(denoised_cosine([NAN], [0.5], [0.5])).all()
    assert np.isnan(noise_share([NAN, 1.0, INF, 1.0, 0.0], [1.0, NAN, 1.0, INF, 0.0])).all()
    assert noise_share([], []).shape == denoised_cosine([], [], []).shape == (0,)


def test_layers_are_measured_one_by_one() -> None:
    np.testing.assert_allclose(noise_share([[1.0, 2.0]], [[2.0, 2.0]]), [[0.5, 0.0]])
    assert denoised_cosine(np.zeros((4, 3)), np.zeros((4, 3)), np.zeros((4, 3))).shape == (4, 3)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"got half_dot \(2,\), grad_sq \(1,\)"):
        noise_share([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"got noise_share \(2,\), earlier_noise_share \(1,\)"):
        cosine_attenuation([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match=r"got cosine \(1,\), noise_share \(2,\), earlier_noise_share \(2,\)"):
        denoised_cosine([0.5], [0.1, 0.2], [0.1, 0.2])


def test_noise_about_the_data_sets_own_gradient_is_exact_without_replacement() -> None:
    """All ways to draw a batch of 4 of 6 examples in two halves: the mean noise is that about the mean of all six."""
    examples = np.random.default_rng(3).normal(size=(6, 5)) + 1.0
    half_dot, grad_sq, noise = [], [], []
    for order in itertools.permutations(range(6), 4):
        a, b = examples[list(order[:2])].mean(0), examples[list(order[2:])].mean(0)
        g = (a + b) / 2
        half_dot.append(a @ b)
        grad_sq.append(g @ g)
        noise.append(((g - examples.mean(0)) ** 2).sum())
    expected = np.sum(noise) / np.sum(grad_sq)
    assert float(noise_share(np.sum(half_dot), np.sum(grad_sq), 4 / 6)) == pytest.approx(expected, rel=1e-12)
    assert float(noise_share(np.sum(half_dot), np.sum(grad_sq))) == pytest.approx(3 * expected, rel=1e-12)


@pytest.mark.parametrize("batch_share", [-0.1, 1.1, float("nan")])
def test_share_of_the_data_outside_is_named(batch_share: float) -> None:
    with pytest.raises(ValueError, match="batch_share: expected a number from 0 to 1"):
        noise_share([1.0], [1.0], batch_share)

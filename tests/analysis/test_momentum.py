"""Momentum from a Gram matrix against the recursion that an optimiser runs."""

import math

import numpy as np
import pytest

from fastgeom.analysis import momentum_cosine, momentum_norm, neglected_weight, window_gram, window_grams
from tests.trajectories import recorded

NAN = math.nan


def buffers(gradients: np.ndarray, beta: float, dampening: float) -> np.ndarray:
    """m_t = beta m_{t-1} + (1 - dampening) g_t from 0, as rows."""
    momenta, buffer = [], np.zeros(gradients.shape[1])
    for gradient in gradients:
        buffer = beta * buffer + (1 - dampening) * gradient
        momenta.append(buffer)
    return np.array(momenta)


@pytest.mark.parametrize(("beta", "dampening"), [(0.9, 0.0), (0.9, 0.9), (0.5, 0.1), (0.0, 0.0)])
def test_momentum_of_a_window_that_holds_every_step_is_exact(beta: float, dampening: float) -> None:
    gradients = np.random.default_rng(0).standard_normal((12, 7)) + 0.5
    gram = window_gram(*recorded(gradients, 11), at=11)
    m = buffers(gradients, beta, dampening)[-1]
    assert momentum_norm(gram, beta, dampening=dampening).item() == pytest.approx(np.linalg.norm(m), rel=1e-12)
    cosine = m @ gradients[-1] / np.linalg.norm(m) / np.linalg.norm(gradients[-1])
    assert momentum_cosine(gram, beta).item() == pytest.approx(cosine, rel=1e-12)


def test_what_a_window_leaves_out_is_the_neglected_weight() -> None:
    """A constant gradient: norm (1 - beta^m) / (1 - beta), short of 1 / (1 - beta) by just that share."""
    gram = window_gram(*recorded(np.ones((30, 1)), 9), at=29)
    limit = 1 / (1 - 0.9)
    assert momentum_norm(gram, 0.9).item() == pytest.approx(limit * (1 - neglected_weight(0.9, 10)), rel=1e-12)
    assert neglected_weight(0.9, 44) < 0.01 < neglected_weight(0.9, 43)
    assert neglected_weight(0.0, 1) == 0.0


def test_series_over_a_run_follows_the_recursion() -> None:
    gradients = np.random.default_rng(1).standard_normal((60, 7))
    grams = window_grams(*recorded(gradients, 39))
    truth = np.linalg.norm(buffers(gradients, 0.5, 0.0), axis=1)
    np.testing.assert_allclose(momentum_norm(grams, 0.5)[39:], truth[39:], rtol=1e-9)
    assert np.isnan(momentum_norm(grams, 0.5)[:39]).all() and np.isnan(momentum_cosine(grams, 0.5)[:39]).all()


def test_an_old_push_outweighs_the_last_gradient() -> None:
    """g = 10, -1: m = 9 - 1 = 8, against g = -1."""
    gram = np.outer([10.0, -1.0], [10.0, -1.0])
    assert momentum_cosine(gram, 0.9) == -1.0
    assert momentum_norm(gram, 0.9).item() == pytest.approx(8.0)


def test_cosine_stays_within_its_bounds_under_rounding() -> None:
    scale = np.random.default_rng(3).exponential(size=(500, 3))
    cosine = momentum_cosine(scale[:, :, None] * scale[:, None, :], 0.9)
    assert (cosine <= 1.0).all() and cosine.min() > 1 - 1e-12


def test_no_momentum_and_no_gradient_have_no_cosine() -> None:
    assert math.isnan(momentum_cosine(np.zeros((2, 2)), 0.9)) and momentum_norm(np.zeros((2, 2)), 0.9) == 0.0
    assert math.isnan(momentum_cosine([[1.0, 0.0], [0.0, 0.0]], 0.9))
    assert math.isnan(momentum_cosine([[4.0, -2.0], [-2.0, 1.0]], 0.5)), "the two cancel"
    assert math.isnan(momentum_norm([[NAN, 0.0], [0.0, 1.0]], 0.0)), "an unknown entry, though its weight is 0"


@pytest.mark.parametrize("beta", [-0.1, 1.0, 1.5, NAN])
def test_beta_outside_its_range_is_named(beta: float) -> None:
    for call in (momentum_norm, momentum_cosine):
        with pytest.raises(ValueError, match=r"beta: expected a number from 0 to below 1, got"):
            call(np.eye(2), beta)
    with pytest.raises(ValueError, match=r"beta: expected a number from 0 to below 1, got"):
        neglected_weight(beta, 3)


def test_other_bad_input_is_named() -> None:
    for dampening in (-0.1, 1.0, NAN):
        with pytest.raises(ValueError, match=r"dampening: expected a number from 0 to below 1, got"):
            momentum_norm(np.eye(2), 0.9, dampening=dampening)
    with pytest.raises(ValueError, match=r"size: expected at least 1 step, got 0"):
        neglected_weight(0.9, 0)
    for call in (momentum_norm, momentum_cosine):
        with pytest.raises(ValueError, match=r"gram: expected shape .* got shape \(3,\)"):
            call(np.ones(3), 0.9)

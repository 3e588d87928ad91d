"""Regimes on sequences whose labels are known by hand, and on gradients whose correlation has a closed form."""

import math

import numpy as np
import pytest

from fastgeom.analysis import MIXED, SMOOTH, ZIGZAG, classify, regime_counts, sensitivity, stretches

NAN = math.nan


def adjacent_cosine(gradients: np.ndarray) -> np.ndarray:
    """c_t of gradients given as rows, NaN for the first."""
    norm = np.linalg.norm(gradients, axis=1)
    cosine = (gradients[1:] * gradients[:-1]).sum(axis=1) / norm[1:] / norm[:-1]
    return np.concatenate([[NAN], cosine])


def test_labels_follow_sign_and_threshold() -> None:
    labels = classify([0.95, 0.95, 0.5, 0.5, -0.5, -0.5, -0.95, -0.95])
    assert labels.dtype == np.int8
    assert labels.tolist() == [SMOOTH, SMOOTH, MIXED, MIXED, MIXED, MIXED, ZIGZAG, ZIGZAG]


def test_threshold_itself_is_mixed() -> None:
    assert classify([0.9, 0.9, -0.9, -0.9], theta=0.9).tolist() == [MIXED] * 4


@pytest.mark.parametrize(("min_run", "expected"), [(1, [1, 0, -1, -1, 1]), (2, [0, 0, -1, -1, 0]), (3, [0] * 5)])
def test_short_stretches_become_mixed(min_run: int, expected: list[int]) -> None:
    assert classify([0.99, 0.0, -0.99, -0.99, 0.99], min_run=min_run).tolist() == expected


def test_adjacent_short_stretches_do_not_merge_into_a_long_one() -> None:
    assert classify([0.99, -0.99, 0.99, -0.99]).tolist() == [MIXED] * 4


def test_nan_is_mixed_and_breaks_a_stretch() -> None:
    assert classify([NAN, 0.99, 0.99, NAN, 0.99, 0.99]).tolist() == [0, 1, 1, 0, 1, 1]
    assert classify([0.99, NAN, 0.99]).tolist() == [0, 0, 0]
    assert classify([NAN] * 4).tolist() == [0] * 4


def test_no_steps() -> None:
    assert classify([]).shape == (0,)
    assert stretches([]) == []
    assert regime_counts([]) == {"smooth": 0, "mixed": 0, "zigzag": 0}
    assert np.isnan(sensitivity([])).all()


@pytest.mark.parametrize("theta", [0.0, 1.0, -0.5, 1.5, NAN])
def test_theta_outside_its_range_is_named(theta: float) -> None:
    with pytest.raises(ValueError, match=r"theta: expected a number between 0 and 1.*got"):
        classify([0.5], theta=theta)


def test_other_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"min_run: expected at least 1, got 0"):
        classify([0.5], min_run=0)
    with pytest.raises(ValueError, match=r"adjacent_cosine: expected .* got shape \(2, 3\)"):
        classify(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"labels: expected .* got shape \(2, 3\)"):
        stretches(np.zeros((2, 3)))


def test_stretches_cover_every_row_once() -> None:
    labels = np.random.default_rng(0).integers(-1, 2, size=101)
    cut = stretches(labels)
    assert [s.start for s in cut[1:]] == [s.stop for s in cut[:-1]]
    assert (cut[0].start, cut[-1].stop) == (0, 101)
    assert all((labels[s.start : s.stop] == s.label).all() for s in cut)
    assert all(a.label != b.label for a, b in zip(cut[:-1], cut[1:], strict=True)), "a stretch is not maximal"
    assert sum(s.length for s in cut) == 101


@pytest.mark.parametrize(("angle", "label"), [(0.1, SMOOTH), (1.0, MIXED), (math.pi / 2, MIXED), (3.1, ZIGZAG)])
def test_rotating_gradient(angle: float, label: int) -> None:
    """A gradient that turns by a fixed angle each step: c_t = cos(angle) throughout."""
    turns = angle * np.arange(50)
    cosine = adjacent_cosine(np.stack([np.cos(turns), np.sin(turns)], axis=1))
    np.testing.assert_allclose(cosine[1:], math.cos(angle), atol=1e-12)
    assert (classify(cosine)[1:] == label).all()


def test_independent_gradients_in_many_dimensions_are_mixed() -> None:
    cosine = adjacent_cosine(np.random.default_rng(1).standard_normal((200, 1000)))
    assert np.nanmax(np.abs(cosine)) < 0.2
    assert (classify(cosine) == MIXED).all()


def test_gradient_descent_on_a_quadratic_goes_from_smooth_to_zigzag() -> None:
    """Spectrum 1 and 0.01, eta = 1.99: the stiff direction flips sign at |1 - 1.99| = 0.99 a step.

    From a start dominated by the slow direction (c = +1) down to where the stiff one is what remains would need it to
    decay slower: 0.99 against 1 - 0.0199 = 0.9801. So the run begins smooth and ends in the period-2 cycle.
    """
    eigenvalues, eta, x0, steps = np.array([1.0, 0.01]), 1.99, np.array([1e-4, 1.0]), 2000
    factors = 1 - eta * eigenvalues
    gradients = eigenvalues * x0 * factors ** np.arange(steps)[:, None]
    labels = classify(adjacent_cosine(gradients))
    assert labels[1] == SMOOTH and labels[-1] == ZIGZAG
    assert [s.label for s in stretches(labels[1:])] == [SMOOTH, MIXED, ZIGZAG]


def test_sensitivity_counts_known_steps_only_and_narrows_with_theta() -> None:
    cosine = np.array([NAN, 0.6, 0.6, 0.97, 0.97, -0.995, -0.995, -0.85, -0.85])
    shares = sensitivity(cosine, thetas=(0.5, 0.8, 0.9, 0.99))
    np.testing.assert_allclose(shares, np.array([[4, 0, 4], [2, 2, 4], [2, 4, 2], [0, 6, 2]]) / 8)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    assert sensitivity(cosine).shape == (5, 3)


def test_counts_add_up_to_the_rows() -> None:
    assert regime_counts([0, 1, 1, -1, 0, 0]) == {"smooth": 2, "mixed": 3, "zigzag": 1}

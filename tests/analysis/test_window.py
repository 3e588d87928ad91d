"""The window's Gram matrix against the products of the gradients themselves."""

import math

import numpy as np
import pytest

from fastgeom.analysis import densest_window, lag_cosine, window_cosine, window_gram, window_grams
from tests.trajectories import recorded

NAN = math.nan


def test_gram_is_that_of_the_gradients() -> None:
    gradients = np.random.default_rng(0).standard_normal((20, 7))
    lag_dot, grad_sq = recorded(gradients, 4, np.arange(20))
    gram = window_gram(lag_dot, grad_sq, at=12)
    assert gram.shape == (5, 5)
    np.testing.assert_allclose(gram, gradients[8:13] @ gradients[8:13].T, rtol=1e-12)
    np.testing.assert_array_equal(gram, gram.T)


def test_size_smaller_and_larger_than_the_lags_fill() -> None:
    gradients = np.random.default_rng(1).standard_normal((20, 7))
    lag_dot, grad_sq = recorded(gradients, 3, np.arange(20))
    np.testing.assert_allclose(window_gram(lag_dot, grad_sq, 9, size=1), [[grad_sq[9]]])
    full = gradients[4:10] @ gradients[4:10].T
    distance = np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    np.testing.assert_allclose(window_gram(lag_dot, grad_sq, 9, size=6), np.where(distance <= 3, full, NAN))


def test_steps_before_the_first_are_unknown() -> None:
    gradients = np.random.default_rng(2).standard_normal((5, 7))
    lag_dot, grad_sq = recorded(gradients, 3, np.arange(5))
    gram = window_gram(lag_dot, grad_sq, at=1)
    assert np.isnan(gram[:2]).all() and np.isnan(gram[:, :2]).all()
    np.testing.assert_allclose(gram[2:, 2:], gradients[:2] @ gradients[:2].T)


def test_a_step_that_was_not_measured_is_a_row_and_a_column_of_nan() -> None:
    step = np.array([10, 11, 13, 14])
    gradients = np.random.default_rng(3).standard_normal((4, 7))
    lag_dot, grad_sq = recorded(gradients, 4, step)
    gram = window_gram(lag_dot, grad_sq, at=14, step=step)
    expected = np.full((5, 5), NAN)
    expected[np.ix_([0, 1, 3, 4], [0, 1, 3, 4])] = gradients @ gradients.T
    np.testing.assert_allclose(gram, expected, rtol=1e-12)


def test_a_perfect_zigzag_is_a_checkerboard_and_a_straight_line_a_block() -> None:
    sign = (-1.0) ** np.arange(9)
    scale = np.linspace(1, 2, 9)
    straight, flipping = np.outer(scale, [3.0, 4.0]), np.outer(scale * sign, [3.0, 4.0])
    np.testing.assert_allclose(window_cosine(*recorded(straight, 8, np.arange(9)), at=8), np.ones((9, 9)))
    np.testing.assert_allclose(window_cosine(*recorded(flipping, 8, np.arange(9)), at=8), np.outer(sign, sign))


def test_rotating_gradient() -> None:
    angle = 0.3 * np.arange(12)
    cosine = window_cosine(*recorded(np.stack([np.cos(angle), np.sin(angle)], axis=1), 11, np.arange(12)), at=11)
    np.testing.assert_allclose(cosine, np.cos(np.subtract.outer(angle, angle)), atol=1e-12)


def test_random_walk_of_gradients() -> None:
    """g_t = sum of t unit increments in a wide space: cos(g_s, g_t) -> sqrt(s / t) for s < t."""
    gradients = np.random.default_rng(5).standard_normal((16, 200_000)).cumsum(axis=0) / math.sqrt(200_000)
    cosine = window_cosine(*recorded(gradients, 15, np.arange(16)), at=15)
    length = np.arange(1, 17)
    expected = np.sqrt(np.minimum.outer(length, length) / np.maximum.outer(length, length))
    np.testing.assert_allclose(cosine, expected, atol=0.02)


def test_last_row_is_the_lag_cosines_backwards() -> None:
    step = np.array([10, 11, 13, 14])
    lag_dot, grad_sq = recorded(np.random.default_rng(6).standard_normal((4, 7)), 4, step)
    last_row = window_cosine(lag_dot, grad_sq, at=14, step=step)[-1]
    np.testing.assert_allclose(last_row[:-1][::-1], lag_cosine(lag_dot, grad_sq, step)[-1])


def test_cosine_is_clean_at_its_ends() -> None:
    """Scales that differ by 1e18, and enough of them that some norm squared is not the square it came from."""
    scale = np.geomspace(1e-9, 1e9, 100)
    cosine = window_cosine(*recorded(np.outer(scale, [0.1, 0.2, 0.7]), 99, np.arange(100)), at=99)
    assert (np.diagonal(cosine) == 1.0).all() and (np.abs(cosine) <= 1.0).all()
    np.testing.assert_allclose(cosine, 1.0)


def test_zero_gradient_has_no_direction() -> None:
    gradients = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    cosine = window_cosine(*recorded(gradients, 2, np.arange(3)), at=2)
    np.testing.assert_array_equal(cosine, [[1, NAN, 1], [NAN, NAN, NAN], [1, NAN, 1]])


def test_all_nan_stays_nan_without_a_warning() -> None:
    cosine = window_cosine(np.full((3, 2), NAN), np.full(3, NAN), at=2)
    assert np.isnan(cosine).all()


def test_bad_input_is_named() -> None:
    lag_dot, grad_sq = np.zeros((4, 2)), np.ones(4)
    with pytest.raises(ValueError, match=r"at: expected a step that was measured \(steps 0 to 3\), got 4"):
        window_gram(lag_dot, grad_sq, at=4)
    with pytest.raises(ValueError, match=r"at: .*\(no step\), got 0"):
        window_gram(lag_dot[:0], grad_sq[:0], at=0)
    with pytest.raises(ValueError, match=r"size: expected at least 1 step, got 0"):
        window_gram(lag_dot, grad_sq, at=3, size=0)
    with pytest.raises(ValueError, match=r"lag_dot: expected shape .* 4 values of grad_sq, got shape \(3, 2\)"):
        window_gram(lag_dot[:3], grad_sq, at=3)
    with pytest.raises(ValueError, match=r"lag_dot: .* got shape \(4,\)"):
        window_gram(lag_dot[:, 0], grad_sq, at=3)


@pytest.mark.parametrize("size", [None, 1, 2, 4, 7])
def test_all_windows_are_each_what_one_window_is(size: int | None) -> None:
    """Gaps, lags that reach over them, and windows wider than the lags; a stray value where no step was measured."""
    step = np.array([10, 11, 12, 14, 15, 16, 17, 30, 31])
    lag_dot, grad_sq = recorded(np.random.default_rng(7).standard_normal((9, 5)), 4, step)
    lag_dot[7, 2] = 123.0
    grams = window_grams(lag_dot, grad_sq, size=size, step=step)
    assert grams.shape == (9, size or 5, size or 5)
    for row, number in enumerate(step):
        np.testing.assert_array_equal(grams[row], window_gram(lag_dot, grad_sq, number, size=size, step=step))


def test_no_windows() -> None:
    assert window_grams(np.zeros((0, 2)), []).shape == (0, 3, 3)
    assert np.isnan(window_grams(np.full((3, 2), NAN), np.full(3, NAN))).all()


def test_bad_input_of_all_windows_is_named() -> None:
    with pytest.raises(ValueError, match=r"size: expected at least 1 step, got 0"):
        window_grams(np.zeros((4, 2)), np.ones(4), size=0)
    with pytest.raises(ValueError, match=r"lag_dot: expected shape .* 4 values of grad_sq, got shape \(3, 2\)"):
        window_grams(np.zeros((3, 2)), np.ones(4))
    with pytest.raises(ValueError, match=r"grad_sq: expected .* got shape \(4, 1\)"):
        window_grams(np.zeros((4, 2)), np.ones((4, 1)))
    with pytest.raises(ValueError, match=r"step: expected strictly increasing"):
        window_grams(np.zeros((2, 2)), np.ones(2), step=[1, 1])


def test_densest_window_is_the_middle_one_of_those_with_most_steps_of_the_regime() -> None:
    labels = [1, 1, 0, -1, -1, -1, 0, -1, 1]
    assert densest_window(labels, -1, size=3) == (3, 6)
    assert densest_window(labels, -1, size=5) == (3, 8)
    assert densest_window(labels, 1, size=1) == (1, 2)
    assert densest_window(labels, -1, size=9) == (0, 9)


def test_densest_window_spans_no_gap() -> None:
    labels, step = [-1, -1, -1, -1, 0], [0, 1, 5, 6, 7]
    assert densest_window(labels, -1, size=3, step=step) == (2, 5)
    assert densest_window(labels, -1, size=2, step=step) == (2, 4)
    assert densest_window(labels, -1, size=4, step=step) is None


def test_no_densest_window() -> None:
    assert densest_window([1, 1, 0], -1, size=2) is None
    assert densest_window([1, 1], 1, size=3) is None
    assert densest_window([], 1, size=1) is None
    with pytest.raises(ValueError, match=r"size: expected at least 1 step, got 0"):
        densest_window([1], 1, size=0)

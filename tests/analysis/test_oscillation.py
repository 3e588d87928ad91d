"""Flow, oscillation and predictability on gradients small enough to add up by hand."""

import math

import numpy as np
import pytest

from fastgeom.analysis import flow_oscillation_split, moving_predictability, predictability
from tests.trajectories import differences_and_sums

NAN, INF = math.nan, math.inf


def test_split_is_the_mean_and_half_the_difference() -> None:
    gradients = np.random.default_rng(0).standard_normal((20, 7))
    diff_sq, sum_sq = differences_and_sums(gradients)
    split = flow_oscillation_split(sum_sq, diff_sq)
    mean, half = (gradients[1:] + gradients[:-1]) / 2, (gradients[1:] - gradients[:-1]) / 2
    np.testing.assert_allclose(split.flow[1:], (mean**2).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(split.oscillation[1:], (half**2).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(split.share[1:], (half**2).sum(axis=1) / (mean**2 + half**2).sum(axis=1), rtol=1e-12)
    assert all(np.isnan(part[0]) for part in split)


def test_split_keeps_what_cancels() -> None:
    """Opposite to 1e-12: dot products would leave nothing of the flow."""
    split = flow_oscillation_split([1e-24], [4.0])
    assert split.flow[0] == 0.25e-24 and split.share[0] == 1.0


def test_split_of_layers_and_of_nothing() -> None:
    split = flow_oscillation_split([[0.0, 4.0], [NAN, 0.0]], [[4.0, 0.0], [1.0, 0.0]])
    np.testing.assert_array_equal(split.share, [[1.0, 0.0], [NAN, NAN]])
    assert flow_oscillation_split([], []).share.shape == (0,)
    assert np.isnan(flow_oscillation_split([INF], [INF]).share[0])


def test_predictability_by_hand_leaves_out_rows_that_are_unknown() -> None:
    assert predictability([NAN, 1.0, NAN, 3.0, INF], [100.0, 2.0, 100.0, 6.0, 100.0]).item() == pytest.approx(4 / 8)
    assert predictability([1.0, 1.0], [NAN, 4.0]).item() == pytest.approx(1 / 4)


def test_predictability_of_layers() -> None:
    diff_sq, grad_sq = np.array([[NAN, NAN], [4.0, 0.0], [4.0, 2.0]]), np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 3.0]])
    np.testing.assert_allclose(predictability(diff_sq, grad_sq), [4.0, 0.5])
    moving = moving_predictability(diff_sq, grad_sq, size=1)
    np.testing.assert_allclose(moving, [[NAN, NAN], [4.0, 0.0], [4.0, 2 / 3]])


def test_moving_window_is_the_predictability_of_its_rows_and_spans_no_gap() -> None:
    rng = np.random.default_rng(1)
    diff_sq, grad_sq = rng.exponential(size=30), rng.exponential(size=30)
    diff_sq[[0, 12]] = NAN
    moving = moving_predictability(diff_sq, grad_sq, size=5)
    for row in range(30):
        rows = slice(row - 4, row + 1)
        complete = row >= 4 and not np.isnan(diff_sq[rows]).any()
        np.testing.assert_allclose(moving[row], predictability(diff_sq[rows], grad_sq[rows]) if complete else NAN)
    assert np.isnan(moving).sum() == 5 + 5


def test_a_large_value_leaves_no_trace_in_later_windows() -> None:
    moving = moving_predictability([1e30, 1.0, 1.0, 1.0], [1e30, 1.0, 1.0, 1.0], size=2)
    assert moving[2] == moving[3] == 1.0


def test_nothing_to_measure_is_nan_without_a_warning() -> None:
    assert np.isnan(predictability([NAN], [NAN])) and np.isnan(predictability([0.0], [0.0]))
    assert np.isnan(predictability([], []))
    assert moving_predictability([], [], size=3).shape == (0,)
    assert np.isnan(moving_predictability([1.0, 1.0], [1.0, 1.0], size=3)).all()
    assert np.isnan(moving_predictability([0.0, 0.0], [0.0, 0.0], size=1)).all()


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"got sum_sq \(2,\), diff_sq \(1,\)"):
        flow_oscillation_split([1.0, 2.0], [1.0])
    for function in (predictability, lambda d, g: moving_predictability(d, g, size=1)):
        with pytest.raises(ValueError, match=r"got diff_sq \(2,\), grad_sq \(1,\)"):
            function([1.0, 2.0], [1.0])
        with pytest.raises(ValueError, match=r"diff_sq: expected shape .* got a single number"):
            function(1.0, 1.0)
        with pytest.raises(ValueError, match=r"grad_sq: expected shape .* got a single number"):
            function([1.0], 1.0)
    with pytest.raises(ValueError, match=r"size: expected at least 1 step, got 0"):
        moving_predictability([1.0], [1.0], size=0)

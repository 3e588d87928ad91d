"""Length, displacement and tortuosity against the parameters of a run of gradient descent."""

import math

import numpy as np
import pytest

from fastgeom.analysis import displacement, path_length, tortuosity, window_gram, window_grams
from tests.trajectories import Descent, recorded

NAN, INF = math.nan, math.inf
RATES = np.linspace(0.02, 0.1, 40)


@pytest.fixture
def descent() -> Descent:
    """A rate that changes every step, over a spectrum of which the stiff end oscillates."""
    return Descent([0.1, 1.0, 7.0, 19.0], RATES, start=[3.0, -2.0, 1.0, 0.5], steps=40)


def test_path_length_is_that_of_the_polygon(descent: Descent) -> None:
    edges = np.linalg.norm(np.diff(descent.x, axis=0), axis=1)
    length = path_length(descent.update_sq)
    np.testing.assert_allclose(length[:-1], np.cumsum(edges), rtol=1e-12)
    assert math.isnan(length[-1]), "the last update was never seen"


def test_path_length_is_unknown_from_the_first_unknown_update_on() -> None:
    for unknown in (NAN, INF, -1.0):
        np.testing.assert_array_equal(path_length([4.0, unknown, 4.0]), [2.0, NAN, NAN])
    np.testing.assert_array_equal(path_length([[1.0, 4.0], [NAN, 4.0]]), [[1.0, 2.0], [NAN, 4.0]])
    assert path_length([]).shape == (0,)


def test_displacement_and_tortuosity_are_those_of_the_parameters(descent: Descent) -> None:
    lag_dot, grad_sq = recorded(descent.gradients[:-1], 9)
    grams = window_grams(lag_dot, grad_sq)
    rates = np.lib.stride_tricks.sliding_window_view(RATES, 10)
    truth = np.linalg.norm(descent.x[10:] - descent.x[:-10], axis=1)
    length = np.convolve(np.linalg.norm(np.diff(descent.x, axis=0), axis=1), np.ones(10), "valid")
    np.testing.assert_allclose(displacement(grams[9:], rates), truth, rtol=1e-9)
    np.testing.assert_allclose(tortuosity(grams[9:], rates), length / truth, rtol=1e-9)
    one = window_gram(lag_dot, grad_sq, at=25)
    assert displacement(one, RATES[16:26]).item() == pytest.approx(np.linalg.norm(descent.x[26] - descent.x[16]))


def test_unknown_windows_and_rates_stay_so(descent: Descent) -> None:
    grams = window_grams(*recorded(descent.gradients, 4))
    for result in (displacement(grams, 0.1), tortuosity(grams)):
        assert np.isnan(result).tolist() == [True] * 4 + [False] * 37
    for function in (displacement, tortuosity):
        for rate in (NAN, INF, [0.1, 0.1, NAN, 0.1, 0.1]):
            assert np.isnan(function(grams[10], rate))


def test_an_infinite_rate_of_no_gradient_is_unknown_too() -> None:
    gram = np.diag([1.0, 0.0])
    assert math.isnan(displacement(gram, [1.0, INF])) and math.isnan(tortuosity(gram, [1.0, INF]))


def test_no_path_is_shorter_than_straight() -> None:
    scale = np.random.default_rng(3).exponential(size=(500, 3))
    result = tortuosity(scale[:, :, None] * scale[:, None, :])
    assert (result >= 1.0).all() and result.max() < 1 + 1e-12


def test_constant_rate_cancels_in_tortuosity(descent: Descent) -> None:
    gram = window_gram(*recorded(descent.gradients, 9), at=20)
    assert tortuosity(gram).item() == pytest.approx(tortuosity(gram, 1e-3).item(), rel=1e-12)
    assert displacement(gram, 2e-3).item() == pytest.approx(2 * displacement(gram, 1e-3).item(), rel=1e-12)


def test_straight_closed_orthogonal_and_no_path() -> None:
    scale = np.array([0.1, 0.2, 0.7])
    assert 1.0 <= tortuosity(np.outer(scale, scale)) < 1 + 1e-12
    assert tortuosity([[1.0, -1.0], [-1.0, 1.0]]) == INF and displacement([[1.0, -1.0], [-1.0, 1.0]], 0.1) == 0.0
    assert tortuosity(np.eye(16)).item() == pytest.approx(4.0)
    assert math.isnan(tortuosity(np.zeros((2, 2)))) and displacement(np.zeros((2, 2)), 1.0) == 0.0
    assert tortuosity(np.stack([np.eye(4), np.ones((4, 4)), np.full((4, 4), NAN)])).shape == (3,)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"update_sq: expected shape .* got a single number"):
        path_length(1.0)
    for function in (displacement, tortuosity):
        with pytest.raises(ValueError, match=r"gram: expected shape .* got shape \(2, 3\)"):
            function(np.zeros((2, 3)), 0.1)
        with pytest.raises(ValueError, match=r"lr: expected one number, or shape \(3,\).*got shape \(2,\)"):
            function(np.eye(3), [0.1, 0.1])

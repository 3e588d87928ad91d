"""The statistics of the figures A1 to B1 on runs made by hand: what their examples leave open."""

import math

import numpy as np
import pytest

from fastgeom.analysis import ZIGZAG
from reproductions.b1_edge_of_stability import alignment, ratios
from tests.figures.handmade_runs import diverged, made, walk
from tests.reproductions.handmade_figures import EXAMPLES, LR, at_the_edge, measured, oscillating_at, turning, twice
from tests.trajectories import Descent


def test_a1_is_what_both_initialisations_agree_on() -> None:
    times = (0.2, 0.4, 0.9)
    assert measured("A1", twice(times, times[::-1])) == pytest.approx(-math.sqrt((2 * 0.3 * 0.4 - 0.01) / 2))
    assert measured("A1", twice(times, (0.4, 0.2, 0.9))) == pytest.approx(math.sqrt((0.03 + 0.03 + 0.16) / 2))
    assert measured("A1", twice(times, (0.5, 0.5, 0.5))) == pytest.approx(0, abs=1e-6)
    elsewhere = {"a on mnist5k": oscillating_at(0.1), "b on mnist5k": oscillating_at(0.9)}
    assert measured("A1", twice(times, times) | elsewhere) == pytest.approx(math.sqrt(0.13)), "trained once only"


def test_a1_is_around_zero_where_chance_decides() -> None:
    """Each time is drawn by itself: one run tells of a deviation of 0.23, two together of none."""
    draw = np.random.default_rng(0)
    made_once = [oscillating_at(time) for time in np.linspace(0.1, 0.9, 33)]
    keys = [f"{letter} on digits{again}" for again in ("", ", again") for letter in "abcde"]
    values = [
        measured("A1", {key: made_once[k] for key, k in zip(keys, draw.integers(0, 33, 10), strict=True)})
        for _ in range(400)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(400) < 0.04
    assert 0.4 < np.mean(np.asarray(values) < 0) < 0.6


def test_a1_counts_architectures_with_ten_oscillating_steps_in_both_runs() -> None:
    runs = twice((0.2, 0.4, 0.9), (0.2, 0.4, 0.9))
    for count, expected in (10, math.sqrt((0.26 - 0.4 * 0.005) / 2)), (9, math.sqrt(2 * 0.1**2)):
        changed = {**runs, "c on digits, again": oscillating_at(0.9, count)}
        assert measured("A1", changed) == pytest.approx(expected)
    one = {key: runs[key] for key in ("a on digits", "a on digits, again")}
    assert math.isnan(measured("A1", one))


def test_a2_layer_without_a_gradient_is_left_out() -> None:
    oscillating = walk("ww" + "s" * 2)
    run = made(oscillating, layers=[np.zeros((5, 2)), oscillating])
    assert measured("A2", {"a": run, "too short": turning("", "")}) == 0.5


def test_a3_network_that_is_too_short_is_left_out() -> None:
    assert measured("A3", {"a": turning("ww", "ss"), "b": turning("", "")}) == 1
    assert measured("A3", {"a": turning("ss", "ww")}) == -1


@pytest.mark.parametrize("figure", ["A1", "A2", "A3", "A4"])
def test_oscillation_hangs_on_the_sign_alone(figure: str) -> None:
    runs, expected = EXAMPLES[figure]()
    assert [measured(figure, runs, theta) for theta in (0.1, 0.99)] == pytest.approx([expected] * 2)


def test_a4_network_whose_loss_did_not_fall_is_left_out() -> None:
    fell, rose = turning("wsws", losses=[5, 4, 3, 2, 1]), turning("wsws", losses=[1, 2, 3, 4, 5])
    assert measured("A4", {"mlp": fell, "cnn": rose}) == pytest.approx(2 / 4)


@pytest.mark.parametrize(("start", "expected"), [([1.0, 0.0], 1.0), ([0.0, 1.0], 0.95)])
def test_b1_curvature_along_the_top_eigenvector_is_the_sharpness(start: list[float], expected: float) -> None:
    path = Descent([20.0, 19.0], eta=LR, start=start, steps=20)
    run = made(path.gradients, updates=-LR * path.gradients, sharpness=[20.0] * 21, lr=LR)
    np.testing.assert_allclose(ratios(run, ZIGZAG, 0.9), expected)


def test_b1_ratio_is_of_steps_that_end_in_zigzag() -> None:
    for run in (at_the_edge(), diverged(at_the_edge())):
        np.testing.assert_allclose(ratios(run, ZIGZAG, 0.9), [4 / 8, 3 / 4, 4 / 4])
        np.testing.assert_allclose(alignment(run, ZIGZAG, 0.9), [0.25, 1, 0.25])


def test_b1_without_a_measurement_in_zigzag_is_unknown() -> None:
    nothing = [0.5, 0.5, *[math.nan] * 4]
    run = made([1, 0.9, 0.8, -0.8, 0.8, -0.8], sharpness=nothing, top_cosine=nothing)
    assert math.isnan(measured("B1", {"run": run}))


def test_b2_too_short_a_restart_leaves_the_exponent_unknown() -> None:
    runs, _ = EXAMPLES["B2"]()
    assert math.isnan(measured("B2", {**runs, "GELU, rate / 4": made([1.0])}))

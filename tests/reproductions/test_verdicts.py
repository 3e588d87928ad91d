"""What the seeds say of a claim, against numbers taken from tables, and how often it is wrong."""

import math

import numpy as np
import pytest

from reproductions.common.reproduction import verdict_line
from reproductions.common.verdict import NOT_SUPPORTED, SUPPORTED, UNDECIDED, format_interval, judge
from reproductions.p1_two_geometries import FIGURE

T_975_4 = 2.776445
"""Student's t, 97.5 %, 4 degrees of freedom, from a table."""
T_80_4 = 0.940965


def test_interval_is_students() -> None:
    verdict = judge([1, 2, 3, 4, 5], threshold=0.0)
    error = math.sqrt(2.5 / 5)
    assert verdict.mean == 3
    assert verdict.low == pytest.approx(3 - T_975_4 * error, rel=1e-6)
    assert verdict.high == pytest.approx(3 + T_975_4 * error, rel=1e-6)
    assert verdict.detectable == pytest.approx((T_975_4 + T_80_4) * error, rel=1e-5)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(1.0, SUPPORTED), (1.1, UNDECIDED), (3.0, UNDECIDED), (4.9, UNDECIDED), (5.0, NOT_SUPPORTED)],
)
def test_verdict_follows_the_interval(threshold: float, expected: str) -> None:
    """1 to 5 have the interval [1.04, 4.96]."""
    assert judge([1, 2, 3, 4, 5], threshold).verdict == expected


def test_interval_that_touches_the_threshold_supports() -> None:
    assert judge([0.25] * 5, threshold=0.25).verdict == SUPPORTED
    assert judge([0.0] * 5, threshold=0.25).verdict == NOT_SUPPORTED


def test_undecided_says_what_would_have_shown() -> None:
    verdict = judge([1, 2, 3, 4, 5], threshold=3.0)
    assert f"{verdict.detectable:.2g}" in verdict.reason


@pytest.mark.parametrize("values", [[1.0] * 4, [1.0, 1.0, 1.0, 1.0, math.nan], [1.0] * 4 + [math.inf]])
def test_fewer_than_five_seeds_decide_nothing(values: list[float]) -> None:
    verdict = judge(values, threshold=0.5)
    assert verdict.verdict == UNDECIDED
    assert f"4 of {len(values)} seeds" in verdict.reason and verdict.mean == 1


@pytest.mark.parametrize("values", [[], [math.nan] * 5, [2.0]])
def test_too_few_seeds_for_an_interval(values: list[float]) -> None:
    verdict = judge(values, threshold=0.5)
    assert verdict.verdict == UNDECIDED
    assert math.isnan(verdict.low) and math.isnan(verdict.detectable)


def test_wrong_verdicts_are_as_rare_as_promised() -> None:
    """At the threshold itself a verdict of either kind is wrong in 5 % of the cases, and one of them in 2.5 %."""
    values = np.random.default_rng(0).normal(0.3, 0.1, (4000, 5))
    verdicts = [judge(row, threshold=0.3).verdict for row in values]
    for wrong in (SUPPORTED, NOT_SUPPORTED):
        assert verdicts.count(wrong) / 4000 == pytest.approx(0.025, abs=4 * math.sqrt(0.025 / 4000))


def test_detectable_distance_is_detected_four_times_in_five() -> None:
    """With the spread known, so that the distance is one number: s = 0.1 over five seeds."""
    distance = (T_975_4 + T_80_4) * 0.1 / math.sqrt(5)
    values = np.random.default_rng(1).normal(0.3 + distance, 0.1, (4000, 5))
    verdicts = [judge(row, threshold=0.3).verdict == SUPPORTED for row in values]
    assert 0.72 < np.mean(verdicts) < 0.88


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0.5, 0.25, 0.75), "0.50 [0.25, 0.75]"),
        ((0.0, 0.0, 0.0), "0.00 in all seeds"),
        ((0.5, math.nan, math.nan), "0.50 [unknown, unknown]"),
        ((None, None, None), "unknown [unknown, unknown]"),
    ],
)
def test_numbers_in_words(numbers: tuple[float | None, float | None, float | None], words: str) -> None:
    assert format_interval(*numbers) == words


@pytest.mark.parametrize(("values", "seeds"), [([0.5, 0.25], "2 seeds"), ([0.5, math.nan, 0.25], "2 of 3 seeds")])
def test_line_says_theta_and_how_many_seeds_count(values: list[float], seeds: str) -> None:
    line = verdict_line(FIGURE, judge(values, FIGURE.threshold), theta=0.7)
    assert line.endswith(f"; threshold {FIGURE.threshold:g}, θ = 0.7, {seeds}") and FIGURE.statement in line

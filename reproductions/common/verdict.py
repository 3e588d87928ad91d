"""Verdict of all seeds on a claim: supported, not supported, or undecided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
CONFIDENCE = 0.95
POWER = 0.8
MIN_SEEDS = 5


@dataclass(frozen=True)
class Verdict:
    """A statistic over seeds against a threshold that was set before.

    Attributes:
        values: one a seed, NaN where a run was too short for it.
        threshold: the claim says that the statistic's mean is at least this.
        mean: over the seeds that have the statistic; NaN without one.
        low: lower end of the mean's two-sided 95 % interval; NaN without one.
        high: upper end of it.
        verdict: one of the three.
        reason: why, as a clause.
        detectable: the smallest distance of the mean from the threshold that so many seeds with this spread would have
            decided in four runs of five; NaN without an interval.
    """

    values: tuple[float, ...]
    threshold: float
    mean: float
    low: float
    high: float
    verdict: str
    reason: str
    detectable: float


def format_interval(mean: float | None, low: float | None, high: float | None) -> str:
    """Format a mean and its interval to two decimals; a single value where all seeds have the same one."""
    if mean is not None and mean == low == high:
        return f"{mean:.2f} in all seeds"
    return f"{format_number(mean)} [{format_number(low)}, {format_number(high)}]"


def format_number(value: float | None) -> str:
    """Format a number to two decimals; None and NaN are "unknown"."""
    return f"{value:.2f}" if value is not None and math.isfinite(value) else "unknown"


def judge(values: Sequence[float], threshold: float) -> Verdict:
    r"""Decide whether the mean of a statistic over seeds is at least ``threshold``.

    $$ \bar v \pm t_{0.975,\,n-1}\, s / \sqrt{n} $$

    is the interval (Student's; seeds are independent). *Supported*: all of it lies at or above the threshold; *not
    supported*: all of it lies below; *undecided*: it holds the threshold, or fewer than five seeds have a value.

    Args:
        values: one a seed; NaN where a run has no such statistic.
        threshold: finite.
    """
    finite = np.asarray([value for value in values if math.isfinite(value)])
    n = len(finite)
    mean = low = high = detectable = math.nan
    if n >= 1:
        mean = float(finite.mean())
    if n >= 2:
        error = float(finite.std(ddof=1)) / math.sqrt(n)
        half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * error
        low, high = mean - half, mean + half
        detectable = half + float(stdtrit(n - 1, POWER)) * error
    if n < MIN_SEEDS:
        verdict, reason = UNDECIDED, f"{n} of {len(values)} seeds have the statistic; a verdict takes {MIN_SEEDS}"
    elif low >= threshold:
        verdict, reason = SUPPORTED, "the whole interval lies at or above the threshold"
    elif high < threshold:
        verdict, reason = NOT_SUPPORTED, "the whole interval lies below the threshold"
    else:
        verdict = UNDECIDED
        reason = f"the interval holds the threshold; a distance of {detectable:.2g} from it would have shown"
    return Verdict(tuple(map(float, values)), threshold, mean, low, high, verdict, reason, detectable)

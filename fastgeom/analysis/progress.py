"""How much of the training progress each regime made: four definitions, because they disagree, even in sign.

A label says how g_t lies to g_{t-1}; the change of the loss that it is held responsible for is that of the step taken
with g_t, f_t - f_{t+1}. A change is known between rows of consecutive steps with finite losses, and only there: what
happens over a gap, or between a finite loss and one that is NaN or infinite, belongs to no regime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgeom.analysis.arrays import FloatArray, IntArray, as_series, as_steps, check_same_shape
from fastgeom.analysis.regimes import REGIMES, THETAS, classify, stretches


class RegimeShares(NamedTuple):
    """One share for each regime, as fractions of 1."""

    smooth: float
    mixed: float
    zigzag: float


@dataclass(frozen=True)
class ProgressShares:
    r"""Progress shares of the three regimes by four definitions; f_0 and f_T are the first and the last finite loss.

    Attributes:
        net: $\sum_{t \in R} (f_t - f_{t+1}) / (f_0 - f_T)$. Rises count against a regime. Adds up to 1 over the
            regimes where every change is known.
        gross: $\sum_{t \in R} \max(0, f_t - f_{t+1}) / \sum_t \max(0, f_t - f_{t+1})$. Decreases only, divided by all
            known decreases: never negative, always adds up to 1.
        log_loss: $\sum_{t \in R} \ln(f_t / f_{t+1}) / \ln(f_0 / f_T)$. Net in factors instead of differences, so that
            the late steps count as much as the early ones.
        segment: $\sum_{[a, b] \subset R} (f_a - f_b) / (f_0 - f_T)$ over the stretches [a, b] of a regime, a the first
            and b the last step. The step that leaves a stretch counts for neither side, so that the regimes need not
            add up to 1; a stretch of one step has no segment.
    """

    net: RegimeShares
    gross: RegimeShares
    log_loss: RegimeShares
    segment: RegimeShares


def progress_shares(loss: ArrayLike, labels: ArrayLike, step: ArrayLike | None = None) -> ProgressShares:
    r"""Share of the decrease of the loss that each regime made, by four definitions.

    $$ \text{net}_R = \frac{\sum_{t \in R} (f_t - f_{t+1})}{f_0 - f_T} $$

    and gross, log-loss and segment as ``ProgressShares`` defines them. f_0 and f_T are the first and the last finite
    loss: of a run that diverged, what counts is what came before.

    Args:
        loss: f_t, shape (step,), in any unit. NaN is an unknown loss, infinity one that diverged.
        labels: regime of each step, shape (step,), as ``classify`` returns them.
        step: step numbers, shape (step,), strictly increasing; 0, 1, 2, ... by default.

    Returns:
        Four shares for each regime. NaN where there is nothing to share: net and segment of a run whose loss did not
        fall from first to last, gross of one in which it never fell, log-loss as net and wherever a loss is 0 or less.

    Raises:
        ValueError: arrays of different lengths, labels other than -1, 0, 1, or step numbers that do not increase.

    Source: ours. Morchdi, Zhou, Ding, Wang (2022) claim a substantial part of the progress for zigzag and do not say
    how they divide it.

    Example:
        >>> shares = progress_shares([4.0, 2.0, 3.0, 1.0], [1, -1, -1, 0])
        >>> [round(share.zigzag, 3) for share in (shares.net, shares.gross, shares.log_loss, shares.segment)]
        [0.333, 0.5, 0.5, -0.333]
    """
    f = as_series("loss", loss)
    regime = _as_labels(labels, len(f))
    number = as_steps(step, len(f))
    finite = f[np.isfinite(f)]
    fell = finite.size > 0 and finite[-1] < finite[0]
    total = float(finite[0] - finite[-1]) if fell else np.nan
    drop = _drops(f, number)
    falls = np.maximum(drop, 0.0)
    all_falls = float(np.nansum(falls))
    log_share = RegimeShares(np.nan, np.nan, np.nan)
    if fell and finite.min() > 0:
        with np.errstate(invalid="ignore"):
            log_share = _sum_by_regime(_drops(np.log(f), number), regime, float(np.log(finite[0] / finite[-1])))
    return ProgressShares(
        net=_sum_by_regime(drop, regime, total),
        gross=_sum_by_regime(falls, regime, all_falls if all_falls > 0 else np.nan),
        log_loss=log_share,
        segment=_sum_by_regime(_within_stretches(drop, regime), regime, total),
    )


def progress_sensitivity(
    loss: ArrayLike,
    adjacent_cosine: ArrayLike,
    step: ArrayLike | None = None,
    thetas: Sequence[float] = THETAS,
    min_run: int = 2,
) -> tuple[ProgressShares, ...]:
    r"""Progress shares by four definitions, for several thresholds: whether a finding hangs on the choice of theta.

    $$ \text{shares}(f, \ell(\theta_i)), \qquad i = 0, 1, \dots $$

    Args:
        loss: as for ``progress_shares``.
        adjacent_cosine: c_t, shape (step,), as for ``classify``.
        step: step numbers, shape (step,), strictly increasing; 0, 1, 2, ... by default.
        thetas: thresholds, each between 0 and 1.
        min_run: as for ``classify``.

    Returns:
        One ``ProgressShares`` for each threshold, in their order.

    Raises:
        ValueError: as ``classify`` and ``progress_shares``.

    Source: ours.

    Example:
        >>> cosine = [0.7, 0.7, -0.95, -0.95, -0.95]
        >>> [shares.net for shares in progress_sensitivity([8.0, 6.0, 5.0, 3.0, 4.0], cosine, thetas=(0.5, 0.9))]
        [RegimeShares(smooth=0.75, mixed=0.0, zigzag=0.25), RegimeShares(smooth=0.0, mixed=0.75, zigzag=0.25)]
    """
    f, cosine = as_series("loss", loss), as_series("adjacent_cosine", adjacent_cosine)
    check_same_shape(loss=f, adjacent_cosine=cosine)
    return tuple(progress_shares(f, classify(cosine, theta, min_run), step) for theta in thetas)


def _as_labels(labels: ArrayLike, n_rows: int) -> NDArray[np.int8]:
    regime = np.asarray(labels)
    if regime.shape != (n_rows,):
        raise ValueError(f"labels: expected shape ({n_rows},), that of loss, got {regime.shape}")
    if not np.isin(regime, list(REGIMES.values())).all():
        raise ValueError(f"labels: expected only {sorted(REGIMES.values())}, got {np.unique(regime).tolist()}")
    return regime.astype(np.int8)


def _drops(values: FloatArray, number: IntArray) -> FloatArray:
    """Differences f_t - f_{t+1} at row t, NaN where unknown; the last row has no successor."""
    drop = np.full(len(values), np.nan)
    with np.errstate(invalid="ignore"):
        difference = values[:-1] - values[1:]
    valid = (np.diff(number) == 1) & np.isfinite(difference)
    drop[:-1][valid] = difference[valid]
    return drop


def _within_stretches(drop: FloatArray, regime: NDArray[np.int8]) -> FloatArray:
    """Drops without the last one of each stretch: they add up to the loss at its start minus that at its end."""
    inside = drop.copy()
    inside[[stretch.stop - 1 for stretch in stretches(regime)]] = np.nan
    return inside


def _sum_by_regime(change: FloatArray, regime: NDArray[np.int8], total: float) -> RegimeShares:
    return RegimeShares(*(float(np.nansum(change[regime == label]) / total) for label in REGIMES.values()))

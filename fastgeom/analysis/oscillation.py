"""What of adjacent gradients carries on and what flips, from their sums and differences.

All take arrays of shape (step,) or (step, layer), so that the same call serves a network and its layers. Both sums of
squares are recorded as such: of gradients that almost agree or cancel, they hold digits that dot products do not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastgeom.analysis.arrays import FloatArray, as_rows, check_same_shape, ratio


class FlowOscillation(NamedTuple):
    """The two parts of a pair of adjacent gradients, and the share of the second; arrays of one shape."""

    flow: FloatArray
    oscillation: FloatArray
    share: FloatArray


def flow_oscillation_split(sum_sq: ArrayLike, diff_sq: ArrayLike) -> FlowOscillation:
    r"""Split adjacent gradients into their mean, which moves the parameters, and what alternates around it.

    $$ \Bigl\|\frac{g_t + g_{t-1}}{2}\Bigr\|^2 = \tfrac14 \|g_t + g_{t-1}\|^2, \qquad
    \Bigl\|\frac{g_t - g_{t-1}}{2}\Bigr\|^2 = \tfrac14 \|g_t - g_{t-1}\|^2 $$

    The two add up to (||g_t||^2 + ||g_{t-1}||^2) / 2. In a cycle of period two the first is the time-averaged gradient.

    Args:
        sum_sq: ||g_t + g_{t-1}||^2, shape (step,) or (step, layer).
        diff_sq: ||g_t - g_{t-1}||^2, same shape.

    Returns:
        ``FlowOscillation(flow, oscillation, share)``, each float64 of that shape; the first two in units of the
        gradient squared, ``share`` = oscillation / (flow + oscillation) in [0, 1]. NaN where step t - 1 was not
        measured; ``share`` also where both gradients are 0.

    Raises:
        ValueError: shapes that differ.

    Source: ours; the split is that of the central flows of Cohen et al. (2024) for a window of two steps.

    Example:
        Gradients (1, 3) and (1, -1):

        >>> flow_oscillation_split([4.0 + 4.0], [0.0 + 16.0])
        FlowOscillation(flow=array([2.]), oscillation=array([4.]), share=array([0.66666667]))
    """
    sums, differences = np.asarray(sum_sq, dtype=np.float64), np.asarray(diff_sq, dtype=np.float64)
    check_same_shape(sum_sq=sums, diff_sq=differences)
    flow, oscillation = sums / 4, differences / 4
    with np.errstate(over="ignore"):
        return FlowOscillation(flow, oscillation, ratio(oscillation, flow + oscillation))


def predictability(diff_sq: ArrayLike, grad_sq: ArrayLike) -> FloatArray:
    r"""How far a stretch's gradients are from those one step before, in units of the gradients themselves.

    $$ \frac{\sum_t \|g_t - g_{t-1}\|^2}{\sum_t \|g_t\|^2} $$

    0 where the gradient stands still, 2 where adjacent gradients are independent, 4 where they flip. Small is
    predictable. Both sums are over the rows where both terms are known.

    Args:
        diff_sq: ||g_t - g_{t-1}||^2, shape (step,) or (step, layer); NaN where step t - 1 was not measured.
        grad_sq: ||g_t||^2, same shape.

    Returns:
        float64, no unit: one number, shape (), or one a layer, shape (layer,). NaN where no row is known or every
        gradient is 0.

    Raises:
        ValueError: shapes that differ, or single numbers.

    Source: the ratio of von Neumann (1941), of a series of vectors and without its mean taken off.

    Example:
        >>> predictability([float("nan"), 4.0, 4.0], [1.0, 1.0, 1.0]).item()
        4.0
    """
    differences, squared = _valid_together(diff_sq, grad_sq)
    with np.errstate(over="ignore"):
        return ratio(np.nansum(differences, axis=0), np.nansum(squared, axis=0))


def moving_predictability(diff_sq: ArrayLike, grad_sq: ArrayLike, size: int) -> FloatArray:
    r"""``predictability`` of the ``size`` steps that end with each step.

    $$ \frac{\sum_{i=0}^{n-1} \|g_{t-i} - g_{t-i-1}\|^2}{\sum_{i=0}^{n-1} \|g_{t-i}\|^2}, \qquad n = \text{size} $$

    Args:
        diff_sq: ||g_t - g_{t-1}||^2, shape (step,) or (step, layer); NaN where step t - 1 was not measured.
        grad_sq: ||g_t||^2, same shape.
        size: number of differences n in the window, at least 1.

    Returns:
        float64, same shape, no unit; NaN where a term of the window is unknown. So no window spans a gap, and the
        first ``size`` rows are NaN.

    Raises:
        ValueError: shapes that differ, single numbers, or ``size`` below 1.

    Source: ours, as ``predictability``.

    Example:
        >>> moving_predictability([float("nan"), 4.0, 4.0, 0.0], [1.0, 1.0, 1.0, 1.0], size=2).tolist()
        [nan, nan, 4.0, 2.0]
    """
    if size < 1:
        raise ValueError(f"size: expected at least 1 step, got {size}")
    differences, squared = _valid_together(diff_sq, grad_sq)
    result = np.full(differences.shape, np.nan)
    if size <= len(differences):
        with np.errstate(over="ignore"):
            sums = [np.lib.stride_tricks.sliding_window_view(a, size, 0).sum(-1) for a in (differences, squared)]
        result[size - 1 :] = ratio(*sums)
    return result


def _valid_together(diff_sq: ArrayLike, grad_sq: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Both arrays, NaN where either is not finite."""
    differences, squared = as_rows("diff_sq", diff_sq), as_rows("grad_sq", grad_sq)
    check_same_shape(diff_sq=differences, grad_sq=squared)
    valid = np.isfinite(differences) & np.isfinite(squared)
    return np.where(valid, differences, np.nan), np.where(valid, squared, np.nan)

"""Every gradient of a window against every other: the Gram matrix from the recorded lag dots."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fastgeom.analysis.arrays import FloatArray, IntArray, as_series, as_steps
from fastgeom.analysis.regimes import stretches


def window_gram(
    lag_dot: ArrayLike, grad_sq: ArrayLike, at: int, *, size: int | None = None, step: ArrayLike | None = None
) -> FloatArray:
    r"""Gram matrix of the gradients of the ``size`` steps that end with step ``at``.

    $$ G_{ij} = \langle g_{t-m+1+i},\, g_{t-m+1+j} \rangle, \qquad i, j = 0, \dots, m - 1 $$

    with t = ``at`` and m = ``size``: the oldest step first, the diagonal ||g||^2.

    Args:
        lag_dot: <g_t, g_{t-k}>, shape (step, lag), lag k at index k - 1; ``trace.lag_dot``, or a layer's.
        grad_sq: ||g_t||^2, shape (step,).
        at: number of the last step, one that was measured.
        size: number of steps m, at least 1; by default lag + 1, the most that W lags fill without a hole.
        step: step numbers, shape (step,), strictly increasing; 0, 1, 2, ... by default.

    Returns:
        float64, shape (m, m), symmetric, in units of the gradient squared. NaN where it is unknown: rows and columns
        of steps that were not measured or lie before the first, and pairs further apart than the largest lag.

    Raises:
        ValueError: shapes that do not belong together, ``size`` below 1, or ``at`` a step that was not measured.

    Source: ours.

    Example:
        Gradients (1, 0), (1, 1), (-1, 0):

        >>> nan = float("nan")
        >>> window_gram([[nan, nan], [1.0, nan], [-1.0, -1.0]], [1.0, 2.0, 1.0], at=2).tolist()
        [[1.0, 1.0, -1.0], [1.0, 2.0, -1.0], [-1.0, -1.0, 1.0]]
    """
    dots, squared, number, length = _as_window(lag_dot, grad_sq, size, step)
    if at not in number:
        extent = f"steps {number[0]} to {number[-1]}" if number.size else "no step"
        raise ValueError(f"at: expected a step that was measured ({extent}), got {at}")

    first = at - length + 1
    inside = np.flatnonzero((number >= first) & (number <= at))
    position = number[inside] - first
    gram = np.full((length, length), np.nan)
    gram[position, position] = squared[inside]
    for lag in range(1, min(dots.shape[1], length - 1) + 1):
        reaches = np.isin(position - lag, position)
        later, rows = position[reaches], inside[reaches]
        gram[later, later - lag] = gram[later - lag, later] = dots[rows, lag - 1]
    return gram


def window_grams(
    lag_dot: ArrayLike, grad_sq: ArrayLike, *, size: int | None = None, step: ArrayLike | None = None
) -> FloatArray:
    r"""Gram matrices of all windows: for every step, that of the ``size`` steps that end with it.

    $$ G_{t,ij} = \langle g_{t-m+1+i},\, g_{t-m+1+j} \rangle, \qquad i, j = 0, \dots, m - 1 $$

    What ``window_gram`` gives for one step, as a stack, so that a quantity of a window becomes a series:
    ``coherence(window_grams(...))``. Memory: 8 step m^2 bytes, 87 MB for 10,000 steps and m = 33; cut a longer run
    into stretches that overlap by m - 1 rows.

    Args:
        lag_dot: <g_t, g_{t-k}>, shape (step, lag), lag k at index k - 1; ``trace.lag_dot``, or a layer's.
        grad_sq: ||g_t||^2, shape (step,).
        size: number of steps m, at least 1; by default lag + 1, the most that W lags fill without a hole.
        step: step numbers, shape (step,), strictly increasing; 0, 1, 2, ... by default.

    Returns:
        float64, shape (step, m, m), each symmetric, in units of the gradient squared. NaN as in ``window_gram``: the
        first m - 1 matrices, and those that reach over a gap, have rows and columns of NaN.

    Raises:
        ValueError: shapes that do not belong together, ``size`` below 1, or step numbers that do not increase.

    Source: ours.

    Example:
        >>> nan = float("nan")
        >>> window_grams([[nan], [1.0], [-1.0]], [1.0, 2.0, 1.0]).tolist()[1:]
        [[[1.0, 1.0], [1.0, 2.0]], [[2.0, -1.0], [-1.0, 1.0]]]
    """
    dots, squared, number, length = _as_window(lag_dot, grad_sq, size, step)
    n_rows = len(number)
    wanted = number[:, None] - np.arange(length - 1, -1, -1)
    row = np.searchsorted(number, wanted)  # never behind the last: no number wanted is larger than its own row's
    measured = number[row] == wanted if n_rows else np.zeros(wanted.shape, dtype=np.bool_)
    gram = np.full((n_rows, length, length), np.nan)
    position = np.arange(length)
    gram[:, position, position] = np.where(measured, squared[row], np.nan)
    for lag in range(1, min(dots.shape[1], length - 1) + 1):
        later, earlier = position[lag:], position[:-lag]
        both = measured[:, later] & measured[:, earlier]
        value = np.where(both, dots[row[:, later], lag - 1], np.nan)
        gram[:, later, earlier] = gram[:, earlier, later] = value
    return gram


def window_cosine(
    lag_dot: ArrayLike, grad_sq: ArrayLike, at: int, *, size: int | None = None, step: ArrayLike | None = None
) -> FloatArray:
    r"""Correlation matrix of the gradients of a window: ``window_gram`` with every gradient scaled to length 1.

    $$ C_{ij} = \frac{G_{ij}}{\sqrt{G_{ii}\, G_{jj}}} $$

    A block of +1 in a smooth stretch, a checkerboard of +1 and -1 in a zigzag one.

    Args:
        lag_dot: as for ``window_gram``.
        grad_sq: as for ``window_gram``.
        at: as for ``window_gram``.
        size: as for ``window_gram``.
        step: as for ``window_gram``.

    Returns:
        float64, shape (m, m), symmetric, within [-1, 1], exactly 1 on the diagonal. NaN as in ``window_gram``, and in
        the rows and columns of steps whose gradient is 0.

    Raises:
        ValueError: as ``window_gram``.

    Source: Morchdi, Zhou, Ding, Wang (2022) for the adjacent correlation; the window of it is ours.

    Example:
        >>> nan = float("nan")
        >>> window_cosine([[nan], [-6.0]], [4.0, 9.0], at=1).tolist()
        [[1.0, -1.0], [-1.0, 1.0]]
    """
    gram = window_gram(lag_dot, grad_sq, at, size=size, step=step)
    norm = np.sqrt(np.diagonal(gram))
    norm = np.where(norm > 0, norm, np.nan)
    cosine = np.clip(gram / norm[:, None] / norm[None, :], -1.0, 1.0)
    measured = np.flatnonzero(np.isfinite(norm))
    cosine[measured, measured] = 1.0
    return cosine


def densest_window(
    labels: ArrayLike, label: int, size: int, *, step: ArrayLike | None = None
) -> tuple[int, int] | None:
    """Find the window that shows a regime best: ``size`` steps in a row, as many of them as possible of that regime.

    Args:
        labels: regime of each step, shape (step,), as ``classify`` returns them.
        label: the regime looked for.
        size: number of steps in the window, at least 1.
        step: step numbers, shape (step,), strictly increasing; 0, 1, 2, ... by default. A window spans no gap.

    Returns:
        Rows ``(start, stop)``, half open; of several such windows the middle one. None where no window holds a step
        of the regime, or none of ``size`` consecutive steps was measured.

    Raises:
        ValueError: ``size`` below 1, or step numbers that do not belong to the labels.

    Source: ours.

    Example:
        >>> densest_window([0, -1, 0, -1, -1, 0], label=-1, size=3)
        (2, 5)
    """
    if size < 1:
        raise ValueError(f"size: expected at least 1 step, got {size}")
    hits = np.asarray(labels) == label
    number = as_steps(step, len(hits))
    count = np.zeros(len(hits), dtype=np.int64)
    for stretch in stretches(number - np.arange(len(number))):
        full = np.convolve(hits[stretch.start : stretch.stop], np.ones(size, dtype=np.int64))[size - 1 : stretch.length]
        count[stretch.start : stretch.start + len(full)] = full
    if not count.any():
        return None
    best = np.flatnonzero(count == count.max())
    start = int(best[len(best) // 2])
    return start, start + size


def _as_window(
    lag_dot: ArrayLike, grad_sq: ArrayLike, size: int | None, step: ArrayLike | None
) -> tuple[FloatArray, FloatArray, IntArray, int]:
    """The arrays checked, and the number of steps in a window."""
    dots = np.asarray(lag_dot, dtype=np.float64)
    squared = as_series("grad_sq", grad_sq)
    if dots.ndim != 2 or len(dots) != len(squared):
        raise ValueError(
            f"lag_dot: expected shape (step, lag) with one row for each of the {len(squared)} values of grad_sq, "
            f"got shape {dots.shape}"
        )
    number = as_steps(step, len(squared))
    length = dots.shape[1] + 1 if size is None else size
    if length < 1:
        raise ValueError(f"size: expected at least 1 step, got {size}")
    return dots, squared, number, length

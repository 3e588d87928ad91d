"""Smooth and zigzag: the two geometries of training, read off the correlation of adjacent gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgeom.analysis.arrays import FloatArray, as_series

SMOOTH, MIXED, ZIGZAG = 1, 0, -1
REGIMES = {"smooth": SMOOTH, "mixed": MIXED, "zigzag": ZIGZAG}
"""Label of each regime, in the order in which tables and figures show them."""

THETAS = (0.5, 0.8, 0.9, 0.95, 0.99)
"""Thresholds over which a claim about regimes should be shown to hold; the paper says only "extremely"."""


class Stretch(NamedTuple):
    """Adjacent rows of one label: from ``start`` up to, not including, ``stop``."""

    start: int
    stop: int
    label: int

    @property
    def length(self) -> int:
        """Number of rows."""
        return self.stop - self.start


def classify(adjacent_cosine: ArrayLike, theta: float = 0.9, min_run: int = 2) -> NDArray[np.int8]:
    r"""Label each step as smooth (+1), zigzag (-1) or mixed (0).

    $$ \ell_t = \begin{cases} +1 & c_t > \theta \\ -1 & c_t < -\theta \\ 0 & \text{otherwise} \end{cases} $$

    with c_t the cosine of g_t and g_{t-1}. A step whose c_t is NaN is mixed: the first step, and the first after a
    gap, so that no stretch bridges a gap. Smooth and zigzag stretches shorter than ``min_run`` become mixed.

    Args:
        adjacent_cosine: c_t, shape (step,); ``trace.lag_cosine[:, 0]``, or a column of a layer's.
        theta: threshold, 0 < theta < 1.
        min_run: least number of steps in a smooth or zigzag stretch, at least 1. One lone reversal is no oscillation.

    Returns:
        int8 labels, shape (step,).

    Raises:
        ValueError: ``theta`` outside (0, 1), ``min_run`` below 1, or cosines that are not of shape (step,).

    Source: the two geometries are Morchdi, Zhou, Ding, Wang (2022); threshold and least length are ours.

    Example:
        >>> classify([float("nan"), 0.99, 0.98, 0.2, -0.95, -0.97, 0.99]).tolist()
        [0, 1, 1, 0, -1, -1, 0]
    """
    if not 0.0 < theta < 1.0:
        raise ValueError(f"theta: expected a number between 0 and 1, both excluded, got {theta}")
    if min_run < 1:
        raise ValueError(f"min_run: expected at least 1, got {min_run}")
    cosine = as_series("adjacent_cosine", adjacent_cosine)
    labels = (cosine > theta).astype(np.int8) - (cosine < -theta).astype(np.int8)
    for stretch in stretches(labels):
        if stretch.length < min_run:
            labels[stretch.start : stretch.stop] = MIXED
    return labels


def stretches(labels: ArrayLike) -> list[Stretch]:
    """Cut a sequence of labels into its maximal stretches of equal label, in order.

    Args:
        labels: shape (step,), as ``classify`` returns them.

    Returns:
        ``Stretch(start, stop, label)`` with row indices, half open; together they cover every row once.

    Raises:
        ValueError: labels that are not of shape (step,).

    Source: ours.

    Example:
        >>> [tuple(stretch) for stretch in stretches([0, 1, 1, -1])]
        [(0, 1, 0), (1, 3, 1), (3, 4, -1)]
    """
    array = np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(f"labels: expected an array of shape (step,), got shape {array.shape}")
    if array.size == 0:
        return []
    borders = [0, *(np.flatnonzero(np.diff(array)) + 1).tolist(), len(array)]
    return [Stretch(start, stop, int(array[start])) for start, stop in zip(borders[:-1], borders[1:], strict=True)]


def regime_counts(labels: ArrayLike) -> dict[str, int]:
    """Count the steps of each regime, keyed as ``REGIMES``; every row counts, so that they add up to the rows.

    Args:
        labels: shape (step,), as ``classify`` returns them.

    Returns:
        The number of steps by the name of the regime.

    Example:
        >>> regime_counts([0, 1, 1, -1])
        {'smooth': 2, 'mixed': 1, 'zigzag': 1}
    """
    array = np.asarray(labels)
    return {name: int(np.count_nonzero(array == label)) for name, label in REGIMES.items()}


def sensitivity(adjacent_cosine: ArrayLike, thetas: Sequence[float] = THETAS, min_run: int = 2) -> FloatArray:
    r"""Share of the steps in each regime, for several thresholds: whether a finding hangs on the choice of theta.

    $$ s_{ij} = \frac{\#\{t : \ell_t(\theta_i) = j\}}{\#\{t : c_t \text{ known}\}} $$

    Args:
        adjacent_cosine: c_t, shape (step,).
        thetas: thresholds, each between 0 and 1.
        min_run: as for ``classify``.

    Returns:
        float64, shape (theta, 3), columns smooth, mixed, zigzag, rows adding up to 1. Steps without a known c_t do
        not count; NaN where there is no other.

    Raises:
        ValueError: as ``classify``.

    Source: ours.

    Example:
        >>> sensitivity([float("nan"), 0.85, 0.95, 0.95, -0.95], thetas=(0.8, 0.9), min_run=1).tolist()
        [[0.75, 0.0, 0.25], [0.5, 0.25, 0.25]]
    """
    cosine = as_series("adjacent_cosine", adjacent_cosine)
    measured = ~np.isnan(cosine)
    shares = np.full((len(thetas), len(REGIMES)), np.nan)
    for row, theta in enumerate(thetas):
        labels = classify(cosine, theta, min_run)[measured]
        if labels.size:
            shares[row] = [np.mean(labels == label) for label in REGIMES.values()]
    return shares

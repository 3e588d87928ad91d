"""How far training went and how far it got: the length of the path, the distance between its ends, and their ratio.

The length follows from the updates of any optimiser. The distance does not: a trace holds no products of different
updates. For plain gradient descent u_t = -eta_t g_t, so there it follows from the Gram matrix of the gradients, for as
many steps as that has.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fastgeom.analysis.arrays import FloatArray, as_gram, as_rows, quadratic_form, ratio, root


def path_length(update_sq: ArrayLike) -> FloatArray:
    r"""Length of the path so far, for any optimiser.

    $$ s_t = \sum_{i \le t} \|u_i\|, \qquad u_i = x_{i+1} - x_i $$

    Args:
        update_sq: ||u_t||^2, shape (step,) or (step, layer). Steps left out make the path unknown from there on.

    Returns:
        s_t after the update of step t, float64, same shape, in units of a parameter; NaN from the first unknown update
        on. The last row of a trace is one, as its update was never seen. To measure a stretch, hand over its rows.

    Raises:
        ValueError: a single number.

    Source: ours; the length of the polygon x_0, x_1, ....

    Example:
        >>> path_length([9.0, 16.0, float("nan"), 1.0]).tolist()
        [3.0, 7.0, nan, nan]
    """
    with np.errstate(over="ignore"):
        return np.cumsum(root(as_rows("update_sq", update_sq)), axis=0)


def displacement(gram: ArrayLike, lr: ArrayLike) -> FloatArray:
    r"""Distance between the ends of a window's path, for plain gradient descent.

    $$ \|x_{t+1} - x_{t-m+1}\| = \Bigl\|\sum_i \eta_i g_i\Bigr\| = \sqrt{\sum_{ij} \eta_i \eta_j G_{ij}} $$

    Exact for x_{t+1} = x_t - eta_t g_t only: no momentum, no weight decay outside the gradient, no clipping. What is
    left where updates cancel is known to about 1e-8 of the path's length, as the squares carry 16 digits.

    Args:
        gram: G of the m steps, shape (..., m, m), oldest first, as ``window_gram`` and ``window_grams`` return it.
        lr: eta, the learning rate: one number, or one for each step of the window, shape (m,) or (..., m).

    Returns:
        float64, shape (...), in units of a parameter; NaN where anything in the window is unknown.

    Raises:
        ValueError: ``gram`` that is not of that shape, not symmetric, or negative on the diagonal, or an ``lr`` that
            does not fit it.

    Source: ours.

    Example:
        Gradients (3, 0) and (0, 4):

        >>> displacement([[9.0, 0.0], [0.0, 16.0]], lr=0.1).round(12).item()
        0.5
    """
    matrices = as_gram(gram)
    return root(quadratic_form(matrices, _as_rates(lr, matrices)))


def tortuosity(gram: ArrayLike, lr: ArrayLike = 1.0) -> FloatArray:
    r"""Length of a window's path over the distance between its ends, for plain gradient descent.

    $$ \frac{\sum_i \eta_i \|g_i\|}{\|\sum_i \eta_i g_i\|} $$

    A constant learning rate cancels, so that none need be given. Values above about 1e7 are rounding, and mean that
    the path ends where it began.

    Args:
        gram: as for ``displacement``.
        lr: as for ``displacement``.

    Returns:
        float64, shape (...), at least 1, no unit: 1 for a straight line, sqrt(m) for orthogonal steps of one length,
        infinite where the path closes. NaN where anything is unknown or the path has no length.

    Raises:
        ValueError: as ``displacement``.

    Source: ours; tortuosity as the ratio of arc to chord.

    Example:
        >>> tortuosity([[9.0, 0.0], [0.0, 16.0]]).item()
        1.4
    """
    matrices = as_gram(gram)
    rates = _as_rates(lr, matrices)
    length = (np.abs(rates) * root(np.diagonal(matrices, axis1=-2, axis2=-1))).sum(axis=-1)
    chord = root(quadratic_form(matrices, rates))
    closed = (chord == 0) & (length > 0)
    return np.where(closed, np.inf, np.maximum(ratio(length, chord), 1.0))


def _as_rates(lr: ArrayLike, matrices: FloatArray) -> FloatArray:
    """One learning rate for each step of each window, shape (..., m); NaN where one is not finite."""
    rates = np.asarray(lr, dtype=np.float64)
    try:
        rates = np.broadcast_to(rates, matrices.shape[:-1])
    except ValueError as error:
        m = matrices.shape[-1]
        raise ValueError(
            f"lr: expected one number, or shape ({m},) or {matrices.shape[:-1]}, got shape {rates.shape}"
        ) from error
    return np.where(np.isfinite(rates), rates, np.nan)

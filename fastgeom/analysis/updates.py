"""What the optimiser makes of a gradient: the size of its update, its direction, and how far it turns the parameters.

All take arrays of shape (step,) or (step, layer), so that the same call serves a network and its layers. The update is
u_t = x_{t+1} - x_t, whatever optimiser made it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fastgeom.analysis.arrays import FloatArray, as_rows, as_steps, check_same_shape, ratio, root


def update_ratio(update_sq: ArrayLike, param_sq: ArrayLike) -> FloatArray:
    r"""Size of the update relative to the parameters.

    $$ \frac{\|u_t\|}{\|x_t\|} $$

    Args:
        update_sq: ||u_t||^2, shape (step,) or (step, layer).
        param_sq: ||x_t||^2, same shape.

    Returns:
        float64, same shape, no unit; NaN where the parameters are 0 or either is unknown.

    Raises:
        ValueError: shapes that differ.

    Source: folklore; a ratio near 1e-3 is Karpathy's rule of thumb for SGD.

    Example:
        >>> update_ratio([0.01], [4.0]).tolist()
        [0.05]
    """
    updates, parameters = np.asarray(update_sq, dtype=np.float64), np.asarray(param_sq, dtype=np.float64)
    check_same_shape(update_sq=updates, param_sq=parameters)
    return ratio(root(updates), root(parameters))


def update_cosine(grad_dot_update: ArrayLike, grad_sq: ArrayLike, update_sq: ArrayLike) -> FloatArray:
    r"""Cosine between the update and the direction of steepest descent.

    $$ \cos(u_t, -g_t) = -\frac{\langle g_t, u_t\rangle}{\|g_t\|\,\|u_t\|} $$

    1 for plain gradient descent, below 0 where the update climbs.

    Args:
        grad_dot_update: <g_t, u_t>, shape (step,) or (step, layer).
        grad_sq: ||g_t||^2, same shape.
        update_sq: ||u_t||^2, same shape.

    Returns:
        float64, same shape, in [-1, 1]; NaN where the gradient or the update is 0 or unknown.

    Raises:
        ValueError: shapes that differ.

    Source: ours.

    Example:
        >>> update_cosine([-3.0], [9.0], [4.0]).tolist()
        [0.5]
    """
    dot = np.asarray(grad_dot_update, dtype=np.float64)
    gradients, updates = np.asarray(grad_sq, dtype=np.float64), np.asarray(update_sq, dtype=np.float64)
    check_same_shape(grad_dot_update=dot, grad_sq=gradients, update_sq=updates)
    finite = np.where(np.isfinite(dot), dot, np.nan)
    return np.clip(ratio(ratio(-finite, root(gradients)), root(updates)), -1.0, 1.0)


def angular_update(param_sq: ArrayLike, update_sq: ArrayLike, step: ArrayLike | None = None) -> FloatArray:
    r"""Angle by which an update turns the parameters, seen from the origin.

    $$ \angle(x_t, x_{t+1}) = 2 \arctan \sqrt{\frac{((a - b) + c)\,(c - (a - b))}{(a + (b + c))\,((a - c) + b)}} $$

    with a >= b the two norms ||x_t||, ||x_{t+1}|| and c = ||u_t||: the angle of a triangle from its three sides. The
    textbook's arccos of (a^2 + b^2 - c^2) / (2 a b) has no digit left below angles of 1e-8; this has all of them for an
    update across the parameters, however small. For one almost along them the norms decide: where ``param_sq`` is
    known to a relative error e, angles below sqrt(e c / a) are lost: 1e-8 for e = 1e-13 and c / a = 1e-3.

    Args:
        param_sq: ||x_t||^2, shape (step,) or (step, layer). The value of step t + 1 is used as well.
        update_sq: ||u_t||^2, same shape.
        step: step numbers, shape (step,), strictly increasing; 0, 1, 2, ... by default.

    Returns:
        float64, same shape, in radians, from 0 to pi; NaN for the last row, where step t + 1 was not measured, and
        where the parameters are 0 before or after.

    Raises:
        ValueError: shapes that differ, single numbers, or step numbers that do not increase.

    Source: Wan, Zhu, Zhang, Sun (2021), "Spherical motion dynamics", for the angular update; Kahan (1986),
    "Miscalculating area and angles of a needle-like triangle", for the formula.

    Example:
        From (1, 0) to (0, 1):

        >>> (angular_update([1.0, 1.0], [2.0, 0.0])[0] * 180 / np.pi).round(9).item()
        90.0
    """
    parameters, updates = as_rows("param_sq", param_sq), as_rows("update_sq", update_sq)
    check_same_shape(param_sq=parameters, update_sq=updates)
    number = as_steps(step, len(parameters))
    result = np.full(parameters.shape, np.nan)
    adjacent = np.flatnonzero(np.diff(number) == 1)
    before, after = root(parameters[adjacent]), root(parameters[adjacent + 1])
    result[adjacent] = _angle_between(np.maximum(before, after), np.minimum(before, after), root(updates[adjacent]))
    return result


def _angle_between(a: FloatArray, b: FloatArray, c: FloatArray) -> FloatArray:
    """Angle between the sides a >= b > 0 of a triangle, c the third; 0 or pi where rounding leaves none."""
    short = np.maximum(np.where(c > b, b - (a - c), c - (a - b)), 0.0)
    opposite = np.maximum((a - c) + b, 0.0)
    angle = 2 * np.arctan2(np.sqrt((a - b) + c) * np.sqrt(short), np.sqrt(a + (b + c)) * np.sqrt(opposite))
    return np.where(b > 0, angle, np.nan)

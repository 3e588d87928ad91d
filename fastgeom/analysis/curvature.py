"""Curvature along the path that training takes, from products of gradients and updates that a trace records.

All three take arrays of shape (step,) or (step, layer), so that the same call serves a network and its layers. The
update is u_t = x_{t+1} - x_t, whatever optimiser made it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fastgeom.analysis.arrays import FloatArray, as_steps, check_same_shape, ratio


def step_curvature(grad_dot_update: ArrayLike, next_grad_dot_update: ArrayLike) -> FloatArray:
    r"""Curvature met by a step, in units in which 1 is the minimum along the step.

    $$ \kappa_t = 1 - \frac{\langle g_{t+1}, u_t\rangle}{\langle g_t, u_t\rangle} $$

    On a quadratic loss the change of the loss over the step is (1 - kappa_t / 2) <g_t, u_t>: the step ends at the
    minimum along its own direction where kappa_t = 1, overshoots it above 1, and gains nothing from 2 on. It needs no
    learning rate and holds for any optimiser. For gradient descent it is eta K_t, and c_{t+1} < 0 exactly where
    kappa_t > 1.

    Args:
        grad_dot_update: <g_t, u_t>, shape (step,) or (step, layer).
        next_grad_dot_update: <g_{t+1}, u_t>, same shape.

    Returns:
        kappa_t, float64, same shape, no unit; NaN unless <g_t, u_t> < 0, since an uphill step has no such scale.

    Raises:
        ValueError: shapes that differ.

    Source: ours. For gradient descent it is the sharpness along the gradient of Cohen et al. (2021), times eta.

    Example:
        >>> step_curvature([-1.0, -1.0, 0.5], [0.0, 1.0, 0.5]).tolist()
        [1.0, 2.0, nan]
    """
    before = np.asarray(grad_dot_update, dtype=np.float64)
    after = np.asarray(next_grad_dot_update, dtype=np.float64)
    check_same_shape(grad_dot_update=before, next_grad_dot_update=after)
    return np.where(before < 0, 1.0 - ratio(after, before), np.nan)


def directional_curvature(
    grad_dot_update: ArrayLike, next_grad_dot_update: ArrayLike, update_sq: ArrayLike
) -> FloatArray:
    r"""Curvature of the loss along the update: the Hessian's Rayleigh quotient, averaged over the step.

    $$ K_t = \frac{\langle g_{t+1} - g_t, u_t\rangle}{\|u_t\|^2} $$

    For gradient descent the edge of stability is K_t = 2 / eta.

    Args:
        grad_dot_update: <g_t, u_t>, shape (step,) or (step, layer).
        next_grad_dot_update: <g_{t+1}, u_t>, same shape.
        update_sq: ||u_t||^2, same shape.

    Returns:
        K_t, float64, same shape, in units of the loss over those of a parameter squared; NaN where u_t is 0 or unknown.

    Raises:
        ValueError: shapes that differ.

    Source: ours; the secant form of the Rayleigh quotient.

    Example:
        A loss of curvature 5, from x = 1 with the update -0.1: g goes from 5 to 4.5.

        >>> directional_curvature([-0.5], [-0.45], [0.01]).round(12).tolist()
        [5.0]
    """
    before = np.asarray(grad_dot_update, dtype=np.float64)
    after = np.asarray(next_grad_dot_update, dtype=np.float64)
    squared = np.asarray(update_sq, dtype=np.float64)
    check_same_shape(grad_dot_update=before, next_grad_dot_update=after, update_sq=squared)
    with np.errstate(invalid="ignore"):
        return ratio(after - before, squared)


def path_smoothness(diff_sq: ArrayLike, update_sq: ArrayLike, step: ArrayLike | None = None) -> FloatArray:
    r"""How fast the gradient turns along the path: a lower bound of the loss's smoothness constant.

    $$ L_t = \frac{\|g_{t+1} - g_t\|}{\|u_t\|} $$

    L_t >= |K_t|, with equality where the gradient changes along the update alone. For gradient descent it is
    sqrt(1 + r^2 - 2 r c_{t+1}) / eta with r = ||g_{t+1}|| / ||g_t||.

    Args:
        diff_sq: ||g_t - g_{t-1}||^2, shape (step,) or (step, layer). The value of step t + 1 is used for L_t.
        update_sq: ||u_t||^2, same shape.
        step: step numbers, shape (step,), strictly increasing; 0, 1, 2, ... by default.

    Returns:
        L_t, float64, same shape, in units of the loss over those of a parameter squared; NaN for the last row, where
        step t + 1 was not measured, and where u_t is 0 or unknown.

    Raises:
        ValueError: shapes that differ, or step numbers that do not increase.

    Source: ours; L_t is the local Lipschitz estimate of Malitsky and Mishchenko (2020), written forward in t.

    Example:
        >>> path_smoothness([float("nan"), 4.0, 9.0], [1.0, 1.0, 1.0], step=[0, 1, 5]).tolist()
        [2.0, nan, nan]
    """
    difference = np.asarray(diff_sq, dtype=np.float64)
    squared = np.asarray(update_sq, dtype=np.float64)
    check_same_shape(diff_sq=difference, update_sq=squared)
    if difference.ndim == 0:
        raise ValueError("diff_sq: expected shape (step,) or (step, layer), got a single number")
    number = as_steps(step, len(difference))
    result = np.full(difference.shape, np.nan)
    adjacent = np.flatnonzero(np.diff(number) == 1)
    result[adjacent] = np.sqrt(ratio(difference[adjacent + 1], squared[adjacent]))
    return result

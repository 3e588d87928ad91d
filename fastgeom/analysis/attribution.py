"""Which layer made the loss fall: the change of the loss, split over layers along the path."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fastgeom.analysis.arrays import FloatArray, as_rows, as_series, as_steps, check_same_shape


def loss_attribution(grad_dot_update: ArrayLike, next_grad_dot_update: ArrayLike) -> FloatArray:
    r"""Change of the loss that each layer's update made, by the trapezoidal rule.

    $$ a_t = \tfrac12 \langle g_t + g_{t+1}, u_t \rangle $$

    The line integral of the gradient along the update, from its two ends: exact on a quadratic, of third order in the
    update elsewhere. Layers add up to the change over all of them. For mini-batches it mixes the losses of two batches.

    Args:
        grad_dot_update: <g_t, u_t>, shape (step,) or (step, layer); ``trace.layer_grad_dot_update``.
        next_grad_dot_update: <g_{t+1}, u_t>, same shape.

    Returns:
        a_t, float64, same shape, in units of the loss: negative where the layer made it fall. NaN where the update or
        the next gradient is unknown.

    Raises:
        ValueError: shapes that differ.

    Source: loss change allocation of Lan, Liu, Zhou, Yosinski (2019), who integrate by Runge and Kutta's or Simpson's
    rule and sum over single parameters.

    Example:
        Two layers, the second of which undoes half of what the first does:

        >>> loss_attribution([[-3.0, 1.0]], [[-1.0, 1.0]]).tolist()
        [[-2.0, 1.0]]
    """
    before = np.asarray(grad_dot_update, dtype=np.float64)
    after = np.asarray(next_grad_dot_update, dtype=np.float64)
    check_same_shape(grad_dot_update=before, next_grad_dot_update=after)
    with np.errstate(invalid="ignore", over="ignore"):
        total = before / 2 + after / 2
    return np.where(np.isfinite(total), total, np.nan)


def attribution_residual(attribution: ArrayLike, loss: ArrayLike, step: ArrayLike | None = None) -> FloatArray:
    r"""Change of the loss that the attribution does not explain.

    $$ r_t = (f_{t+1} - f_t) - \sum_\ell a_{t\ell} $$

    To say that layers made the loss fall, show that this is small beside f_{t+1} - f_t. It is the third order of the
    loss, and everything that f holds beside the gradient's loss: another batch, dropout, a term without a gradient.

    Args:
        attribution: a_t, shape (step,), or one a layer, shape (step, layer), as ``loss_attribution`` returns it. All
            layers must be there.
        loss: f_t, shape (step,).
        step: step numbers, shape (step,), strictly increasing; 0, 1, 2, ... by default.

    Returns:
        r_t, float64, shape (step,), in units of the loss; NaN where step t + 1 was not measured, for the last row, and
        where a loss or a layer is unknown.

    Raises:
        ValueError: arrays of different lengths, or step numbers that do not increase.

    Source: ours, after Lan et al. (2019), who report the same error.

    Example:
        >>> attribution_residual([[-2.0, 1.0], [0.0, 0.0]], loss=[5.0, 4.25]).tolist()
        [0.25, nan]
    """
    change = as_rows("attribution", attribution)
    f = as_series("loss", loss)
    if change.ndim > 2 or len(change) != len(f):
        raise ValueError(
            f"attribution: expected shape ({len(f)},) or ({len(f)}, layer), as many rows as loss, got {change.shape}"
        )
    number = as_steps(step, len(f))
    result = np.full(len(f), np.nan)
    total = change if change.ndim == 1 else change.sum(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        residual = np.diff(f) - total[:-1]
    valid = (np.diff(number) == 1) & np.isfinite(residual)
    result[:-1][valid] = residual[valid]
    return result

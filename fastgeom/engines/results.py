"""Results that engines and windows return."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class WindowStatistics:
    """Statistics of one gradient against the window before it; the leading axis is (layer + 1,), the last row overall.

    Attributes:
        grad_sq: (layer + 1,) squared norm.
        grad_norm: (layer + 1,) its root.
        grad_absmax: (layer + 1,) largest magnitude over what is not NaN.
        nonfinite: (layer + 1,) int64 count of inf and NaN.
        lag_dot: (layer + 1, window) dot products, lag k at index k - 1; NaN where step t - k was not measured. ``None``
            in a deferred window, as are the next three.
        lag_cosine: (layer + 1, window) cosines.
        diff_sq: (layer + 1,) squared norm of g_t - g_{t-1}; NaN where step t - 1 was not measured.
        sum_sq: (layer + 1,) squared norm of g_t + g_{t-1}.
        late: lags of earlier steps, and possibly of this one, where a deferred window has just computed some.
        lag_dot_error: (layer + 1, window) standard errors of ``lag_dot``, where that is estimated.
        diff_sq_error: (layer + 1,) standard errors of ``diff_sq``, where that is estimated.
        sum_sq_error: (layer + 1,) standard errors of ``sum_sq``, where that is estimated.
        sketch: (bucket,) a small sketch of the gradient, where asked for.
    """

    grad_sq: Tensor
    grad_norm: Tensor
    grad_absmax: Tensor
    nonfinite: Tensor
    lag_dot: Tensor | None
    lag_cosine: Tensor | None
    diff_sq: Tensor | None
    sum_sq: Tensor | None
    late: tuple[LateLags, ...] = ()
    lag_dot_error: Tensor | None = None
    diff_sq_error: Tensor | None = None
    sum_sq_error: Tensor | None = None
    sketch: Tensor | None = None


@dataclass(frozen=True)
class LateLags:
    """Lag statistics of an earlier step, computed by a deferred window; shapes as in `WindowStatistics`."""

    step: int
    lag_dot: Tensor
    lag_cosine: Tensor
    diff_sq: Tensor
    sum_sq: Tensor


@dataclass(frozen=True)
class UpdateMoments:
    """Sums over the last update u_t = x_{t+1} - x_t; all but the first are NaN where step t was not measured.

    Attributes:
        param_sq: (layer + 1,) sum x_{t+1}^2.
        update_sq: (layer + 1,) sum u_t^2.
        grad_dot_update: (layer + 1,) sum g_t u_t.
        next_grad_dot_update: (layer + 1,) sum g_{t+1} u_t.
        grad_dot_update_error: (layer + 1,) standard error of ``grad_dot_update``, where that is estimated.
    """

    param_sq: Tensor
    update_sq: Tensor
    grad_dot_update: Tensor
    next_grad_dot_update: Tensor
    grad_dot_update_error: Tensor | None = None


@dataclass(frozen=True)
class ListMoments:
    """Statistics of a list of tensors, against rows of others.

    Attributes:
        dots: (row,) dot products with each row.
        grad_sq: 0-d squared norm.
        grad_norm: 0-d norm.
        grad_absmax: 0-d largest magnitude; may be ``None`` where rows are given.
        nonfinite: 0-d count of inf and NaN; may be ``None`` where rows are given.
    """

    dots: Tensor
    grad_sq: Tensor
    grad_norm: Tensor
    grad_absmax: Tensor | None
    nonfinite: Tensor | None


@dataclass(frozen=True)
class SketchMoments:
    """A sketch against those of the last gradients; NaN where a step was not measured.

    Attributes:
        lag_cosine: (layer + 1, window) cosines, by the sketches' own norms.
        past_norm: (layer + 1, window) exact norms of the past gradients; inf where one was not finite.
        diff_sq: (layer + 1,) squared norm of the difference from the sketch of the step before.
        sum_sq: (layer + 1,) squared norm of the sum with it.
    """

    lag_cosine: Tensor
    past_norm: Tensor
    diff_sq: Tensor
    sum_sq: Tensor


@dataclass(frozen=True)
class NormMoments:
    """Exact statistics of one gradient, (layer + 1,) each."""

    grad_sq: Tensor
    grad_norm: Tensor
    grad_absmax: Tensor
    nonfinite: Tensor

"""What engines and windows return."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class WindowStatistics:
    """Statistics of one gradient and the window before it; the leading axis is (layer + 1,), the last row over all.

    Attributes:
        grad_sq, grad_norm, grad_absmax, nonfinite: (layer + 1,).
        lag_dot, lag_cosine: (layer + 1, window); lag k at index k - 1, NaN where step t - k was not measured.
        diff_sq, sum_sq: (layer + 1,); NaN where step t - 1 was not measured.
        late: the lags of earlier steps, of this one too perhaps, where the window is deferred; its own are ``None``.
        lag_dot_error, diff_sq_error, sum_sq_error: standard errors, where these are estimated.
        sketch: (bucket,) a small sketch of the gradient, if asked for.
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
    """What a deferred window has to say of one step once it is known; shapes as in `WindowStatistics`."""

    step: int
    lag_dot: Tensor
    lag_cosine: Tensor
    diff_sq: Tensor
    sum_sq: Tensor


@dataclass(frozen=True)
class UpdateMoments:
    """Sums over the update that led here, (layer + 1,) each: sum x^2, sum u^2, sum g_t u_t, sum g_{t+1} u_t.

    All but the first are NaN where the step before was not measured. ``grad_dot_update_error`` is the standard error of
    the third, where that is estimated.
    """

    param_sq: Tensor
    update_sq: Tensor
    grad_dot_update: Tensor
    next_grad_dot_update: Tensor
    grad_dot_update_error: Tensor | None = None


@dataclass(frozen=True)
class ListMoments:
    """Statistics of a list of tensors: dots (row,), the others 0-d; with rows the last two may be ``None``."""

    dots: Tensor
    grad_sq: Tensor
    grad_norm: Tensor
    grad_absmax: Tensor | None
    nonfinite: Tensor | None


@dataclass(frozen=True)
class SketchMoments:
    """A sketch against those of the last gradients; NaN where a step was not measured.

    Attributes:
        lag_cosine: (layer + 1, window), by the sketches' own norms.
        past_norm: (layer + 1, window), the exact norms of those gradients; inf where one was not finite.
        diff_sq, sum_sq: (layer + 1,), against the sketch of the step before.
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

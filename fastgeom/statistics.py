"""`StepStatistics`: what one call of ``Probe.step`` returns."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

from fastgeom.history import WindowStatistics
from fastgeom.schema import GRADIENT_FIELDS, LAYER_PREFIX


@dataclass(frozen=True)
class StepStatistics:
    """The statistics of one step, as tensors on the device, each step's its own; names and formulas are the schema's.

    Shapes: () overall and (layer,) with the prefix ``layer_``; the lags add an axis (window,), lag k at index k - 1.
    float64, but ``nonfinite``, which is int64. NaN stands where a past step was not measured. ``None`` stands for what
    is not measured at all, and for what completes one step later and only the trace will have: ``update_sq``,
    ``grad_dot_update`` and ``next_grad_dot_update``.
    """

    step: int
    grad_sq: Tensor
    grad_norm: Tensor
    grad_absmax: Tensor
    nonfinite: Tensor
    lag_dot: Tensor
    lag_cosine: Tensor
    diff_sq: Tensor
    sum_sq: Tensor
    layer_grad_sq: Tensor
    layer_grad_norm: Tensor
    layer_grad_absmax: Tensor
    layer_nonfinite: Tensor
    layer_lag_dot: Tensor
    layer_lag_cosine: Tensor
    layer_diff_sq: Tensor
    layer_sum_sq: Tensor
    param_sq: Tensor | None = None
    layer_param_sq: Tensor | None = None
    clip_coefficient: Tensor | None = None
    update_sq: None = None
    layer_update_sq: None = None
    grad_dot_update: None = None
    layer_grad_dot_update: None = None
    next_grad_dot_update: None = None
    layer_next_grad_dot_update: None = None


def step_statistics(
    step: int, window: WindowStatistics, *, param_sq: Tensor | None, clip_coefficient: Tensor | None
) -> StepStatistics:
    """Split the statistics over (layer + 1) into overall and per layer."""
    measured = {field.name: getattr(window, field.name) for field in fields(window)}
    if param_sq is not None:
        measured["param_sq"] = param_sq
    overall = {name: value[-1] for name, value in measured.items()}
    layered = {LAYER_PREFIX + name: value[:-1] for name, value in measured.items()}
    return StepStatistics(step=step, **overall, **layered, clip_coefficient=clip_coefficient)


def recorded_values(statistics: StepStatistics) -> dict[str, Tensor | int]:
    """What of these statistics goes to a trace at once, by field name."""
    names = [field.name for field in GRADIENT_FIELDS]
    names += [LAYER_PREFIX + name for name in names] + ["param_sq", f"{LAYER_PREFIX}param_sq", "clip_coefficient"]
    values = {name: getattr(statistics, name) for name in names}
    return {"step": statistics.step} | {name: value for name, value in values.items() if value is not None}

"""`StepStatistics`: what one call of ``Probe.step`` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastgeom.engines.results import LateLags, UpdateMoments, WindowStatistics
from fastgeom.schema import ERROR_FIELDS, GRADIENT_FIELDS, LAYER_PREFIX, UPDATE_ERROR_FIELDS, UPDATE_FIELDS


@dataclass(frozen=True)
class StepStatistics:
    """Statistics of one step, as tensors on the device that no later step writes to.

    Names, formulas and units are those of ``fastgeom.schema``. Shapes are () overall and (layer,) with the prefix
    ``layer_``; lags add an axis (window,), with lag k at index k - 1. Tensors are float64, ``nonfinite`` is int64. NaN
    stands where a past step was not measured, ``None`` for what this run does not measure.

    What completes at a later step is in the trace alone: the update's ``update_sq``, ``grad_dot_update`` and
    ``next_grad_dot_update`` have no field here, and with a deferred window (``Exact(defer=...)``) all fields that take
    past gradients are ``None``.
    """

    step: int
    grad_sq: Tensor
    grad_norm: Tensor
    grad_absmax: Tensor
    nonfinite: Tensor
    lag_dot: Tensor | None
    lag_cosine: Tensor | None
    diff_sq: Tensor | None
    sum_sq: Tensor | None
    layer_grad_sq: Tensor
    layer_grad_norm: Tensor
    layer_grad_absmax: Tensor
    layer_nonfinite: Tensor
    layer_lag_dot: Tensor | None
    layer_lag_cosine: Tensor | None
    layer_diff_sq: Tensor | None
    layer_sum_sq: Tensor | None
    lag_dot_error: Tensor | None = None
    diff_sq_error: Tensor | None = None
    sum_sq_error: Tensor | None = None
    layer_lag_dot_error: Tensor | None = None
    layer_diff_sq_error: Tensor | None = None
    layer_sum_sq_error: Tensor | None = None
    sketch: Tensor | None = None
    param_sq: Tensor | None = None
    layer_param_sq: Tensor | None = None
    clip_coefficient: Tensor | None = None


_BY_LAYER = [f.name for f in (*GRADIENT_FIELDS, *ERROR_FIELDS)]


def step_statistics(
    step: int, window: WindowStatistics, *, param_sq: Tensor | None, clip_coefficient: Tensor | None
) -> StepStatistics:
    """Split statistics over (layer + 1,) into overall and per layer.

    Args:
        step: number of the step.
        window: its statistics.
        param_sq: (layer + 1,) squared norms of the parameters; ``None`` where updates are not measured.
        clip_coefficient: 0-d; ``None`` where gradients are not clipped.
    """
    names = (*_BY_LAYER, "grad_norm", "lag_cosine")
    measured = {name: getattr(window, name) for name in names} | {"param_sq": param_sq}
    split: dict[str, Any] = split_by_layer(measured)
    return StepStatistics(step=step, **split, sketch=window.sketch, clip_coefficient=clip_coefficient)


def recorded_values(statistics: StepStatistics) -> dict[str, Tensor | int]:
    """Fields that a trace records at the step itself, by name."""
    names = [*_BY_LAYER, "param_sq"]
    names += [LAYER_PREFIX + name for name in names] + ["clip_coefficient", "sketch"]
    return {"step": statistics.step} | drop_none({name: getattr(statistics, name) for name in names})


def late_lags(late: LateLags) -> dict[str, Tensor]:
    """Fields of an earlier step that a deferred window has computed, by name."""
    names = ("lag_dot", "diff_sq", "sum_sq")
    return drop_none(split_by_layer({name: getattr(late, name) for name in names}))


def late_update(update: UpdateMoments) -> dict[str, Tensor]:
    """Fields of the last step's update, by name."""
    names = [f.name for f in (*UPDATE_FIELDS, *UPDATE_ERROR_FIELDS) if f.late]
    return drop_none(split_by_layer({name: getattr(update, name) for name in names}))


def split_by_layer(values: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Split values over (layer + 1, ...) into the overall one and, under the prefix ``layer_``, those of the layers."""
    overall = {name: None if value is None else value[-1] for name, value in values.items()}
    return overall | {LAYER_PREFIX + name: None if value is None else value[:-1] for name, value in values.items()}


def drop_none(values: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Entries whose value is not None."""
    return {name: value for name, value in values.items() if value is not None}

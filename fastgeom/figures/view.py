"""Data of the figures: arrays of a trace, cut where the run diverged, and the windows worth drawing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastgeom import analysis

FloatArray = NDArray[np.float64]


class GeometryTrace(Protocol):
    """The part of a trace that the figures read; ``loss`` and the two update products are drawn where there are any."""

    @property
    def step(self) -> NDArray[np.int64]:
        """Step numbers, shape (step,)."""

    @property
    def grad_sq(self) -> FloatArray:
        """Squared gradient norms, shape (step,)."""

    @property
    def lag_dot(self) -> FloatArray:
        """Products with the past gradients, shape (step, lag)."""

    @property
    def lag_cosine(self) -> FloatArray:
        """Correlations with the past gradients, shape (step, lag)."""


@dataclass(frozen=True)
class RunSeries:
    """Series of a run that the panels draw, cut where it diverged."""

    step: NDArray[np.int64]
    loss: FloatArray | None
    cosine: FloatArray
    kappa: FloatArray | None
    labels: NDArray[np.int8]
    theta: float
    diverged_at: int | None

    @classmethod
    def read(cls, trace: GeometryTrace, theta: float) -> RunSeries:
        """Read the rows up to a divergence."""
        loss: FloatArray | None = getattr(trace, "loss", None)
        kappa: FloatArray | None = None
        if hasattr(trace, "grad_dot_update") and hasattr(trace, "next_grad_dot_update"):
            kappa = analysis.step_curvature(trace.grad_dot_update, trace.next_grad_dot_update)
        cosine = trace.lag_cosine[:, 0]
        end = end_of(trace)
        return cls(
            step=trace.step[:end],
            loss=None if loss is None else loss[:end],
            cosine=cosine[:end],
            kappa=None if kappa is None else kappa[:end],
            labels=analysis.classify(cosine[:end], theta),
            theta=theta,
            diverged_at=int(trace.step[end]) if end < len(trace.step) else None,
        )


def end_of(trace: Any) -> int:
    """Number of rows up to where the gradient or the loss stops being finite and never is again: a divergence.

    A loss of NaN beside a finite gradient was not given at that step, and is no divergence.
    """
    end = _lost_from(trace.grad_sq, ~np.isfinite(trace.grad_sq))
    loss: FloatArray | None = getattr(trace, "loss", None)
    if loss is not None:
        end = min(end, _lost_from(loss, np.isinf(loss)))
    return end


def _lost_from(values: FloatArray, nonfinite: NDArray[np.bool_]) -> int:
    """First nonfinite row after which no value is finite; the number of rows where there is none."""
    finite = np.flatnonzero(np.isfinite(values))
    after = int(finite[-1]) + 1 if len(finite) else 0
    lost = np.flatnonzero(nonfinite[after:])
    return after + int(lost[0]) if len(lost) else len(values)


@dataclass(frozen=True)
class StepSpan:
    """Steps ``first`` to ``last``, ``n_of_regime`` of them in the regime the window is to show."""

    first: int
    last: int
    n_of_regime: int


def find_windows(run: RunSeries, n_lags: int, size: int | None) -> dict[str, StepSpan | None]:
    """Find the windows of ``size`` steps that show the smooth and the zigzag regime best; None where there is none."""
    if size is not None and size < 2:
        raise ValueError(f"size: expected at least 2 steps, got {size}")
    longest = max((stretch.length for stretch in analysis.stretches(run.step - np.arange(len(run.step)))), default=0)
    length = size if size is not None else min(n_lags + 1, longest)
    windows: dict[str, StepSpan | None] = {"smooth": None, "zigzag": None}
    for regime in windows:
        label = analysis.REGIMES[regime]
        rows = analysis.densest_window(run.labels, label, length, step=run.step) if length >= 2 else None
        if rows is not None:
            n_of_regime = int(np.count_nonzero(run.labels[slice(*rows)] == label))
            windows[regime] = StepSpan(int(run.step[rows[0]]), int(run.step[rows[1] - 1]), n_of_regime)
    return windows

"""What every engine's window of past gradients takes and gives: statistics, updates, and the dtypes it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastgeom.tables import DTYPES, AddressTable


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
    absmax: Tensor | None
    nonfinite: Tensor | None


class Window(Protocol):
    """The last gradients of a layout, on the device where they lie, and what a new one is against them."""

    def fit(self, gradient: AddressTable, parameter: AddressTable | None) -> None:
        """Take the memory at the first step; afterwards check that the dtypes are still those.

        Raises:
            ValueError: a tensor's dtype is another than at first, or the history's dtype cannot hold it.
        """

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> UpdateMoments:
        """Sums over the update since the last call, before `measure` is called for this step.

        Args:
            parameter, gradient: x_{t+1} and g_{t+1}, which `fit` has seen.
            step: t + 1.
            grad_scale: what the gradient is divided by when read.

        Cost: gradient, previous gradient, parameters and snapshot read, the snapshot written.
        """

    def measure(
        self, gradient: AddressTable, step: int, *, found_inf: Tensor | None = None, grad_scale: Tensor | None = None
    ) -> WindowStatistics:
        """Measure the gradient of ``step``, which `fit` has seen, and remember it.

        Args:
            gradient: where the tensors lie.
            step: number of the optimiser step, larger than any before.
            found_inf: a 0-d tensor; where it is not 0 the gradient is measured but not remembered.
            grad_scale: what the gradient is divided by when read.

        Cost: gradient + window rows read, one row written.
        """

    def step_on_device(self) -> Tensor | None:
        """The step last measured, as the device counts it; ``None`` where only the host does."""

    def resume(self, step: int) -> None:
        """Go on after a step that the device has counted without the host."""

    def finish(self) -> tuple[LateLags, ...]:
        """The lags that are still to come, at the end of a run; only a deferred window has some."""


class Sketcher(Protocol):
    """Sketches of lists of tensors, on the device where they lie."""

    def fit(self, gradient: AddressTable) -> None:
        """Where the tensors lie now."""

    def sketch(self, gradient: AddressTable, out: Tensor) -> NormMoments:
        """One read of tensors, which `fit` has seen: their sketch in ``out``, (plan.total,) float32, exact moments."""


class SketchWindow(Protocol):
    """Sketches of the last gradients of a layout, on the device where they lie, and what a new one is against them."""

    def fit(self, gradient: AddressTable, parameter: AddressTable | None) -> None:
        """As `Window.fit`; sketches are float32 whatever the gradients are, which may change their dtypes."""

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> tuple[UpdateMoments, SketchMoments]:
        """As `Window.measure_update`: exact sums but for ``grad_dot_update``, which is NaN; and the update's sketch.

        The latter is compared with that of the step before alone, as in a window of 1.
        """

    def measure(
        self, gradient: AddressTable, step: int, *, found_inf: Tensor | None = None, grad_scale: Tensor | None = None,
        out: Tensor | None = None,
    ) -> tuple[NormMoments, SketchMoments]:  # fmt: skip
        """As `Window.measure`; what is remembered is the sketch.

        Args:
            gradient, step, found_inf, grad_scale: as in `Window.measure`.
            out: (plan.total,) float32, where the sketch is written too.

        Cost: the gradient read; each tile of its sketch against ``window`` others, then written over the oldest.
        """

    def step_on_device(self) -> Tensor | None:
        """As `Window.step_on_device`."""

    def resume(self, step: int) -> None:
        """As `Window.resume`."""


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
    absmax: Tensor
    nonfinite: Tensor


def kept_dtypes(names: Sequence[str], gradients: Sequence[torch.dtype], dtype: torch.dtype | None) -> list[torch.dtype]:
    """In what each gradient is kept: in ``dtype`` where that has less precision than its own, else in its own.

    Raises:
        ValueError: float16 for gradients of another dtype, whose small values it has no exponents for.
    """
    for name, own in zip(names, gradients, strict=True):
        if dtype is torch.float16 and own is not torch.float16:
            raise ValueError(f"history dtype: expected float16 gradients for a float16 history, got {own} in {name!r}")
    return [own if dtype is None or not loses(dtype, own) else dtype for own in gradients]


def check_deferrable(names: Sequence[str], gradient: AddressTable) -> None:
    """Raise where a gradient is float64, whose dots are taken at every step.

    Raises:
        ValueError: names the gradient.
    """
    wide = np.flatnonzero(gradient.code == DTYPES.index(torch.float64))
    if len(wide):
        raise ValueError(f"history defer: expected gradients of 16 or 32 bits, got float64 in {names[wide[0]]!r}")


def loses(kept: torch.dtype, own: torch.dtype) -> bool:
    """Whether a gradient of dtype ``own`` loses precision in ``kept``."""
    return torch.finfo(kept).eps > torch.finfo(own).eps


def check_dtypes(names: Sequence[str], what: str, first: NDArray[np.int8], now: AddressTable) -> None:
    """Raise unless the tensors that are there have the dtypes that they had at the first measured step.

    Raises:
        ValueError: names the tensor.
    """
    if now.code is first:
        return
    changed = np.flatnonzero((now.code != first) & (now.address != 0))
    if len(changed):
        i = changed[0]
        raise ValueError(
            f"{what}{names[i]!r}: expected dtype {DTYPES[first[i]]} as at the first measured step, "
            f"got {DTYPES[now.code[i]]}"
        )

"""What every engine's window of past gradients takes and gives: statistics, updates, and the dtypes it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastgeom.engines.results import LateLags, ListMoments, NormMoments, SketchMoments, UpdateMoments, WindowStatistics
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.chunks import Ints
from fastgeom.layout.count_sketch import SketchPlan
from fastgeom.layout.layout import Layout


class HistoryWindow(Protocol):
    """The last gradients of a layout, on the device where they lie, and what a new one is against them."""

    def prepare(self, gradient: AddressTable, parameter: AddressTable | None) -> None:
        """Take the memory at the first step; afterwards check that the dtypes are still those.

        Raises:
            ValueError: a tensor's dtype is another than at first, or the history's dtype cannot hold it.
        """

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> UpdateMoments:
        """Sums over the update since the last call, before `measure` is called for this step.

        Args:
            parameter, gradient: x_{t+1} and g_{t+1}, which `prepare` has seen.
            step: t + 1.
            grad_scale: what the gradient is divided by when read.

        Cost: gradient, previous gradient, parameters and snapshot read, the snapshot written.
        """

    def measure(
        self, gradient: AddressTable, step: int, *, found_inf: Tensor | None = None, grad_scale: Tensor | None = None
    ) -> WindowStatistics:
        """Measure the gradient of ``step``, which `prepare` has seen, and remember it.

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

    def prepare(self, gradient: AddressTable) -> None:
        """Where the tensors lie now."""

    def sketch(self, gradient: AddressTable, out: Tensor) -> NormMoments:
        """One read of tensors, which `prepare` has seen: their sketch in ``out``, (plan.total,) float32."""


class SketchWindow(Protocol):
    """Sketches of the last gradients of a layout, on the device where they lie, and what a new one is against them."""

    def prepare(self, gradient: AddressTable, parameter: AddressTable | None) -> None:
        """As `HistoryWindow.prepare`; sketches are float32, and gradients may change their dtypes."""

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> tuple[UpdateMoments, SketchMoments]:
        """As `HistoryWindow.measure_update`: exact sums but for ``grad_dot_update`` (NaN); and the update's sketch.

        The latter is compared with that of the step before alone, as in a window of 1.
        """

    def measure(
        self, gradient: AddressTable, step: int, *, found_inf: Tensor | None = None, grad_scale: Tensor | None = None,
        out: Tensor | None = None,
    ) -> tuple[NormMoments, SketchMoments]:  # fmt: skip
        """As `HistoryWindow.measure`; what is remembered is the sketch.

        Args:
            gradient, step, found_inf, grad_scale: as in `HistoryWindow.measure`.
            out: (plan.total,) float32, where the sketch is written too.

        Cost: the gradient read; each tile of its sketch against ``window`` others, then written over the oldest.
        """

    def step_on_device(self) -> Tensor | None:
        """As `HistoryWindow.step_on_device`."""

    def resume(self, step: int) -> None:
        """As `HistoryWindow.resume`."""


class Engine(Protocol):
    """What measures lists of tensors on one kind of device."""

    name: str
    rows_alike: bool
    """Whether all rows of one `list_moments` must have the same dtypes."""

    def zeros(self, rows: int, n_elements: int, dtype: torch.dtype) -> Tensor:
        """Memory of shape (rows, n_elements), zeroed."""

    def window(
        self, layout: Layout, window: int, *, dtype: torch.dtype | None = None, defer: int = 1,
        track_updates: bool = False,
    ) -> HistoryWindow:  # fmt: skip
        """The last ``window`` gradients of a layout, kept in ``dtype`` where that is less than their own.

        With ``defer`` > 1 the lags of so many steps are taken in one pass, after the last of them.
        """

    def sketcher(self, plan: SketchPlan) -> Sketcher:
        """What makes sketches of lists of tensors."""

    def sketch_window(self, layout: Layout, plan: SketchPlan, window: int) -> SketchWindow:
        """Sketches of the last ``window`` gradients of a layout."""

    def list_moments(self, numels: Ints, tensors: AddressTable, rows: Sequence[AddressTable] = ()) -> ListMoments:
        """One read of a list of tensors against rows of others."""

    def scale(self, tensors: Sequence[Tensor], factor: Tensor) -> None:
        """Multiply tensors in place by a 0-d tensor, which stays on the device."""

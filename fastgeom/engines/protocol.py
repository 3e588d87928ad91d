"""Protocols of an engine, of its windows of past gradients, and of its sketchers."""

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
    """The last gradients of a layout, on their device, and the statistics of a new gradient against them."""

    def prepare(self, gradient: AddressTable, parameter: AddressTable | None) -> None:
        """Allocate memory at the first step; afterwards check that dtypes have not changed.

        Args:
            gradient: addresses of the gradients.
            parameter: addresses of the parameters; ``None`` where updates are not measured.

        Raises:
            ValueError: a tensor's dtype is another than at the first step, or the history cannot store it.
        """

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> UpdateMoments:
        """Sums over the update since the last call; to be called before `measure` of the same step.

        Args:
            parameter: x_{t+1}, as given to `prepare`.
            gradient: g_{t+1}, as given to `prepare`.
            step: t + 1.
            grad_scale: 0-d divisor of the gradient.

        Cost: gradient, previous gradient, parameters and snapshot read, the snapshot written.
        """

    def measure(
        self, gradient: AddressTable, step: int, *, found_inf: Tensor | None = None, grad_scale: Tensor | None = None
    ) -> WindowStatistics:
        """Measure a gradient and store it.

        Args:
            gradient: g_t, as given to `prepare`.
            step: number of the optimiser step, larger than any before.
            found_inf: a 0-d tensor; where it is not 0 the gradient is measured but not stored.
            grad_scale: 0-d divisor of the gradient.

        Cost: the gradient and ``window`` ring rows read, one ring row written.
        """

    def step_on_device(self) -> Tensor | None:
        """0-d int64 number of the last measured step, as counted on the device; ``None`` where only the host counts."""

    def resume(self, step: int) -> None:
        """Set the number of the last measured step, after steps that only the device has counted."""

    def finish(self) -> tuple[LateLags, ...]:
        """Lags that are not computed yet, at the end of a run; empty unless the window is deferred."""


class Sketcher(Protocol):
    """Sketches of lists of tensors, on their device."""

    def prepare(self, gradient: AddressTable) -> None:
        """Set the addresses of the tensors."""

    def sketch(self, gradient: AddressTable, out: Tensor) -> NormMoments:
        """Write the sketch of tensors, as given to `prepare`, to ``out``, (plan.total,) float32; one read."""


class SketchWindow(Protocol):
    """Sketches of the last gradients of a layout, on their device, and a new sketch against them."""

    def prepare(self, gradient: AddressTable, parameter: AddressTable | None) -> None:
        """See `HistoryWindow.prepare`; sketches are float32, and gradients may change their dtypes."""

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> tuple[UpdateMoments, SketchMoments]:
        """Exact sums but for ``grad_dot_update``, which is NaN, and the update's sketch against that of g_t alone.

        Arguments are those of `HistoryWindow.measure_update`.
        """

    def measure(
        self,
        gradient: AddressTable,
        step: int,
        *,
        found_inf: Tensor | None = None,
        grad_scale: Tensor | None = None,
        out: Tensor | None = None,
    ) -> tuple[NormMoments, SketchMoments]:
        """Measure a gradient, and store its sketch.

        Args:
            gradient: g_t, as given to `prepare`.
            step: number of the optimiser step, larger than any before.
            found_inf: a 0-d tensor; where it is not 0 the gradient is measured but its sketch is not stored.
            grad_scale: 0-d divisor of the gradient.
            out: (plan.total,) float32, where the sketch is written as well; ``None`` for nowhere.

        Cost: the gradient and ``window`` sketches read, one sketch written.
        """

    def step_on_device(self) -> Tensor | None:
        """See `HistoryWindow.step_on_device`."""

    def resume(self, step: int) -> None:
        """See `HistoryWindow.resume`."""


class Engine(Protocol):
    """Measures lists of tensors on one kind of device."""

    name: str
    rows_alike: bool
    """Whether all rows of one `list_moments` must have the same dtypes."""

    def zeros(self, rows: int, n_elements: int, dtype: torch.dtype) -> Tensor:
        """Zeroed memory of shape (rows, n_elements)."""

    def window(
        self,
        layout: Layout,
        window: int,
        *,
        dtype: torch.dtype | None = None,
        defer: int = 1,
        track_updates: bool = False,
    ) -> HistoryWindow:
        """Make the window of an exact history.

        Args:
            layout: the measured tensors.
            window: number of past gradients.
            dtype: what to store them in, where that has less precision than their own; ``None`` for their own.
            defer: number of steps whose lags are computed in one pass, after the last of them.
            track_updates: whether `HistoryWindow.measure_update` will be called.
        """

    def sketcher(self, plan: SketchPlan) -> Sketcher:
        """Make what sketches lists of tensors."""

    def sketch_window(self, layout: Layout, plan: SketchPlan, window: int) -> SketchWindow:
        """Make the window of sketches of the last ``window`` gradients of a layout."""

    def list_moments(self, numels: Ints, tensors: AddressTable, rows: Sequence[AddressTable] = ()) -> ListMoments:
        """Statistics of a list of tensors against rows of others, in one read.

        Args:
            numels: (tensor,) number of elements of each.
            tensors: their addresses.
            rows: addresses of the lists to take dot products with.
        """

    def scale(self, tensors: Sequence[Tensor], factor: Tensor) -> None:
        """Multiply tensors in place by a 0-d tensor, which stays on the device."""

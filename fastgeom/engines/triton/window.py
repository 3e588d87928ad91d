"""The Triton engine's window: the last gradients in device memory, and the parameters of the step before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.dtypes import ring_dtypes
from fastgeom.engines.results import LateLags, UpdateMoments, WindowStatistics
from fastgeom.engines.triton.capture import capturing
from fastgeom.engines.triton.device import TritonDevice, reciprocal
from fastgeom.engines.triton.layer_sums import LayerSums
from fastgeom.engines.triton.ring import GradientRings, Launch
from fastgeom.engines.triton.ring_index import RingIndex
from fastgeom.kernels.finalize import launch_update_finish
from fastgeom.kernels.window.update import UPDATE_COLUMNS, launch_update
from fastgeom.kernels.window.window import absmax_column, launch_window, window_columns
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.chunks import Ints
from fastgeom.layout.layout import Layout
from fastgeom.validation import DTYPES, check_dtypes


class TritonWindow:
    """The last ``window`` gradients, and the statistics of a new one against them; see `HistoryWindow`.

    Memory is allocated at the first step: window × gradient bytes, each tensor padded to 1 KB a row; one gradient more
    where the ring has less precision than the gradient; the parameters once with ``track_updates``; partial sums, less
    than 1 % of the ring for a bfloat16 window of 16.

    Args:
        layout: the measured tensors.
        engine: computes on them.
        window: number of gradients in the window.
        dtype: dtype of the ring, where that has less precision than a gradient's; ``None`` for the gradients' own.
        track_updates: whether `measure_update` will be called.
        slots: rows of the ring; ``None`` for ``window``.
    """

    def __init__(
        self,
        layout: Layout,
        engine: TritonDevice,
        window: int,
        *,
        dtype: torch.dtype | None = None,
        track_updates: bool = False,
        slots: int | None = None,
    ) -> None:
        self._layout, self._engine, self._window, self._dtype = layout, engine, window, dtype
        self._slots = slots = slots or window
        self._track_updates = track_updates
        self._gradient_code: np.ndarray[tuple[int], np.dtype[np.int8]] | None = None
        self._parameter_code: np.ndarray[tuple[int], np.dtype[np.int8]] | None = None
        self._addresses: Ints = np.zeros(0, np.int64)
        self._captured = False
        self._ring_index = RingIndex(len(layout.layers) + 1, slots, engine.device)

    def prepare(self, gradient: AddressTable, parameter: AddressTable | None = None) -> None:
        """See `HistoryWindow.prepare`."""
        if self._gradient_code is None:
            if capturing(self._engine.device):
                raise RuntimeError("Probe.step: expected a measured step before a CUDA graph is captured, got none")
            self._allocate(gradient, parameter)
            self._gradient_code = gradient.code
            self._parameter_code = None if parameter is None else parameter.code
        check_dtypes(self._layout.names, "gradient of ", self._gradient_code, gradient.code, gradient.address)
        if self._parameter_code is not None and parameter is not None:
            check_dtypes(self._layout.names, "parameter ", self._parameter_code, parameter.code, parameter.address)
        # An absent gradient has the dtype of the first step, which is that of its copy in full precision.
        gradient = replace(gradient, code=np.where(gradient.address == 0, self._gradient_code, gradient.code))
        addresses = np.concatenate([gradient.address, *([] if parameter is None else [parameter.address])])
        self._captured = self._captured or capturing(self._engine.device)
        if self._captured or not np.array_equal(addresses, self._addresses):
            for launch in self._rings.launches:
                launch.locate(gradient, parameter)
            self._addresses = addresses

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> UpdateMoments:
        """See `HistoryWindow.measure_update`; `prepare` has sent the addresses."""
        del parameter, gradient
        scale, index = reciprocal(grad_scale), self._ring_index
        with self._engine.current():
            for launch in self._rings.launches:
                launch_update(
                    launch.table,
                    len(launch.units),
                    launch.ring.memory,
                    index.state,
                    self._partials(launch, UPDATE_COLUMNS),
                    small=launch.small,
                    wide=launch.ring.wide,
                    keep=launch.keep,
                    scale=scale,
                )
            totals = self._sums.totals(UPDATE_COLUMNS)
            out = torch.empty_like(totals)
            launch_update_finish(totals, index.state, self._valid_steps(), out, advance=step - index.last_step)
        return UpdateMoments(*out.unbind(1))

    def measure(
        self, gradient: AddressTable, step: int, *, found_inf: Tensor | None = None, grad_scale: Tensor | None = None
    ) -> WindowStatistics:
        """See `HistoryWindow.measure`; `prepare` has sent the addresses."""
        del gradient
        window, scale = self._window, reciprocal(grad_scale)
        skip = None if found_inf is None else found_inf.reshape(()).float()
        n_columns = window_columns(window)
        with self._engine.current():
            for launch in self._rings.launches:
                launch_window(
                    launch.table,
                    len(launch.units),
                    launch.ring.memory,
                    window,
                    window,
                    self._ring_index.state,
                    self._partials(launch, n_columns),
                    small=launch.small,
                    wide=launch.ring.wide,
                    keep=launch.keep,
                    scale=scale,
                    skip=skip,
                )
            totals = self._sums.totals(n_columns, max_column=absmax_column(window))
            result = self._ring_index.finish(totals, step, window=window, skip=skip)
        return WindowStatistics(
            result.grad_sq,
            result.grad_norm,
            result.grad_absmax,
            result.nonfinite,
            result.lag_dot,
            result.lag_cosine,
            result.diff_sq,
            result.sum_sq,
        )

    def step_on_device(self) -> Tensor:
        """The step last measured, as the device counts it."""
        return self._ring_index.state[1].clone()

    def resume(self, step: int) -> None:
        """Go on after a step that the device has counted without the host."""
        self._ring_index.last_step = step

    def finish(self) -> tuple[LateLags, ...]:
        """Empty: no lags are deferred."""
        return ()

    def _valid_steps(self) -> Tensor:
        """(slot,) the step of the gradient in each slot; NEVER where it is empty or was skipped."""
        return self._ring_index.step

    def _partials(self, launch: Launch, n_columns: int) -> Tensor:
        """The rows of partial sums that a launch writes."""
        return self._sums.rows(launch.ring.wide, n_columns)[launch.rows.first : launch.rows.end]

    def _allocate(self, gradient: AddressTable, parameter: AddressTable | None) -> None:
        """Allocate the rings and the partial sums."""
        dtypes = ring_dtypes(self._layout.names, [DTYPES[c] for c in gradient.code], self._dtype)
        self._rings = GradientRings(
            self._layout, self._engine, self._slots, dtypes, gradient=gradient, parameter=parameter
        )
        launches = self._rings.launches
        self._sums = LayerSums(
            [[launch.rows for launch in launches if launch.ring.wide == wide] for wide in (False, True)],
            len(self._layout.layers),
            max(window_columns(self._window), UPDATE_COLUMNS),
            self._engine.device,
            (torch.float32, torch.float64),
        )

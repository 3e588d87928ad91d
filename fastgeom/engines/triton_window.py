"""The Triton engine's window: the last gradients in device memory, and the parameters of the step before.

The head of the ring and the steps of its slots live on the device, so that a captured graph can be replayed; the host
knows the step numbers only to say how many passed since the last.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.triton_device import TritonDevice
from fastgeom.engines.triton_ring import Launch, Rings
from fastgeom.engines.triton_tables import spans, to_device
from fastgeom.engines.window import LateLags, UpdateMoments, WindowStatistics, check_dtypes, kept_dtypes
from fastgeom.kernels.finish import (
    FINISHED_SUMS,
    NEVER,
    launch_reduce,
    launch_update_finish,
    launch_window_finish,
)
from fastgeom.kernels.update import UPDATE_COLUMNS, launch_update
from fastgeom.kernels.window import launch_window, window_columns
from fastgeom.layout import Layout
from fastgeom.tables import DTYPES, AddressTable, Ints, capturing


class TritonWindow:
    """The last ``window`` gradients, and the statistics of a new one against them; see `Window`.

    Memory is taken at the first step: window × gradient bytes, each tensor padded to 1 KB a row; one gradient more
    where the ring has less precision than the gradient; the parameters once with ``track_updates``; partial sums, less
    than 1 % of the ring for a bfloat16 window of 16.

    Args:
        layout: the measured tensors.
        engine: computes on them.
        window: how many gradients to keep.
        dtype: what to keep them in, where that is less than their own; ``None`` for their own.
        track_updates: whether `measure_update` will be called.
        slots: rows of the ring; ``window`` unless lags are taken later.
    """

    def __init__(
        self, layout: Layout, engine: TritonDevice, window: int, *, dtype: torch.dtype | None = None,
        track_updates: bool = False, slots: int | None = None,
    ) -> None:  # fmt: skip
        self._layout, self._engine, self._window, self._dtype = layout, engine, window, dtype
        self._slots = slots = slots or window
        self._track_updates = track_updates
        self._gradient_code: np.ndarray[tuple[int], np.dtype[np.int8]] | None = None
        self._parameter_code: np.ndarray[tuple[int], np.dtype[np.int8]] | None = None
        self._located: Ints = np.zeros(0, np.int64)
        self._captured = False
        self._last_step = 0
        n_layers = len(layout.layers) + 1
        device = engine.device
        self._state = torch.zeros(2, dtype=torch.int64, device=device)
        self._slot_step = torch.full((slots,), NEVER, dtype=torch.int64, device=device)
        self._slot_norm = torch.zeros(n_layers, slots, dtype=torch.float64, device=device)
        self._slot_past = torch.zeros(n_layers, slots, dtype=torch.float64, device=device)
        self._nothing_stored = torch.ones((), dtype=torch.float32, device=device)

    def fit(self, gradient: AddressTable, parameter: AddressTable | None = None) -> None:
        """See `Window.fit`."""
        if self._gradient_code is None:
            if capturing(self._engine.device):
                raise RuntimeError("Probe.step: expected a measured step before a CUDA graph is captured, got none")
            self._allocate(gradient, parameter)
            self._gradient_code = gradient.code
            self._parameter_code = None if parameter is None else parameter.code
        check_dtypes(self._layout.names, "gradient of ", self._gradient_code, gradient)
        if self._parameter_code is not None and parameter is not None:
            check_dtypes(self._layout.names, "parameter ", self._parameter_code, parameter)
        # A tensor that is absent is of the dtype that its kind had at first, which its kept copy has too.
        gradient = replace(gradient, code=np.where(gradient.address == 0, self._gradient_code, gradient.code))
        now = np.concatenate([gradient.address, *([] if parameter is None else [parameter.address])])
        self._captured = self._captured or capturing(self._engine.device)
        if self._captured or not np.array_equal(now, self._located):
            for launch in self._rings.launches:
                launch.locate(gradient, parameter)
            self._located = now

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> UpdateMoments:
        """See `Window.measure_update`; `fit` has told the device where the tensors lie."""
        del parameter, gradient
        advance = step - self._last_step
        scale = reciprocal(grad_scale)
        with self._engine.current():
            for launch in self._rings.launches:
                launch_update(
                    launch.table, len(launch.units), launch.ring.memory, self._state,
                    self._partial(launch, UPDATE_COLUMNS), small=launch.small, wide=launch.ring.wide,
                    keep=launch.keep, scale=scale,
                )  # fmt: skip
            totals = self._reduce(UPDATE_COLUMNS)
            out = torch.empty_like(totals)
            launch_update_finish(totals, self._state, self._known_steps(), out, advance=advance)
        return UpdateMoments(*out.unbind(1))

    def measure(
        self, gradient: AddressTable, step: int, *, store: bool = True, found_inf: Tensor | None = None,
        grad_scale: Tensor | None = None, past: Tensor | None = None,
    ) -> WindowStatistics:  # fmt: skip
        """See `Window.measure`; `fit` has told the device where the tensors lie."""
        del gradient
        advance, window, n_layers = step - self._last_step, self._window, len(self._layout.layers) + 1
        skip = None if found_inf is None else found_inf.reshape(()).float()
        out = torch.full((n_layers, len(FINISHED_SUMS) + (2 if past is None else 3) * window), torch.nan,
                         dtype=torch.float64, device=self._engine.device)  # fmt: skip
        nonfinite = torch.empty(n_layers, dtype=torch.int64, device=self._engine.device)
        n_columns = window_columns(window)
        with self._engine.current():
            for launch in self._rings.launches:
                launch_window(
                    launch.table, len(launch.units), launch.ring.memory, window, window, self._state,
                    self._partial(launch, n_columns), small=launch.small, wide=launch.ring.wide, keep=launch.keep,
                    scale=reciprocal(grad_scale), skip=skip if store else self._nothing_stored,
                )  # fmt: skip
            totals = self._reduce(n_columns, max_column=n_columns - 5)
            launch_window_finish(
                totals, self._state, self._slot_step, self._slot_norm, out, nonfinite, window=window, advance=advance,
                past=past, slot_past=self._slot_past, skip=skip, store=store,
            )  # fmt: skip
        if store:
            self._last_step = step
        grad_sq, grad_norm, absmax, diff_sq, sum_sq = out[:, : len(FINISHED_SUMS)].unbind(1)
        lag_dot, lag_cosine, *rest = torch.split(out[:, len(FINISHED_SUMS) :], window, dim=1)
        return WindowStatistics(
            grad_sq, grad_norm, absmax, nonfinite, lag_dot, lag_cosine, diff_sq, sum_sq, past=rest[0] if rest else None
        )

    def step_on_device(self) -> Tensor:
        """The step last measured, as the device counts it."""
        return self._state[1].clone()

    def resume(self, step: int) -> None:
        """Go on after a step that the device has counted without the host."""
        self._last_step = step

    def finish(self) -> tuple[LateLags, ...]:
        """Nothing is deferred."""
        return ()

    def _known_steps(self) -> Tensor:
        """(slot,) the step of the gradient in each, NEVER where there is none that counts."""
        return self._slot_step

    def _partial(self, launch: Launch, n_columns: int) -> Tensor:
        """The rows of partial sums that a launch writes."""
        wide = launch.ring.wide
        rows = first_of(self._matrices[wide], self._rings.n_rows[wide], n_columns)
        return rows[launch.rows.first : launch.rows.end]

    def _reduce(self, n_columns: int, max_column: int = -1) -> Tensor:
        """Partial sums → segments → (layer + 1, column)."""
        segments = first_of(self._segments, self._n_segments, n_columns)
        for matrix, n_rows, found in zip(self._matrices, self._rings.n_rows, self._segment_spans, strict=True):
            launch_reduce(first_of(matrix, n_rows, n_columns), found, segments, max_column=max_column)
        totals = segments.new_empty(len(self._layout.layers) + 1, n_columns)
        launch_reduce(segments, self._layer_spans, totals, max_column=max_column)
        return totals

    def _allocate(self, gradient: AddressTable, parameter: AddressTable | None) -> None:
        """Take the memory, and lay out the launches."""
        own = [DTYPES[c] for c in gradient.code]
        kept = kept_dtypes(self._layout.names, own, self._dtype)
        self._rings = Rings(self._layout, self._engine, self._slots, kept, gradient=gradient, parameter=parameter)
        launches, device = self._rings.launches, self._engine.device
        n_columns = max(window_columns(self._window), UPDATE_COLUMNS)
        self._matrices = [
            torch.zeros(n, n_columns, dtype=dtype, device=device)
            for n, dtype in zip(self._rings.n_rows, (torch.float32, torch.float64), strict=True)
        ]
        runs = [[launch.rows for launch in launches if launch.ring.wide == wide] for wide in (False, True)]
        segments, by_layer = spans(runs, len(self._layout.layers))
        self._n_segments = int(by_layer[1, -1])
        self._segment_spans = [to_device(s, device) for s in segments]
        self._layer_spans = to_device(by_layer, device)
        self._segments = torch.zeros(self._n_segments, n_columns, dtype=torch.float64, device=device)


def first_of(matrix: Tensor, n_rows: int, n_columns: int) -> Tensor:
    """A matrix of so many columns in the memory of one that may have more."""
    return matrix.view(-1)[: n_rows * n_columns].view(n_rows, n_columns)


def reciprocal(grad_scale: Tensor | None) -> Tensor | None:
    """What a scaled gradient is multiplied by."""
    return None if grad_scale is None else grad_scale.reshape(()).double().reciprocal()

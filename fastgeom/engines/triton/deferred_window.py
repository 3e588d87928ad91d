"""The Triton engine's deferred window: gradients are stored at every step, their lags computed for B steps in one pass.

Every step has a slot of the ring, a skipped one too, so that the host knows the slot of each step without a copy from
the device; skipped steps are marked on the device and have no lags.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.results import LateLags, WindowStatistics
from fastgeom.engines.triton.capture import capturing
from fastgeom.engines.triton.device import TritonDevice, reciprocal, to_device
from fastgeom.engines.triton.layer_sums import LayerSums
from fastgeom.engines.triton.tables import PartialRows
from fastgeom.engines.triton.window import TritonWindow
from fastgeom.kernels.finalize import NEVER, launch_gram_finish
from fastgeom.kernels.window.gram import GRAM_ELEMENTS, MAX_SLOTS, launch_gram, max_block
from fastgeom.kernels.window.window import absmax_column, launch_window, window_columns
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.chunks import chunk_table
from fastgeom.layout.layout import Layout
from fastgeom.validation import DTYPES, check_defer_limit, check_deferrable, check_ring_rows


class TritonDeferredWindow(TritonWindow):
    """The last gradients, and the lags of ``defer`` of them at a time; see `HistoryWindow`.

    Memory: (window + defer) × gradient bytes for the ring, else that of `TritonWindow`.

    Args:
        layout: the measured tensors.
        engine: computes on them.
        window: number of gradients in the window.
        defer: B, the number of steps that share a pass.
        track_updates: whether `measure_update` will be called.

    Raises:
        ValueError: window + defer is more than `MAX_SLOTS`.
    """

    def __init__(
        self, layout: Layout, engine: TritonDevice, window: int, *, defer: int, track_updates: bool = False
    ) -> None:
        check_ring_rows(window, defer, MAX_SLOTS)
        super().__init__(layout, engine, window, track_updates=track_updates, slots=window + defer)
        self._defer = defer
        self._valid_step = torch.full((window + defer,), NEVER, dtype=torch.int64, device=engine.device)
        self._pending: list[int] = []

    def prepare(self, gradient: AddressTable, parameter: AddressTable | None = None) -> None:
        """See `HistoryWindow.prepare`.

        Raises:
            RuntimeError: a CUDA graph is being captured, whose replays would not compute the lags.
        """
        if capturing(self._engine.device):
            raise RuntimeError("Probe.step: expected history=Exact() or Sketch() in a CUDA graph, got a deferred one")
        super().prepare(gradient, parameter)

    def measure(
        self, gradient: AddressTable, step: int, *, found_inf: Tensor | None = None, grad_scale: Tensor | None = None
    ) -> WindowStatistics:
        """See `HistoryWindow.measure`."""
        del gradient
        n_columns, scale = window_columns(0), reciprocal(grad_scale)
        skip = None if found_inf is None else found_inf.reshape(()).float()
        with self._engine.current():
            for launch in self._rings.launches:
                launch_window(
                    launch.table,
                    len(launch.units),
                    launch.ring.memory,
                    0,
                    self._slots,
                    self._ring_index.state,
                    self._partials(launch, n_columns),
                    small=launch.small,
                    wide=launch.ring.wide,
                    previous=False,
                    scale=scale,
                )
            totals = self._sums.totals(n_columns, max_column=absmax_column(0))
            result = self._ring_index.finish(totals, step, window=0, skip=skip, valid_step=self._valid_step)
        self._pending.append(step)
        late = self.finish() if len(self._pending) == self._defer else ()
        return WindowStatistics(
            result.grad_sq, result.grad_norm, result.grad_absmax, result.nonfinite, None, None, None, None, late=late
        )

    def finish(self) -> tuple[LateLags, ...]:
        """Compute the lags of all steps since the last pass."""
        steps, self._pending = self._pending, []
        if not steps:
            return ()
        late = []
        for step, row in zip(reversed(steps), self._lags(len(steps)).unbind(), strict=True):
            values = row.clone()  # a row leaves the device as a copy of its storage, which is that of all rows
            diff_sq, sum_sq = values[:, 0], values[:, 1]
            lag_dot, lag_cosine = torch.split(values[:, 2:], self._window, dim=1)
            late.append(LateLags(step, lag_dot, lag_cosine, diff_sq, sum_sq))
        return tuple(reversed(late))

    def _lags(self, block: int) -> Tensor:
        """(block, layer + 1, 2 + 2 window), the newest steps by age: see ``launch_gram_finish``."""
        n_layers, n_columns, index = len(self._layout.layers) + 1, self._slots + 2, self._ring_index
        width, lags = block * n_columns, (block, n_layers, 2 + 2 * self._window)
        out = torch.full(lags, torch.nan, dtype=torch.float64, device=self._engine.device)
        with self._engine.current():
            for matrix, (ring, table) in enumerate(self._passes):
                rows = self._gram_sums.rows(matrix, width)
                partials = rows.view(-1, block, n_columns)
                launch_gram(table, len(rows), ring, self._slots, block, index.state, partials)
            totals = self._gram_sums.totals(width)
            launch_gram_finish(
                totals.view(n_layers, block, n_columns),
                index.state,
                index.step,
                self._valid_step,
                index.norm,
                out,
                window=self._window,
            )
        return out

    def _valid_steps(self) -> Tensor:
        return self._valid_step

    def _allocate(self, gradient: AddressTable, parameter: AddressTable | None) -> None:
        check_deferrable(self._layout.names, gradient.code)
        for code in np.unique(gradient.code):
            check_defer_limit(self._defer, max_block(DTYPES[code].itemsize), DTYPES[code])
        super()._allocate(gradient, parameter)
        self._passes, launches = [], []
        for ring in self._rings.rings:
            present, first = np.unique(ring.layer, return_index=True)
            units = chunk_table(np.add.reduceat(ring.padded, first), GRAM_ELEMENTS)
            begin = (np.cumsum(ring.padded) - ring.padded)[first]
            table = np.stack([begin[units.tensor] + units.start, units.length])
            self._passes.append((ring.memory, to_device(table, self._engine.device)))
            launches.append([PartialRows(0, 1, present[units.tensor])])
        n_columns = self._defer * (self._slots + 2)
        self._gram_sums = LayerSums(launches, len(self._layout.layers), n_columns, self._engine.device)
        self._lags(self._defer)  # of an empty ring: compiles the kernels now, and not in the middle of training

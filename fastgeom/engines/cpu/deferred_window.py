"""The CPU engine's deferred window: gradients are stored as they come, their lags are taken B steps at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgeom.engines.cpu import passes
from fastgeom.engines.cpu.ring_index import RingIndex
from fastgeom.engines.cpu.window import ParameterSnapshot, TensorStore, reciprocal
from fastgeom.engines.results import LateLags, UpdateMoments, WindowStatistics
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.layout import Layout
from fastgeom.validation import DTYPES, check_deferrable, check_dtypes

_STREAMED_ELEMENTS = 1 << 23
"""Of a ring from which on gradients go past the caches: it stays in none of them until the pass reads it."""


class CpuDeferredWindow:
    """The last gradients, and the lags of ``defer`` of them at a time; see `HistoryWindow`.

    Memory: (window + defer) × gradient bytes, and the parameters once with ``track_updates``.

    Args:
        layout: the measured tensors.
        window: how many gradients before its own each is compared with.
        defer: B, how many steps share a pass.
        track_updates: whether `measure_update` will be called.
    """

    def __init__(self, layout: Layout, window: int, *, defer: int, track_updates: bool = False) -> None:
        self._layout, self._window, self._defer = layout, window, defer
        self._snapshot = ParameterSnapshot(layout) if track_updates else None
        self._ring: list[AddressTable] = []
        self._index = RingIndex(window + defer, window, (len(layout.layers) + 1,))
        self._pending: list[tuple[int, int, Tensor]] = []
        self._streamed = int(layout.numels.sum()) * (window + defer) >= _STREAMED_ELEMENTS

    def prepare(self, gradient: AddressTable, parameter: AddressTable | None = None) -> None:
        """See `HistoryWindow.prepare`."""
        if not self._ring:
            check_deferrable(self._layout.names, gradient.code)
            dtypes = [DTYPES[c] for c in gradient.code]
            self._ring = TensorStore(self._layout, [*dtypes], self._window + self._defer).row
        check_dtypes(self._layout.names, "gradient of ", self._ring[0].code, gradient.code, gradient.address)
        if self._snapshot is not None and parameter is not None:
            self._snapshot.prepare(parameter)

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> UpdateMoments:
        """See `HistoryWindow.measure_update`."""
        assert self._snapshot is not None, "made without track_updates"
        row = self._index.lags(step).previous
        previous = None if row is None else self._ring[row]
        return self._snapshot.measure(parameter, gradient, previous, scale=reciprocal(grad_scale))

    def measure(
        self, gradient: AddressTable, step: int, *, found_inf: Tensor | None = None, grad_scale: Tensor | None = None
    ) -> WindowStatistics:
        """See `HistoryWindow.measure`."""
        row = self._index.evict_oldest()
        moments = passes.window_moments(
            self._layout.chunks,
            self._layout.segments,
            gradient,
            store=self._ring[row],
            scale=reciprocal(grad_scale),
            streamed=self._streamed,
        )
        skipped = found_inf is not None and float(found_inf) != 0
        self._index.commit(None if skipped else step, moments.grad_norm)
        self._pending.append((step, row, moments.grad_norm))
        late = self.finish() if len(self._pending) == self._defer else ()
        return WindowStatistics(
            moments.grad_sq,
            moments.grad_norm,
            moments.grad_absmax,
            moments.nonfinite,
            None,
            None,
            None,
            None,
            late=late,
        )

    def step_on_device(self) -> None:
        """Do nothing: the host counts the steps."""

    def resume(self, step: int) -> None:
        """Do nothing: the host counts the steps."""

    def finish(self) -> tuple[LateLags, ...]:
        """The lags of all steps since the last pass."""
        pending, self._pending = self._pending, []
        if not pending:
            return ()
        rows = [row for _, row, _ in pending]
        dots, squares = passes.gram_moments(
            self._layout.chunks,
            self._layout.segments,
            self._ring,
            new=rows,
            before=[(row - 1) % len(self._ring) for row in rows],
            window=self._window,
        )
        return tuple(self._lags(step, norm, dots[:, i], squares[:, i]) for i, (step, _, norm) in enumerate(pending))

    def _lags(self, step: int, norm: Tensor, dots: Tensor, squares: Tensor) -> LateLags:
        """Lag statistics of one step.

        Args:
            step: number of the step.
            norm: (layer + 1,) norms of its gradient.
            dots: (layer + 1, ring row) its dots with all rows.
            squares: (layer + 1, 2) sum (g - previous)^2 and sum (g + previous)^2.
        """
        lags = self._index.lags(step)
        lag_dot = dots[:, lags.rows]
        if lags.previous is None:
            squares = torch.full_like(squares, torch.nan)
        lag_cosine = lag_dot / (lags.norms * norm[:, None])
        return LateLags(step, lags.spread(lag_dot), lags.spread(lag_cosine), *squares.unbind(1))

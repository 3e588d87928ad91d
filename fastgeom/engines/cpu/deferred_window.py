"""The CPU engine's deferred window: gradients are stored as they come, their lags are taken B steps at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgeom.engines.cpu.passes import CpuPasses
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
        engine: computes on them.
        window: how many gradients before its own each is compared with.
        defer: B, how many steps share a pass.
        track_updates: whether `measure_update` will be called.
    """

    def __init__(
        self, layout: Layout, engine: CpuPasses, window: int, *, defer: int, track_updates: bool = False
    ) -> None:
        self._layout, self._engine, self._window, self._defer = layout, engine, window, defer
        self._snapshot = ParameterSnapshot(layout, engine) if track_updates else None
        self._ring: list[AddressTable] = []
        self._slots = RingIndex(window + defer, window, (len(layout.layers) + 1,))
        self._pending: list[tuple[int, int, Tensor]] = []
        self._streamed = int(layout.numels.sum()) * (window + defer) >= _STREAMED_ELEMENTS

    def prepare(self, gradient: AddressTable, parameter: AddressTable | None = None) -> None:
        """See `HistoryWindow.prepare`."""
        if not self._ring:
            check_deferrable(self._layout.names, gradient.code)
            dtypes = [DTYPES[c] for c in gradient.code]
            self._ring = TensorStore(self._layout, self._engine, [*dtypes], self._window + self._defer).row
        check_dtypes(self._layout.names, "gradient of ", self._ring[0].code, gradient.code, gradient.address)
        if self._snapshot is not None and parameter is not None:
            self._snapshot.prepare(parameter)

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> UpdateMoments:
        """See `HistoryWindow.measure_update`."""
        assert self._snapshot is not None, "made without track_updates"
        slot = self._slots.lags(step).previous
        previous = None if slot is None else self._ring[slot]
        return self._snapshot.measure(parameter, gradient, previous, scale=reciprocal(grad_scale))

    def measure(
        self, gradient: AddressTable, step: int, *, found_inf: Tensor | None = None, grad_scale: Tensor | None = None
    ) -> WindowStatistics:
        """See `HistoryWindow.measure`."""
        slot = self._slots.evict_oldest()
        moments = self._engine.window_moments(
            self._layout.chunks,
            self._layout.segments,
            gradient,
            store=self._ring[slot],
            scale=reciprocal(grad_scale),
            streamed=self._streamed,
        )
        skipped = found_inf is not None and float(found_inf) != 0
        self._slots.commit(None if skipped else step, moments.grad_norm)
        self._pending.append((step, slot, moments.grad_norm))
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
        """The host counts."""

    def resume(self, step: int) -> None:
        """The host counts."""

    def finish(self) -> tuple[LateLags, ...]:
        """The lags of all steps since the last pass."""
        pending, self._pending = self._pending, []
        if not pending:
            return ()
        slots = [slot for _, slot, _ in pending]
        dots, squares = self._engine.gram_moments(
            self._layout.chunks, self._layout.segments, self._ring, new=slots,
            before=[(slot - 1) % len(self._ring) for slot in slots], window=self._window,
        )  # fmt: skip
        return tuple(self._lags(step, norm, dots[:, i], squares[:, i]) for i, (step, _, norm) in enumerate(pending))

    def _lags(self, step: int, norm: Tensor, dots: Tensor, squares: Tensor) -> LateLags:
        """Those of a step: its dots with all slots, (layer + 1, slot), by lag, and its squares, (layer + 1, 2)."""
        known = self._slots.lags(step)
        lag_dot = dots[:, known.slots]
        if known.previous is None:
            squares = torch.full_like(squares, torch.nan)
        lag_cosine = lag_dot / (known.norms * norm[:, None])
        return LateLags(step, known.spread(lag_dot), known.spread(lag_cosine), *squares.unbind(1))

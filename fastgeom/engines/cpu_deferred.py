"""The CPU engine's deferred window: gradients are stored as they come, their lags are taken B steps at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgeom.engines.cpu_passes import CpuPasses
from fastgeom.engines.cpu_window import ParameterSnapshot, TensorStore, reciprocal
from fastgeom.engines.window import LateLags, UpdateMoments, WindowStatistics, check_deferrable, check_dtypes
from fastgeom.layout import Layout
from fastgeom.tables import DTYPES, AddressTable


class CpuDeferredWindow:
    """The last gradients, and the lags of ``defer`` of them at a time; see `Window`.

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
        slots = window + defer
        self._step_of_slot: list[int | None] = [None] * slots
        self._skipped = [False] * slots
        self._norm_of_slot: list[Tensor] = [torch.empty(0)] * slots
        self._head = 0
        self._pending: list[int] = []

    def fit(self, gradient: AddressTable, parameter: AddressTable | None = None) -> None:
        """See `Window.fit`."""
        if not self._ring:
            check_deferrable(self._layout.names, gradient)
            dtypes = [DTYPES[c] for c in gradient.code]
            self._ring = TensorStore(self._layout, self._engine, [*dtypes], self._window + self._defer).row
        check_dtypes(self._layout.names, "gradient of ", self._ring[0].code, gradient)
        if self._snapshot is not None and parameter is not None:
            self._snapshot.fit(parameter)

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> UpdateMoments:
        """See `Window.measure_update`."""
        assert self._snapshot is not None, "made without track_updates"
        previous = self._ring[self._head] if self._follows(step, self._head) else None
        return self._snapshot.measure(parameter, gradient, previous, scale=reciprocal(grad_scale))

    def measure(
        self, gradient: AddressTable, step: int, *, store: bool = True, found_inf: Tensor | None = None,
        grad_scale: Tensor | None = None, past: Tensor | None = None,
    ) -> WindowStatistics:  # fmt: skip
        """See `Window.measure`."""
        assert store and past is None, "only sketches, which are not deferred, ask for these"
        target = (self._head + 1) % len(self._ring)
        self._step_of_slot[target] = None  # until it is whole
        moments = self._engine.window_moments(
            self._layout.chunks, self._layout.segments, gradient, store=self._ring[target],
            scale=reciprocal(grad_scale),
        )  # fmt: skip
        self._head = target
        self._step_of_slot[target], self._norm_of_slot[target] = step, moments.grad_norm
        self._skipped[target] = found_inf is not None and float(found_inf) != 0
        self._pending.append(target)
        late = self.finish() if len(self._pending) == self._defer else ()
        return WindowStatistics(
            moments.grad_sq, moments.grad_norm, moments.absmax, moments.nonfinite, None, None, None, None, late=late
        )

    def step_on_device(self) -> None:
        """The host counts."""

    def resume(self, step: int) -> None:
        """The host counts."""

    def finish(self) -> tuple[LateLags, ...]:
        """The lags of all steps since the last pass."""
        slots, self._pending = self._pending, []
        if not slots:
            return ()
        before = [(slot - 1) % len(self._ring) for slot in slots]
        dots, squares = self._engine.gram_moments(
            self._layout.chunks, self._layout.segments, self._ring, new=slots, before=before, window=self._window
        )
        return tuple(self._lags(slot, dots[:, i], squares[:, i], before[i]) for i, slot in enumerate(slots))

    def _follows(self, step: int, slot: int) -> bool:
        """Whether the gradient in a slot is that of the step before, and counts."""
        return self._step_of_slot[slot] == step - 1 and not self._skipped[slot]

    def _lags(self, slot: int, dots: Tensor, squares: Tensor, before: int) -> LateLags:
        """Those of the gradient in a slot: dots with all slots, (layer + 1, slot), sorted by lag."""
        step = self._step_of_slot[slot]
        assert step is not None
        lag_dot = torch.full((len(dots), self._window), torch.nan, dtype=torch.float64, device="cpu")
        lag_cosine = lag_dot.clone()
        for other, past in enumerate(self._step_of_slot):
            if past is not None and not self._skipped[other] and 1 <= step - past <= self._window:
                k = step - past - 1
                lag_dot[:, k] = dots[:, other]
                lag_cosine[:, k] = dots[:, other] / (self._norm_of_slot[other] * self._norm_of_slot[slot])
        if not self._follows(step, before):
            squares = torch.full_like(squares, torch.nan)
        return LateLags(step, lag_dot, lag_cosine, *squares.unbind(1))

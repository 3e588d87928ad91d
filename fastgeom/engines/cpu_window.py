"""The CPU engine's window: a ring of the last gradients, and the parameters of the step before."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.cpu_passes import CpuPasses
from fastgeom.engines.window import UpdateMoments, WindowStatistics, check_dtypes, kept_dtypes
from fastgeom.layout import Layout
from fastgeom.tables import DTYPES, AddressTable


class TensorStore:
    """Memory for copies of the measured tensors: ``rows`` rows, flat, one block of memory for each dtype.

    Args:
        layout: the measured tensors.
        engine: gives the memory.
        dtypes: the dtype to keep each in; ``None`` keeps no copy of that one.
        rows: number of copies.

    Attributes:
        row: for each row, where the copies lie.
    """

    def __init__(self, layout: Layout, engine: CpuPasses, dtypes: list[torch.dtype | None], rows: int) -> None:
        code = np.array([-1 if d is None else DTYPES.index(d) for d in dtypes], np.int8)
        address = np.zeros((rows, len(dtypes)), np.int64)
        blocks = []
        for each in np.unique(code[code >= 0]):
            dtype = DTYPES[each]
            members = np.flatnonzero(code == each)
            ends = np.cumsum(layout.numels[members])
            block = engine.zeros(rows, int(ends[-1]), dtype)
            blocks.append(block)
            offsets = (ends - layout.numels[members])[None, :] + np.arange(rows)[:, None] * block.stride(0)
            address[:, members] = block.data_ptr() + offsets * block.element_size()
        self.row = [AddressTable(a, np.maximum(code, 0), tuple(blocks)) for a in address]


class CpuWindow:
    """The last ``window`` gradients, and the statistics of a new one against them; see `Window`.

    Memory is taken at the first step, when the gradients' dtypes are known: window × gradient bytes, and one gradient
    more where the ring's dtype has less precision than the gradient's; the parameters once with ``track_updates``.

    Args:
        layout: the measured tensors.
        engine: computes on them.
        window: how many gradients to keep.
        dtype: what to keep them in, where that is less than their own; ``None`` for their own.
        track_updates: whether `measure_update` will be called.
    """

    def __init__(
        self, layout: Layout, engine: CpuPasses, window: int, *, dtype: torch.dtype | None = None,
        track_updates: bool = False,
    ) -> None:  # fmt: skip
        self._layout, self._engine, self._window, self._dtype = layout, engine, window, dtype
        self._snapshot = ParameterSnapshot(layout, engine) if track_updates else None
        self._gradient_code: np.ndarray[tuple[int], np.dtype[np.int8]] | None = None
        self._step_of_slot: list[int | None] = [None] * window
        self._head = 0
        self._norm_of_slot: list[Tensor] = [torch.empty(0)] * window
        self._past_of_slot: list[Tensor | None] = [None] * window

    def fit(self, gradient: AddressTable, parameter: AddressTable | None = None) -> None:
        """See `Window.fit`."""
        if self._gradient_code is None:
            self._allocate([DTYPES[c] for c in gradient.code])
            self._gradient_code = gradient.code
        check_dtypes(self._layout.names, "gradient of ", self._gradient_code, gradient)
        if self._snapshot is not None and parameter is not None:
            self._snapshot.fit(parameter)

    def previous(self, step: int) -> AddressTable | None:
        """Where the gradient of step - 1 lies, in full precision; ``None`` if it was not stored."""
        if self._step_of_slot[self._head] != step - 1:
            return None
        return self._overlay[self._head]

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> UpdateMoments:
        """See `Window.measure_update`."""
        assert self._snapshot is not None, "made without track_updates"
        return self._snapshot.measure(parameter, gradient, self.previous(step), scale=reciprocal(grad_scale))

    def measure(
        self, gradient: AddressTable, step: int, *, store: bool = True, found_inf: Tensor | None = None,
        grad_scale: Tensor | None = None, past: Tensor | None = None,
    ) -> WindowStatistics:  # fmt: skip
        """See `Window.measure`."""
        lags = sorted((step - s, slot) for slot, s in enumerate(self._step_of_slot) if s is not None)
        lags = [(lag, slot) for lag, slot in lags if lag <= self._window]
        previous = self.previous(step)
        target = (self._head + 1) % self._window
        store = store and (found_inf is None or float(found_inf) == 0)
        if store:
            self._step_of_slot[target] = None  # until it is whole
        moments = self._engine.window_moments(
            self._layout.chunks,
            self._layout.segments,
            gradient,
            rows=[self._ring.row[slot] for _, slot in lags],
            previous=previous,
            store=self._ring.row[target] if store else None,
            keep=self._keep if store else None,
            scale=reciprocal(grad_scale),
        )
        slots = [slot for _, slot in lags]
        lag_dot = lag_cosine = moments.dots
        remembered = None if past is None else _columns([self._past_of_slot[slot] for slot in slots], past)
        if lags:
            lag_cosine = lag_dot / (_columns([self._norm_of_slot[slot] for slot in slots]) * moments.grad_norm[:, None])
        if len(lags) < self._window:
            at = [lag for lag, _ in lags]
            lag_dot, lag_cosine = self._at_lags(lag_dot, at), self._at_lags(lag_cosine, at)
            remembered = None if remembered is None else self._at_lags(remembered, at)
        if store:
            self._head = target
            self._step_of_slot[target] = step
            self._norm_of_slot[target], self._past_of_slot[target] = moments.grad_norm, past
        unknown = torch.full_like(moments.grad_sq, torch.nan)
        return WindowStatistics(
            moments.grad_sq,
            moments.grad_norm,
            moments.absmax,
            moments.nonfinite,
            lag_dot,
            lag_cosine,
            unknown if previous is None else moments.diff_sq,
            unknown if previous is None else moments.sum_sq,
            past=remembered,
        )

    def step_on_device(self) -> None:
        """The host counts."""

    def resume(self, step: int) -> None:
        """The host counts."""

    def finish(self) -> tuple[()]:
        """Nothing is deferred."""
        return ()

    def _at_lags(self, values: Tensor, lags: list[int]) -> Tensor:
        """Columns of known lags among all of them; NaN elsewhere."""
        spread = torch.full((len(values), self._window), torch.nan, dtype=values.dtype, device=values.device)
        spread[:, [lag - 1 for lag in lags]] = values
        return spread

    def _allocate(self, gradients: list[torch.dtype]) -> None:
        kept = kept_dtypes(self._layout.names, gradients, self._dtype)
        lost = np.array([ring is not own for ring, own in zip(kept, gradients, strict=True)])
        self._ring = TensorStore(self._layout, self._engine, [*kept], self._window)
        in_full = TensorStore(
            self._layout, self._engine, [own if loss else None for own, loss in zip(gradients, lost, strict=True)], 1
        ).row[0]
        self._overlay = [
            AddressTable(
                np.where(lost, in_full.address, row.address),
                np.where(lost, in_full.code, row.code),
                row.owners + in_full.owners,
            )
            for row in self._ring.row
        ]
        self._keep = AddressTable(in_full.address, self._overlay[0].code, in_full.owners)


class ParameterSnapshot:
    """The parameters of the last measured step, for the update since then. Memory: once the parameters."""

    def __init__(self, layout: Layout, engine: CpuPasses) -> None:
        self._layout, self._engine = layout, engine
        self._store: TensorStore | None = None

    def fit(self, parameter: AddressTable) -> None:
        """Take the memory at the first step; afterwards check that the dtypes are still those.

        Raises:
            ValueError: a parameter has another dtype than at first.
        """
        if self._store is None:
            self._store = TensorStore(self._layout, self._engine, [DTYPES[c] for c in parameter.code], 1)
        check_dtypes(self._layout.names, "parameter ", self._store.row[0].code, parameter)

    def measure(
        self, parameter: AddressTable, gradient: AddressTable, previous: AddressTable | None, *, scale: float = 1.0
    ) -> UpdateMoments:
        """Sums over the update since the snapshot, which is renewed.

        Args:
            parameter, gradient: x_{t+1}, which `fit` has seen, and g_{t+1}.
            previous: g_t; ``None`` where the snapshot is not one step old, and then only sum x^2 is known.
            scale: what the gradient is multiplied by when read.
        """
        assert self._store is not None, "fit() takes the memory"
        known = previous is not None
        moments = self._engine.update_moments(
            self._layout.chunks,
            self._layout.segments,
            parameter,
            self._store.row[0],
            gradient=gradient if known else None,
            previous=previous,
            scale=scale,
        )
        if known:
            return moments
        unknown = torch.full_like(moments.param_sq, torch.nan)
        return UpdateMoments(moments.param_sq, unknown, unknown, unknown)


def _columns(values: list[Tensor | None], like: Tensor | None = None) -> Tensor:
    """Side by side; stacked, since advanced indexing wakes torch's threads, which spin on the next pass's cores."""
    present = [v for v in values if v is not None]
    if not present:
        assert like is not None
        return like.new_empty(len(like), 0)
    return torch.stack(present, dim=1)


def reciprocal(grad_scale: Tensor | None) -> float:
    """What a scaled gradient is multiplied by."""
    return 1.0 if grad_scale is None else 1.0 / float(grad_scale)

"""The CPU engine's window: a ring of the last gradients, and the parameters of the step before."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.cpu import passes
from fastgeom.engines.cpu.ring_index import Lags, RingIndex
from fastgeom.engines.dtypes import ring_dtypes
from fastgeom.engines.results import UpdateMoments, WindowStatistics
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.layout import Layout
from fastgeom.validation import DTYPES, check_dtypes


class TensorStore:
    """Memory for copies of the measured tensors: ``rows`` rows, flat, one block of memory for each dtype.

    Args:
        layout: the measured tensors.
        dtypes: the dtype to keep each in; ``None`` keeps no copy of that one.
        rows: number of copies.

    Attributes:
        row: for each row, where the copies lie.
    """

    def __init__(self, layout: Layout, dtypes: list[torch.dtype | None], rows: int) -> None:
        code = np.array([-1 if d is None else DTYPES.index(d) for d in dtypes], np.int8)
        address = np.zeros((rows, len(dtypes)), np.int64)
        blocks = []
        for present in np.unique(code[code >= 0]):
            dtype = DTYPES[present]
            members = np.flatnonzero(code == present)
            ends = np.cumsum(layout.numels[members])
            block = passes.zeros(rows, int(ends[-1]), dtype)
            blocks.append(block)
            offsets = (ends - layout.numels[members])[None, :] + np.arange(rows)[:, None] * block.stride(0)
            address[:, members] = block.data_ptr() + offsets * block.element_size()
        self.row = [AddressTable(a, np.maximum(code, 0), tuple(blocks)) for a in address]


class CpuWindow:
    """The last ``window`` gradients, and the statistics of a new one against them; see `HistoryWindow`.

    Memory is taken at the first step, when the gradients' dtypes are known: window × gradient bytes, and one gradient
    more where the ring's dtype has less precision than the gradient's; the parameters once with ``track_updates``.

    Args:
        layout: the measured tensors.
        window: how many gradients to keep.
        dtype: what to keep them in, where that is less than their own; ``None`` for their own.
        track_updates: whether `measure_update` will be called.
    """

    def __init__(
        self,
        layout: Layout,
        window: int,
        *,
        dtype: torch.dtype | None = None,
        track_updates: bool = False,
    ) -> None:
        self._layout, self._window, self._dtype = layout, window, dtype
        self._snapshot = ParameterSnapshot(layout) if track_updates else None
        self._gradient_code: np.ndarray[tuple[int], np.dtype[np.int8]] | None = None
        self._index = RingIndex(window, window, (len(layout.layers) + 1,))

    def prepare(self, gradient: AddressTable, parameter: AddressTable | None = None) -> None:
        """See `HistoryWindow.prepare`."""
        if self._gradient_code is None:
            self._allocate([DTYPES[c] for c in gradient.code])
            self._gradient_code = gradient.code
        check_dtypes(self._layout.names, "gradient of ", self._gradient_code, gradient.code, gradient.address)
        if self._snapshot is not None and parameter is not None:
            self._snapshot.prepare(parameter)

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> UpdateMoments:
        """See `HistoryWindow.measure_update`."""
        assert self._snapshot is not None, "made without track_updates"
        previous = self._previous(self._index.lags(step))
        return self._snapshot.measure(parameter, gradient, previous, scale=reciprocal(grad_scale))

    def measure(
        self, gradient: AddressTable, step: int, *, found_inf: Tensor | None = None, grad_scale: Tensor | None = None
    ) -> WindowStatistics:
        """See `HistoryWindow.measure`."""
        lags = self._index.lags(step)
        previous = self._previous(lags)
        target = self._index.evict_oldest() if found_inf is None or float(found_inf) == 0 else None
        moments = passes.window_moments(
            self._layout.chunks,
            self._layout.segments,
            gradient,
            rows=[self._ring.row[row] for row in lags.rows],
            previous=previous,
            store=None if target is None else self._ring.row[target],
            keep=None if target is None else self._keep,
            scale=reciprocal(grad_scale),
        )
        if target is not None:
            self._index.commit(step, moments.grad_norm)
        unknown = torch.full_like(moments.grad_sq, torch.nan)
        return WindowStatistics(
            moments.grad_sq,
            moments.grad_norm,
            moments.grad_absmax,
            moments.nonfinite,
            lags.spread(moments.dots),
            lags.spread(moments.dots / (lags.norms * moments.grad_norm[:, None])),
            unknown if previous is None else moments.diff_sq,
            unknown if previous is None else moments.sum_sq,
        )

    def step_on_device(self) -> None:
        """Do nothing: the host counts the steps."""

    def resume(self, step: int) -> None:
        """Do nothing: the host counts the steps."""

    def finish(self) -> tuple[()]:
        """Nothing is deferred."""
        return ()

    def _previous(self, lags: Lags) -> AddressTable | None:
        """Where the gradient of the step before lies, in full precision; ``None`` if it was not stored."""
        return None if lags.previous is None else self._overlay[lags.previous]

    def _allocate(self, gradients: list[torch.dtype]) -> None:
        stored = ring_dtypes(self._layout.names, gradients, self._dtype)
        lost = np.array([ring is not full for ring, full in zip(stored, gradients, strict=True)])
        self._ring = TensorStore(self._layout, [*stored], self._window)
        in_full = TensorStore(
            self._layout, [full if loss else None for full, loss in zip(gradients, lost, strict=True)], 1
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

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._store: TensorStore | None = None

    def prepare(self, parameter: AddressTable) -> None:
        """Allocate at the first step; afterwards check that the dtypes are still those.

        Raises:
            ValueError: a parameter has another dtype than at first.
        """
        if self._store is None:
            self._store = TensorStore(self._layout, [DTYPES[c] for c in parameter.code], 1)
        check_dtypes(self._layout.names, "parameter ", self._store.row[0].code, parameter.code, parameter.address)

    @property
    def parameters(self) -> AddressTable:
        """Addresses of the snapshot; zeros before the first step."""
        assert self._store is not None, "prepare() takes the memory"
        return self._store.row[0]

    def measure(
        self, parameter: AddressTable, gradient: AddressTable, previous: AddressTable | None, *, scale: float = 1.0
    ) -> UpdateMoments:
        """Sums over the update since the snapshot, which is renewed.

        Args:
            parameter: x_{t+1}, which `prepare` has seen.
            gradient: g_{t+1}.
            previous: g_t; ``None`` where the snapshot is not one step old, and then only sum x^2 is known.
            scale: what the gradient is multiplied by when read.
        """
        adjacent = previous is not None
        moments = passes.update_moments(
            self._layout.chunks,
            self._layout.segments,
            parameter,
            self.parameters,
            gradient=gradient if adjacent else None,
            previous=previous,
            scale=scale,
        )
        if adjacent:
            return moments
        unknown = torch.full_like(moments.param_sq, torch.nan)
        return UpdateMoments(moments.param_sq, unknown, unknown, unknown)


def reciprocal(grad_scale: Tensor | None) -> float:
    """What a scaled gradient is multiplied by."""
    return 1.0 if grad_scale is None else 1.0 / float(grad_scale)

"""The Triton engine's window: a ring of the last gradients in device memory, and the parameters of the step before.

Each tensor has a run of a row, padded to 1 KB; its whole 16 KB units are one launch, what remains goes in units of 1 KB
in a second one, for each dtype of ring. The head of the ring and the steps of its slots live on the device, so that a
captured graph can be replayed; the host knows the step numbers only to say how many passed since the last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.triton_tables import FLOAT64, ITEM, Rows, spans, to_device, unit_addresses
from fastgeom.engines.window import LateLags, UpdateMoments, WindowStatistics, check_dtypes, kept_dtypes
from fastgeom.kernels.finish import (
    FINISHED_SUMS,
    NEVER,
    launch_reduce,
    launch_update_finish,
    launch_window_finish,
)
from fastgeom.kernels.update import UPDATE_COLUMNS, launch_update
from fastgeom.kernels.window import BIG_WARPS, SMALL_WARPS, WINDOW_BIG, WINDOW_SMALL, launch_window, window_columns
from fastgeom.layout import Layout
from fastgeom.tables import DTYPES, AddressTable, ChunkTable, Ints, can_capture, capturing, chunk_table

if TYPE_CHECKING:
    from fastgeom.engines.triton import TritonEngine

_TABLE_COLUMNS = 8


@dataclass(frozen=True)
class _Launch:
    """The units of one launch: those of one size, of the tensors of one dtype of ring.

    Attributes:
        ring: (slots, elements), where the row of each tensor is a part of a row.
        wide: compute in float64.
        small: units of 1 KB of ring, else of 16 KB.
        keep: whether the ring loses precision of some tensor.
        elements: of a whole unit.
        units: tensor, start and length of each unit, by layer.
        table: on the device; columns as ``fastgeom.kernels.window`` and ``.update`` read them.
        fixed: the columns that never change: ring offset, keep address and snapshot address.
        rows: the rows of partial sums that it writes.
    """

    ring: Tensor
    wide: bool
    small: bool
    keep: bool
    elements: int
    units: ChunkTable
    table: Tensor
    fixed: tuple[Ints, Ints, Ints]
    rows: Rows

    @property
    def n_units(self) -> int:
        """Number of units."""
        return self.table.shape[1]


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
        self, layout: Layout, engine: TritonEngine, window: int, *, dtype: torch.dtype | None = None,
        track_updates: bool = False, slots: int | None = None,
    ) -> None:  # fmt: skip
        self._layout, self._engine, self._window, self._dtype = layout, engine, window, dtype
        self._slots = slots = slots or window
        self._track_updates = track_updates
        self._gradient_code: np.ndarray[tuple[int], np.dtype[np.int8]] | None = None
        self._parameter_code: np.ndarray[tuple[int], np.dtype[np.int8]] | None = None
        self._located: Ints = np.zeros(0, np.int64)
        self._staging: list[Tensor] = []
        self._captured: list[Tensor] = []
        self._last_step = 0
        n_layers = len(layout.layers) + 1
        device = engine.device
        self._state = torch.zeros(2, dtype=torch.int64, device=device)
        self._slot_step = torch.full((slots,), NEVER, dtype=torch.int64, device=device)
        self._slot_norm = torch.zeros(n_layers, slots, dtype=torch.float64, device=device)
        self._slot_past = torch.zeros(n_layers, slots, dtype=torch.float64, device=device)
        self._nothing_stored = torch.ones((), device=device)

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
        self._locate(gradient, parameter)

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> UpdateMoments:
        """See `Window.measure_update`; `fit` has told the device where the tensors lie."""
        del parameter, gradient
        advance = step - self._last_step
        scale = reciprocal(grad_scale)
        with self._engine.current():
            for launch in self._launches:
                partials = self._partial(launch, UPDATE_COLUMNS)
                launch_update(
                    launch.table, launch.n_units, launch.ring, self._state, partials,
                    small=launch.small, wide=launch.wide, keep=launch.keep, scale=scale,
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
            for launch in self._launches:
                launch_window(
                    launch.table, launch.n_units, launch.ring, window, window, self._state,
                    self._partial(launch, n_columns), small=launch.small, wide=launch.wide, keep=launch.keep,
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

    def _partial(self, launch: _Launch, n_columns: int) -> Tensor:
        """The rows of partial sums that a launch writes."""
        rows = self._matrices[launch.wide].view(-1)[: self._n_rows[launch.wide] * n_columns].view(-1, n_columns)
        return rows[launch.rows.first : launch.rows.end]

    def _reduce(self, n_columns: int, max_column: int = -1) -> Tensor:
        """Partial sums → segments → (layer + 1, column)."""
        segments = self._segments.view(-1)[: self._n_segments * n_columns].view(-1, n_columns)
        for wide, found in enumerate(self._segment_spans):
            partials = self._matrices[wide].view(-1)[: self._n_rows[wide] * n_columns].view(-1, n_columns)
            launch_reduce(partials, found, segments, max_column=max_column)
        totals = segments.new_empty(len(self._layout.layers) + 1, n_columns)
        launch_reduce(segments, self._layer_spans, totals, max_column=max_column)
        return totals

    def _locate(self, gradient: AddressTable, parameter: AddressTable | None) -> None:
        """Tell the device where the tensors lie, if that has changed."""
        now = np.concatenate([gradient.address, *([] if parameter is None else [parameter.address])])
        if np.array_equal(now, self._located):
            return
        self._located = now
        for launch in self._launches:
            self._upload(self._table(launch, gradient, parameter), launch.table)
        if can_capture(self._engine.device) and not capturing(self._engine.device):
            missing = len(self._launches) - len(self._staging)
            shapes = [launch.table.shape for launch in self._launches[:missing]]
            self._staging += [torch.empty(s, dtype=torch.int64, pin_memory=True) for s in shapes]

    def _upload(self, table: Ints, to: Tensor) -> None:
        """Copy a table to the device, while a graph is captured too.

        There nothing may be pinned, and every replay reads again what was pinned before.
        """
        if not capturing(self._engine.device):
            to.copy_(to_device(table, self._engine.device))
            return
        fitting = [i for i, pinned in enumerate(self._staging) if pinned.shape == to.shape]
        if not fitting:
            raise RuntimeError("Probe.step: expected a measured step between two captures of CUDA graphs, got none")
        pinned = self._staging.pop(fitting[0])
        pinned.copy_(torch.from_numpy(table))
        to.copy_(pinned, non_blocking=True)
        self._captured.append(pinned)

    def _table(self, launch: _Launch, gradient: AddressTable, parameter: AddressTable | None) -> Ints:
        """See ``fastgeom.kernels.window``; the last three columns are for ``fastgeom.kernels.update``."""
        units, (offset, keep, snapshot) = launch.units, launch.fixed
        columns = [*unit_addresses(units, gradient, launch.elements), units.length, offset, keep]
        if parameter is None:
            return np.stack([*columns, *[np.zeros_like(offset)] * 3])
        return np.stack([*columns, *unit_addresses(units, parameter, launch.elements), snapshot])

    def _allocate(self, gradient: AddressTable, parameter: AddressTable | None) -> None:
        """Take the memory, and lay out the launches."""
        layout = self._layout
        own = [DTYPES[c] for c in gradient.code]
        kept = kept_dtypes(layout.names, own, self._dtype)
        wide = gradient.code == FLOAT64
        if parameter is not None:
            wide = wide | (parameter.code == FLOAT64)
        codes = np.array([DTYPES.index(d) for d in kept], np.int64)
        self._launches: list[_Launch] = []
        self._buffers: list[Tensor] = []
        self._n_rows = [0, 0]
        for dtype, is_wide in sorted({(int(c), int(w) == 1) for c, w in zip(codes, wide, strict=True)}):
            members = np.flatnonzero((codes == dtype) & (wide == is_wide) & (layout.numels > 0))
            if len(members):
                self._allocate_ring(members, dtype, is_wide, gradient, parameter)
        device = self._engine.device
        n_columns = max(window_columns(self._window), UPDATE_COLUMNS)
        self._matrices = [
            torch.zeros(n, n_columns, dtype=dtype, device=device)
            for n, dtype in zip(self._n_rows, (torch.float32, torch.float64), strict=True)
        ]
        runs = [[launch.rows for launch in self._launches if launch.wide == is_wide] for is_wide in (False, True)]
        segments, by_layer = spans(runs, len(layout.layers))
        self._n_segments = int(by_layer[1, -1])
        self._segment_spans = [to_device(s, device) for s in segments]
        self._layer_spans = to_device(by_layer, device)
        self._segments = torch.zeros(self._n_segments, n_columns, dtype=torch.float64, device=device)

    def _allocate_ring(
        self, members: Ints, dtype: int, wide: bool, gradient: AddressTable, parameter: AddressTable | None
    ) -> None:
        """The ring of one dtype, what is kept in full beside it, the snapshot, and its two launches."""
        layout = self._layout
        members = members[np.argsort(layout.layer[members], kind="stable")]
        numels, item = layout.numels[members], int(ITEM[dtype])
        small = WINDOW_SMALL // item
        padded = -(-numels // small) * small
        offset = np.cumsum(padded) - padded
        ring = self._engine.zeros(self._slots, int(padded.sum()), DTYPES[dtype])
        keeps = gradient.code[members] != dtype
        keep = self._bytes(np.where(keeps, padded * ITEM[gradient.code[members]], 0))
        snapshot = np.zeros_like(keep) if parameter is None else self._bytes(padded * ITEM[parameter.code[members]])
        keep = np.where(keeps, keep, 0)
        self._remember_ring(ring, layout.layer[members], padded)
        big = WINDOW_BIG // item
        whole = numels // big * big
        for elements, warps, begin, length in (
            (big, BIG_WARPS, np.zeros_like(whole), whole),
            (small, SMALL_WARPS, whole, numels - whole),
        ):
            cut = _units(begin, length, elements)
            if not len(cut):
                continue
            where = members[cut.tensor]
            kept_at = keep[cut.tensor] + cut.start * ITEM[gradient.code[where]]
            snapshot_at = snapshot[cut.tensor] + cut.start * (ITEM[parameter.code[where]] if parameter else 0)
            rows = Rows(self._n_rows[wide], warps, layout.layer[where])
            self._n_rows[wide] = rows.end
            launch = _Launch(
                ring, wide, elements == small, len(np.flatnonzero(keeps)) > 0, elements, replace(cut, tensor=where),
                torch.empty(_TABLE_COLUMNS, len(cut), dtype=torch.int64, device=self._engine.device),
                (offset[cut.tensor] + cut.start, np.where(keep[cut.tensor] == 0, 0, kept_at), snapshot_at), rows,
            )  # fmt: skip
            self._launches.append(launch)

    def _remember_ring(self, ring: Tensor, layer: Ints, padded: Ints) -> None:
        """For those who read whole rows: the layer and the padded size of each tensor along one."""

    def _bytes(self, sizes: Ints) -> Ints:
        """Address of zeroed memory for each tensor."""
        if not sizes.any():
            return np.zeros_like(sizes)
        buffer = self._engine.zeros(1, int(sizes.sum()), torch.uint8)
        self._buffers.append(buffer)
        return buffer.data_ptr() + np.cumsum(sizes) - sizes


def _units(begin: Ints, length: Ints, elements: int) -> ChunkTable:
    """Runs ``begin`` to ``begin + length`` of tensors cut into units."""
    cut = chunk_table(length, elements)
    return replace(cut, start=cut.start + begin[cut.tensor])


def reciprocal(grad_scale: Tensor | None) -> Tensor | None:
    """What a scaled gradient is multiplied by."""
    return None if grad_scale is None else grad_scale.reshape(()).double().reciprocal()

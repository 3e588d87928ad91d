"""The Triton engine: each tensor is read once, where it lies, by one launch for thousands of them.

Nothing waits: addresses move to the device out of pinned memory, results stay there. On CPU tensors it runs through
Triton's interpreter, which is for tests alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.results import ListMoments
from fastgeom.engines.triton.capture import PinnedPool, capturing
from fastgeom.engines.triton.deferred_window import TritonDeferredWindow
from fastgeom.engines.triton.device import TritonDevice
from fastgeom.engines.triton.sketch_window import TritonSketchWindow
from fastgeom.engines.triton.sketcher import TritonSketcher
from fastgeom.engines.triton.tables import FLOAT64, to_device, unit_addresses
from fastgeom.engines.triton.window import TritonWindow
from fastgeom.kernels.lists.dots import DOT_ELEMENTS, launch_dots
from fastgeom.kernels.lists.norm import NORM_ELEMENTS, launch_norm
from fastgeom.kernels.lists.scale import launch_scale
from fastgeom.kernels.reduce import SEGMENT_ROWS, launch_reduce
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.chunks import Ints, chunk_table
from fastgeom.layout.count_sketch import SketchPlan
from fastgeom.layout.layout import Layout
from fastgeom.validation import DTYPES

_TABLES_KEPT = 16
_ABSMAX = 1


class _Part(NamedTuple):
    """The units of a list whose tensors are float64, or of those that are not."""

    wide: bool
    table: Tensor
    rows: Tensor | None

    @property
    def n_units(self) -> int:
        return self.table.shape[1]


class TritonEngine(TritonDevice):
    """Statistics of lists of tensors on one device.

    Args:
        device: where they lie.
    """

    name = "triton"
    rows_alike = False

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._tables: dict[bytes, list[Tensor]] = {}
        self._pool = PinnedPool(device)
        self._captured: list[list[Tensor]] = []

    def window(
        self, layout: Layout, window: int, *, dtype: torch.dtype | None = None, defer: int = 1,
        track_updates: bool = False,
    ) -> TritonWindow:  # fmt: skip
        """The last ``window`` gradients of a layout; see `TritonWindow` and `TritonDeferredWindow`."""
        if defer > 1:
            return TritonDeferredWindow(layout, self, window, defer=defer, track_updates=track_updates)
        return TritonWindow(layout, self, window, dtype=dtype, track_updates=track_updates)

    def sketcher(self, plan: SketchPlan) -> TritonSketcher:
        """What makes sketches of lists of tensors; see `TritonSketcher`."""
        return TritonSketcher(self, plan)

    def sketch_window(self, layout: Layout, plan: SketchPlan, window: int) -> TritonSketchWindow:
        """Sketches of the last ``window`` gradients of a layout; see `TritonSketchWindow`."""
        return TritonSketchWindow(layout, self, plan, window)

    def list_moments(self, numels: Ints, tensors: AddressTable, rows: Sequence[AddressTable] = ()) -> ListMoments:
        """One read of a list of tensors, against rows of others.

        Args:
            numels: (tensor,) number of elements of each.
            tensors: where they lie.
            rows: what to take dots with. With rows there is neither ``grad_absmax`` nor ``nonfinite``.
        """
        parts = self._parts(numels, tensors, rows, DOT_ELEMENTS if rows else NORM_ELEMENTS)
        n_columns = len(rows) + 1 if rows else 3
        partials = torch.empty(sum(p.n_units for p in parts), n_columns, dtype=torch.float64, device=self.device)
        with self.current():
            for part, out in zip(parts, torch.split(partials, [p.n_units for p in parts]), strict=True):
                if part.rows is None:
                    launch_norm(part.table, part.n_units, out, wide=part.wide)
                else:
                    launch_dots(part.table, part.rows, part.n_units, len(rows), out, wide=part.wide)
            totals = self._total(partials, -1 if rows else _ABSMAX)
        if rows:
            grad_sq = totals[-1]
            return ListMoments(totals[:-1], grad_sq, grad_sq.sqrt(), None, None)
        return ListMoments(totals[:0], totals[0], totals[0].sqrt(), totals[1], totals[2].long())

    def scale(self, tensors: Sequence[Tensor], factor: Tensor) -> None:
        """Multiply tensors in place by a 0-d tensor, which stays on the device; they fill memory without gaps."""
        numels = np.array([t.numel() for t in tensors], np.int64)
        table = AddressTable(
            np.array([t.data_ptr() for t in tensors], np.int64),
            np.array([DTYPES.index(t.dtype) for t in tensors], np.int8),
        )
        with self.current():
            for part in self._parts(numels, table, (), NORM_ELEMENTS):
                launch_scale(part.table, part.n_units, factor.double(), wide=part.wide)

    def _total(self, partials: Tensor, max_column: int) -> Tensor:
        """All rows in one, in a fixed order."""
        while True:
            n_rows = len(partials)
            first = np.arange(0, max(n_rows, 1), SEGMENT_ROWS)
            spans = np.stack([first, np.minimum(first + SEGMENT_ROWS, n_rows), np.arange(len(first))])
            reduced = partials.new_empty(len(first), partials.shape[1])
            launch_reduce(partials, self._kept(spans.tobytes(), [spans])[0], reduced, max_column=max_column)
            if len(first) == 1:
                return reduced[0]
            partials = reduced

    def _kept(self, key: bytes, tables: list[Ints] | Callable[[], list[Ints]]) -> list[Tensor]:
        """Tables on the device, kept for the next call with the same key; those of a captured graph for ever."""
        if capturing(self.device):
            made = tables() if callable(tables) else tables
            self._captured.append([self._pool.take(t).to(self.device, non_blocking=True) for t in made])
            return self._captured[-1]
        if key not in self._tables:
            while len(self._tables) >= _TABLES_KEPT:
                del self._tables[next(iter(self._tables))]
            made = tables() if callable(tables) else tables
            self._tables[key] = [to_device(t, self.device) for t in made]
            for table in made:
                self._pool.ensure(table.shape)
        return self._tables[key]

    def _parts(self, numels: Ints, tensors: AddressTable, rows: Sequence[AddressTable], elements: int) -> list[_Part]:
        """The units of a list: one part is computed in float32, one in float64, where there is such."""
        lists = (tensors, *rows)
        addresses = (a.tobytes() for t in lists for a in (t.address, t.code))
        key = b"".join([numels.tobytes(), elements.to_bytes(4), *addresses])
        wide = np.any([t.code == FLOAT64 for t in lists], axis=0)
        tables = self._kept(key, lambda: _tables(numels, lists, elements, wide))
        kinds = [kind for kind in (False, True) if len(np.flatnonzero((wide == kind) & (numels > 0)))]
        per_part = len(tables) // max(1, len(kinds))
        parts = [tables[per_part * k : per_part * (k + 1)] for k in range(len(kinds))]
        return [_Part(kind, own[0], own[1] if rows else None) for kind, own in zip(kinds, parts, strict=True)]


def _tables(numels: Ints, lists: Sequence[AddressTable], elements: int, wide: Ints) -> list[Ints]:
    """For each part the table of the list and, where there are rows, that of the rows."""
    units = chunk_table(numels, elements)
    tables = []
    for kind in (False, True):
        some = units[np.flatnonzero(wide[units.tensor] == kind)]
        if len(some):
            places = [np.stack(unit_addresses(some, t, elements)) for t in lists]
            tables.append(np.concatenate([places[0], some.length[None]]))
            if places[1:]:
                tables.append(np.stack(places[1:]))
    return tables

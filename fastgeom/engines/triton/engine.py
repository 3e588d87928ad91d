"""The Triton engine: each tensor is read once, where it lies, by one launch for thousands of them.

The host never waits: addresses are copied to the device out of pinned memory, and results stay there. On CPU tensors
kernels run in Triton's interpreter, which is for tests only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.results import ListMoments
from fastgeom.engines.triton.capture import TableCache
from fastgeom.engines.triton.deferred_window import TritonDeferredWindow
from fastgeom.engines.triton.device import TritonDevice
from fastgeom.engines.triton.sketch_window import TritonSketchWindow
from fastgeom.engines.triton.sketcher import TritonSketcher
from fastgeom.engines.triton.tables import FLOAT64, unit_addresses
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

_ABSMAX = 1


class _ListLaunch(NamedTuple):
    """The units of a list that one launch computes: ``wide`` in float64, else in float32."""

    wide: bool
    table: Tensor
    rows: Tensor | None

    @property
    def n_units(self) -> int:
        return self.table.shape[1]


class TritonEngine(TritonDevice):
    """Statistics of lists of tensors on one device.

    Args:
        device: the device of the tensors.
    """

    name = "triton"
    rows_alike = False

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._tables = TableCache(device)

    def window(
        self,
        layout: Layout,
        window: int,
        *,
        dtype: torch.dtype | None = None,
        defer: int = 1,
        track_updates: bool = False,
    ) -> TritonWindow:
        """The last ``window`` gradients of a layout; see `TritonWindow` and `TritonDeferredWindow`."""
        if defer > 1:
            return TritonDeferredWindow(layout, self, window, defer=defer, track_updates=track_updates)
        return TritonWindow(layout, self, window, dtype=dtype, track_updates=track_updates)

    def sketcher(self, plan: SketchPlan) -> TritonSketcher:
        """A sketcher of lists of tensors; see `TritonSketcher`."""
        return TritonSketcher(self, plan)

    def sketch_window(self, layout: Layout, plan: SketchPlan, window: int) -> TritonSketchWindow:
        """Sketches of the last ``window`` gradients of a layout; see `TritonSketchWindow`."""
        return TritonSketchWindow(layout, self, plan, window)

    def list_moments(self, numels: Ints, tensors: AddressTable, rows: Sequence[AddressTable] = ()) -> ListMoments:
        """One read of a list of tensors, against rows of others.

        Args:
            numels: (tensor,) number of elements of each tensor.
            tensors: addresses of the tensors.
            rows: addresses of the lists to compute dots with. ``grad_absmax`` and ``nonfinite`` are ``None`` then.
        """
        launches = self._launches(numels, tensors, rows, DOT_ELEMENTS if rows else NORM_ELEMENTS)
        n_columns = len(rows) + 1 if rows else 3
        partials = torch.empty(
            sum(launch.n_units for launch in launches), n_columns, dtype=torch.float64, device=self.device
        )
        with self.current():
            outs = torch.split(partials, [launch.n_units for launch in launches])
            for launch, out in zip(launches, outs, strict=True):
                if launch.rows is None:
                    launch_norm(launch.table, launch.n_units, out, wide=launch.wide)
                else:
                    launch_dots(launch.table, launch.rows, launch.n_units, len(rows), out, wide=launch.wide)
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
            for launch in self._launches(numels, table, (), NORM_ELEMENTS):
                launch_scale(launch.table, launch.n_units, factor.double(), wide=launch.wide)

    def _total(self, partials: Tensor, max_column: int) -> Tensor:
        """Add up all rows, in a fixed order."""
        while True:
            n_rows = len(partials)
            (segments,) = self._tables.get(b"segments" + n_rows.to_bytes(8), partial(_segments, n_rows))
            reduced = partials.new_empty(segments.shape[1], partials.shape[1])
            launch_reduce(partials, segments, reduced, max_column=max_column)
            if len(reduced) == 1:
                return reduced[0]
            partials = reduced

    def _launches(
        self, numels: Ints, tensors: AddressTable, rows: Sequence[AddressTable], elements: int
    ) -> list[_ListLaunch]:
        """The units of a list: one launch for those that need float64, one for the others, where there are some."""
        lists = (tensors, *rows)
        addresses = (a.tobytes() for t in lists for a in (t.address, t.code))
        key = b"".join([numels.tobytes(), elements.to_bytes(4), *addresses])
        wide = np.any([t.code == FLOAT64 for t in lists], axis=0)
        tables = self._tables.get(key, lambda: _list_tables(numels, lists, elements, wide))
        kinds = [kind for kind in (False, True) if len(np.flatnonzero((wide == kind) & (numels > 0)))]
        per_launch = 2 if rows else 1
        return [
            _ListLaunch(kind, tables[per_launch * k], tables[per_launch * k + 1] if rows else None)
            for k, kind in enumerate(kinds)
        ]


def _segments(n_rows: int) -> list[Ints]:
    """The table of segments that cover so many partial rows: one, perhaps empty, at least."""
    first = np.arange(0, max(n_rows, 1), SEGMENT_ROWS)
    return [np.stack([first, np.minimum(first + SEGMENT_ROWS, n_rows), np.arange(len(first))])]


def _list_tables(numels: Ints, lists: Sequence[AddressTable], elements: int, wide: Ints) -> list[Ints]:
    """For each launch the table of the list and, where there are rows, that of the rows."""
    units = chunk_table(numels, elements)
    tables = []
    for kind in (False, True):
        members = units[np.flatnonzero(wide[units.tensor] == kind)]
        if len(members):
            addresses = [np.stack(unit_addresses(members, t, elements)) for t in lists]
            tables.append(np.concatenate([addresses[0], members.length[None]]))
            if len(lists) > 1:
                tables.append(np.stack(addresses[1:]))
    return tables

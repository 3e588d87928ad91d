"""The CPU engine: statistics of tensors in CPU memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgeom.engines.cpu import passes
from fastgeom.engines.cpu.deferred_window import CpuDeferredWindow
from fastgeom.engines.cpu.sketcher import CpuSketcher, CpuSketchWindow
from fastgeom.engines.cpu.window import CpuWindow
from fastgeom.engines.results import ListMoments
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.chunks import Ints, chunk_table, one_segment
from fastgeom.layout.count_sketch import SketchPlan
from fastgeom.layout.layout import Layout


class CpuEngine:
    """Statistics of lists of tensors in CPU memory, and windows of past ones; see `Engine`."""

    name = "cpu"
    rows_alike = True

    def zeros(self, rows: int, n_elements: int, dtype: torch.dtype) -> Tensor:
        """See `Engine.zeros`."""
        return passes.zeros(rows, n_elements, dtype)

    def window(
        self,
        layout: Layout,
        window: int,
        *,
        dtype: torch.dtype | None = None,
        defer: int = 1,
        track_updates: bool = False,
    ) -> CpuWindow | CpuDeferredWindow:
        """The last ``window`` gradients of a layout; see `CpuWindow` and `CpuDeferredWindow`."""
        if defer > 1:
            return CpuDeferredWindow(layout, window, defer=defer, track_updates=track_updates)
        return CpuWindow(layout, window, dtype=dtype, track_updates=track_updates)

    def sketcher(self, plan: SketchPlan) -> CpuSketcher:
        """What makes sketches of lists of tensors; see `CpuSketcher`."""
        return CpuSketcher(plan)

    def sketch_window(self, layout: Layout, plan: SketchPlan, window: int) -> CpuSketchWindow:
        """Sketches of the last ``window`` gradients of a layout; see `CpuSketchWindow`."""
        return CpuSketchWindow(layout, plan, window)

    def list_moments(self, numels: Ints, tensors: AddressTable, rows: Sequence[AddressTable] = ()) -> ListMoments:
        """One read of a list of tensors against rows of others, all rows with the same dtypes.

        Args:
            numels: (tensor,) number of elements of each.
            tensors: where they lie.
            rows: what to take dots with.
        """
        chunks = chunk_table(numels)
        moments = passes.window_moments(chunks, one_segment(len(chunks)), tensors, rows=rows)
        return ListMoments(
            moments.dots[-1], moments.grad_sq[-1], moments.grad_norm[-1], moments.grad_absmax[-1], moments.nonfinite[-1]
        )

    def scale(self, tensors: Sequence[Tensor], factor: Tensor) -> None:
        """Multiply tensors in place by a 0-d tensor."""
        if tensors:
            torch._foreach_mul_(list(tensors), factor)

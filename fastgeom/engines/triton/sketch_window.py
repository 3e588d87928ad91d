"""The Triton engine's window of sketches, and the parameters of the step before.

A complete sketch is compared with those of the window while it is in registers, and then written over the oldest: the
ring has as many rows as the window.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.results import NormMoments, SketchMoments, UpdateMoments
from fastgeom.engines.triton.capture import DeviceTable, capturing
from fastgeom.engines.triton.device import TritonDevice, reciprocal
from fastgeom.engines.triton.layer_sums import LayerSums
from fastgeom.engines.triton.ring_index import RingIndex
from fastgeom.engines.triton.sketcher import SketchLaunches, norm_moments
from fastgeom.engines.triton.tables import FLOAT64, ITEM, VECTOR_BYTES
from fastgeom.kernels.sketch.compare_and_store import SketchRing, ring_columns
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.count_sketch import SketchPlan
from fastgeom.layout.layout import Layout
from fastgeom.validation import check_dtypes


class TritonSketchWindow:
    """Sketches of the last ``window`` gradients; see `SketchWindow`.

    Memory: window × plan.total × 4 bytes; for tables, partial sums and norms at W = 16 about 0.1 MB and 1 kB a layer;
    the parameters once where updates are measured; during a step, that of `SketchLaunches`.

    Args:
        layout: the measured tensors.
        engine: computes on them.
        plan: the buckets of every element.
        window: number of sketches in the window.
    """

    def __init__(self, layout: Layout, engine: TritonDevice, plan: SketchPlan, window: int) -> None:
        self._layout, self._engine, self._plan, self._window = layout, engine, plan, window
        self._launches = SketchLaunches(engine, plan)
        self._columns = ring_columns(window)
        self._sums = LayerSums([self._launches.owners], plan.n_groups, self._columns, engine.device, (torch.float32,))
        self._ring = engine.zeros(window, plan.total, torch.float32)
        self._ring_index = RingIndex(plan.n_groups + 1, window, engine.device, remember=True)
        self._gradient_table, self._update_table = DeviceTable(engine.device), DeviceTable(engine.device)
        self._snapshot: AddressTable | None = None
        self._prepared = False

    def prepare(self, gradient: AddressTable, parameter: AddressTable | None = None) -> None:
        """See `SketchWindow.prepare`; allocates the snapshot where updates are measured."""
        if not self._prepared and capturing(self._engine.device):
            raise RuntimeError("Probe.step: expected a measured step before a CUDA graph is captured, got none")
        self._prepared = True
        launches, gradients = self._launches, self._launches.addresses(gradient)
        self._gradient_table.send(launches.table(*gradients))
        self._wide = [FLOAT64 in gradient.code, False]
        if parameter is None:
            return
        if self._snapshot is None:
            self._snapshot = self._allocate_snapshot(parameter)
        check_dtypes(self._layout.names, "parameter ", self._snapshot.code, parameter.code, parameter.address)
        parameters, snapshots = (
            launches.addresses(parameter, self._snapshot),
            self._snapshot.address[self._plan.tensors],
        )
        self._update_table.send(launches.table(*parameters, snapshots, *gradients))
        self._wide[1] = self._wide[0] or FLOAT64 in parameter.code

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> tuple[UpdateMoments, SketchMoments]:
        """See `SketchWindow.measure_update`; `prepare` has sent the addresses."""
        del parameter, gradient
        totals = self._launches.run(
            self._update_table.tensor,
            out=None,
            ring=self._sketch_ring(),
            update=True,
            wide=self._wide[1],
            scale=reciprocal(grad_scale),
        )
        param_sq, update_sq, next_dot = totals.unbind(1)
        exact = UpdateMoments(param_sq, update_sq, torch.full_like(param_sq, torch.nan), next_dot)
        return exact, self._finish(step, 1, store=False)

    def measure(
        self,
        gradient: AddressTable,
        step: int,
        *,
        found_inf: Tensor | None = None,
        grad_scale: Tensor | None = None,
        out: Tensor | None = None,
    ) -> tuple[NormMoments, SketchMoments]:
        """See `SketchWindow.measure`; `prepare` has sent the addresses."""
        del gradient
        skip = None if found_inf is None else found_inf.reshape(()).float()
        totals = self._launches.run(
            self._gradient_table.tensor,
            out=out,
            ring=self._sketch_ring(skip),
            wide=self._wide[0],
            scale=reciprocal(grad_scale),
        )
        exact = norm_moments(totals)
        # A norm of inf or NaN is remembered as inf: NaN marks what was not measured.
        return exact, self._finish(step, self._window, skip=skip, past=exact.grad_norm.nan_to_num(torch.inf, torch.inf))

    def step_on_device(self) -> Tensor:
        """See `HistoryWindow.step_on_device`."""
        return self._ring_index.state[1].clone()

    def resume(self, step: int) -> None:
        """See `HistoryWindow.resume`."""
        self._ring_index.last_step = step

    def _sketch_ring(self, skip: Tensor | None = None) -> SketchRing:
        return SketchRing(self._ring, self._ring_index.state, self._sums.rows(0, self._columns), skip)

    def _finish(
        self, step: int, window: int, *, skip: Tensor | None = None, store: bool = True, past: Tensor | None = None
    ) -> SketchMoments:
        with self._engine.current():
            totals = self._sums.totals(self._columns)
            result = self._ring_index.finish(totals, step, window=window, skip=skip, store=store, past=past)
        assert result.past is not None
        return SketchMoments(result.lag_cosine, result.past, result.diff_sq, result.sum_sq)

    def _allocate_snapshot(self, parameter: AddressTable) -> AddressTable:
        """Zeroed memory for a copy of each parameter, at multiples of 16 bytes."""
        sizes = -(-self._layout.numels * ITEM[parameter.code] // VECTOR_BYTES) * VECTOR_BYTES
        buffer = self._engine.zeros(1, int(sizes.sum()), torch.uint8)
        return AddressTable(buffer.data_ptr() + np.cumsum(sizes) - sizes, parameter.code, (buffer,))

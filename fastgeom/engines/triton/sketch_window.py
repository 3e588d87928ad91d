"""The Triton engine's window of sketches, and the parameters of the step before.

A sketch is compared with those of the window where it is complete, in registers, and then written over the oldest: the
ring has no row more than the window.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.results import NormMoments, SketchMoments, UpdateMoments
from fastgeom.engines.triton.capture import capturing
from fastgeom.engines.triton.device import TritonDevice
from fastgeom.engines.triton.layer_sums import LayerSums
from fastgeom.engines.triton.ring_index import RingIndex
from fastgeom.engines.triton.sketcher import SketchLaunches, norm_moments
from fastgeom.engines.triton.tables import FLOAT64, ITEM, VECTOR_BYTES, Upload
from fastgeom.engines.triton.window import reciprocal
from fastgeom.kernels.sketch.compare_and_store import SketchRing, ring_columns
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.count_sketch import SketchPlan
from fastgeom.layout.layout import Layout
from fastgeom.validation import check_dtypes


class TritonSketchWindow:
    """Sketches of the last ``window`` gradients; see `SketchWindow`.

    Memory: window × plan.total × 4 bytes; for tables, partial sums and norms at W = 16 about 0.1 MB and 1 kB a layer;
    the parameters once where updates are measured; during a step, what `SketchLaunches` takes.

    Args:
        layout: the measured tensors.
        engine: computes on them.
        plan: which element goes where.
        window: how many sketches to keep.
    """

    def __init__(self, layout: Layout, engine: TritonDevice, plan: SketchPlan, window: int) -> None:
        self._layout, self._engine, self._plan, self._window = layout, engine, plan, window
        self._launches = SketchLaunches(engine, plan)
        self._columns = ring_columns(window)
        self._sums = LayerSums([self._launches.owners], plan.n_groups, self._columns, engine.device, (torch.float32,))
        self._ring = engine.zeros(window, plan.total, torch.float32)
        self._history = RingIndex(plan.n_groups + 1, window, engine.device, remember=True)
        self._gradient_places, self._update_places = Upload(engine.device), Upload(engine.device)
        self._snapshot: AddressTable | None = None
        self._fitted = False

    def prepare(self, gradient: AddressTable, parameter: AddressTable | None = None) -> None:
        """See `SketchWindow.prepare`; takes the memory of the parameters where updates are measured."""
        if not self._fitted and capturing(self._engine.device):
            raise RuntimeError("Probe.step: expected a measured step before a CUDA graph is captured, got none")
        self._fitted = True
        launches, found = self._launches, self._launches.places(gradient)
        self._gradient_places.send(launches.table(*found))
        self._wide = [FLOAT64 in gradient.code, False]
        if parameter is None:
            return
        if self._snapshot is None:
            self._snapshot = self._store_like(parameter)
        check_dtypes(self._layout.names, "parameter ", self._snapshot.code, parameter.code, parameter.address)
        snapshot_at = self._snapshot.address[self._plan.tensors]
        self._update_places.send(launches.table(*launches.places(parameter, self._snapshot), snapshot_at, *found))
        self._wide[1] = self._wide[0] or FLOAT64 in parameter.code

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> tuple[UpdateMoments, SketchMoments]:
        """See `SketchWindow.measure_update`; `prepare` has told the device where the tensors lie."""
        del parameter, gradient
        totals = self._launches.run(
            self._update_places.table, out=None, ring=self._destination(), update=True, wide=self._wide[1],
            scale=reciprocal(grad_scale),
        )  # fmt: skip
        param_sq, update_sq, next_dot = totals.unbind(1)
        exact = UpdateMoments(param_sq, update_sq, torch.full_like(param_sq, torch.nan), next_dot)
        return exact, self._finish(step, 1, store=False)

    def measure(
        self, gradient: AddressTable, step: int, *, found_inf: Tensor | None = None, grad_scale: Tensor | None = None,
        out: Tensor | None = None,
    ) -> tuple[NormMoments, SketchMoments]:  # fmt: skip
        """See `SketchWindow.measure`; `prepare` has told the device where the tensors lie."""
        del gradient
        skip = None if found_inf is None else found_inf.reshape(()).float()
        totals = self._launches.run(
            self._gradient_places.table, out=out, ring=self._destination(skip), wide=self._wide[0],
            scale=reciprocal(grad_scale),
        )  # fmt: skip
        exact = norm_moments(totals)
        # A norm of inf or NaN is remembered as inf: NaN marks what was not measured.
        return exact, self._finish(step, self._window, skip=skip, past=exact.grad_norm.nan_to_num(torch.inf, torch.inf))

    def step_on_device(self) -> Tensor:
        """See `HistoryWindow.step_on_device`."""
        return self._history.state[1].clone()

    def resume(self, step: int) -> None:
        """See `HistoryWindow.resume`."""
        self._history.last_step = step

    def _destination(self, skip: Tensor | None = None) -> SketchRing:
        return SketchRing(self._ring, self._history.state, self._sums.rows(0, self._columns), skip)

    def _finish(
        self, step: int, window: int, *, skip: Tensor | None = None, store: bool = True, past: Tensor | None = None
    ) -> SketchMoments:
        with self._engine.current():
            totals = self._sums.totals(self._columns)
            found = self._history.finish(totals, step, window=window, skip=skip, store=store, past=past)
        assert found.past is not None
        return SketchMoments(found.lag_cosine, found.past, found.diff_sq, found.sum_sq)

    def _store_like(self, parameter: AddressTable) -> AddressTable:
        """Zeroed memory for a copy of each parameter, at multiples of 16 bytes."""
        sizes = -(-self._layout.numels * ITEM[parameter.code] // VECTOR_BYTES) * VECTOR_BYTES
        buffer = self._engine.zeros(1, int(sizes.sum()), torch.uint8)
        return AddressTable(buffer.data_ptr() + np.cumsum(sizes) - sizes, parameter.code, (buffer,))

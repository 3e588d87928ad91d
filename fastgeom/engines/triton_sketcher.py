"""The Triton engine's sketcher: sketches of gradients and of updates, with the snapshot that the latter need."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.triton_device import TritonDevice
from fastgeom.engines.triton_tables import FLOAT64, ITEM, VECTOR_BYTES, Rows, Upload, spans, to_device
from fastgeom.engines.triton_window import reciprocal
from fastgeom.engines.window import NormMoments, UpdateMoments, check_dtypes
from fastgeom.kernels.finish import launch_reduce
from fastgeom.kernels.loads import ABSENT, SHORT
from fastgeom.kernels.sketch import SKETCH_COPY, SKETCH_PROGRAMS, SKETCH_SUM, SKETCH_TILES, launch_sketch
from fastgeom.layout import Layout
from fastgeom.sketching import SketchPlan, sketch_programs
from fastgeom.tables import AddressTable, Ints

_ABSMAX = 1
_COLUMNS = 3


class TritonSketcher:
    """Sketches of the gradients of a layout on one device; see `Sketcher`.

    Memory: partial sketches of at most 4.3 MB, and the parameters once where updates are measured.

    Args:
        layout: the measured tensors.
        engine: computes on them.
        plan: which element goes where.
    """

    def __init__(self, layout: Layout, engine: TritonDevice, plan: SketchPlan) -> None:
        self._layout, self._engine, self._plan = layout, engine, plan
        device = engine.device
        found = sketch_programs(plan, SKETCH_TILES, SKETCH_PROGRAMS, SKETCH_COPY, SKETCH_SUM)
        self._fixed = (
            [to_device(table, device) for table in found.programs],
            to_device(found.copies, device),
            to_device(found.sums, device),
        )
        self._tensors = found.tensors
        self._scratch = torch.zeros(found.scratch, dtype=torch.float32, device=device)
        runs, n_rows = [], 0
        for groups in found.groups:
            runs.append(Rows(n_rows, 1, groups))
            n_rows = runs[-1].end
        self._partials = torch.zeros(n_rows, _COLUMNS, dtype=torch.float64, device=device)
        (segments,), by_layer = spans([runs], len(layout.layers))
        self._spans = to_device(segments, device), to_device(by_layer, device)
        self._gradient_places, self._update_places = Upload(device), Upload(device)
        self._snapshot: AddressTable | None = None

    def fit(self, gradient: AddressTable, parameter: AddressTable | None = None) -> None:
        """See `Sketcher.fit`; takes the memory of the parameters where updates are measured."""
        nowhere = np.zeros((3, len(self._tensors)), np.int64)
        self._gradient_places.send(self._table([*self._places(gradient), *nowhere]))
        self._wide = [FLOAT64 in gradient.code, False]
        if parameter is None:
            return
        if self._snapshot is None:
            self._snapshot = self._store_like(parameter)
        check_dtypes(self._layout.names, "parameter ", self._snapshot.code, parameter)
        snapshot_at = self._snapshot.address[self._plan.tensors]
        columns = [*self._places(parameter, self._snapshot), snapshot_at, *self._places(gradient)]
        self._update_places.send(self._table(columns))
        self._wide[1] = FLOAT64 in gradient.code or FLOAT64 in parameter.code

    def sketch(self, gradient: AddressTable, out: Tensor, *, grad_scale: Tensor | None = None) -> NormMoments:
        """See `Sketcher.sketch`; `fit` has told the device where the tensors lie."""
        del gradient
        totals = self._launch(self._gradient_places.table, out, grad_scale, update=False, max_column=_ABSMAX)
        grad_sq, absmax, nonfinite = totals.unbind(1)
        return NormMoments(grad_sq, grad_sq.sqrt(), absmax, nonfinite.long())

    def sketch_update(
        self, parameter: AddressTable, gradient: AddressTable, out: Tensor, *, grad_scale: Tensor | None = None
    ) -> UpdateMoments:
        """See `Sketcher.sketch_update`; `fit` has told the device where the tensors lie."""
        del parameter, gradient
        totals = self._launch(self._update_places.table, out, grad_scale, update=True, max_column=-1)
        param_sq, update_sq, next_dot = totals.unbind(1)
        return UpdateMoments(param_sq, update_sq, torch.full_like(param_sq, torch.nan), next_dot)

    def _launch(
        self, tensors: Tensor, out: Tensor, grad_scale: Tensor | None, *, update: bool, max_column: int
    ) -> Tensor:
        """Sketch into ``out``; (layer + 1, 3) sums."""
        with self._engine.current():
            launch_sketch(
                *self._fixed, tensors, out, self._scratch, self._partials, update=update, wide=self._wide[update],
                scale=reciprocal(grad_scale),
            )  # fmt: skip
            segment_spans, layer_spans = self._spans
            segments = self._partials.new_empty(segment_spans.shape[1], _COLUMNS)
            launch_reduce(self._partials, segment_spans, segments, max_column=max_column)
            totals = segments.new_empty(layer_spans.shape[1], _COLUMNS)
            launch_reduce(segments, layer_spans, totals, max_column=max_column)
        return totals

    def _table(self, columns: list[Ints]) -> Ints:
        """(tensor, 8), by group: what never changes, then where they lie."""
        return np.concatenate([self._tensors, np.stack(columns, axis=1)], axis=1)

    def _places(self, table: AddressTable, snapshot: AddressTable | None = None) -> Ints:
        """(2, tensor) address and code, by group; a code is fast only where the snapshot is aligned too."""
        address, dtype = table.address[self._plan.tensors], table.code[self._plan.tensors].astype(np.int64)
        aligned = address % VECTOR_BYTES == 0
        if snapshot is not None:
            aligned &= snapshot.address[self._plan.tensors] % VECTOR_BYTES == 0
        return np.stack([address, np.where(address == 0, ABSENT.value, dtype + np.where(aligned, 0, SHORT.value))])

    def _store_like(self, parameter: AddressTable) -> AddressTable:
        """Zeroed memory for a copy of each parameter, at multiples of 16 bytes."""
        sizes = -(-self._layout.numels * ITEM[parameter.code] // VECTOR_BYTES) * VECTOR_BYTES
        buffer = self._engine.zeros(1, int(sizes.sum()), torch.uint8)
        return AddressTable(buffer.data_ptr() + np.cumsum(sizes) - sizes, parameter.code, (buffer,))

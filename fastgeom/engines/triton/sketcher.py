"""The Triton engine's sketches of lists of tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.results import NormMoments
from fastgeom.engines.triton.capture import DeviceTable
from fastgeom.engines.triton.device import TritonDevice, to_device
from fastgeom.engines.triton.layer_sums import LayerSums
from fastgeom.engines.triton.sketch_tables import sketch_programs
from fastgeom.engines.triton.tables import FLOAT64, VECTOR_BYTES, PartialRows
from fastgeom.kernels.loads import ABSENT, SHORT
from fastgeom.kernels.sketch.compare_and_store import NO_RING, SketchRing
from fastgeom.kernels.sketch.sketch import SKETCH_COPY, SKETCH_PROGRAMS, SKETCH_SUM, SKETCH_TILES, launch_sketch
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.chunks import Ints
from fastgeom.layout.count_sketch import SketchPlan

_ABSMAX = 1
_COLUMNS = 3


class SketchLaunches:
    """The launches that make sketches, and their tables.

    Memory: tables and partial sums; during a step partial sketches of at most 4.3 MB, none from 2^20 buckets on, which
    are freed when the step has been launched.

    Args:
        engine: computes on the tensors.
        plan: the buckets of every element.

    Attributes:
        owners: the partial rows of a ring; see ``fastgeom.kernels.sketch.compare_and_store``.
    """

    def __init__(self, engine: TritonDevice, plan: SketchPlan) -> None:
        self._engine, self._plan = engine, plan
        device = engine.device
        tables = sketch_programs(plan, SKETCH_TILES, SKETCH_PROGRAMS, SKETCH_COPY, SKETCH_SUM)
        self._fixed = (
            [to_device(table, device) for table in tables.programs],
            to_device(tables.copies, device),
            to_device(tables.sums, device),
        )
        self._blocks = tables.tensors
        self._n_scratch = tables.scratch
        self._sums = LayerSums([_partial_rows(tables.groups)], plan.n_groups, _COLUMNS, device)
        self.owners = _partial_rows(tables.owners)

    def table(self, *columns: Ints) -> Ints:
        """(tensor, 8), by group: the blocks of each tensor, then these columns, and zeros."""
        rest = np.zeros((8 - self._blocks.shape[1] - len(columns), len(self._blocks)), np.int64)
        return np.concatenate([self._blocks, np.stack([*columns, *rest], axis=1)], axis=1)

    def addresses(self, table: AddressTable, snapshot: AddressTable | None = None) -> Ints:
        """(2, tensor) address and code, by group; a code without SHORT means that tensor and snapshot are aligned."""
        address, dtype = table.address[self._plan.tensors], table.code[self._plan.tensors].astype(np.int64)
        aligned = address % VECTOR_BYTES == 0
        if snapshot is not None:
            aligned &= snapshot.address[self._plan.tensors] % VECTOR_BYTES == 0
        return np.stack([address, np.where(address == 0, ABSENT.value, dtype + np.where(aligned, 0, SHORT.value))])

    def run(
        self,
        tensors: Tensor,
        *,
        out: Tensor | None,
        ring: SketchRing = NO_RING,
        update: bool = False,
        wide: bool = False,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Sketch into ``out`` and against the ring; the moments, (layer + 1, 3), are those of ``launch_sketch``."""
        scratch = torch.empty(self._n_scratch, dtype=torch.float32, device=self._engine.device)
        with self._engine.current():
            launch_sketch(
                *self._fixed,
                tensors,
                scratch,
                self._sums.rows(0, _COLUMNS),
                out=out,
                ring=ring,
                update=update,
                wide=wide,
                scale=scale,
            )
            return self._sums.totals(_COLUMNS, max_column=-1 if update else _ABSMAX)


class TritonSketcher:
    """Sketches of lists of tensors on one device; see `Sketcher`.

    Args:
        engine: computes on them.
        plan: the buckets of every element.
    """

    def __init__(self, engine: TritonDevice, plan: SketchPlan) -> None:
        self._launches = SketchLaunches(engine, plan)
        self._table = DeviceTable(engine.device)

    def prepare(self, gradient: AddressTable) -> None:
        """See `Sketcher.prepare`."""
        self._table.send(self._launches.table(*self._launches.addresses(gradient)))
        self._wide = FLOAT64 in gradient.code

    def sketch(self, gradient: AddressTable, out: Tensor) -> NormMoments:
        """See `Sketcher.sketch`; `prepare` has sent the addresses."""
        del gradient
        return norm_moments(self._launches.run(self._table.tensor, out=out, wide=self._wide))


def norm_moments(totals: Tensor) -> NormMoments:
    """The moments of a gradient from (layer + 1, 3) totals."""
    grad_sq, grad_absmax, nonfinite = totals.unbind(1)
    return NormMoments(grad_sq, grad_sq.sqrt(), grad_absmax, nonfinite.long())


def _partial_rows(groups: tuple[Ints, ...]) -> list[PartialRows]:
    """The partial rows of launches whose units have one each, given the groups of their units."""
    ends = np.cumsum([len(layer) for layer in groups])
    return [PartialRows(int(end) - len(layer), 1, layer) for end, layer in zip(ends, groups, strict=True)]

"""The CPU engine's sketcher: sketches of gradients and of updates, with the snapshot that the latter need."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgeom.engines.cpu_passes import CpuPasses
from fastgeom.engines.cpu_window import TensorStore, reciprocal
from fastgeom.engines.window import NormMoments, UpdateMoments, check_dtypes
from fastgeom.layout import Layout
from fastgeom.sketching import SketchPlan
from fastgeom.tables import DTYPES, AddressTable


class CpuSketcher:
    """Sketches of the gradients of a layout in CPU memory; see `Sketcher`.

    Args:
        layout: the measured tensors.
        engine: computes on them.
        plan: which element goes where.
    """

    def __init__(self, layout: Layout, engine: CpuPasses, plan: SketchPlan) -> None:
        self._layout, self._engine, self._plan = layout, engine, plan
        self._snapshot: AddressTable | None = None

    def fit(self, gradient: AddressTable, parameter: AddressTable | None = None) -> None:
        """See `Sketcher.fit`; takes the memory of the parameters where updates are measured."""
        del gradient
        if parameter is None:
            return
        if self._snapshot is None:
            self._snapshot = TensorStore(self._layout, self._engine, [DTYPES[c] for c in parameter.code], 1).row[0]
        check_dtypes(self._layout.names, "parameter ", self._snapshot.code, parameter)

    def sketch(self, gradient: AddressTable, out: Tensor, *, grad_scale: Tensor | None = None) -> NormMoments:
        """See `Sketcher.sketch`."""
        return self._engine.sketch_moments(self._plan, gradient, out, scale=reciprocal(grad_scale))

    def sketch_update(
        self, parameter: AddressTable, gradient: AddressTable, out: Tensor, *, grad_scale: Tensor | None = None
    ) -> UpdateMoments:
        """See `Sketcher.sketch_update`."""
        assert self._snapshot is not None, "fit() takes the memory"
        param_sq, update_sq, next_dot = self._engine.update_sketch(
            self._plan, parameter, self._snapshot, out, gradient=gradient, scale=reciprocal(grad_scale)
        ).unbind(1)
        return UpdateMoments(param_sq, update_sq, torch.full_like(param_sq, torch.nan), next_dot)

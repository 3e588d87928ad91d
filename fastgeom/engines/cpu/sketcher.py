"""The CPU engine's sketches: of a list of tensors, and of a layout's last gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgeom.engines.cpu import passes
from fastgeom.engines.cpu.ring_index import Lags, RingIndex
from fastgeom.engines.cpu.sketch_passes import PastSketches, past_sketches
from fastgeom.engines.cpu.window import ParameterSnapshot, reciprocal
from fastgeom.engines.results import NormMoments, SketchMoments, UpdateMoments
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.count_sketch import SketchPlan
from fastgeom.layout.layout import Layout


class CpuSketcher:
    """Sketches of lists of tensors in CPU memory; see `Sketcher`.

    Args:
        plan: which element goes where.
    """

    def __init__(self, plan: SketchPlan) -> None:
        self._plan = plan

    def prepare(self, gradient: AddressTable) -> None:
        """See `Sketcher.prepare`; nothing is remembered."""

    def sketch(self, gradient: AddressTable, out: Tensor) -> NormMoments:
        """See `Sketcher.sketch`."""
        return passes.sketch_moments(self._plan, gradient, out)


class CpuSketchWindow:
    """The sketches of the last ``window`` gradients, and what a new one is against them; see `SketchWindow`.

    Memory: window × plan.total × 4 bytes, and 16 (layer + 1) bytes of norms for each; the parameters once where updates
    are measured. A new sketch takes no memory of its own: each complete part of it overwrites the oldest.

    Args:
        layout: the measured tensors.
        plan: which element goes where.
        window: how many sketches to keep.
    """

    def __init__(self, layout: Layout, plan: SketchPlan, window: int) -> None:
        self._plan = plan
        self._ring = passes.zeros(window, plan.total, torch.float32)
        self._index = RingIndex(window, window, (2, plan.n_groups + 1))
        self._snapshot = ParameterSnapshot(layout)

    def prepare(self, gradient: AddressTable, parameter: AddressTable | None = None) -> None:
        """See `SketchWindow.prepare`; sketches are float32 whatever the dtypes of the gradients."""
        del gradient
        if parameter is not None:
            self._snapshot.prepare(parameter)

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> tuple[UpdateMoments, SketchMoments]:
        """See `SketchWindow.measure_update`."""
        lags = self._index.lags(step, window=1)
        past = self._past(lags)
        exact = passes.update_sketch(
            self._plan, parameter, self._snapshot.parameters, gradient=gradient, past=past, scale=reciprocal(grad_scale)
        )
        return exact, self._compared(lags, past)[0]

    def measure(
        self,
        gradient: AddressTable,
        step: int,
        *,
        found_inf: Tensor | None = None,
        grad_scale: Tensor | None = None,
        out: Tensor | None = None,
    ) -> tuple[NormMoments, SketchMoments]:
        """See `SketchWindow.measure`."""
        lags = self._index.lags(step)
        stored = found_inf is None or float(found_inf) == 0
        past = self._past(lags, self._index.evict_oldest() if stored else None)
        exact = passes.sketch_moments(self._plan, gradient, out, past=past, scale=reciprocal(grad_scale))
        compared, norm = self._compared(lags, past)
        if stored:
            # A norm of inf or NaN is remembered as inf: NaN marks what was not measured.
            self._index.commit(step, torch.stack([norm, exact.grad_norm.nan_to_num(torch.inf, torch.inf)]))
        return exact, compared

    def step_on_device(self) -> None:
        """Do nothing: the host counts the steps."""

    def resume(self, step: int) -> None:
        """Do nothing: the host counts the steps."""

    def _past(self, lags: Lags, store: int | None = None) -> PastSketches:
        """The rows of these lags; the one at ring row ``store`` is written over."""
        rows = [self._ring[row].data_ptr() for row in lags.rows]
        return past_sketches(
            self._plan,
            rows,
            previous=0 if lags.previous is None else rows[0],
            store=0 if store is None else self._ring[store].data_ptr(),
        )

    def _compared(self, lags: Lags, past: PastSketches) -> tuple[SketchMoments, Tensor]:
        """A sketch against these lags; and its own norm, (layer + 1,)."""
        sums = passes.past_moments(self._plan, past)
        sketch_sq, diff_sq, sum_sq = sums[:, -3:].unbind(1)
        norm = sketch_sq.sqrt()
        past_sketch_norm, past_norm = lags.norms.unbind(0)
        if past.previous == 0:
            diff_sq = sum_sq = torch.full_like(norm, torch.nan)
        lag_cosine = sums[:, :-3] / (past_sketch_norm * norm[:, None])
        return SketchMoments(lags.spread(lag_cosine), lags.spread(past_norm), diff_sq, sum_sq), norm

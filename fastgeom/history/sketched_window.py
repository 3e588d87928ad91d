"""A window of sketches: what is remembered of a gradient is ``size`` numbers, whatever the number of parameters.

Its dots, cosines and sums of differences are the estimates. Cosines are normalised by the sketches' own norms, which
cancels most of the error where gradients are nearly parallel; times the exact norms they are the dots.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.protocol import Engine
from fastgeom.engines.results import UpdateMoments, WindowStatistics
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.count_sketch import MIN_BUCKETS, SketchPlan, cosine_variance, difference_sq_error
from fastgeom.layout.layout import Layout
from fastgeom.validation import DTYPES


class SketchedWindow:
    """The sketches of the last ``window`` gradients, and the statistics of a new one against them; see `HistoryWindow`.

    Memory: window × size × 4 bytes, one sketch more with ``stored_size``, and the parameters once where updates are
    measured.

    Args:
        layout: the measured tensors.
        engine: computes on them.
        window: how many sketches to keep.
        size: float32 numbers of each, for all layers together.
        seed: chooses buckets and signs.
        record: length of the small sketch that every step gives besides; ``None`` for none.

    Raises:
        ValueError: ``size`` is too small for so many layers; ``stored_size`` is no power of two, or is
            larger than ``size``.
    """

    def __init__(
        self, layout: Layout, engine: Engine, window: int, *, size: int, seed: int, stored_size: int | None = None
    ) -> None:
        plan = SketchPlan(layout.numels, layout.layer, len(layout.layers), size, seed)
        self._past = engine.sketch_window(layout, plan, window)
        self._inverse_sizes = torch.from_numpy(plan.inverse_sizes).to(layout.device)
        self._small = None if stored_size is None else _SmallSketch(engine, plan.total, stored_size, seed)

    def prepare(self, gradient: AddressTable, parameter: AddressTable | None = None) -> None:
        """See `HistoryWindow.prepare`."""
        self._past.prepare(gradient, parameter)

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> UpdateMoments:
        """See `HistoryWindow.measure_update`; only <g_t, u_t> is an estimate."""
        exact, found = self._past.measure_update(parameter, gradient, step, grad_scale=grad_scale)
        dot, error = self._dots(found.lag_cosine[:-1], exact.update_sq.sqrt()[:-1, None] * found.past_norm[:-1])
        adjacent = ~found.past_norm[:, 0].isnan()
        measured = (exact.update_sq, dot[:, 0], exact.next_grad_dot_update, error[:, 0])
        return UpdateMoments(exact.param_sq, *(torch.where(adjacent, value, torch.nan) for value in measured))

    def measure(
        self, gradient: AddressTable, step: int, *, found_inf: Tensor | None = None, grad_scale: Tensor | None = None
    ) -> WindowStatistics:
        """See `HistoryWindow.measure`; norms, absolute maxima and counts are exact."""
        whole = None if self._small is None else self._small.of
        exact, found = self._past.measure(gradient, step, found_inf=found_inf, grad_scale=grad_scale, out=whole)
        norms = exact.grad_norm[:, None] * found.past_norm
        lag_dot, lag_dot_error = self._dots(found.lag_cosine[:-1], norms[:-1])
        return WindowStatistics(
            exact.grad_sq,
            exact.grad_norm,
            exact.grad_absmax,
            exact.nonfinite,
            lag_dot,
            lag_dot / norms,
            found.diff_sq,
            found.sum_sq,
            lag_dot_error=lag_dot_error,
            diff_sq_error=self._square_error(found.diff_sq),
            sum_sq_error=self._square_error(found.sum_sq),
            sketch=None if self._small is None else self._small.of_current(),
        )

    def step_on_device(self) -> Tensor | None:
        """See `HistoryWindow.step_on_device`."""
        return self._past.step_on_device()

    def resume(self, step: int) -> None:
        """See `HistoryWindow.resume`."""
        self._past.resume(step)

    def finish(self) -> tuple[()]:
        """Nothing is deferred."""
        return ()

    def _dots(self, cosine: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Dot products and their standard errors over (layer + 1, lag), from cosines and products of norms by layer."""
        zero = norms == 0  # and the cosine is 0 / 0
        dot = torch.where(zero, 0.0, cosine * norms)
        relative = cosine_variance(cosine.T, self._inverse_sizes).sqrt().T
        error = torch.where(zero, 0.0, relative * norms)
        overall = dot.sum(0, keepdim=True), error.square().sum(0, keepdim=True).sqrt()
        return torch.cat([dot, overall[0]]), torch.cat([error, overall[1]])

    def _square_error(self, square: Tensor) -> Tensor:
        """Standard errors of squared norms over (layer + 1,)."""
        error = square[:-1] * difference_sq_error(self._inverse_sizes)
        return torch.cat([error, error.square().sum(0, keepdim=True).sqrt()])


class _SmallSketch:
    """A sketch of the sketch, which is linear too: short enough to be recorded at every step.

    Attributes:
        of: (total,) float32, the sketch that it is made of.
    """

    def __init__(self, engine: Engine, total: int, size: int, seed: int) -> None:
        if size & (size - 1) or not MIN_BUCKETS <= size <= total:
            raise ValueError(
                f"sketch stored_size: expected a power of two from {MIN_BUCKETS} to size = {total}, got {size}"
            )
        self.of = engine.zeros(1, total, torch.float32)[0]
        plan = SketchPlan([total], [0], 1, size, (seed + 1) % (1 << 32))
        self._sketcher = engine.sketcher(plan)
        where = np.array([self.of.data_ptr()], np.int64)
        self._located = AddressTable(where, np.array([DTYPES.index(torch.float32)], np.int8), (self.of,))
        self._sketcher.prepare(self._located)
        self._out = engine.zeros(1, size, torch.float32)[0]

    def of_current(self) -> Tensor:
        """The small sketch of what ``of`` holds now."""
        self._sketcher.sketch(self._located, self._out)
        return self._out.clone()

"""A window of sketches: ``size`` numbers for each past gradient, whatever the number of parameters.

Its dots, cosines and sums of differences are estimates. Cosines are normalised by the sketches' own norms, which
cancels most of the error where gradients are nearly parallel; multiplied by the exact norms they give the dots.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.protocol import Engine
from fastgeom.engines.results import UpdateMoments, WindowStatistics
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.count_sketch import MIN_BUCKETS, SketchPlan, cosine_variance, relative_square_error
from fastgeom.layout.layout import Layout
from fastgeom.validation import DTYPES, check_stored_size


class SketchedWindow:
    """The sketches of the last ``window`` gradients, and statistics of a new gradient against them; a `HistoryWindow`.

    Memory: window × size × 4 bytes, one sketch more with ``stored_size``, and the parameters once where updates are
    measured.

    Args:
        layout: the measured tensors.
        engine: computes on them.
        window: number of sketches.
        size: float32 numbers of each, for all layers together.
        seed: chooses buckets and signs.
        stored_size: length of the small sketch that every step also returns; ``None`` for none.

    Raises:
        ValueError: ``size`` is too small for so many layers; ``stored_size`` is no power of two, or is larger than
            ``size``.
    """

    def __init__(
        self, layout: Layout, engine: Engine, window: int, *, size: int, seed: int, stored_size: int | None = None
    ) -> None:
        plan = SketchPlan(layout.numels, layout.layer, len(layout.layers), size, seed)
        self._sketches = engine.sketch_window(layout, plan, window)
        self._inverse_sizes = torch.from_numpy(plan.inverse_sizes).to(layout.device)
        self._small = None if stored_size is None else _SmallSketch(engine, plan.total, stored_size, seed)

    def prepare(self, gradient: AddressTable, parameter: AddressTable | None = None) -> None:
        """See `HistoryWindow.prepare`."""
        self._sketches.prepare(gradient, parameter)

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> UpdateMoments:
        """See `HistoryWindow.measure_update`; only <g_t, u_t> is an estimate."""
        exact, estimate = self._sketches.measure_update(parameter, gradient, step, grad_scale=grad_scale)
        norms = exact.update_sq.sqrt()[:-1, None] * estimate.past_norm[:-1]
        dot, error = self._dots(estimate.lag_cosine[:-1], norms)
        adjacent = ~estimate.past_norm[:, 0].isnan()
        measured = (exact.update_sq, dot[:, 0], exact.next_grad_dot_update, error[:, 0])
        return UpdateMoments(exact.param_sq, *(torch.where(adjacent, value, torch.nan) for value in measured))

    def measure(
        self, gradient: AddressTable, step: int, *, found_inf: Tensor | None = None, grad_scale: Tensor | None = None
    ) -> WindowStatistics:
        """See `HistoryWindow.measure`; norms, absolute maxima and counts are exact."""
        out = None if self._small is None else self._small.source
        exact, estimate = self._sketches.measure(gradient, step, found_inf=found_inf, grad_scale=grad_scale, out=out)
        norms = exact.grad_norm[:, None] * estimate.past_norm
        lag_dot, lag_dot_error = self._dots(estimate.lag_cosine[:-1], norms[:-1])
        return WindowStatistics(
            exact.grad_sq,
            exact.grad_norm,
            exact.grad_absmax,
            exact.nonfinite,
            lag_dot,
            lag_dot / norms,
            estimate.diff_sq,
            estimate.sum_sq,
            lag_dot_error=lag_dot_error,
            diff_sq_error=self._square_error(estimate.diff_sq),
            sum_sq_error=self._square_error(estimate.sum_sq),
            sketch=None if self._small is None else self._small.compute(),
        )

    def step_on_device(self) -> Tensor | None:
        """See `HistoryWindow.step_on_device`."""
        return self._sketches.step_on_device()

    def resume(self, step: int) -> None:
        """See `HistoryWindow.resume`."""
        self._sketches.resume(step)

    def finish(self) -> tuple[()]:
        """See `HistoryWindow.finish`; nothing is deferred."""
        return ()

    def _dots(self, cosine: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Dot products and standard errors, (layer + 1, lag), from cosines and products of norms, (layer, lag)."""
        zero = norms == 0  # and the cosine is 0 / 0
        dot = torch.where(zero, 0.0, cosine * norms)
        relative = cosine_variance(cosine.T, self._inverse_sizes).sqrt().T
        error = torch.where(zero, 0.0, relative * norms)
        overall = dot.sum(0, keepdim=True), error.square().sum(0, keepdim=True).sqrt()
        return torch.cat([dot, overall[0]]), torch.cat([error, overall[1]])

    def _square_error(self, square: Tensor) -> Tensor:
        """Standard errors of squared norms, (layer + 1,)."""
        error = square[:-1] * relative_square_error(self._inverse_sizes)
        return torch.cat([error, error.square().sum(0, keepdim=True).sqrt()])


class _SmallSketch:
    """A sketch of the whole sketch, short enough to be recorded at every step; linear too.

    Args:
        engine: computes it.
        total: length of the whole sketch.
        size: length of the small one.
        seed: of the whole sketch.

    Attributes:
        source: (total,) float32, the sketch that the small one is computed from.
    """

    def __init__(self, engine: Engine, total: int, size: int, seed: int) -> None:
        check_stored_size(size, MIN_BUCKETS, total)
        self.source = engine.zeros(1, total, torch.float32)[0]
        plan = SketchPlan([total], [0], 1, size, (seed + 1) % (1 << 32))
        self._sketcher = engine.sketcher(plan)
        address = np.array([self.source.data_ptr()], np.int64)
        self._located = AddressTable(address, np.array([DTYPES.index(torch.float32)], np.int8), (self.source,))
        self._sketcher.prepare(self._located)
        self._out = engine.zeros(1, size, torch.float32)[0]

    def compute(self) -> Tensor:
        """(size,) float32, the small sketch of what ``source`` contains now."""
        self._sketcher.sketch(self._located, self._out)
        return self._out.clone()

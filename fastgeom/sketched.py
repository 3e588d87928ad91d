"""A window of sketches: what is remembered of a gradient is ``size`` numbers, whatever the number of parameters.

The sketches of the layers are tensors like any other, so an exact window over them is the memory, and its dots, cosines
and sums of differences are the estimates. Cosines are normalised by the sketches' own norms, which cancels most of the
error where gradients are nearly parallel; times the exact norms they are the dots.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines import Engine, NormMoments, UpdateMoments, WindowStatistics
from fastgeom.layout import Layout
from fastgeom.sketching import MIN_BUCKETS, SketchPlan, cosine_variance, difference_sq_error
from fastgeom.tables import DTYPES, AddressTable


class SketchedWindow:
    """The sketches of the last ``window`` gradients, and the statistics of a new one against them; see `Window`.

    Memory: (window + 1) × size × 4 bytes, and the parameters once with ``track_updates``.

    Args:
        layout: the measured tensors.
        engine: computes on them.
        window: how many sketches to keep.
        size: float32 numbers of each, for all layers together.
        seed: chooses buckets and signs.
        record: length of the small sketch that every step gives besides; ``None`` for none.
        track_updates: whether `measure_update` will be called.

    Raises:
        ValueError: ``size`` is too small for so many layers; ``record`` is no power of two, or larger than ``size``.
    """

    def __init__(
        self, layout: Layout, engine: Engine, window: int, *, size: int, seed: int, record: int | None = None,
        track_updates: bool = False,
    ) -> None:  # fmt: skip
        plan = SketchPlan(layout.numels, layout.layer, len(layout.layers), size, seed)
        self._sketcher = engine.sketcher(layout, plan, track_updates=track_updates)
        self._out = engine.zeros(1, plan.total, torch.float32)[0]
        parts = [self._out[offset : offset + m] for offset, m in zip(plan.offsets, plan.sizes, strict=True)]
        self._located = _locate(parts)
        self._ring = engine.window(Layout(zip(layout.layers, parts, strict=True), "parameter"), window)
        self._inverse_sizes = torch.from_numpy(plan.inverse_sizes).to(layout.device)
        self._small = None if record is None else _SmallSketch(engine, self._out, record, seed)

    def fit(self, gradient: AddressTable, parameter: AddressTable | None = None) -> None:
        """See `Window.fit`."""
        self._sketcher.fit(gradient, parameter)
        self._ring.fit(self._located, None)

    def measure_update(
        self, parameter: AddressTable, gradient: AddressTable, step: int, *, grad_scale: Tensor | None = None
    ) -> UpdateMoments:
        """See `Window.measure_update`; only <g_t, u_t> is an estimate."""
        exact = self._sketcher.sketch_update(parameter, gradient, self._out, grad_scale=grad_scale)
        norm = exact.update_sq.sqrt()
        found = self._ring.measure(self._located, step, store=False, past=norm)
        assert found.lag_cosine is not None and found.past is not None
        past = found.past[:, 0]
        dot, error = self._dots(found.lag_cosine[:-1, :1], (norm * past)[:-1, None])
        adjacent = ~past.isnan()
        measured = (exact.update_sq, dot[:, 0], exact.next_grad_dot_update, error[:, 0])
        return UpdateMoments(exact.param_sq, *(torch.where(adjacent, value, torch.nan) for value in measured))

    def measure(
        self, gradient: AddressTable, step: int, *, store: bool = True, found_inf: Tensor | None = None,
        grad_scale: Tensor | None = None, past: Tensor | None = None,
    ) -> WindowStatistics:  # fmt: skip
        """See `Window.measure`; norms, absolute maxima and counts are exact."""
        assert past is None, "a window of sketches remembers the norms"
        exact = self._sketcher.sketch(gradient, self._out, grad_scale=grad_scale)
        # A norm of inf or NaN is remembered as inf: NaN marks what was not measured.
        found = self._ring.measure(
            self._located, step, store=store, found_inf=found_inf, past=exact.grad_norm.nan_to_num(torch.inf)
        )
        return self._estimates(exact, found)

    def step_on_device(self) -> Tensor | None:
        """See `Window.step_on_device`."""
        return self._ring.step_on_device()

    def resume(self, step: int) -> None:
        """See `Window.resume`."""
        self._ring.resume(step)

    def finish(self) -> tuple[()]:
        """Nothing is deferred."""
        return ()

    def _estimates(self, exact: NormMoments, found: WindowStatistics) -> WindowStatistics:
        assert found.lag_cosine is not None and found.past is not None
        assert found.diff_sq is not None and found.sum_sq is not None
        norms = exact.grad_norm[:, None] * found.past
        lag_dot, lag_dot_error = self._dots(found.lag_cosine[:-1], norms[:-1])
        return replace(
            found,
            grad_sq=exact.grad_sq,
            grad_norm=exact.grad_norm,
            grad_absmax=exact.absmax,
            nonfinite=exact.nonfinite,
            lag_dot=lag_dot,
            lag_cosine=lag_dot / norms,
            lag_dot_error=lag_dot_error,
            diff_sq_error=self._square_error(found.diff_sq),
            sum_sq_error=self._square_error(found.sum_sq),
            sketch=None if self._small is None else self._small.of_current(),
            past=None,
        )

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
    """A sketch of the sketch, which is linear too: short enough to be recorded at every step."""

    def __init__(self, engine: Engine, of: Tensor, size: int, seed: int) -> None:
        if size & (size - 1) or not MIN_BUCKETS <= size <= len(of):
            raise ValueError(f"record: expected a power of two from {MIN_BUCKETS} to size = {len(of)}, got {size}")
        plan = SketchPlan([len(of)], [0], 1, size, (seed + 1) % (1 << 32))
        self._sketcher = engine.sketcher(Layout([("sketch", of)]), plan)
        self._located = _locate([of])
        self._sketcher.fit(self._located, None)
        self._out = engine.zeros(1, size, torch.float32)[0]

    def of_current(self) -> Tensor:
        self._sketcher.sketch(self._located, self._out)
        return self._out.clone()


def _locate(tensors: list[Tensor]) -> AddressTable:
    addresses = np.array([t.data_ptr() for t in tensors], np.int64)
    return AddressTable(addresses, np.full(len(tensors), DTYPES.index(torch.float32), np.int8), tuple(tensors))

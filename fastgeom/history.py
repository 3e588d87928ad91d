"""What is remembered of past steps: the ring of the last gradients, and the parameters of the step before."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines import Engine, UpdateMoments
from fastgeom.layout import Layout
from fastgeom.tables import DTYPES, AddressTable

logger = logging.getLogger("fastgeom")

_NOTABLE_MEMORY_SHARE = 0.1


@dataclass(frozen=True)
class Exact:
    """Keep the last ``window`` gradients themselves.

    Args:
        dtype: what to keep them in. By default each gradient's own dtype, so that nothing is lost; ``torch.bfloat16``
            halves a float32 ring. With a dtype of less precision than the gradient's, the one gradient before is
            also kept in full, for the sums of differences. ``torch.float16`` is for float16 gradients alone: it has no
            exponents for the small ones of other dtypes.

    Raises:
        ValueError: a dtype that cannot be measured.
    """

    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            expected = ", ".join(map(str, DTYPES))
            raise ValueError(f"history dtype: expected None or one of {expected}, got {self.dtype!r}")


def warn_of_memory(layout: Layout, window: int, dtype: torch.dtype | None) -> None:
    """Say so where the ring will take a notable share of the machine's memory."""
    ring = window * sum((dtype or p.dtype).itemsize * p.numel() for p in layout.parameters)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if ring > _NOTABLE_MEMORY_SHARE * total:
        logger.warning(
            "window=%d: the exact history takes %.1f GB of %.1f GB of memory; a smaller window or "
            "history=Exact(dtype=torch.bfloat16) takes less", window, ring / 1e9, total / 1e9,
        )  # fmt: skip


class TensorStore:
    """Memory for copies of the measured tensors: ``rows`` rows, flat, one block of memory for each dtype.

    Args:
        layout: the measured tensors.
        engine: gives the memory.
        dtypes: the dtype to keep each in; ``None`` keeps no copy of that one.
        rows: number of copies.

    Attributes:
        row: for each row, where the copies lie.
    """

    def __init__(self, layout: Layout, engine: Engine, dtypes: list[torch.dtype | None], rows: int) -> None:
        code = np.array([-1 if d is None else DTYPES.index(d) for d in dtypes], np.int8)
        address = np.zeros((rows, len(dtypes)), np.int64)
        blocks = []
        for each in np.unique(code[code >= 0]):
            dtype = DTYPES[each]
            members = np.flatnonzero(code == each)
            ends = np.cumsum(layout.numels[members])
            block = engine.zeros(rows, int(ends[-1]), dtype)
            blocks.append(block)
            offsets = (ends - layout.numels[members])[None, :] + np.arange(rows)[:, None] * block.stride(0)
            address[:, members] = block.data_ptr() + offsets * block.element_size()
        self.row = [AddressTable(a, np.maximum(code, 0), tuple(blocks)) for a in address]


@dataclass(frozen=True)
class WindowStatistics:
    """Statistics of one gradient and the window before it; the leading axis is (layer + 1,), the last row over all.

    Attributes:
        grad_sq, grad_norm, grad_absmax, nonfinite: (layer + 1,).
        lag_dot, lag_cosine: (layer + 1, window); lag k at index k - 1, NaN where step t - k was not measured.
        diff_sq, sum_sq: (layer + 1,); NaN where step t - 1 was not measured.
    """

    grad_sq: Tensor
    grad_norm: Tensor
    grad_absmax: Tensor
    nonfinite: Tensor
    lag_dot: Tensor
    lag_cosine: Tensor
    diff_sq: Tensor
    sum_sq: Tensor


class ExactRing:
    """The last ``window`` gradients, and the statistics of a new one against them.

    Memory is taken at the first step, when the gradients' dtypes are known: window × gradient bytes, and one gradient
    more where the ring's dtype has less precision than the gradient's.

    Args:
        layout: the measured tensors.
        engine: computes on them.
        window: how many gradients to keep.
        dtype: as in `Exact`.
    """

    def __init__(self, layout: Layout, engine: Engine, window: int, dtype: torch.dtype | None) -> None:
        self._layout, self._engine, self._window, self._dtype = layout, engine, window, dtype
        self._gradient_code: np.ndarray[tuple[int], np.dtype[np.int8]] | None = None
        self._step_of_slot: list[int | None] = [None] * window
        self._head = 0
        self._norm_of_slot: list[Tensor] = [torch.empty(0)] * window

    def previous(self, step: int) -> AddressTable | None:
        """Where the gradient of step - 1 lies, in full precision; ``None`` if it was not stored."""
        if self._step_of_slot[self._head] != step - 1:
            return None
        return self._overlay[self._head]

    def measure(self, gradient: AddressTable, step: int, *, store: bool = True, scale: float = 1.0) -> WindowStatistics:
        """Measure the gradient of ``step``, which `fit` has seen, and remember it.

        Args:
            gradient: where the tensors lie.
            step: number of the optimiser step, larger than any before.
            store: False leaves the window as it is.
            scale: what the gradient is multiplied by when read.

        Cost: gradient + window rows read, one row written.
        """
        lags = sorted((step - s, slot) for slot, s in enumerate(self._step_of_slot) if s is not None)
        lags = [(lag, slot) for lag, slot in lags if lag <= self._window]
        previous = self.previous(step)
        target = (self._head + 1) % self._window
        if store:
            self._step_of_slot[target] = None  # until it is whole
        moments = self._engine.window_moments(
            self._layout.chunks,
            self._layout.segments,
            gradient,
            rows=[self._ring.row[slot] for _, slot in lags],
            previous=previous,
            store=self._ring.row[target] if store else None,
            keep=self._keep if store else None,
            scale=scale,
        )
        lag_dot = lag_cosine = moments.dots
        if lags:
            # Stacked, not indexed: advanced indexing wakes torch's threads, which then spin on the next pass's cores.
            past = torch.stack([self._norm_of_slot[slot] for _, slot in lags], dim=1)
            lag_cosine = lag_dot / (past * moments.grad_norm[:, None])
        if len(lags) < self._window:
            lag_dot, lag_cosine = (self._at_lags(values, [lag for lag, _ in lags]) for values in (lag_dot, lag_cosine))
        if store:
            self._head = target
            self._step_of_slot[target] = step
            self._norm_of_slot[target] = moments.grad_norm
        unknown = torch.full_like(moments.grad_sq, torch.nan)
        return WindowStatistics(
            moments.grad_sq,
            moments.grad_norm,
            moments.absmax,
            moments.nonfinite,
            lag_dot,
            lag_cosine,
            unknown if previous is None else moments.diff_sq,
            unknown if previous is None else moments.sum_sq,
        )

    def _at_lags(self, values: Tensor, lags: list[int]) -> Tensor:
        """Columns of known lags among all of them; NaN elsewhere."""
        spread = torch.full((len(values), self._window), torch.nan, dtype=values.dtype, device=values.device)
        spread[:, [lag - 1 for lag in lags]] = values
        return spread

    def fit(self, gradient: AddressTable) -> None:
        """Take the memory at the first step; afterwards check that the dtypes are still those.

        Raises:
            ValueError: a gradient's dtype is another than at first, or the history's dtype cannot hold it.
        """
        if self._gradient_code is None:
            self._allocate([DTYPES[c] for c in gradient.code])
            self._gradient_code = gradient.code
        elif gradient.code is not self._gradient_code:
            changed = np.flatnonzero((gradient.code != self._gradient_code) & (gradient.address != 0))
            if len(changed):
                i = changed[0]
                raise ValueError(
                    f"gradient of {self._layout.names[i]!r}: expected dtype {DTYPES[self._gradient_code[i]]} as at the "
                    f"first measured step, got {DTYPES[gradient.code[i]]}"
                )

    def _allocate(self, gradient_dtypes: list[torch.dtype]) -> None:
        for name, dtype in zip(self._layout.names, gradient_dtypes, strict=True):
            if self._dtype is torch.float16 and dtype is not torch.float16:
                raise ValueError(
                    f"history dtype: expected float16 gradients for a float16 history, got {dtype} in {name!r}"
                )
        ring_dtypes = [self._dtype or dtype for dtype in gradient_dtypes]
        loses = [
            torch.finfo(ring).eps > torch.finfo(own).eps for ring, own in zip(ring_dtypes, gradient_dtypes, strict=True)
        ]
        self._ring = TensorStore(self._layout, self._engine, list(ring_dtypes), self._window)
        self._full = TensorStore(
            self._layout,
            self._engine,
            [own if lost else None for own, lost in zip(gradient_dtypes, loses, strict=True)],
            1,
        )
        lost = np.array(loses)
        full = self._full.row[0]
        self._overlay = [
            AddressTable(
                np.where(lost, full.address, row.address), np.where(lost, full.code, row.code), row.owners + full.owners
            )
            for row in self._ring.row
        ]
        self._keep = AddressTable(full.address, self._overlay[0].code, full.owners)


class ParameterSnapshot:
    """The parameters of the last measured step, for the update since then. Memory: once the parameters."""

    def __init__(self, layout: Layout, engine: Engine) -> None:
        self._layout, self._engine = layout, engine
        self._store: TensorStore | None = None

    def fit(self, parameter: AddressTable) -> None:
        """Take the memory at the first step; afterwards check that the dtypes are still those.

        Raises:
            ValueError: a parameter has another dtype than at first.
        """
        if self._store is None:
            self._store = TensorStore(self._layout, self._engine, [DTYPES[c] for c in parameter.code], 1)
            return
        code = self._store.row[0].code
        changed = np.flatnonzero(parameter.code != code)
        if len(changed):
            i = changed[0]
            raise ValueError(
                f"parameter {self._layout.names[i]!r}: expected dtype {DTYPES[code[i]]} as at the first measured "
                f"step, got {DTYPES[parameter.code[i]]}"
            )

    def measure(
        self, parameter: AddressTable, gradient: AddressTable, previous: AddressTable | None, *, scale: float = 1.0
    ) -> UpdateMoments:
        """Sums over the update since the snapshot, which is renewed.

        Args:
            parameter, gradient: x_{t+1}, which `fit` has seen, and g_{t+1}.
            previous: g_t; ``None`` where the snapshot is not one step old, and then only sum x^2 means anything.
            scale: what the gradient is multiplied by when read.

        Cost: gradient, previous gradient, parameters and snapshot read, the snapshot written.
        """
        assert self._store is not None, "fit() takes the memory"
        return self._engine.update_moments(
            self._layout.chunks,
            self._layout.segments,
            parameter,
            self._store.row[0],
            gradient=None if previous is None else gradient,
            previous=previous,
            scale=scale,
        )

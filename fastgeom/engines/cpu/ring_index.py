"""Which step each row of a ring holds: the bookkeeping that the CPU engine's windows share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Lags:
    """Past steps in the ring that lie within the window, the nearest first.

    Attributes:
        window: the largest lag.
        lags: how many steps ago each was.
        rows: index of the ring row that holds each.
        norms: (..., lag) float64, what is remembered with them.
    """

    window: int
    lags: list[int]
    rows: list[int]
    norms: Tensor

    @property
    def previous(self) -> int | None:
        """The row of the step before; ``None`` where the ring does not hold it."""
        return self.rows[0] if self.lags[:1] == [1] else None

    def spread(self, values: Tensor) -> Tensor:
        """Values (..., lag) of these in (..., window): lag k at index k - 1, NaN where there is none."""
        if len(self.lags) == self.window:
            return values
        spread = values.new_full((*values.shape[:-1], self.window), torch.nan)
        spread[..., [lag - 1 for lag in self.lags]] = values
        return spread


class RingIndex:
    """Which step each row of a ring holds, and the norms of its gradient.

    Args:
        n_rows: rows of the ring.
        window: the largest lag that is asked for.
        norms: shape of what is remembered with each step.
    """

    def __init__(self, n_rows: int, window: int, norms: tuple[int, ...]) -> None:
        self._window = window
        self._steps: list[int | None] = [None] * n_rows
        # Written as a tensor, read as an array: torch's indexing wakes threads that spin on the cores of the next pass.
        self._norms = np.zeros((n_rows, *norms))
        self._norm_of_row = torch.from_numpy(self._norms)
        self._head = 0

    def lags(self, step: int, *, window: int | None = None) -> Lags:
        """Find the steps before this one that the ring holds.

        Args:
            step: the present step.
            window: the largest lag; the ring's own where it is ``None``.
        """
        window = window or self._window
        valid = sorted((step - s, row) for row, s in enumerate(self._steps) if s is not None)
        valid = [(lag, row) for lag, row in valid if 1 <= lag <= window]
        rows = [row for _, row in valid]
        norms = torch.from_numpy(np.moveaxis(self._norms[rows], 0, -1))
        return Lags(window, [lag for lag, _ in valid], rows, norms)

    def evict_oldest(self) -> int:
        """Mark the oldest row invalid, since it is about to be written; return its index."""
        row = self._next()
        self._steps[row] = None
        return row

    def commit(self, step: int | None, norms: Tensor) -> None:
        """Give the row that was evicted its step and norms.

        Args:
            step: of the gradient that the row now holds; ``None`` marks the row invalid: no lag reaches it.
            norms: what is remembered with it.
        """
        self._head = self._next()
        self._steps[self._head] = step
        self._norm_of_row[self._head] = norms

    def _next(self) -> int:
        return (self._head + 1) % len(self._steps)

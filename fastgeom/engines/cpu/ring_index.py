"""Which step each row of a ring holds: the bookkeeping that the CPU engine's windows share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Lags:
    """Of the steps before one, those that a ring holds and a window reaches; the nearest first.

    Attributes:
        window: the largest lag.
        lags, slots: how long ago each was, and where it is.
        norms: (..., lag) float64, what is remembered with them.
    """

    window: int
    lags: list[int]
    slots: list[int]
    norms: Tensor

    @property
    def previous(self) -> int | None:
        """The slot of the step before; ``None`` where the ring does not hold it."""
        return self.slots[0] if self.lags[:1] == [1] else None

    def spread(self, values: Tensor) -> Tensor:
        """Values (..., lag) of these in (..., window): lag k at index k - 1, NaN where there is none."""
        if len(self.lags) == self.window:
            return values
        spread = values.new_full((*values.shape[:-1], self.window), torch.nan)
        spread[..., [lag - 1 for lag in self.lags]] = values
        return spread


class RingIndex:
    """The steps that a ring holds, each with its norms.

    Args:
        count: rows of the ring.
        window: the largest lag that is asked for.
        norms: shape of what is remembered with each step.
    """

    def __init__(self, count: int, window: int, norms: tuple[int, ...]) -> None:
        self._window = window
        self._steps: list[int | None] = [None] * count
        # Written as a tensor, read as an array: torch's indexing wakes threads that spin on the cores of the next pass.
        self._norms = np.zeros((count, *norms))
        self._norm_of_slot = torch.from_numpy(self._norms)
        self._head = 0

    def lags(self, step: int, *, window: int | None = None) -> Lags:
        """What is held of the steps before this one; of fewer where ``window`` is smaller than that of the ring."""
        window = window or self._window
        held = sorted((step - s, slot) for slot, s in enumerate(self._steps) if s is not None)
        held = [(lag, slot) for lag, slot in held if 1 <= lag <= window]
        slots = [slot for _, slot in held]
        norms = torch.from_numpy(np.moveaxis(self._norms[slots], 0, -1))
        return Lags(window, [lag for lag, _ in held], slots, norms)

    def evict_oldest(self) -> int:
        """The slot of the oldest step, which is forgotten: the row is about to be written."""
        slot = self._next()
        self._steps[slot] = None
        return slot

    def commit(self, step: int | None, norms: Tensor) -> None:
        """The slot that was taken is whole; ``None`` for a step that nobody may find."""
        self._head = self._next()
        self._steps[self._head] = step
        self._norm_of_slot[self._head] = norms

    def _next(self) -> int:
        return (self._head + 1) % len(self._steps)

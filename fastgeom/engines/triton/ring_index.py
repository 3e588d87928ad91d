"""Bookkeeping of a ring on the device: the head, the step in each slot, and the norms that cosines are divided by.

Head and steps are device tensors, so that a captured graph can be replayed; of the steps the host has only the number
of the last one, from which it computes how many have passed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastgeom.kernels.finalize import FINISHED_SUMS, NEVER, launch_window_finish


class StepTotals(NamedTuple):
    """Statistics of one step; shapes as in `WindowStatistics`. ``past`` is ``None`` without ``remember``."""

    grad_sq: Tensor
    grad_norm: Tensor
    grad_absmax: Tensor
    nonfinite: Tensor
    diff_sq: Tensor
    sum_sq: Tensor
    lag_dot: Tensor
    lag_cosine: Tensor
    past: Tensor | None


class RingIndex:
    """The slots of a ring.

    Args:
        n_rows: number of layers + 1.
        slots: number of slots.
        device: device of the ring.
        remember: store a value of every step, and return it by lag.

    Attributes:
        state: (2,) int64: head and the step last measured.
        step: (slot,) int64, the step in each slot; NEVER in an empty one.
        norm: (layer + 1, slot) float64.
        last_step: the step last measured, as the host counts.
    """

    def __init__(self, n_rows: int, slots: int, device: torch.device, *, remember: bool = False) -> None:
        self.state = torch.zeros(2, dtype=torch.int64, device=device)
        self.step = torch.full((slots,), NEVER, dtype=torch.int64, device=device)
        self.norm = torch.zeros(n_rows, slots, dtype=torch.float64, device=device)
        self.last_step = 0
        self._past = torch.zeros_like(self.norm) if remember else None

    def finish(
        self,
        totals: Tensor,
        step: int,
        *,
        window: int,
        skip: Tensor | None = None,
        store: bool = True,
        past: Tensor | None = None,
        valid_step: Tensor | None = None,
    ) -> StepTotals:
        """The statistics of ``step`` from the totals of its pass; then, if it was stored, the head moves on.

        Args:
            totals: (layer + 1, columns) float64, of ``launch_window`` or of a ring of sketches.
            step: number of the step.
            window: the largest lag.
            skip: a 0-d tensor; where it is not 0 nothing was stored.
            store: False where nothing was stored.
            past: (layer + 1,) float64, the value of this step to remember; needed only where it is stored.
            valid_step: (slot,) int64, of a deferred window: the step in each slot, NEVER where it was skipped.
        """
        n_sums, n_rows, device = len(FINISHED_SUMS), len(totals), totals.device
        columns = [n_sums, window, window, *([] if self._past is None else [window])]
        out = torch.full((n_rows, sum(columns)), torch.nan, dtype=torch.float64, device=device)
        nonfinite = torch.empty(n_rows, dtype=torch.int64, device=device)
        launch_window_finish(
            totals,
            self.state,
            self.step,
            self.norm,
            out,
            nonfinite,
            window=window,
            advance=step - self.last_step,
            past=past,
            slot_past=self._past,
            skip=skip,
            store=store,
            valid_step=valid_step,
        )
        if store:
            self.last_step = step
        sums, lag_dot, lag_cosine, *remembered = torch.split(out, columns, dim=1)
        grad_sq, grad_norm, grad_absmax, diff_sq, sum_sq = sums.unbind(1)
        return StepTotals(
            grad_sq,
            grad_norm,
            grad_absmax,
            nonfinite,
            diff_sq,
            sum_sq,
            lag_dot,
            lag_cosine,
            remembered[0] if remembered else None,
        )

"""A run and its restarts: they go on from its zigzag at smaller rates, for the same time of the gradient flow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reproductions.common.configuration import Configuration, Restart
from reproductions.common.runs import TrainingRun
from reproductions.common.spread import finite_median

DIVISIONS = (1.5, 2, 4, 10)
"""Of the parent's rate."""


def with_restarts(name: str, parent: Configuration, steps: int) -> dict[str, Configuration]:
    """Plan the parent and a restart for each division, under the keys that ``key`` makes.

    Args:
        name: what the keys begin with.
        parent: the run restarted from.
        steps: steps of the parent that take as long, in rate times steps, as each restart.
    """
    restarts = {
        key(name, division): replace(
            parent,
            lr=parent.lr / division,
            steps=round(steps * division),
            checkpoint_every=None,
            restart=Restart(parent),
        )
        for division in DIVISIONS
    }
    return {key(name, 1): parent} | restarts


def key(name: str, division: float) -> str:
    """Key of a run in the plan; the parent's is that of division 1."""
    return f"{name}, rate / {division:g}"


def late_change(run: TrainingRun) -> float:
    """Median of ‖g_t - g_{t-1}‖ / ‖g_t‖ over the second half of a run; NaN where it is too short."""
    late = slice(max(1, run.end // 2), run.end)
    return finite_median(np.sqrt(run.trace.diff_sq[late] / run.trace.grad_sq[late]))

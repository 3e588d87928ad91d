"""Finished runs that nobody trained: gradients, losses and updates by hand, and the trace that follows from them."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastgeom.analysis import lag_cosine
from reproductions.common.configuration import Configuration
from reproductions.common.runs import TrainingRun
from tests.trajectories import differences_and_sums, recorded

WEAK = float(np.arccos(0.85))
TURNS = {"s": 0.0, "S": WEAK, "m": np.pi / 2, "w": 2 * np.pi / 3, "Z": np.pi - WEAK, "z": np.pi}
"""By how much a gradient turns away from the one before: c is 1, 0.85, 0, -0.5, -0.85 and -1."""


def walk(turns: str) -> np.ndarray:
    """Gradients of length 1, the first one along x, then one a letter of ``TURNS``."""
    angle = np.cumsum([0.0, *(TURNS[turn] for turn in turns)])
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def made(
    gradients: Any,
    *,
    losses: Sequence[float] | np.ndarray | None = None,
    updates: Any = None,
    sharpness: Sequence[float] | None = None,
    top_cosine: Sequence[float] | None = None,
    layers: Sequence[np.ndarray] | None = None,
    arrays: dict[str, np.ndarray] | None = None,
    window: int = 32,
    **changes: Any,
) -> TrainingRun:
    """A run whose trace holds what follows from these rows, under the names of a real one.

    Args:
        gradients: shape (step, parameter), or (step,) for one parameter.
        losses: shape (step,); they fall evenly unless given.
        updates: as gradients, the last row unknown; -lr times the gradient unless given.
        sharpness: shape (step,).
        top_cosine: shape (step,).
        layers: the gradients of each layer; one layer of all parameters unless given.
        arrays: checkpoints.
        window: lags recorded.
        changes: fields of the configuration.
    """
    g = np.asarray(gradients, np.float64).reshape(len(gradients), -1)
    steps = len(g)
    c = Configuration(
        **{"data": "digits", "n_examples": 10, "network": "cnn", "lr": 0.1, "steps": steps, "seed": 0} | changes
    )
    u = (-c.lr * g if updates is None else np.asarray(updates, np.float64).reshape(g.shape)).copy()
    u[-1:] = np.nan
    following = np.concatenate([g[1:], np.full_like(g[:1], np.nan)])
    lag_dot, grad_sq = recorded(g, window)
    trace = {
        "step": np.arange(steps),
        "loss": np.linspace(2.0, 1.0, steps) if losses is None else np.asarray(losses, np.float64),
        "lag_dot": lag_dot,
        "grad_sq": grad_sq,
        "grad_norm": np.sqrt(grad_sq),
        "lag_cosine": lag_cosine(lag_dot, grad_sq, np.arange(steps)),
        "layer_lag_cosine": np.stack(
            [lag_cosine(*recorded(np.asarray(part), window), np.arange(steps)) for part in layers or [g]], axis=1
        ),
        "diff_sq": differences_and_sums(g)[0],
        "update_sq": (u**2).sum(axis=1),
        "grad_dot_update": (g * u).sum(axis=1),
        "next_grad_dot_update": (following * u).sum(axis=1),
    }
    if sharpness is not None:
        trace["sharpness"] = np.asarray(sharpness, np.float64)
    if top_cosine is not None:
        trace["top_cosine"] = np.asarray(top_cosine, np.float64)
    assert all(len(rows) == steps for rows in trace.values())
    return _with_trace(c, trace, arrays)


def cut(run: TrainingRun, steps: int) -> TrainingRun:
    """The first steps of a run."""
    return _with_trace(run.configuration, {name: rows[:steps] for name, rows in vars(run.trace).items()}, run.arrays)


def diverged(run: TrainingRun) -> TrainingRun:
    """The same run, whose loss is lost at one step more, and after it numbers that nobody may read.

    They are finite, and what every statistic looks for: zigzag and smooth steps, sharp turns, a low loss.
    """
    end = len(run.trace.loss)
    signs = np.repeat([-1.0, 1.0, -1.0], 40)
    beyond = len(signs)
    trace = {}
    for name, rows in vars(run.trace).items():
        more = np.full((beyond, *rows.shape[1:]), 1e-3)
        if name.endswith("lag_cosine"):
            more[:] = signs.reshape(-1, *[1] * (rows.ndim - 1))
        elif name == "loss":
            more[0] = np.nan
        elif name == "diff_sq":
            more[:] = 1e12
        trace[name] = np.concatenate([rows.astype(np.float64), more])
        if "update" in name:
            trace[name][end - 1] = 1.0  # the update of the last step before is known now
    trace["step"] = np.arange(end + beyond)
    return _with_trace(run.configuration, trace, run.arrays, diverged_at=end)


def _with_trace(
    c: Configuration, trace: dict[str, np.ndarray], arrays: dict[str, np.ndarray] | None, diverged_at: int | None = None
) -> TrainingRun:
    run = TrainingRun(c, Path("nowhere"), n_parameters=2, seconds=1.0, diverged_at=diverged_at, versions={})
    run.__dict__.update(trace=SimpleNamespace(**trace), arrays=arrays or {})
    return run

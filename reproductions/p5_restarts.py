"""P5: does zigzag come back at a finer scale, when training goes on from a zigzag point at a smaller rate?

A convolutional network is trained by plain full-batch gradient descent until it zigzags. From the middle of its longest
zigzag stretch, training goes on at the rate divided by 1.5, 2, 4 and 10, each for the same η × steps. If the loss is
non-smooth at all scales, the finer steps zigzag from the beginning; if zigzag is the edge of stability alone, they do
not, and zigzag comes back once the sharpness has grown to 2 over the new rate. Once with cross-entropy, once with the
squared error.

The statistic of a seed is the largest division, in octaves (its logarithm to base 2), after which at least half of the
first twenty steps zigzag, averaged over the losses; 0 where none does. A loss counts where the
restarts begin at a zigzag step and at least half of the parent's next twenty steps zigzag.

Beside it stands the change of the gradient over a step, ‖g_t - g_{t-1}‖ / ‖g_t‖, late in each restart. Where the
curvature is bounded it shrinks with the step; where it does not, the gradient jumps, at that scale too.

    python -m reproductions p5
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from fastgeom import analysis, figures
from reproductions.common.caption import LOSSES
from reproductions.common.checkpoints import restart_index
from reproductions.common.configuration import Configuration, Restart
from reproductions.common.reproduction import Reproduction, Results, Runs
from reproductions.common.request import Effort
from reproductions.common.restarts import DIVISIONS, key, late_change, with_restarts
from reproductions.common.runs import TrainingRun
from reproductions.common.settings import reference
from reproductions.common.spread import finite_mean, note_missing, plot_seeds

PARENTS: dict[Effort, dict[str, dict[str, Any]]] = {
    "quick": {loss: {"lr": 0.4, "steps": 5, "checkpoint_every": 2} for loss in LOSSES},
    "default": {
        "cross-entropy": {"checkpoint_every": 5},
        "mse": {"lr": 0.4, "steps": 160, "n_examples": 300, "checkpoint_every": 2},
    },
    "full": {loss: {"lr": 0.08, "steps": 400, "checkpoint_every": 20} for loss in LOSSES},
}
"""How the parents differ from the shared run of the CNN on the 8x8 digits."""

LENGTH: dict[Effort, int] = {"quick": 4, "default": 100, "full": 100}
"""Steps of the parent that take as long, in rate times steps, as each restart."""

N_FIRST = 20
"""Steps after the restart that count."""

LEAST_SHARE = 0.5
"""Share of zigzag among them from which on a division counts."""


def plan(effort: Effort, seed: int) -> dict[str, Configuration]:
    """Of each loss the parent, and its restarts."""
    planned: dict[str, Configuration] = {}
    for loss in LOSSES:
        parent = reference(effort, seed, "cnn", "digits", loss=loss, **PARENTS[effort][loss])
        planned |= with_restarts(loss, parent, LENGTH[effort])
    return planned


def restarts(runs: Runs, loss: str) -> list[TrainingRun]:
    """The restarts with one loss, one for each division."""
    return [runs[key(loss, division)] for division in DIVISIONS]


def early_share(labels: np.ndarray) -> float:
    """Share of zigzag in the first twenty steps after a restart; NaN where there are fewer.

    Args:
        labels: regime of every step from the restart on; the first step, which has no c_t, is left out.
    """
    first = labels[1 : 1 + N_FIRST]
    return float(np.mean(first == analysis.ZIGZAG)) if len(first) == N_FIRST else math.nan


def parent_share(parent: TrainingRun, theta: float) -> float:
    """Early share of the parent, going on at its rate; NaN where the restarts begin at no zigzag step."""
    labels = parent.labels(theta)
    if not len(labels):
        return math.nan
    start = parent.arrays["checkpoint_steps"][restart_index(Restart(parent.configuration, theta), parent)]
    return early_share(labels[start:]) if labels[start] == analysis.ZIGZAG else math.nan


def early_shares(runs: Runs, loss: str, theta: float) -> list[float]:
    """Early shares of the parent and of each restart; all NaN where the parent does not go on in zigzag."""
    parent = parent_share(runs[key(loss, 1)], theta)
    if not parent >= LEAST_SHARE:
        return [math.nan] * (1 + len(DIVISIONS))
    return [parent, *(early_share(run.labels(theta)) for run in restarts(runs, loss))]


def octaves(runs: Runs, loss: str, theta: float) -> float:
    """Base-2 logarithm of the largest division with zigzag at once; 0 without one, NaN where all are too short."""
    _, *shares = early_shares(runs, loss, theta)
    if not any(map(math.isfinite, shares)):
        return math.nan
    return max((math.log2(d) for d, share in zip(DIVISIONS, shares, strict=True) if share >= LEAST_SHARE), default=0.0)


def measure(runs: Runs, theta: float) -> float:
    """Octaves down to which steps zigzag at once, mean of the losses that count."""
    return float(finite_mean([octaves(runs, loss, theta) for loss in LOSSES]))


def draw(figure: SubFigure, results: Results) -> None:
    """One column a loss: the first seed's c_t after each restart; below, every seed's shares and changes."""
    panels = figure.subplots(
        len(DIVISIONS) + 2, len(LOSSES), sharey="row", height_ratios=(*[1] * len(DIVISIONS), 1.5, 1.5)
    )
    for column, (loss, name) in zip(panels.T, LOSSES.items(), strict=True):
        for axes, division, run in zip(column, DIVISIONS, restarts(results.first, loss), strict=False):
            figures.plot_adjacent_cosine(axes, run.trace, results.theta)
            axes.set(xlabel="", ylabel="correlation $c_t$" if axes in panels[:, 0] else "")
            axes.set_title(f"{name}, restarted at $\\eta$ / {division:g} = {run.configuration.lr:.3g}")
        column[-3].set_xlabel("steps after the restart")
        seeds = list(results.runs.values())
        n_seeds = sum(math.isfinite(octaves(runs, loss, results.theta)) for runs in seeds)
        _draw_shares(column[-2], seeds, loss, results.theta)
        column[-2].set_title(f"Zigzag after the restart, {name}: {n_seeds} of {len(seeds)} seeds count")
        _draw_changes(column[-1], seeds, loss)
        column[-1].set_title(f"Change of the gradient over a step, late, {name}")
    panels[-2, 0].set_ylabel("share of the steps")
    panels[-1, 0].set_ylabel(r"$\|g_t-g_{t-1}\| \,/\, \|g_t\|$")


def _set_rate_axis(axes: Axes) -> tuple[float, ...]:
    """Make the divisions an axis of rates, the parent's first, and return them."""
    divisors = (1, *DIVISIONS)
    axes.set_xscale("log", base=2)
    axes.set_xticks(divisors, ["$\\eta$", *(f"$\\eta$ / {division:g}" for division in DIVISIONS)])
    axes.set(xlim=(0.85, 11.5), xlabel="rate after the restart; $\\eta$: the parent going on")
    return divisors


def _draw_changes(axes: Axes, seeds: list[Runs], loss: str) -> None:
    divisors = _set_rate_axis(axes)
    changes = [[math.nan, *map(late_change, restarts(runs, loss))] for runs in seeds]
    if not plot_seeds(axes, divisors, changes, figures.CYCLE[2], label="second half of each restart"):
        note_missing(axes, "too short: no two adjacent steps measured")
        return
    axes.set_yscale("log")
    first = float(finite_mean(changes)[1])
    guide = [first * divisors[1] / divisor for divisor in divisors[1:]]
    axes.plot(divisors[1:], guide, color=figures.INK, linewidth=0.9, linestyle=":", label="in proportion to the rate")
    axes.legend(loc="lower left", frameon=False)


def _draw_shares(axes: Axes, seeds: list[Runs], loss: str, theta: float) -> None:
    divisors = _set_rate_axis(axes)
    axes.set_ylim(-0.03, 1.03)
    early = [early_shares(runs, loss, theta) for runs in seeds]
    later = [[math.nan, *(run.share("zigzag", theta) for run in restarts(runs, loss))] for runs in seeds]
    is_drawn = plot_seeds(
        axes, divisors, early, figures.CYCLE[1], label=f"the first {N_FIRST} steps, which decide", shift=1.03
    )
    is_drawn |= plot_seeds(axes, divisors, later, figures.CYCLE[0], label="all steps", shift=1 / 1.03)
    if not is_drawn:
        note_missing(axes, f"too short: no {N_FIRST} steps in one row")
        return
    axes.axhline(
        LEAST_SHARE, color=figures.INK, linewidth=0.9, linestyle=(0, (5, 3)), label=f"{LEAST_SHARE:.0%}: zigzag at once"
    )
    axes.legend(loc="upper right", frameon=False)


FIGURE = Reproduction(
    name="p5_restarts",
    title="Zigzag after a restart at a smaller learning rate",
    claims=(2,),
    statement="From a zigzag point, steps of half the length or less zigzag too, from the beginning",
    statistic=f"octaves of rate over which at least half of a restart's first {N_FIRST} steps zigzag, mean of losses",
    threshold=1.0,
    plan=plan,
    measure=measure,
    draw=draw,
    size=(10.0, 13.5),
    notes=(
        "Above, smooth stretches are shaded blue and zigzag is hatched. The restarts of a loss begin at one point, and "
        f"each goes on for as long, in η × steps, as {LENGTH['default']} steps of the parent; points at η are the "
        "parent's own next steps. Zigzag from the first steps on would be a finer scale of the same place. Zigzag that "
        "comes back late, in the blue line, is what the edge of stability predicts, once the sharpness has grown. A "
        "loss counts where the restarts begin at a zigzag step and the parent zigzags on in half of its next "
        f"{N_FIRST} steps at least. Below: where the curvature is bounded, the gradient changes over a step in "
        "proportion to the rate, along the dotted line. Above that line it jumps even at the finer scale, as a network "
        "of ReLUs can at each of its kinks; the jumps need not reverse it."
    ),
)

"""P5: does zigzag come back at a finer scale, when training goes on from a zigzag point at a smaller rate?

A convolutional network is trained by plain full-batch gradient descent until it zigzags. From the middle of its longest
zigzag stretch, training goes on at the rate divided by 1.5, 2, 4 and 10, each for the same eta x steps. If the loss is
non-smooth at all scales, the finer steps zigzag from the beginning; if zigzag is the edge of stability alone, they
descend smoothly until the sharpness has grown to 2 over the new rate. Once with cross-entropy, once with the squared
error.

The statistic of a seed is the largest division, in octaves (its logarithm to base 2), after which at least half of the
first twenty steps zigzag, averaged over the two losses; 0 where none does.

    python reproductions/p5_restarts.py
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from fastgeom import analysis, figures
from reproductions.common.caption import LOSSES
from reproductions.common.command import main
from reproductions.common.configuration import Configuration, Restart
from reproductions.common.reproduction import Effort, Reproduction, Results, Runs
from reproductions.common.runs import Run
from reproductions.common.settings import reference
from reproductions.common.spread import known_mean, plot_seeds, say
from reproductions.common.training import restart_index

DIVISIONS = (1.5, 2, 4, 10)
RATE: dict[Effort, float] = {"quick": 0.4, "default": 0.4, "full": 0.08}
TIME: dict[Effort, float] = {"quick": 2.0, "default": 40.0, "full": 8.0}
"""Rate times steps, before the restart and after it."""

N_EXAMPLES = 300
CHECKPOINT_EVERY: dict[Effort, int] = {"quick": 2, "default": 2, "full": 20}
FIRST = 20
"""Steps after the restart that count."""

LEAST = 0.5
"""Share of zigzag among them from which on a division counts."""


def plan(effort: Effort, seed: int) -> dict[str, Configuration]:
    """Of each loss the parent, and its restarts."""
    planned = {}
    for loss in LOSSES:
        parent = _run(effort, seed, loss, RATE[effort], checkpoint_every=CHECKPOINT_EVERY[effort])
        planned[key(loss, 1)] = parent
        for division in DIVISIONS:
            restarted = _run(effort, seed, loss, RATE[effort] / division)
            planned[key(loss, division)] = replace(restarted, restart=Restart(parent))
    return planned


def _run(effort: Effort, seed: int, loss: str, rate: float, **changes: Any) -> Configuration:
    steps = round(TIME[effort] / rate)
    if effort == "default":
        changes["n_examples"] = N_EXAMPLES
    return reference(effort, seed, "cnn", "digits", loss=loss, lr=rate, steps=steps, **changes)


def key(loss: str, division: float) -> str:
    """Name of a run in the plan; the parent's is that of division 1."""
    return f"{loss}, rate / {division:g}"


def restarts(runs: Runs, loss: str) -> list[Run]:
    """The restarts with one loss, one for each division."""
    return [runs[key(loss, division)] for division in DIVISIONS]


def early_share(labels: np.ndarray) -> float:
    """Share of zigzag in the first twenty steps after a restart; labels from the restart on, whose own has none."""
    first = labels[1 : 1 + FIRST]
    return float(np.mean(first == analysis.ZIGZAG)) if len(first) > 1 else math.nan


def zigzagged(parent: Run, theta: float) -> bool:
    """Whether a parent has a zigzag point for its restarts to begin at."""
    return bool((parent.labels(theta) == analysis.ZIGZAG).any())


def goes_on(parent: Run, theta: float) -> float:
    """The same share of the parent, which goes on at its own rate; NaN where it never zigzagged or ends there."""
    labels = parent.labels(theta)
    if not zigzagged(parent, theta):
        return math.nan
    start = parent.arrays["checkpoint_steps"][restart_index(Restart(parent.configuration, theta), parent)]
    return early_share(labels[start:])


def octaves(runs: Runs, loss: str, theta: float) -> float:
    """Logarithm to base 2 of the largest division with zigzag at once; 0 without one.

    NaN where the parent never zigzagged, so that no restart begins at a zigzag point, and where all are too short.
    """
    shares = [early_share(run.labels(theta)) for run in restarts(runs, loss)]
    if not zigzagged(runs[key(loss, 1)], theta) or not any(map(math.isfinite, shares)):
        return math.nan
    return max((math.log2(d) for d, share in zip(DIVISIONS, shares, strict=True) if share >= LEAST), default=0.0)


def measure(runs: Runs, theta: float) -> float:
    """Octaves down to which steps zigzag at once, mean of the losses whose parent zigzagged."""
    return float(known_mean([octaves(runs, loss, theta) for loss in LOSSES]))


def draw(figure: SubFigure, results: Results) -> None:
    """One column a loss: the first seed's adjacent correlation after each restart, every seed's shares below."""
    panels = figure.subplots(len(DIVISIONS) + 1, len(LOSSES), sharey="row", height_ratios=(*[1] * len(DIVISIONS), 1.6))
    for column, (loss, name) in zip(panels.T, LOSSES.items(), strict=True):
        for axes, division, run in zip(column, DIVISIONS, restarts(results.first, loss), strict=False):
            figures.plot_adjacent_cosine(axes, run.trace, results.theta)
            axes.set(xlabel="", ylabel="correlation $c_t$" if axes in panels[:, 0] else "")
            axes.set_title(f"{name}, restarted at $\\eta$ / {division:g} = {run.configuration.lr:.3g}")
        column[-2].set_xlabel("steps after the restart, each for the same time $\\eta\\,T$")
        _draw_shares(column[-1], list(results.runs.values()), loss, results.theta)
        column[-1].set_title(f"Share of zigzag steps after the restart, {name}")
    panels[-1, 0].set_ylabel("share of the steps")


def _draw_shares(axes: Axes, seeds: list[Runs], loss: str, theta: float) -> None:
    places = (1, *DIVISIONS)
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, ["$\\eta$", *(f"$\\eta$ / {division:g}" for division in DIVISIONS)])
    axes.set(xlim=(0.85, 11.5), ylim=(-0.03, 1.03), xlabel="rate after the restart; $\\eta$: the parent going on")
    early = [[goes_on(runs[key(loss, 1)], theta), *(early_share(run.labels(theta)) for run in restarts(runs, loss))]
             for runs in seeds]  # fmt: skip
    later = [[math.nan, *(run.share("zigzag", theta) for run in restarts(runs, loss))] for runs in seeds]
    drawn = plot_seeds(
        axes, places, early, figures.CYCLE[1], label=f"the first {FIRST} steps, which decide", shift=1.03
    )
    drawn |= plot_seeds(axes, places, later, figures.CYCLE[0], label="all steps", shift=1 / 1.03)
    if not drawn:
        say(axes, "too short: no two adjacent steps measured")
        return
    axes.axhline(LEAST, color=figures.INK, linewidth=0.9, linestyle=(0, (5, 3)), label=f"{LEAST:.0%}: zigzag at once")
    axes.legend(loc="upper right", frameon=False)


FIGURE = Reproduction(
    name="p5_restarts",
    title="Zigzag after a restart at a smaller learning rate",
    claims=(2,),
    statement="From a zigzag point, steps of half the length or less zigzag too, from the beginning",
    statistic=f"octaves of rate over which at least half of a restart's first {FIRST} steps zigzag, mean of the losses",
    threshold=1.0,
    plan=plan,
    measure=measure,
    draw=draw,
    size=(10.0, 11.0),
    notes=(
        "Above, smooth stretches are shaded blue and zigzag is hatched. The restarts of a loss begin at one point, and "
        "each goes on for as long, in eta x steps, as the parent ran; points at η are the parent's own next steps. "
        "Zigzag from the first steps on would be a finer scale of the same place. Zigzag that comes back late, in the "
        "blue line, is what the edge of stability predicts, once the sharpness has grown. A loss whose parent never "
        "zigzags is left out."
    ),
)

if __name__ == "__main__":
    sys.exit(main(FIGURE))

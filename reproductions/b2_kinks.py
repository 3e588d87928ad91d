"""B2: where the gradient changes by nearly as much over a short step as over a long one: kinks.

Two convolutional networks, one with ReLU and one with GELU in its place, are trained alike by plain full-batch gradient
descent. From the middle of its longest zigzag stretch, or from its end if there is none, each goes on at the rate
divided by 1.5, 2, 4 and 10, for the same η × steps. Where the curvature is bounded, the gradient's change over a step,
‖g_t - g_{t-1}‖ / ‖g_t‖, falls in proportion to the rate once steps are short. Where the gradient jumps, as at every
kink of a ReLU that one of the images crosses, it need not. The change is taken as the median over the second half of
each restart, and

    change ~ rate^p

gives the exponent p, from the two smallest rates: 1 for bounded curvature, 0 where the change is the same at both. The
statistic of a seed is p with GELU less p with ReLU.

    python -m reproductions b2
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from fastgeom import figures
from reproductions.common.configuration import Configuration
from reproductions.common.reproduction import Reproduction, Results, Runs
from reproductions.common.request import Effort
from reproductions.common.restarts import DIVISIONS, key, late_change, with_restarts
from reproductions.common.settings import reference
from reproductions.common.spread import note_missing, plot_seeds, plot_strips

NETWORKS = {"cnn": "ReLU", "cnn-gelu": "GELU"}
LENGTH: dict[Effort, int] = {"quick": 4, "default": 100, "full": 100}
"""Steps at the parent's rate that take as long as each restart."""

FITTED = DIVISIONS[-2:]
"""The larger rates may be near the edge of stability again, where steps are not short."""

CHANGE = r"$\|g_t-g_{t-1}\| \,/\, \|g_t\|$"


def plan(effort: Effort, seed: int) -> dict[str, Configuration]:
    """Of each network the parent and its restarts; small networks with --full too."""
    shared = reference(effort, seed, "cnn", "digits", checkpoint_every=5)
    planned: dict[str, Configuration] = {}
    for network, activation in NETWORKS.items():
        planned |= with_restarts(activation, replace(shared, network=network), LENGTH[effort])
    return planned


def changes(runs: Runs, activation: str) -> list[float]:
    """The late change of the gradient over a step of each restart, shape (division,)."""
    return [late_change(runs[key(activation, division)]) for division in DIVISIONS]


def exponent(runs: Runs, activation: str) -> float:
    """p of change ~ rate^p; NaN where a restart is too short."""
    log_changes = np.log(changes(runs, activation)[-len(FITTED) :])
    if not np.isfinite(log_changes).all():
        return float("nan")
    return -float(np.diff(log_changes)[0] / np.diff(np.log(FITTED))[0])


def measure(runs: Runs, theta: float) -> float:
    """By how much the exponent with GELU exceeds that with ReLU."""
    return exponent(runs, "GELU") - exponent(runs, "ReLU")


def draw(figure: SubFigure, results: Results) -> None:
    """The change along the finest restarts of the first seed; every seed's late changes and exponents."""
    above, below = figure.subfigures(2, 1)
    draw_along(above.subplots(), results.first)
    left, right = below.subplots(1, 2)
    draw_changes(left, list(results.runs.values()))
    plot_strips(right, {name: [exponent(runs, name) for runs in results.runs.values()] for name in NETWORKS.values()})
    right.set(title="Exponent of the change, every seed and the mean", xlabel="$p$ in change ~ rate$^p$ (no unit)")


def draw_along(axes: Axes, runs: Runs) -> None:
    """The change of every step of the restarts with the smallest rate."""
    finest = DIVISIONS[-1]
    axes.set(
        title=f"Restarts at $\\eta$ / {finest:g}, first seed",
        xlabel="steps after the restart",
        ylabel=f"change of the gradient\n{CHANGE}",
    )
    for name, style in zip(NETWORKS.values(), figures.CYCLE, strict=False):
        run = runs[key(name, finest)]
        change = np.sqrt(run.trace.diff_sq[: run.end] / run.trace.grad_sq[: run.end])
        if np.isfinite(change).any():
            axes.plot(
                run.trace.step[: run.end],
                change,
                color=style["color"],
                linestyle=style["linestyle"],
                linewidth=1.0,
                label=name,
            )
    if not axes.lines:
        note_missing(axes, "too short: no two adjacent steps measured", "both")
        return
    axes.set_yscale("log")
    axes.margins(x=0.01)
    axes.legend(loc="lower right", frameon=False, ncols=2)


def draw_changes(axes: Axes, seeds: list[Runs]) -> None:
    """The late change against the rate, beside a line of exponent 1."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(DIVISIONS, [f"$\\eta$ / {division:g}" for division in DIVISIONS])
    axes.set(
        title="Change over a step, median of the second half",
        xlabel="rate after the restart",
        xlim=(1.3, 11.5),
        ylabel=CHANGE,
    )
    drawn = [
        plot_seeds(axes, DIVISIONS, [changes(runs, name) for runs in seeds], style, label=name)
        for name, style in zip(NETWORKS.values(), figures.CYCLE, strict=False)
    ]
    if not any(drawn):
        note_missing(axes, "too short: no two adjacent steps measured")
        return
    axes.set_yscale("log")
    guide = [axes.get_ylim()[1] / 2 * DIVISIONS[0] / division for division in DIVISIONS]
    axes.plot(DIVISIONS, guide, color=figures.INK, linewidth=0.9, linestyle=":", label="in proportion to the rate")
    axes.legend(loc="lower left", frameon=False)


FIGURE = Reproduction(
    name="b2_kinks",
    title="Kinks: how the change of the gradient falls with the step, with ReLU and with GELU",
    claims=(),
    statement="The gradient's change falls with the step more slowly with ReLU than with GELU, by 0.5 in the exponent",
    statistic="exponent of change ~ rate^p with GELU, less that with ReLU",
    threshold=0.5,
    plan=plan,
    measure=measure,
    draw=draw,
    size=(10.0, 8.5),
    seeds=range(25, 30),
    notes=(
        "The networks differ in nothing but the activation, and start with the same weights. A change that does not "
        "shrink with the step is a loss that is non-smooth at every scale tried, and in so far what the paper calls "
        "fractal. It is another thing than zigzag: the jumps are small beside the gradient, and do not reverse it, as "
        "P5 and P10 show."
    ),
)

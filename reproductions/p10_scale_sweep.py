"""P10: at which scale zigzag lives: gradients along -g, from far below the step of training to far above.

A convolutional network is trained by plain full-batch gradient descent; its parameters are kept every few steps. At up
to three points of its smooth stretches and three of its zigzag ones the gradient g(x) is compared with the gradient at
x - s g, for s over five decades around the learning rate. At s = η that is the step training took. Were zigzag
fractal, the reversal would be found at scales far below the step; a smooth loss of curvature K along the gradient has
cosine +1 up to about s = 1/K and -1 beyond. The statistic of a seed is the share of its zigzag points at which the
cosine is below 0 at s = η/10.

    python -m reproductions p10
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from fastgeom import figures
from reproductions.common.configuration import Configuration
from reproductions.common.reproduction import Reproduction, Results, Runs
from reproductions.common.request import Effort
from reproductions.common.settings import reference
from reproductions.common.spread import note_missing, plot_strips
from reproductions.common.sweeps import SCALES, Point, sweeps

CHECKPOINT_EVERY = {"quick": 1, "default": 2, "full": 50}
"""Steps between two stored copies of the parameters; those of VGG-11 are large."""

TENTH = int(np.argmin(abs(SCALES - 0.1)))
STYLES = {"smooth": "-", "zigzag": "--"}


def plan(effort: Effort, seed: int) -> dict[str, Configuration]:
    """One run a seed, with checkpoints."""
    return {"run": reference(effort, seed, checkpoint_every=CHECKPOINT_EVERY[effort])}


def measure(runs: Runs, theta: float) -> float:
    """The share of zigzag points whose gradient has already turned around at a tenth of the step."""
    turned = [point.cosine[TENTH] < 0 for point in sweeps(runs["run"], theta) if point.regime == "zigzag"]
    return float(np.mean(turned)) if turned else float("nan")


def draw(figure: SubFigure, results: Results) -> None:
    """The sweeps of the first seed, and where the cosine crosses zero at the points of every seed."""
    above, below = figure.subfigures(2, 1, height_ratios=(5, 2))
    draw_sweeps(above.subplots(), sweeps(results.first["run"], results.theta), results.first["run"].configuration.lr)
    points = [point for runs in results.runs.values() for point in sweeps(runs["run"], results.theta)]
    axes = below.subplots()
    axes.set_xscale("log")
    largest_scale = SCALES[-1]
    groups = {
        regime: [min(point.crossing, largest_scale) for point in points if point.regime == regime] for regime in STYLES
    }
    plot_strips(
        axes,
        {f"{regime}\n{len(values)} points": values for regime, values in groups.items()},
        [figures.COLOURS[regime] for regime in groups],
        middle="median",
    )
    axes.axvline(1, color=figures.INK, linewidth=0.9, linestyle=(0, (5, 3)))
    n_uncrossed = sum(point.crossing > largest_scale for point in points)
    axes.set(
        title="Where the cosine crosses zero, points of all seeds, medians as bars"
        + (f"; {n_uncrossed} at {largest_scale:g} have not crossed by there" if n_uncrossed else ""),
        xlabel=r"$s_0\,/\,\eta$, scale of the first crossing (no unit; 1 is the step)",
    )


def draw_sweeps(axes: Axes, points: tuple[Point, ...], eta: float) -> None:
    """One curve a point."""
    axes.set(
        xlabel=r"$s\,/\,\eta$, scale in steps (no unit)",
        ylabel=r"$\cos(g(x),\, g(x - s\,g))$",
        ylim=(-1.1, 1.1),
        title="The gradient at $x$ and at a distance along it, first seed; every curve one point $x$",
    )
    if not points:
        note_missing(axes, "too short: no kept point lies inside of a smooth or zigzag stretch", "x")
        return
    axes.set(xscale="log", xlim=(SCALES[0] / 1.1, SCALES[-1] * 1.1))
    axes.axhline(0, color=figures.LINE, linewidth=0.7)
    for scale, text in ((0.1, r"$\eta/10$"), (1.0, rf"$\eta = {eta:.3g}$")):
        axes.axvline(scale, color=figures.INK, linewidth=0.9, linestyle=(0, (5, 3)))
        axes.annotate(text, (scale, -1.05), xytext=(-4, 0), textcoords="offset points", ha="right", va="bottom")
    markers = {regime: iter("o^D" if regime == "smooth" else "sXv") for regime in STYLES}
    for point in points:
        text = f"{point.regime}, step {point.step}"
        text += f": 1/K = {1 / (point.curvature * eta):.3g} η" if point.curvature > 0 else ": K < 0"
        axes.plot(
            SCALES,
            point.cosine,
            color=figures.COLOURS[point.regime],
            linestyle=STYLES[point.regime],
            marker=next(markers[point.regime]),
            markersize=4,
            linewidth=1.1,
            label=text,
        )
        if np.isfinite(point.crossing):
            axes.plot(point.crossing, 0, "o", markersize=9, markerfacecolor="none", color=figures.INK)
    axes.plot([], [], "o", markersize=9, markerfacecolor="none", color=figures.INK, label="crosses zero")
    axes.legend(loc="lower left", title="K: curvature along $g$ as $s$ goes to 0")


FIGURE = Reproduction(
    name="p10_scale_sweep",
    title="At which scale the gradient turns around, at smooth and at zigzag points",
    claims=(2,),
    statement="At half of the zigzag points or more the gradient has turned around at a tenth of the step",
    statistic="share of zigzag points with cos(g(x), g(x - s g)) < 0 at s = η/10",
    threshold=0.5,
    plan=plan,
    measure=measure,
    draw=draw,
    size=(10.0, 9.0),
    notes=(
        "A point is a kept x_t with both labels, of step t and of step t+1, in the regime, so that at s = η the curve "
        "passes through c_{t+1}. At most three smooth points, spread over the longest smooth stretch, and three zigzag "
        "points, spread over all zigzag ones. The sweep looks along one line, that of the gradient: a fractal in other "
        "directions would not show. Beyond s = η the curve says what larger steps would have met."
    ),
)

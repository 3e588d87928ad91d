"""P2: both geometries appear in networks of several kinds and on several data sets.

Networks of five kinds are trained on two sets of images, and a transformer on text, each by full-batch gradient descent
at one constant rate of its own. A cell, a network on a data set, counts where smooth and zigzag steps make up at least
2 % of its steps each. The statistic of a seed is the share of the cells that count; a run that diverges before it has
two gradients to compare does not.

    python -m reproductions p2
"""

from __future__ import annotations

import math

from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D

from fastgeom import figures
from reproductions import p1_two_geometries
from reproductions.common.configuration import Configuration
from reproductions.common.reproduction import Reproduction, Results, Runs
from reproductions.common.request import Effort
from reproductions.common.runs import TrainingRun
from reproductions.common.settings import reference

LEAST_SHARE = 0.02
"""Share of the steps that each regime has to hold for a cell to count."""

COLUMNS = 3

IMAGE_NETWORKS = ("mlp", "cnn", "vgg", "resnet", "resnet-bn")

CELLS = {
    "quick": [("mlp", "digits"), ("cnn", "digits"), ("resnet", "digits"), ("transformer", "text")],
    "default": [
        *((network, data) for data in ("digits", "mnist5k") for network in IMAGE_NETWORKS),
        ("transformer", "text"),
    ],
    "full": [("vgg", "cifar10"), ("resnet", "cifar10")],
}
"""Of each effort: network and data set of every cell."""


def plan(effort: Effort, seed: int) -> dict[str, Configuration]:
    """One run a cell, named "network on data set" after what is trained."""
    configurations = [reference(effort, seed, network, data) for network, data in CELLS[effort]]
    return {f"{c.network} on {c.data}": c for c in configurations}


def least_share(run: TrainingRun, theta: float) -> float:
    """The smaller of the shares of smooth and of zigzag steps; NaN where a run is too short."""
    return p1_two_geometries.measure({"run": run}, theta)


def measure(runs: Runs, theta: float) -> float:
    """Share of the cells that show both regimes; NaN where no run has two gradients to compare."""
    shares = [least_share(run, theta) for run in runs.values()]
    if not any(map(math.isfinite, shares)):
        return math.nan
    return sum(share >= LEAST_SHARE for share in shares) / len(shares)


def draw(figure: SubFigure, results: Results) -> None:
    """The first seed's adjacent correlation, one panel a cell; how many seeds show both regimes, in its title."""
    rows = -(-len(results.first) // COLUMNS)
    panels = figure.subplots(rows, COLUMNS, sharey=True, squeeze=False)
    for axes, (cell, run) in zip(panels.flat, results.first.items(), strict=False):
        figures.plot_adjacent_cosine(axes, run.trace, results.theta)
        count = sum(least_share(runs[cell], results.theta) >= LEAST_SHARE for runs in results.runs.values())
        axes.set_title(f"{cell}, η = {run.configuration.lr:.3g}\nboth regimes in {count} of {len(results.runs)} seeds")
        axes.set_ylabel("")
        if run.end < 2:
            axes.set_xticks([])
    for axes in panels[:, 0]:
        axes.set_ylabel("correlation $c_t$")
    for axes in panels.flat[len(results.first) :]:
        axes.set_axis_off()
    rules = {
        "smooth": rf"$c_t > {results.theta:g}$, pale ground",
        "mixed": "white ground",
        "zigzag": rf"$c_t < -{results.theta:g}$, hatched ground",
    }
    handles = [
        Line2D([], [], linestyle="", marker=".", color=figures.COLOURS[regime], label=f"{regime}: {rule}")
        for regime, rule in rules.items()
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False)


FIGURE = Reproduction(
    name="p2_networks",
    title="Both geometries in several networks and data sets",
    claims=(1,),
    statement="In most settings both regimes hold at least 2 % of the steps each",
    statistic="share of the settings with at least 2 % smooth and at least 2 % zigzag steps",
    threshold=0.5,
    plan=plan,
    measure=measure,
    draw=draw,
    size=(10.0, 11.0),
    notes=(
        "The panels show the first seed. Each setting has a rate of its own, chosen on other seeds so that it reaches "
        "the edge of stability within the run."
    ),
)

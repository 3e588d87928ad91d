"""P1: training has two geometries, smooth and zigzag, and one constant learning rate shows both.

A convolutional network is trained by plain full-batch gradient descent at one constant rate. Every step's gradient is
compared with the one before: c_t near +1 is smooth, c_t near -1 zigzag. The statistic of a seed is the smaller of the
two regimes' shares of the steps, so that one large share cannot stand for both.

    python -m reproductions p1
"""

from __future__ import annotations

from matplotlib.figure import SubFigure

from fastgeom import analysis, figures
from reproductions.common.configuration import Configuration
from reproductions.common.reproduction import Reproduction, Results, Runs
from reproductions.common.request import Effort
from reproductions.common.settings import reference


def plan(effort: Effort, seed: int) -> dict[str, Configuration]:
    """One run a seed."""
    return {"run": reference(effort, seed)}


def measure(runs: Runs, theta: float) -> float:
    """The smaller of the shares of smooth and of zigzag steps."""
    return min(runs["run"].share("smooth", theta), runs["run"].share("zigzag", theta))


def draw(figure: SubFigure, results: Results) -> None:
    """The first seed along its steps, and every seed's shares below."""
    above, below = figure.subfigures(2, 1, height_ratios=(4, 1))
    figures.plot_geometry(above, results.first["run"].trace, results.theta)
    axes = below.subplots()
    left = dict.fromkeys(results.runs, 0.0)
    for regime, hatch in zip(analysis.REGIMES, ("", "", "///"), strict=True):
        shares = {seed: runs["run"].share(regime, results.theta) for seed, runs in results.runs.items()}
        names = [f"seed {seed}" for seed in shares]
        axes.barh(
            names,
            list(shares.values()),
            left=list(left.values()),
            color=figures.COLOURS[regime],
            hatch=hatch,
            edgecolor="white",
            height=0.7,
        )
        for seed, share in shares.items():
            if share > 0.05:
                patch = {"facecolor": figures.COLOURS[regime], "pad": 1, "linewidth": 0}
                axes.text(
                    left[seed] + share / 2,
                    f"seed {seed}",
                    f"{regime} {share:.0%}",
                    ha="center",
                    va="center",
                    color="white",
                    fontsize=8,
                    bbox=patch,
                )
            left[seed] += share
    axes.set(xlim=(0, 1), xlabel="share of the steps")
    axes.invert_yaxis()


FIGURE = Reproduction(
    name="p1_two_geometries",
    title="Training has two geometries, smooth and zigzag",
    claims=(1,),
    statement="At one constant rate, training spends at least 5 % of its steps in each of the two regimes",
    statistic="smaller of the shares of smooth and of zigzag steps",
    threshold=0.05,
    plan=plan,
    measure=measure,
    draw=draw,
    size=(10.0, 10.0),
)

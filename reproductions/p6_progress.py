"""P6: how much of the training progress is made in zigzag?

A convolutional network is trained by plain full-batch gradient descent at one constant rate on two sets of images. What
a step with gradient g_t changes of the loss, f_t - f_{t+1}, is counted for the regime of c_t, the correlation of g_t
with g_{t-1}. Four definitions of a regime's share:

    net       sum of f_t - f_{t+1} over its steps, of f_0 - f_T: rises count against it
    gross     decreases only, of all decreases
    log-loss  net, with ln f in place of f, so that late steps count as much as early ones
    segment   the loss at the start minus that at the end of each unbroken stretch, of f_0 - f_T

The statistic of a seed is the net share of zigzag, averaged over the two data sets.

    python -m reproductions p6
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from fastgeom import analysis, figures
from reproductions.common.configuration import Configuration
from reproductions.common.reproduction import Reproduction, Results, Runs
from reproductions.common.request import Effort
from reproductions.common.runs import TrainingRun
from reproductions.common.settings import reference
from reproductions.common.shares import DEFINITIONS, share_table
from reproductions.common.spread import finite_mean, note_missing, plot_seeds

HATCHES = {"smooth": "", "mixed": "...", "zigzag": "///"}
ZIGZAG = list(analysis.REGIMES).index("zigzag")


def plan(effort: Effort, seed: int) -> dict[str, Configuration]:
    """One run a data set, under its name."""
    configurations = [reference(effort, seed, "cnn", data) for data in ("mnist5k", "digits")]
    return {c.data: c for c in configurations}


def measure(runs: Runs, theta: float) -> float:
    """Net progress share of zigzag, mean of the data sets; NaN where the loss of one did not fall."""
    return float(np.mean([share_table(run, run.labels(theta))[0, ZIGZAG] for run in runs.values()]))


def draw(figure: SubFigure, results: Results) -> None:
    """One row a data set: shares of the regimes by each definition, and zigzag's against theta."""
    panels = figure.subplots(len(results.first), 2, squeeze=False, sharex="col")
    for (bars, lines), data in zip(panels, results.first, strict=True):
        runs = [seed_runs[data] for seed_runs in results.runs.values()]
        eta = f"{data}, $\\eta$ = {runs[0].configuration.lr:.3g}"
        _draw_bars(bars, runs, results.theta)
        bars.set(title=f"Progress by regime, {eta}", ylabel="share of the progress")
        _draw_sensitivity(lines, runs)
        lines.set(title=f"Zigzag's progress against the threshold, {eta}", ylabel="zigzag's share of the progress")
    handles, labels = panels[0, 1].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower right",
        ncols=5,
        frameon=False,
        title="right: lines are means, points single seeds",
    )
    panels[-1, 0].set_xlabel("definition of the share")
    panels[-1, 1].set_xlabel(r"threshold $\theta$: zigzag is $c_t < -\theta$")


def _draw_bars(axes: Axes, runs: list[TrainingRun], theta: float) -> None:
    tables = np.array([share_table(run, run.labels(theta)) for run in runs])
    positions = np.arange(len(DEFINITIONS))
    axes.set_xticks(positions, list(DEFINITIONS.values()))
    if not np.isfinite(tables).any():
        note_missing(axes, "too short: no fall of the loss to share")
        return
    for column, regime in enumerate(analysis.REGIMES):
        bar_positions = positions + 0.27 * (column - 1)
        steps = finite_mean([run.share(regime, theta) for run in runs])
        axes.bar(
            bar_positions,
            finite_mean(tables[:, :, column]),
            width=0.25,
            color=figures.COLOURS[regime],
            alpha=0.85,
            hatch=HATCHES[regime],
            edgecolor="white",
            label=f"{regime}: {steps:.0%} of the steps",
        )
        for table in tables:
            axes.plot(bar_positions, table[:, column], "o", color=figures.INK, markerfacecolor="white", markersize=3.5)
    axes.axhline(0, color=figures.INK, linewidth=0.8)
    axes.set_ylim(top=1.35 * max(axes.get_ylim()[1], 0.1))
    axes.legend(loc="upper center", frameon=False, fontsize=8)


def _draw_sensitivity(axes: Axes, runs: list[TrainingRun]) -> None:
    tables = np.array([[share_table(run, run.labels(t)) for t in analysis.THETAS] for run in runs])
    positions = np.arange(len(analysis.THETAS))
    axes.set_xticks(positions, [f"{t:g}" for t in analysis.THETAS])
    if not np.isfinite(tables).any():
        note_missing(axes, "too short: no fall of the loss to share")
        return
    for row, (name, style) in enumerate(zip(DEFINITIONS.values(), figures.CYCLE, strict=False)):
        plot_seeds(axes, positions, tables[:, :, row, ZIGZAG], style, label=name, band=False)
    steps = np.array([analysis.sensitivity(run.cosine)[:, ZIGZAG] for run in runs])
    axes.plot(positions, finite_mean(steps), color="#C0C0C0", linewidth=4, zorder=0, label="share of the steps")
    axes.axhline(0, color=figures.INK, linewidth=0.8)


FIGURE = Reproduction(
    name="p6_progress",
    title="Progress by regime, four definitions",
    claims=(3,),
    statement="At least a quarter of the net training progress is made in zigzag",
    statistic="net share of the fall of the loss in zigzag steps, mean of the data sets",
    threshold=0.25,
    plan=plan,
    measure=measure,
    draw=draw,
    size=(10.0, 8.0),
    seeds=range(20, 30),
    notes=(
        "Bars are means over seeds, points are seeds. The definitions can disagree even in sign. Steps from the start "
        "weigh most in net, gross and segment, because the loss is highest there."
    ),
)

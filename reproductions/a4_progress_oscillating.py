"""A4: how much of the training progress is made while the gradient oscillates, in networks of five kinds?

Each network is trained by plain full-batch gradient descent at a constant rate of its own on one set of images. A step
oscillates where c_t, the correlation of its gradient with the one before, is negative: the step before went beyond the
minimum along its direction (kappa > 1). It answers for the change that it makes itself, f_t - f_{t+1}; the first step,
which has no c_t, does not count as oscillating. Four definitions of the share:

    net       sum of f_t - f_{t+1} over the oscillating steps, of f_0 - f_T: rises count against it
    gross     decreases only, of all decreases
    log-loss  net, with ln f in place of f, so that late steps count as much as early ones
    segment   the loss at the start minus that at the end of each unbroken stretch, of f_0 - f_T

The statistic of a seed is the net share, averaged over the networks.

    python -m reproductions a4
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
from reproductions.common.shares import DEFINITIONS, oscillating_share, share_table
from reproductions.common.spread import finite_mean, note_missing

NETWORKS: dict[Effort, tuple[str, ...]] = {
    "quick": ("mlp", "cnn"),
    "default": ("mlp", "cnn", "vgg", "resnet", "resnet-bn"),
    "full": ("vgg", "resnet"),
}
STYLES = {
    "oscillating: $c_t < 0$": (figures.COLOURS["zigzag"], "///"),
    "other steps": (figures.COLOURS["smooth"], ""),
}


def plan(effort: Effort, seed: int) -> dict[str, Configuration]:
    """One run a network, under the name of what is trained."""
    configurations = [reference(effort, seed, network) for network in NETWORKS[effort]]
    return {c.network: c for c in configurations}


def progress_table(run: TrainingRun) -> np.ndarray:
    """Progress while oscillating and in all other steps, shape (definition, 2); NaN where the loss did not fall."""
    labels = np.where(run.cosine < 0, analysis.ZIGZAG, analysis.SMOOTH)
    table = share_table(run, labels)
    regimes = list(analysis.REGIMES)
    return table[:, [regimes.index("zigzag"), regimes.index("smooth")]]


def measure(runs: Runs, theta: float) -> float:
    """Net share of the progress made while oscillating, mean of the networks whose loss fell."""
    measured = [run for run in runs.values() if np.isfinite(oscillating_share(run.cosine))]
    return float(finite_mean([progress_table(run)[0, 0] for run in measured]))


def draw(figure: SubFigure, results: Results) -> None:
    """One panel a network: a bar for each definition, the mean over seeds, and each seed's share as a point."""
    panels = figure.subplots(len(results.first), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (network, run) in zip(panels, results.first.items(), strict=True):
        runs = [seed_runs[network] for seed_runs in results.runs.values()]
        share = float(finite_mean([oscillating_share(r.cosine) for r in runs]))
        steps = f"{share:.0%} of the steps oscillate" if np.isfinite(share) else "no correlation known"
        axes.set_title(f"{network} on {run.configuration.data}, $\\eta$ = {run.configuration.lr:.3g}: {steps}")
        _draw_bars(axes, np.array([progress_table(r) for r in runs if np.isfinite(oscillating_share(r.cosine))]))
    panels[-1].set_xlabel("share of the progress")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)


def _draw_bars(axes: Axes, tables: np.ndarray) -> None:
    positions = np.arange(len(DEFINITIONS))
    if not np.isfinite(tables).any():
        note_missing(axes, "too short: no fall of the loss to share")
        return
    axes.set_yticks(positions, list(DEFINITIONS.values()))
    axes.invert_yaxis()
    widths = finite_mean(tables)
    right, left = np.zeros(len(positions)), np.zeros(len(positions))
    for width, (label, (colour, hatch)) in zip(widths.T, STYLES.items(), strict=True):
        axes.barh(
            positions,
            width,
            left=np.where(width < 0, left, right),
            height=0.7,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=label,
        )
        right, left = right + np.maximum(width, 0), left + np.minimum(width, 0)
    for number, table in enumerate(tables):
        axes.plot(
            table[:, 0],
            positions,
            "o",
            color=figures.INK,
            markerfacecolor="white",
            markersize=4,
            clip_on=False,
            label="oscillating, single seeds" if number == 0 else None,
        )
    axes.axvline(0, color=figures.INK, linewidth=0.8)


FIGURE = Reproduction(
    name="a4_progress_oscillating",
    title="Progress made while oscillating",
    claims=(3,),
    statement="At least a quarter of the net training progress is made while the gradient oscillates",
    statistic="net share of the fall of the loss in steps with c_t < 0, mean of the networks",
    threshold=0.25,
    plan=plan,
    measure=measure,
    draw=draw,
    size=(10.0, 9.5),
    notes=(
        "A negative share means that the loss rose over the oscillating steps together. Segments need not add up to 1: "
        "the step that leaves a stretch counts for neither side. Each network weighs as much as every other, however "
        "far its share lies from theirs. The definitions can disagree: gross counts no rise. θ plays no part."
    ),
)

"""P4: zigzag is not a matter of one learning rate.

A convolutional network is trained by plain full-batch gradient descent at rates that differ by factors of the square
root of two, each for as many steps as make η × steps, the time of the gradient flow that they follow, the same; once
with cross-entropy, once with the squared error, whose sharpness does not fall again when all examples are learned. A
rate counts where zigzag holds at least 5 % of the steps and the run learns: its loss has at least halved at the end.
Each rate stands for the rates that are nearer to it than to its neighbours, in the logarithm. The statistic of a seed
is the width of the longest row of neighbouring rates that count, in decades, averaged over the two losses.

The predicted range is that of the edge of stability: rates with 2/η below the largest sharpness (Hessian eigenvalue)
along the run of the smallest rate, which stands for the gradient flow.

    python -m reproductions p4
"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from fastgeom import analysis, figures
from reproductions.common.caption import LOSSES
from reproductions.common.configuration import Configuration
from reproductions.common.reproduction import Reproduction, Results, Runs
from reproductions.common.request import Effort
from reproductions.common.runs import TrainingRun
from reproductions.common.settings import reference
from reproductions.common.shares import oscillating_share
from reproductions.common.spread import finite_mean, note_missing, plot_seeds

RATES: dict[Effort, tuple[float, ...]] = {
    "quick": (0.05, 0.1, 0.2),
    "default": tuple(0.05 * 2 ** (k / 2) for k in range(13)),
    "full": (0.01, 0.02, 0.04, 0.08, 0.16, 0.32),
}
TIME: dict[Effort, float] = {"quick": 1.5, "default": 80.0, "full": 20.0}
"""Rate times steps."""

N_EXAMPLES = 300
LEAST_SHARE = 0.05
"""Share of zigzag steps from which on a rate counts."""

BLOWN_UP = 100
"""A final loss so many times the first is no loss to draw."""

SHARPNESS_EVERY = 40
SHADE = {"facecolor": "#E9E9E9", "edgecolor": "#BDBDBD", "hatch": "\\\\\\", "linewidth": 0, "zorder": 0}


def plan(effort: Effort, seed: int) -> dict[str, Configuration]:
    """One run a loss and rate; the sharpness is measured along that of the smallest rate."""
    changes = {"n_examples": N_EXAMPLES} if effort == "default" else {}
    rates = RATES[effort]
    return {
        f"{loss} {rate:g}": reference(
            effort,
            seed,
            "cnn",
            "digits",
            lr=rate,
            steps=round(TIME[effort] / rate),
            loss=loss,
            sharpness_every=SHARPNESS_EVERY if rate == rates[0] else None,
            **changes,
        )
        for loss in LOSSES
        for rate in rates
    }


def runs_with_loss(runs: Runs, loss: str) -> list[TrainingRun]:
    """The runs with one loss, the smallest rate first."""
    return sorted((r for r in runs.values() if r.configuration.loss == loss), key=lambda r: r.configuration.lr)


def counts(run: TrainingRun, theta: float) -> bool:
    """Whether a run both learns and zigzags."""
    return run.share("zigzag", theta) >= LEAST_SHARE and learns(run)


def decades(runs: list[TrainingRun], theta: float) -> float:
    """Decades that the longest row of rates that count covers; 0 without one, NaN where all runs are too short."""
    if not any(math.isfinite(run.share("zigzag", theta)) for run in runs):
        return math.nan
    log_rate = np.log10([run.configuration.lr for run in runs])
    edges = np.concatenate([log_rate[:1], (log_rate[1:] + log_rate[:-1]) / 2, log_rate[-1:]])
    rows = [row for row in analysis.stretches([counts(run, theta) for run in runs]) if row.label]
    return max((float(edges[row.stop] - edges[row.start]) for row in rows), default=0.0)


def learns(run: TrainingRun) -> bool:
    """Whether the loss has at least halved at the end."""
    return bool(final_loss(run) <= run.trace.loss[0] / 2)


def measure(runs: Runs, theta: float) -> float:
    """Decades of learning rate over which zigzag appears, mean of the two losses."""
    return float(np.mean([decades(runs_with_loss(runs, loss), theta) for loss in LOSSES]))


def largest_sharpness(run: TrainingRun) -> float:
    """The largest Hessian eigenvalue along a run; NaN where none was measured."""
    values = run.trace["sharpness"][: run.end]
    return float(max(values[np.isfinite(values)], default=math.nan))


def final_loss(run: TrainingRun) -> float:
    """The last loss of a run; NaN where it diverged, to infinity or to a hundred times the first loss."""
    first, last = run.trace.loss[[0, -1]]
    return float(last) if run.diverged_at is None and last < BLOWN_UP * first else math.nan


def draw(figure: SubFigure, results: Results) -> None:
    """Shares above, the loss at the end below, one column a loss."""
    panels = figure.subplots(2, len(LOSSES), sharex="col", sharey="row", height_ratios=(3, 2))
    for column, (loss, name) in zip(panels.T, LOSSES.items(), strict=True):
        sweeps = [runs_with_loss(runs, loss) for runs in results.runs.values()]
        _draw_shares(column[0], sweeps, results.theta)
        column[0].set_title(f"Share of the steps, {name}")
        _draw_losses(column[1], sweeps)
        column[1].set_title(f"Loss at the end, {name}")
    panels[0, 0].set_ylabel("share of the steps")
    panels[1, 0].set_ylabel("loss $f_T$")
    handles = {}
    for axes in panels.flat:
        artists, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, artists, strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)


def _draw_shares(axes: Axes, sweeps: list[list[TrainingRun]], theta: float) -> None:
    rates = [run.configuration.lr for run in sweeps[0]]
    axes.set_xscale("log", base=2)
    axes.set_xticks(rates[::2], [f"{rate:.3g}" for rate in rates[::2]])
    axes.set_xlim(rates[0] / 1.5, rates[-1] * 1.5)
    axes.set_ylim(-0.03, 1.03)
    _shade_prediction(axes, sweeps)
    negative = [[oscillating_share(run.cosine) for run in sweep] for sweep in sweeps]
    zigzag = [[run.share("zigzag", theta) for run in sweep] for sweep in sweeps]
    zigzag_label = rf"zigzag: $c_t < -{theta:g}$"
    plot_seeds(axes, rates, negative, figures.CYCLE[0], label="oscillating: $c_t < 0$", shift=1.06)
    if not plot_seeds(axes, rates, zigzag, figures.CYCLE[1], label=zigzag_label, shift=1 / 1.06):
        note_missing(axes, "too short: no two adjacent steps measured")
    counted = [
        (run.configuration.lr / 1.06, run.share("zigzag", theta))
        for sweep in sweeps
        for run in sweep
        if counts(run, theta)
    ]
    style = figures.CYCLE[1]
    axes.plot(
        *zip(*counted, strict=True) if counted else ([], []),
        linestyle="none",
        marker=style["marker"],
        color=style["color"],
        markersize=4,
        label="filled: counts, since the loss has halved too",
    )
    axes.axhline(
        LEAST_SHARE, color=figures.INK, linewidth=0.9, linestyle=(0, (5, 3)), label=f"{LEAST_SHARE:.0%} of the steps"
    )


def _shade_prediction(axes: Axes, sweeps: list[list[TrainingRun]]) -> None:
    largest = float(finite_mean([largest_sharpness(sweep[0]) for sweep in sweeps]))
    edge = 2 / largest if largest > 0 else math.inf
    low, high = axes.get_xlim()
    if edge < high:
        axes.axvspan(max(edge, low), high, **SHADE, label=r"predicted: $2/\eta <$ largest sharpness $\lambda$")
        axes.axvline(max(edge, low), color=figures.GREY, linewidth=1)


def _draw_losses(axes: Axes, sweeps: list[list[TrainingRun]]) -> None:
    rates = [run.configuration.lr for run in sweeps[0]]
    losses = [[final_loss(run) for run in sweep] for sweep in sweeps]
    axes.set_xlabel(r"learning rate $\eta$")
    if plot_seeds(axes, rates, losses, figures.CYCLE[2], label="loss at the end") and np.nanmin(losses) > 0:
        axes.set_yscale("log")
    for rate, at_rate in zip(rates, np.isnan(losses).T, strict=True):
        if at_rate.any():
            axes.plot(rate, 0.9, "x", transform=axes.get_xaxis_transform(), color=figures.INK)
            axes.text(
                rate,
                0.86,
                f"{np.count_nonzero(at_rate)}/{len(at_rate)}",
                ha="center",
                va="top",
                fontsize=7,
                transform=axes.get_xaxis_transform(),
            )
    axes.plot([], [], "x", color=figures.INK, label=f"so many ended at {BLOWN_UP} times the first loss or more")


FIGURE = Reproduction(
    name="p4_learning_rates",
    title="Zigzag over a range of learning rates",
    claims=(2,),
    statement="Over at least one decade of learning rates the loss halves and zigzag holds at least 5 % of the steps",
    statistic="decades of neighbouring rates at which both hold, mean of the two losses",
    threshold=1.0,
    plan=plan,
    measure=measure,
    draw=draw,
    size=(10.0, 8.0),
    seeds=range(20, 30),
    notes=(
        "Lines are means over seeds, bands their range, points single seeds. All runs train for the same η × steps. "
        "The rates differ by factors of √2, 0.15 decades, so that the statistic moves in steps of 0.08. The shaded "
        "range is predicted from the run of the smallest rate, mean over seeds; it has no upper end, because the "
        "second-order picture behind it says nothing of rates at which a step leaves the region. A wide range of rates "
        "with zigzag is what a fractal landscape would show, and what the edge of stability predicts as well: P5 and "
        "P10 tell them apart, this figure does not."
    ),
)

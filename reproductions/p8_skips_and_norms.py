"""P8: do skip connections and batch norm make the path of training smoother?

The same small network, with and without skip connections and with and without batch norm, is trained by plain
full-batch gradient descent at one common rate. L_t = |g_{t+1} - g_t| / |u_t| is how fast the gradient turns along the
path, a lower bound of the loss's smoothness constant there. Networks that learn faster reach sharp regions in fewer
steps, and at the edge of stability gradient descent itself holds L_t near 2/η; so L_t is compared at equal loss: the
range of losses that all four runs pass is cut into ten parts, and in each the median L_t is taken. The statistic of a
seed is log2 of the ratio of the network without both aids to that with both, averaged over the parts.

    python -m reproductions p8
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from fastgeom import analysis, figures
from reproductions.common.configuration import Configuration
from reproductions.common.reproduction import Reproduction, Results, Runs
from reproductions.common.request import Effort
from reproductions.common.runs import TrainingRun
from reproductions.common.settings import reference
from reproductions.common.spread import finite_mean, finite_median, note_missing, percent, plot_strips

NETWORKS = {
    "plain": "neither",
    "resnet": "skips",
    "plain-bn": "batch norm",
    "resnet-bn": "skips and batch norm",
}
RATE, N_EXAMPLES, STEPS = 0.2, 500, 250
"""The rate was chosen on seeds 0 and 1: all four learn, and none diverges."""

N_BINS = 10


def plan(effort: Effort, seed: int) -> dict[str, Configuration]:
    """Four runs a seed; the small networks with --full too, where a change of size would hide that of the skips."""
    changes = {"n_examples": N_EXAMPLES, "steps": STEPS} if effort == "default" else {}
    common = reference(effort, seed, "resnet-bn", "mnist5k", lr=RATE, **changes)
    return {name: replace(common, network=name) for name in NETWORKS}


def measure(runs: Runs, theta: float) -> float:
    """Mean over parts of the common losses of log2(L of neither / L of both)."""
    _, medians = at_equal_loss(runs)
    return finite_mean(np.log2(medians["plain"] / medians["resnet-bn"]))


def smoothness(run: TrainingRun) -> np.ndarray:
    """L_t of every step before a divergence, shape (step,); NaN for the last, and where the gradient did not turn."""
    values = analysis.path_smoothness(run.trace.diff_sq[: run.end], run.trace.update_sq[: run.end])
    return np.where(values > 0, values, np.nan)


def at_equal_loss(runs: Runs) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Edges of the parts, shape (part + 1,), and the median L_t of each run in each, NaN where it has no step."""
    losses = {name: run.trace.loss[: run.end] for name, run in runs.items()}
    if not all(len(loss) for loss in losses.values()):
        return np.full(N_BINS + 1, np.nan), {name: np.full(N_BINS, np.nan) for name in runs}
    low, high = max(loss.min() for loss in losses.values()), min(loss[0] for loss in losses.values())
    edges = np.linspace(low, high, N_BINS + 1)
    medians = {}
    for name, run in runs.items():
        masks = [(losses[name] >= a) & (losses[name] <= b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        medians[name] = np.asarray([finite_median(smoothness(run)[mask]) for mask in masks])
    return edges, medians


def draw(figure: SubFigure, results: Results) -> None:
    """c_t of the four and L_t against the loss, first seed; below, L_t and overshooting steps in every seed."""
    above, below = figure.subfigures(2, 1, height_ratios=(5, 4))
    panels = above.subplots(2, 2, sharex=True)
    for axes, (name, label) in zip(panels.flat, NETWORKS.items(), strict=True):
        run = results.first[name]
        figures.plot_adjacent_cosine(axes, run.trace, results.theta)
        axes.set(title=f"{label}: {percent(run.share('zigzag', results.theta))} zigzag", xlabel="")
    for axes in panels[-1]:
        axes.set_xlabel("optimiser step $t$")
    left, right = below.subfigures(1, 2, width_ratios=(4, 5))
    draw_smoothness(left.subplots(), results.first)
    top, bottom = right.subplots(2, 1)
    seed_medians = [at_equal_loss(runs)[1] for runs in results.runs.values()]
    plot_strips(
        top,
        {
            label: [2 ** finite_mean(np.log2(medians[name])) for medians in seed_medians]
            for name, label in NETWORKS.items()
        },
    )
    top.set(
        title="Roughness of the path at equal loss, every seed and the mean",
        xlabel="geometric mean of $L_t$ over the losses all four pass (1/unit of $\\eta$)",
    )
    plot_strips(
        bottom,
        {label: [overshooting_share(runs[name]) for runs in results.runs.values()] for name, label in NETWORKS.items()},
    )
    bottom.set(title=r"Steps beyond the minimum along them, $\kappa_t > 1$", xlabel="share of the steps")


def draw_smoothness(axes: Axes, runs: Runs) -> None:
    """Median L_t against the loss, training going to the right."""
    axes.set(
        title="Roughness of the path against loss, first seed",
        xlabel="loss $f_t$ (falls to the right)",
        ylabel=r"$L_t = \|g_{t+1}-g_t\| \,/\, \|u_t\|$ (1/unit of $\eta$)",
    )
    edges, medians = at_equal_loss(runs)
    if not any(np.isfinite(values).any() for values in medians.values()):
        note_missing(axes, "too short: no step with a measured successor", "both")
        return
    axes.set_yscale("log")
    for (name, label), style in zip(NETWORKS.items(), figures.CYCLE, strict=False):
        axes.plot((edges[1:] + edges[:-1]) / 2, medians[name], **style, markersize=4, linewidth=1.3, label=label)
    axes.axhline(2 / runs["plain"].configuration.lr, color=figures.INK, linewidth=0.9, linestyle=(0, (5, 3)))
    axes.annotate(
        r"$2/\eta$: edge of stability",
        (0, 2 / runs["plain"].configuration.lr),
        xytext=(4, 3),
        fontsize=8,
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
    )
    axes.invert_xaxis()
    axes.margins(y=0.12)
    axes.legend(loc="best")


def overshooting_share(run: TrainingRun) -> float:
    """Share of the steps with a finite kappa_t that go beyond the minimum along them; NaN where there is none."""
    kappa = analysis.step_curvature(run.trace.grad_dot_update, run.trace.next_grad_dot_update)[: run.end]
    return finite_mean(kappa[np.isfinite(kappa)] > 1)


FIGURE = Reproduction(
    name="p8_skips_and_norms",
    title="Skip connections and batch norm: how smooth the path is",
    claims=(),
    statement="At equal loss, skips and batch norm together make the path at least twice as smooth",
    statistic="log2 of the ratio of the path's roughness L_t, neither / both, at equal loss",
    threshold=1.0,
    plan=plan,
    measure=measure,
    draw=draw,
    size=(11.0, 11.0),
    seeds=range(20, 30),
    notes=(
        "All four networks of a seed start with the same convolution weights; without batch norm a residual branch is "
        "scaled by 1/√3. Batch norm sees all images of the run at once (one pass, no micro-batches; 1,000 a pass with "
        "--full), so that its loss is one function of the weights. L_t, large where the gradient turns fast, is a "
        "lower bound of the loss's smoothness constant, along the path only. The losses that all four pass differ from "
        "seed to seed, so that some seeds compare more of the training than others. The panels tell what skips and "
        "batch norm do each alone. Its unit depends on how a network is parametrised; at a common rate η L_t has none, "
        "and 2 is the edge of stability for all."
    ),
)

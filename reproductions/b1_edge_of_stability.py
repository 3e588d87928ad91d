"""B1: zigzag at the edge of stability, seen from the path.

A convolutional network is trained by plain full-batch gradient descent. Beside the trace, the sharpness (the largest
eigenvalue of the loss's Hessian) is measured every few steps with Hessian-vector products, and how much of the gradient
lies along its eigenvector v: cos²(g_t, v), the share of the step's squared length, since the step is -η g_t. From the
trace alone come kappa_t, the curvature met by a step in units in which 1 is the minimum along the step, and K_t, the
curvature along the step. For gradient descent kappa_t = η K_t, so that c < 0 means K_t > 1/η, and a perfect zigzag K_t
= 2/η whatever the loss: that K_t comes near the sharpness says that the sharpness is near 2/η. The statistic of a seed
is the mean of cos²(g_t, v) over its zigzag steps.

    python -m reproductions b1
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
from reproductions.common.spread import finite_mean, note_missing, plot_strips

N_EXAMPLES, STEPS = 500, 300
SHARPNESS_EVERY = {"quick": 5, "default": 5, "full": 50}
"""Steps between two measurements of the sharpness, which costs as much as ten to twenty steps."""


def plan(effort: Effort, seed: int) -> dict[str, Configuration]:
    """One run a seed, on few and small images, since the sharpness costs more than the training."""
    changes = {"n_examples": N_EXAMPLES, "steps": STEPS} if effort == "default" else {}
    return {"run": reference(effort, seed, "cnn", "digits", sharpness_every=SHARPNESS_EVERY[effort], **changes)}


def measure(runs: Runs, theta: float) -> float:
    """The mean of cos²(g_t, v) over zigzag steps."""
    return finite_mean(alignment(runs["run"], analysis.ZIGZAG, theta))


def alignment(run: TrainingRun, label: int, theta: float) -> np.ndarray:
    """cos²(g_t, v) where it was measured and the step of the regime ends at a gradient of it."""
    in_regime = run.labels(theta)[1:] == label
    values = run.trace.top_cosine[: run.end][:-1][in_regime] ** 2
    return values[np.isfinite(values)]


def curvature(run: TrainingRun) -> np.ndarray:
    """K_t of every step before a divergence, shape (step,)."""
    trace = run.trace
    return analysis.directional_curvature(trace.grad_dot_update, trace.next_grad_dot_update, trace.update_sq)[: run.end]


def ratios(run: TrainingRun, label: int, theta: float) -> np.ndarray:
    """K_t / sharpness_t where a step of the regime ends at a gradient of it: c_{t+1} compares both ends of step t."""
    in_regime = run.labels(theta)[1:] == label
    sharp = run.trace.sharpness[: run.end][:-1]
    values = curvature(run)[:-1][in_regime & (sharp > 0)] / sharp[in_regime & (sharp > 0)]
    return values[np.isfinite(values)]


def draw(figure: SubFigure, results: Results) -> None:
    """kappa_t and the two curvatures of the first seed along its steps; K_t over sharpness by regime in all seeds."""
    run, theta = results.first["run"], results.theta
    above, below = figure.subfigures(2, 1, height_ratios=(5, 2))
    top, middle = above.subplots(2, 1, sharex=True)
    figures.plot_step_curvature(top, run.trace, theta)
    top.set_xlabel("")
    draw_curvatures(middle, run, theta)
    panels = below.subplots(1, 2, sharey=True)
    for axes, values in zip(panels, (alignment, ratios), strict=True):
        plot_strips(
            axes,
            {
                regime: [
                    finite_mean(values(runs["run"], analysis.REGIMES[regime], theta)) for runs in results.runs.values()
                ]
                for regime in analysis.REGIMES
            },
            list(figures.COLOURS.values()),
        )
    panels[0].set(
        title="Share of the step along the sharpest direction",
        xlim=(-0.05, 1.05),
        xlabel=r"mean of $\cos^2(g_t, v)$ over the steps of a regime (no unit)",
    )
    panels[1].axvline(1, color=figures.INK, linewidth=0.9, linestyle=(0, (5, 3)))
    panels[1].set(
        title="Curvature along the step over the largest there is",
        xlabel=r"mean of $K_t\,/\,$sharpness over the steps of a regime (no unit)",
    )


def draw_curvatures(axes: Axes, run: TrainingRun, theta: float) -> None:
    """K_t, the sharpness and 2 / eta against step."""
    eta, step = run.configuration.lr, run.trace.step[: run.end]
    along, sharp = curvature(run), run.trace.sharpness[: run.end]
    axes.set(
        title="Curvature along the step, $K_t$, and the largest of all directions, the sharpness",
        xlabel="optimiser step $t$",
        ylabel="curvature (1/unit of $\\eta$)",
    )
    if not np.isfinite(along).any():
        note_missing(axes, "too short: no step with a measured successor", "x")
        return
    figures.plot_shade(axes, run.trace, theta)
    measured = np.isfinite(sharp)
    top = 1.6 * max(2 / eta, float(np.median(sharp[measured])) if measured.any() else 0.0)
    top = max(
        [top, *(1.1 * sharp[measured & (sharp < 2 * top)])]
    )  # its peaks too, but not those of a run that diverges
    axes.plot(step, along, ".", color=figures.LINE, markersize=3.5, label="$K_t$, from the trace alone")
    axes.plot(
        step[measured],
        sharp[measured],
        "-",
        marker="D",
        color="#CC79A7",
        markersize=4,
        linewidth=1.0,
        label=f"sharpness, every {run.configuration.sharpness_every} steps",
    )
    axes.axhline(2 / eta, color=figures.INK, linewidth=0.9, linestyle=(0, (5, 3)))
    axes.annotate(
        f"$2/\\eta = {2 / eta:.3g}$:\nedge of stability",
        (1, 2 / eta),
        xytext=(5, 0),
        va="center",
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=8,
    )
    n_outside = int(np.count_nonzero(along > top) + np.count_nonzero(along < -0.1 * top))
    axes.set_ylim(-0.1 * top, top)
    axes.legend(loc="upper left", title=f"{n_outside} values of $K_t$ lie outside" if n_outside else None)


FIGURE = Reproduction(
    name="b1_edge_of_stability",
    title="Zigzag at the edge of stability: how much of a step lies along the sharpest direction",
    claims=(),
    statement="In zigzag at least half of a step, by its squared length, lies along the sharpest direction",
    statistic="mean over zigzag steps of cos² between the gradient and the Hessian's top eigenvector",
    threshold=0.5,
    plan=plan,
    measure=measure,
    draw=draw,
    size=(10.0, 9.0),
    notes=(
        "The edge of stability (Cohen et al., 2021) is where the sharpness reaches 2/η; there the sharpest direction "
        "flips its sign every step. In zigzag K_t is 2/η by its label, so that the lower right panel shows how near "
        "the sharpness stays to 2/η. K_t is a mean of the curvature over the step (a secant), the sharpness is that of "
        "its start: the ratio can exceed 1 where the curvature grows along the step. Step t counts as zigzag where "
        "gradient t+1 is labelled so, since that is the gradient at the end of step t."
    ),
)

"""P3: all pairs of gradients in a window: a block of +1 where training is smooth, a checkerboard in zigzag.

Of each regime the window of 16 steps with most of them in that regime is taken, and C_ij, the correlations of all its
gradients, are averaged off the diagonal: as they are in the smooth window, with the sign (-1)^(i - j) of a checkerboard
in the zigzag one. The statistic of a seed is the smaller of the two means: 1 for a perfect pair. The windows are chosen
by the correlation of neighbours alone, and gradients that remember nothing but their neighbour, at 0.9, would give 0.59
(the mean of 0.9^|i - j|): the threshold lies above that. Below, the same for all pairs of steps of the first seed's
run: exact, since every gradient is kept, and estimated from sketches of 4,096 numbers a step, with the estimate's error
over the standard error predicted for it.

    python -m reproductions p3
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.patches import Rectangle

from fastgeom import analysis, figures
from reproductions.common.configuration import Configuration
from reproductions.common.reproduction import Reproduction, Results, Runs
from reproductions.common.request import Effort
from reproductions.common.runs import TrainingRun
from reproductions.common.settings import reference
from reproductions.common.spread import note_missing

SIZE = 16
"""Steps in a window."""

NUMBERS = 4096
"""Numbers of a stored sketch."""

LEAST_ERROR = 1e-4
"""Pairs whose predicted error is below this are left out: there the rounding of stored numbers to float32 shows."""


def plan(effort: Effort, seed: int) -> dict[str, Configuration]:
    """One run a seed, every gradient compared with every other; with the networks of --full with the last 32."""
    shared = reference(effort, seed, "mlp")
    window = shared.window if effort == "full" else shared.steps - 1
    return {"run": replace(shared, window=window, sketch=NUMBERS)}


def densest(run: TrainingRun, regime: str, theta: float) -> tuple[int, int] | None:
    """First step of the regime's window and the step after it; None where a run has none."""
    return analysis.densest_window(run.labels(theta), analysis.REGIMES[regime], SIZE)


def order(run: TrainingRun, regime: str, theta: float) -> float:
    """Mean correlation off the diagonal of a regime's window, signed as a checkerboard for zigzag; NaN without one."""
    window = densest(run, regime, theta)
    if window is None:
        return math.nan
    trace = run.trace
    cosine = analysis.window_cosine(trace.lag_dot, trace.grad_sq, window[1] - 1, size=SIZE)
    row, column = np.triu_indices(SIZE, 1)
    sign = (-1.0) ** (row - column) if regime == "zigzag" else 1.0
    return float(np.mean(sign * cosine[row, column]))


def measure(runs: Runs, theta: float) -> float:
    """The smaller mean of the two windows; NaN where a run lacks one of them."""
    means = [order(runs["run"], regime, theta) for regime in ("smooth", "zigzag")]
    return float(np.min(means))


def draw(figure: SubFigure, results: Results) -> None:
    """The first seed's two windows above, all pairs of its run below."""
    run = results.first["run"]
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1))
    figures.plot_windows(above, run.trace, results.theta, size=SIZE)
    exact, sketched, error = below.subplots(1, 3)
    exact.set_title("c   all pairs of steps, exact: above the\n     diagonal even lags, below it odd ones")
    sketched.set_title(f"d   the same from stored sketches:\n     {NUMBERS:,} of {run.n_parameters:,} numbers a step")
    error.set_title("e   error of the sketch")
    if run.end < 4:
        for axes in (exact, sketched, error):
            note_missing(axes, "too short: fewer than four gradients", "both")
        return
    truth = analysis.window_cosine(run.trace.lag_dot, run.trace.grad_sq, run.end - 1, size=run.end)
    estimate = analysis.sketch_cosine(run.sketches.sketch[: run.end])
    for axes, cosine in ((exact, truth), (sketched, estimate.cosine)):
        _draw_folded(axes, cosine)
    for letter, regime in zip("ab", ("smooth", "zigzag"), strict=True):
        _mark(exact, letter, densest(run, regime, results.theta))
    _draw_error(error, estimate, truth)


def _draw_folded(axes: Axes, cosine: np.ndarray) -> None:
    """Map of all pairs, those an even number of steps apart above the diagonal, those an odd number apart below.

    A checkerboard of single steps is finer than the picture's dots; apart, its two colours are smooth surfaces.
    """
    half = len(cosine) // 2
    even, odd = cosine[: 2 * half : 2, : 2 * half : 2], cosine[1 : 2 * half : 2, : 2 * half : 2]
    folded = np.where(np.tri(half, dtype=bool), odd, even)
    extent = (-0.5, 2 * half - 0.5, 2 * half - 0.5, -0.5)
    axes.imshow(folded, cmap=figures.CORRELATION_MAP, vmin=-1, vmax=1, extent=extent, interpolation="nearest")
    axes.set(xlabel="optimiser step $t$", ylabel="optimiser step $s$")


def _draw_error(axes: Axes, estimate: analysis.SketchCosine, truth: np.ndarray) -> None:
    """Histogram of the errors in units of the standard errors predicted, beside the normal curve."""
    pairs = np.triu_indices(len(truth), 1)
    error, predicted = (estimate.cosine - truth)[pairs], estimate.error[pairs]
    is_resolved = np.isfinite(error) & (predicted > LEAST_ERROR)
    if not is_resolved.any():
        note_missing(axes, "all pairs too close to ±1 to err", "both")
        return
    score = error[is_resolved] / predicted[is_resolved]
    bins = np.linspace(-5, 5, 51)
    axes.hist(
        np.clip(score, -5, 5),
        bins,
        density=True,
        color=figures.COLOURS["smooth"],
        label=f"{len(score):,} pairs $s < t$",
    )
    axes.plot(
        bins,
        np.exp(-(bins**2) / 2) / math.sqrt(2 * math.pi),
        color=figures.INK,
        linestyle="--",
        label="standard normal",
    )
    axes.set(xlabel=r"error / predicted, $(\hat c_{st} - c_{st}) / \sigma_{st}$", ylabel="density")
    axes.set_title(
        f"e   error of the sketch: RMS {np.sqrt(np.mean(error[is_resolved] ** 2)):.4f},\n"
        f"     {np.sqrt(np.mean(score**2)):.2f} times the one predicted"
    )
    axes.set_box_aspect(1)
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _mark(axes: Axes, letter: str, window: tuple[int, int] | None) -> None:
    if window is not None:
        start, stop = window
        axes.add_patch(Rectangle((start, start), SIZE, SIZE, fill=False, edgecolor="white", linewidth=1.5))
        box = {"facecolor": "white", "linewidth": 0, "pad": 1}
        axes.annotate(
            letter, (stop, stop), (5, -3), textcoords="offset points", va="top", fontweight="bold", fontsize=8, bbox=box
        )


FIGURE = Reproduction(
    name="p3_windows",
    title="A smooth window is a block of +1, a zigzag window a checkerboard",
    claims=(1,),
    statement="The gradients of a smooth window agree and those of a zigzag window alternate, to 0.8 on average",
    statistic="smaller of the mean of C_ij in the smooth and the mean of (-1)^(i-j) C_ij in the zigzag window",
    threshold=0.8,
    plan=plan,
    measure=measure,
    draw=draw,
    size=(10.0, 9.0),
    notes=(
        f"The windows are those of {SIZE} steps with most of them in the regime. Gradients that are correlated by ±0.9 "
        "with their neighbours and remember nothing else would give 0.59. A checkerboard of single steps is finer than "
        "a picture of a whole run: panels c and d show pairs an even number of steps apart above the diagonal and "
        "pairs an odd number apart below, so that smooth is bright on both sides, and zigzag bright above and dark "
        "below. Where the two sides change places, a stripe away from the diagonal, the alternation has lost its beat: "
        "it keeps it over the window, not over hundreds of steps. For panel c every gradient is kept (with --full the "
        "last 32 are, and what is unknown is white). The pairs of one run share their sketch's random numbers and "
        "their errors hang together: the histogram is no sample of the normal curve, only as wide."
    ),
)

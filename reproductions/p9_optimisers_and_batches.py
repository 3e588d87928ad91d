"""P9: zigzag beyond plain full-batch gradient descent: momentum, Adam, and mini-batches.

A convolutional network is trained on the squared error, full batch, by gradient descent, with momentum 0.9, and by
Adam, each at a constant rate at which it reaches an edge of stability of its own; and by gradient descent on
mini-batches of a half, a tenth and a fiftieth of the examples. The statistic of a seed is the smaller of the zigzag
shares of momentum and of Adam. On mini-batches c_t compares gradients of two batches, so that their noise hides the
landscape: beside it stands the same-batch cosine, of the gradients of one batch before and after the step, and the
halves of each batch say how much of the gradient is noise.

    python -m reproductions p9
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from fastgeom import analysis, figures
from reproductions.common.configuration import Configuration
from reproductions.common.reproduction import Reproduction, Results, Runs
from reproductions.common.request import Effort
from reproductions.common.runs import TrainingRun, regime_share
from reproductions.common.settings import reference
from reproductions.common.spread import note_missing, percent, plot_strips

OPTIMISERS = {"gd": "gradient descent", "momentum": "momentum 0.9", "adam": "Adam"}
RATES = {"gd": 0.3, "momentum": 0.2, "adam": 0.01}
"""Chosen on seeds 0 and 1: the edge of stability is reached in the first half of the run."""

N_EXAMPLES, STEPS = 500, 400
PARTS = (2, 10, 50)
"""A mini-batch is one of so many parts of the examples."""


def plan(effort: Effort, seed: int) -> dict[str, Configuration]:
    """A full-batch run an optimiser, and gradient descent on each size of mini-batch."""
    changes = {"n_examples": N_EXAMPLES, "steps": STEPS} if effort == "default" else {}
    runs = {
        name: reference(effort, seed, "cnn", "digits", loss="mse", optimiser=name, lr=RATES[name], **changes)
        for name in OPTIMISERS
    }
    for parts in PARTS:
        runs[_batch_key(parts)] = reference(
            effort,
            seed,
            "cnn",
            "digits",
            loss="mse",
            lr=RATES["gd"],
            batch=runs["gd"].n_examples // parts,
            batch_probes=True,
            **changes,
        )
    return runs


def measure(runs: Runs, theta: float) -> float:
    """The smaller of the zigzag shares of momentum and of Adam; NaN where one of them is too short."""
    return float(np.min([runs[name].share("zigzag", theta) for name in ("momentum", "adam")]))


def draw(figure: SubFigure, results: Results) -> None:
    """c_t of the optimisers and of the mini-batches, first seed; below, the shares and the noise of every seed."""
    left, right = figure.subfigures(1, 2, width_ratios=(5, 4))
    upper, lower = (part.subfigures(2, 1, height_ratios=(3, 1)) for part in (left, right))
    panels = upper[0].subplots(len(OPTIMISERS), 1, sharex=True)
    for axes, (name, label) in zip(panels, OPTIMISERS.items(), strict=True):
        run = results.first[name]
        figures.plot_adjacent_cosine(axes, run.trace, results.theta)
        axes.set(
            title=f"{label}, full batch, η = {run.configuration.lr:.3g}: "
            f"{percent(run.share('zigzag', results.theta))} zigzag",
            xlabel="",
        )
    panels[-1].set_xlabel("optimiser step $t$")
    axes = upper[1].subplots()
    plot_strips(
        axes,
        {
            label: [runs[name].share("zigzag", results.theta) for runs in results.runs.values()]
            for name, label in OPTIMISERS.items()
        },
    )
    axes.set(title="Full batch, every seed and the mean", xlabel="share of zigzag steps")

    panels = lower[0].subplots(len(PARTS), 1, sharex=True)
    for axes, parts in zip(panels, PARTS, strict=True):
        draw_batches(axes, results.first[_batch_key(parts)], results.theta)
    panels[-1].set_xlabel("cosine of two gradients (no unit)")
    axes = lower[1].subplots()
    plot_strips(
        axes,
        {
            f"batches of {results.first[_batch_key(parts)].configuration.batch}": [
                lost_share(runs[_batch_key(parts)]) for runs in results.runs.values()
            ]
            for parts in PARTS
        },
    )
    axes.set(title="Share of $c_t$ lost in the batches' noise", xlabel=r"$1 - \sqrt{(1-\nu_t)(1-\nu_{t-1})}$ (no unit)")


def draw_batches(axes: Axes, run: TrainingRun, theta: float) -> None:
    """The distribution of c_t of a mini-batch run beside that of its same-batch cosine."""
    batch, same = run.configuration.batch, run.trace.same_batch_cosine[: run.end]
    axes.set(xlim=(-1.04, 1.04), ylabel="share of steps")
    if np.count_nonzero(np.isfinite(same)) < 2:
        axes.set_title(f"batches of {batch}, η = {run.configuration.lr:.3g}")
        note_missing(axes, "too short: no two adjacent steps measured", "x")
        return
    bins = np.linspace(-1, 1, 41)
    series = (
        (run.cosine, "$c_t$: two batches", {"color": "#B9D9EC", "histtype": "stepfilled"}),
        (same, "same batch, before and after", {"color": figures.COLOURS["zigzag"], "histtype": "step"}),
    )
    for values, label, style in series:
        measured = np.clip(values[np.isfinite(values)], -1, 1)
        axes.hist(
            measured, bins, weights=np.full(len(measured), 1 / len(measured)), label=label, linewidth=1.3, **style
        )
    for bound in (-theta, theta):
        axes.axvline(bound, color=figures.INK, linewidth=0.9, linestyle=(0, (5, 3)))
    axes.set_title(
        f"batches of {batch}, η = {run.configuration.lr:.3g}: {percent(run.share('zigzag', theta))} zigzag, "
        f"same batch {percent(regime_share(same, 'zigzag', theta))}"
    )
    axes.set_ylim(0, 1.45 * axes.get_ylim()[1])  # room for the legend
    axes.legend(loc="upper center", ncols=2)


def lost_share(run: TrainingRun) -> float:
    """Share of the cosine of adjacent gradients that noise takes, from the noise's share over all steps together."""
    c = run.configuration
    measured = np.isfinite(run.trace.half_dot[: run.end])
    half_dot, grad_sq = (values[: run.end][measured].sum() for values in (run.trace.half_dot, run.trace.grad_sq))
    share = analysis.noise_share(half_dot, grad_sq, c.batch / c.n_examples)
    remaining = float(analysis.cosine_attenuation(share, share))
    return 1 - remaining if np.isfinite(remaining) else (1.0 if share >= 1 else float("nan"))


def _batch_key(parts: int) -> str:
    return f"batch 1/{parts}"


FIGURE = Reproduction(
    name="p9_optimisers_and_batches",
    title="Optimisers and batches: whose gradients zigzag",
    claims=(),
    statement="Momentum and Adam, full batch, each spend at least 5 % of their steps in zigzag",
    statistic="smaller of the zigzag shares of momentum and of Adam",
    threshold=0.05,
    plan=plan,
    measure=measure,
    draw=draw,
    size=(11.5, 11.0),
    notes=(
        "Each optimiser's rate was chosen on pilot seeds so that it reaches an edge of its own: there is such a "
        "rate, but not every rate has it. Squared error, because with cross-entropy the curvature falls with the "
        "loss, which momentum and Adam bring to nearly nothing within the run: on pilot seeds neither zigzagged. "
        "Each epoch cuts the examples into mini-batches anew, so that batches of one epoch exclude each other: two "
        "batches that are the two halves of the data have exactly opposite noises, which pushes c_t below zero "
        "without any geometry. The same-batch cosine has no such part. The noise share ν, about the gradient of "
        "all examples, comes from the halves of each batch, over all steps together; the share lost of c_t takes the "
        "noises of two batches as independent, which holds the better the smaller they are."
    ),
)

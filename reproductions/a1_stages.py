"""A1: networks of different architectures oscillate in different stages of training.

Four networks are trained on the same images with the same loss, rate and number of steps, so that the architecture is
all that differs. A step oscillates where the gradient turns against the one before, c_t < 0. Training is cut into ten
stages of equally many steps, and the share of oscillating steps in each is averaged over seeds. For the verdict, a
run's oscillation has one time: the mean of t / T over its oscillating steps, 0 at the beginning and 1 at the end of
training. Times of single runs differ by chance alone, and so their spread says nothing; what counts is the spread on
which two initialisations agree. Each architecture is trained twice, and

    s = sign(C) sqrt(abs(C)),  C = 1 / (A - 1)  sum over architectures a  (x_a - mean x) (y_a - mean y)

with x_a and y_a an architecture's times in its two runs. Where the architecture decides the time, s is the standard
deviation between architectures; where chance does, s is around 0, of either sign.

    python -m reproductions a1
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from matplotlib.figure import SubFigure

from fastgeom import figures
from reproductions.common.configuration import Configuration
from reproductions.common.reproduction import Reproduction, Results, Runs
from reproductions.common.request import Effort
from reproductions.common.runs import TrainingRun
from reproductions.common.settings import reference
from reproductions.common.spread import finite_mean, note_missing

STAGES = 10
LEAST_STEPS = 10
"""Oscillating steps that a run must have for its oscillation to have a time."""

LEAST_ARCHITECTURES = 2

AGAIN = 100
"""What is added to the seed of an architecture's second run."""

NETWORKS: dict[Effort, tuple[str, ...]] = {
    "quick": ("cnn", "mlp", "resnet"),
    "default": ("cnn", "vgg", "resnet", "plain"),
    "full": ("vgg11", "resnet18"),
}
UNREACHED = "#DCEEF9"


def plan(effort: Effort, seed: int) -> dict[str, Configuration]:
    """Two runs of each architecture, all else as the shared run of the CNN on the 8x8 digits."""
    shared = reference(effort, seed, "cnn", "digits")
    first = {f"{name} on {shared.data}": replace(shared, network=name) for name in NETWORKS[effort]}
    return first | {f"{key}, again": replace(c, seed=seed + AGAIN) for key, c in first.items()}


def stage_shares(run: TrainingRun) -> np.ndarray:
    """Share of oscillating steps in each tenth of the planned steps, shape (stage,); NaN where not one was reached.

    All NaN where a run, planned or until it diverged, has fewer steps than there are stages.
    """
    if run.end < STAGES:
        return np.full(STAGES, np.nan)
    oscillates = run.cosine < 0
    edges = np.linspace(0, run.configuration.steps, STAGES + 1).astype(int)
    tenths = [oscillates[start:stop] for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    return np.asarray([tenth.mean() if len(tenth) else np.nan for tenth in tenths])


def mean_time(run: TrainingRun) -> float:
    """Mean of t / T over the oscillating steps; NaN where there are fewer than ten."""
    steps = np.flatnonzero(run.cosine < 0)
    if len(steps) < LEAST_STEPS:
        return math.nan
    return float(steps.mean() / run.configuration.steps)


def measure(runs: Runs, theta: float) -> float:
    """Spread between architectures that both initialisations agree on; NaN where fewer than two have both times."""
    pairs = [(mean_time(run), mean_time(runs[f"{key}, again"])) for key, run in runs.items() if f"{key}, again" in runs]
    times = np.asarray([pair for pair in pairs if np.isfinite(pair).all()])
    if len(times) < LEAST_ARCHITECTURES:
        return math.nan
    covariance = float(np.cov(times.T)[0, 1])
    return math.copysign(math.sqrt(abs(covariance)), covariance)


def draw(figure: SubFigure, results: Results) -> None:
    """The map of shares averaged over seeds, and each run's mean time of its oscillating steps beside it."""
    names = [key for key in results.first if not key.endswith(", again")]
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    shares = np.asarray([finite_mean([stage_shares(runs[name]) for runs in results.runs.values()]) for name in names])
    image = left.imshow(shares, cmap="Greys", vmin=0, vmax=1, aspect="auto", extent=(0, 1, len(names) - 0.5, -0.5))
    left.set_facecolor(UNREACHED)
    if not np.isfinite(shares).any():
        note_missing(left, f"too short: no run of {STAGES} steps")
    for (row, stage), share in np.ndenumerate(shares):
        if share >= 0.005:
            left.text(
                (stage + 0.5) / STAGES,
                row,
                f"{share:.0%}",
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if share > 0.5 else figures.INK,
            )
    left.set_yticks(range(len(names)), names)
    left.set(
        xlabel="training stage, $t/T$", title="Share of oscillating steps, $c_t < 0$, in each tenth, mean over seeds"
    )
    figure.colorbar(image, ax=left, label="share of oscillating steps", location="bottom", shrink=0.6)

    if not any(np.isfinite(mean_time(run)) for runs in results.runs.values() for run in runs.values()):
        note_missing(right, f"no run with {LEAST_STEPS} oscillating steps")
    for number, runs in enumerate(results.runs.values()):
        shift = (number + 1) / (len(results.runs) + 1) - 0.5
        style = figures.CYCLE[number % len(figures.CYCLE)]
        for key, fill in ("{}", style["color"]), ("{}, again", "none"):
            times = [mean_time(runs[key.format(name)]) for name in names]
            right.plot(
                times,
                np.arange(len(names)) + 0.5 * shift,
                linestyle="",
                marker=style["marker"],
                color=style["color"],
                markerfacecolor=fill,
                markersize=5,
            )
    right.set(
        xlim=(0, 1),
        ylim=(len(names) - 0.5, -0.5),
        xlabel="mean $t/T$ of the oscillating steps",
        title="When: filled and empty, a seed's two runs",
    )
    right.set_yticks(range(len(names)), [""] * len(names))
    right.grid(axis="y", color="#E5E5E5")


FIGURE = Reproduction(
    name="a1_stages",
    title="Oscillation by training stage and architecture",
    claims=(4,),
    statement="When a network oscillates depends on its architecture, by at least 5 % of the training",
    statistic="standard deviation between architectures of the mean t/T where c_t < 0, shared by two runs of each",
    threshold=0.05,
    plan=plan,
    measure=measure,
    draw=draw,
    size=(10.0, 4.5),
    notes=(
        "The square root of the covariance, between two initialisations, of the architectures' mean times, with its "
        "sign: around 0 where times differ by chance only. An architecture counts where it has "
        f"{LEAST_STEPS} oscillating steps in both runs. One rate for all is a choice too: at its own best rate each "
        "would oscillate at another time, and by our trials the loss and the number of examples move the time of one "
        "architecture by as much as the architecture does."
    ),
)

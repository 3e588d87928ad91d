"""Scale sweeps at chosen points of a finished run: the gradient along minus the gradient, near and far."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

import fastgeom
from fastgeom import analysis
from reproductions.common.checkpoints import checkpoints_in_longest_stretch, set_parameters
from reproductions.common.configuration import Configuration
from reproductions.common.data import load
from reproductions.common.descent import add_full_batch_gradient
from reproductions.common.models import build
from reproductions.common.runs import TrainingRun, find
from reproductions.common.training import one_thread

SCALES = np.logspace(-3, 2, 26)
"""In units of the learning rate: five a decade."""

POINTS = 3
"""At most so many of each regime."""


@dataclass(frozen=True)
class Point:
    """A sweep at one point of a run.

    Attributes:
        step: of the point.
        regime: ``"smooth"`` or ``"zigzag"``.
        cosine: cos(g(x), g(x - s g)), shape (scale,).
        curvature: along g, at the smallest scale that float32 resolves well (a hundredth of the learning rate).
        crossing: first scale at which the cosine crosses zero, in units of the learning rate; inf where it does
            not.
    """

    step: int
    regime: str
    cosine: np.ndarray
    curvature: float
    crossing: float


def sweeps(run: TrainingRun, theta: float) -> tuple[Point, ...]:
    """Sweep at points of a run with checkpoints; made once for each run and threshold."""
    return _sweeps(run.configuration, run.folder, theta)


def choose(labels: np.ndarray, checkpoint_steps: np.ndarray) -> list[tuple[int, int, str]]:
    """Choose checkpoints to sweep at.

    Smooth ones are spread over the longest smooth stretch that has any, zigzag ones over all zigzag stretches, which
    can be short. A step counts where its label and the next one's are of the regime.

    Args:
        labels: regime of every step, shape (step,).
        checkpoint_steps: step of every checkpoint, shape (checkpoint,).

    Returns:
        Index of the checkpoint, its step and its regime, for each.
    """
    labels_of_both = np.where(labels[1:] == labels[:-1], labels[1:], analysis.MIXED)
    smooth = checkpoints_in_longest_stretch(labels_of_both, analysis.SMOOTH, checkpoint_steps)
    zigzag = np.flatnonzero(np.isin(checkpoint_steps, np.flatnonzero(labels_of_both == analysis.ZIGZAG)))
    choices = []
    for regime, candidates in (("smooth", smooth), ("zigzag", zigzag)):
        n_points = min(POINTS, len(candidates))
        # the middles of as many equal parts as there are points
        indices = ((np.arange(n_points) + 0.5) / max(1, n_points) * len(candidates)).astype(int)
        choices += [(int(k), int(checkpoint_steps[k]), regime) for k in candidates[indices]]
    return choices


def first_crossing(scales: np.ndarray, cosine: np.ndarray) -> float:
    """Find the scale at which the cosine first falls below 0, interpolated over the logarithm of the scale.

    Args:
        scales: increasing, shape (scale,).
        cosine: shape (scale,).

    Returns:
        That scale; the smallest one where the cosine is below 0 there already, inf where it never is.
    """
    below = np.flatnonzero(cosine < 0)
    if not len(below):
        return float("inf")
    after = int(below[0])
    if after == 0 or not np.isfinite(cosine[after - 1]):
        return float(scales[after])
    before = after - 1
    fraction = cosine[before] / (cosine[before] - cosine[after])
    return float(scales[before] * (scales[after] / scales[before]) ** fraction)


@functools.cache
def _sweeps(configuration: Configuration, folder: Path, theta: float) -> tuple[Point, ...]:
    run = find(configuration, folder)
    assert run is not None
    points = choose(run.labels(theta), run.arrays["checkpoint_steps"])
    if not points:
        return ()
    examples = load(configuration.data, configuration.n_examples).to(configuration.device)
    model = build(configuration.network, examples, configuration.seed).to(configuration.device)

    def closure() -> Tensor:
        model.zero_grad()
        return add_full_batch_gradient(model, examples, configuration.loss, configuration.micro_batch)

    results = []
    with one_thread():
        for number, step, regime in tqdm(points, unit=" points", desc=f"sweeps, {configuration.title}", leave=False):
            set_parameters(model, run.arrays["checkpoints"][number])
            sweep = fastgeom.scale_sweep(closure, model.parameters(), configuration.lr * SCALES)
            cosine, curvature = sweep.cosine.cpu().numpy(), sweep.curvature.cpu().numpy()
            small_scale = int(np.argmin(abs(SCALES - 0.01)))
            crossing = first_crossing(SCALES, cosine)
            results.append(Point(step, regime, cosine, float(curvature[small_scale]), crossing))
    return tuple(results)

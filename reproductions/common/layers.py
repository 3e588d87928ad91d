"""Oscillation of each layer: maps of a run, and shares over the seeds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import SubFigure

from fastgeom import figures
from reproductions.common.configuration import Configuration
from reproductions.common.reproduction import Results
from reproductions.common.request import Effort
from reproductions.common.runs import TrainingRun
from reproductions.common.settings import reference
from reproductions.common.shares import oscillating_share
from reproductions.common.spread import finite_mean, note_missing


def layer_plan(effort: Effort, seed: int, rates: Mapping[str, tuple[float, int]]) -> dict[str, Configuration]:
    """One run a network, at its rate and for its number of steps, named "network on data set"."""
    configurations = [
        reference(effort, seed, network, lr=rate, steps=steps) for network, (rate, steps) in rates.items()
    ]
    return {f"{c.network} on {c.data}": c for c in configurations}


def layer_oscillation(run: TrainingRun) -> np.ndarray:
    """Share of oscillating steps of every layer, by its own c_t, shape (layer,); NaN where none is finite."""
    return np.asarray([oscillating_share(cosine) for cosine in run.layer_cosine.T])


def draw_layers(figure: SubFigure, results: Results) -> None:
    """One row a network: the first seed's map of layers and steps, and every layer's oscillation over the seeds."""
    networks = list(results.first)
    heights = [2 + len(run.trace.layers) for run in results.first.values()]
    panels = figure.subplots(len(networks), 2, width_ratios=(3, 1), height_ratios=heights, squeeze=False)
    for (left, right), (name, run) in zip(panels, results.first.items(), strict=True):
        figures.plot_layer_cosines(left, run.trace)
        if run.end < 2:
            left.set_xticks([])
        left.set_title(f"{name}, η = {run.configuration.lr:.3g}: $c_t$ of each layer, the input's on top")
        shares = np.stack([layer_oscillation(runs[name]) for runs in results.runs.values()])
        positions = np.arange(shares.shape[1])
        right.barh(positions, np.nan_to_num(finite_mean(shares)), color=figures.COLOURS["zigzag"], height=0.6)
        for values in shares:
            right.plot(values, positions, "o", color=figures.INK, markersize=2.5)
        right.set(xlim=(0, 1), ylim=(len(positions) - 0.5, -0.5), yticks=[], title="oscillating, $c_t < 0$")
        if not np.isfinite(shares).any():
            note_missing(right, "too short")
    for axes in panels[:-1, 0]:
        axes.set_xlabel("")
    panels[-1, 1].set_xlabel("share of the steps\n(bar: mean, dots: seeds)")
    figures.plot_correlation_bar(figure, panels)

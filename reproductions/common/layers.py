"""Layer by layer: which of them oscillate, as maps of a run and as shares over the seeds."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import SubFigure

from fastgeom import analysis, figures
from reproductions.common.configuration import Configuration
from reproductions.common.reproduction import Effort, Results
from reproductions.common.runs import Run
from reproductions.common.settings import reference
from reproductions.common.spread import known_mean, say

NETWORKS = {"quick": ("cnn", "mlp"), "default": ("cnn", "mlp", "resnet", "vgg"), "full": ("vgg", "resnet")}
"""The networks whose layers are compared, at every effort."""


def layer_plan(effort: Effort, seed: int, rate: str) -> dict[str, Configuration]:
    """One run a network, at the large or at the small rate, named "network on data set"."""
    chosen = [reference(effort, seed, network, rate=rate) for network in NETWORKS[effort]]
    return {f"{c.network} on {c.data}": c for c in chosen}


def layer_zigzag(run: Run, theta: float) -> np.ndarray:
    """Share of zigzag steps of every layer by its own c_t, shape (layer,); NaN where fewer than two steps are known."""
    shares = []
    for cosine in run.layer_cosine.T:
        known = np.isfinite(cosine)
        labels = analysis.classify(cosine, theta)[known]
        shares.append(float(np.mean(labels == analysis.ZIGZAG)) if len(labels) > 1 else np.nan)
    return np.asarray(shares)


def draw_layers(figure: SubFigure, results: Results) -> None:
    """One row a network: the first seed's map of layers and steps, and every layer's share of zigzag over the seeds."""
    networks = list(results.first)
    heights = [2 + len(run.trace.layers) for run in results.first.values()]
    panels = figure.subplots(len(networks), 2, width_ratios=(3, 1), height_ratios=heights, squeeze=False)
    for (left, right), (name, run) in zip(panels, results.first.items(), strict=True):
        figures.plot_layer_cosines(left, run.trace)
        if run.end < 2:
            left.set_xticks([])
        left.set_title(f"{name}, η = {run.configuration.lr:.3g}: adjacent correlation $c_t$ of each layer")
        shares = np.stack([layer_zigzag(runs[name], results.theta) for runs in results.runs.values()])
        places = np.arange(shares.shape[1])
        right.barh(places, np.nan_to_num(known_mean(shares)), color=figures.COLOURS["zigzag"], height=0.6)
        for values in shares:
            right.plot(values, places, "o", color=figures.INK, markersize=2.5)
        right.set(xlim=(0, 1), ylim=(len(places) - 0.5, -0.5), yticks=[], title="zigzag steps")
        if not np.isfinite(shares).any():
            say(right, "too short")
    for axes in panels[:-1, 0]:
        axes.set_xlabel("")
    panels[-1, 1].set_xlabel("share of the steps\n(bar: mean, dots: seeds)")
    figures.plot_correlation_bar(figure, panels)

"""The panels, each on axes of the caller's: for figures that put several runs or several views side by side.

They draw; they make no figure and change nothing global. ``matplotlib.rc_context(STYLE)`` around the making of the axes
gives them the look of the whole figures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from numpy.typing import ArrayLike

from fastgeom import analysis
from fastgeom.figures.panels import (
    correlation_bar,
    correlation_image,
    correlation_panel,
    cosine_panel,
    explain_missing,
    geometry_panels,
    kappa_panel,
    loss_panel,
    mark_divergence,
    shade,
    window_panels,
)
from fastgeom.figures.view import GeometryTrace, RunSeries, end_of, find_windows

CYCLE = (
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    {"color": "#1A1A1A", "linestyle": "-.", "marker": "^"},
    {"color": "#CC79A7", "linestyle": ":", "marker": "D"},
    {"color": "#009E73", "linestyle": (0, (5, 1)), "marker": "v"},
    {"color": "#B58900", "linestyle": (0, (3, 1, 1, 1)), "marker": "P"},
    {"color": "#56B4E9", "linestyle": (0, (1, 1)), "marker": "X"},
)
"""Lines of several kinds: hue (after Okabe and Ito), stroke and marker differ, for colour-blind eyes and grey print."""


def plot_geometry(figure: FigureBase, trace: GeometryTrace, theta: float = 0.9) -> None:
    """Fill a (sub-)figure as ``draw_geometry`` does: loss, adjacent correlation, step curvature, regimes shaded.

    Raises:
        ValueError: ``theta`` outside (0, 1).

    Source: ours.
    """
    geometry_panels(figure, RunSeries.read(trace, theta))


def plot_run(figure: FigureBase, trace: GeometryTrace, theta: float = 0.9, *, size: int | None = None) -> None:
    """Fill a (sub-)figure as ``draw_run`` does: the geometry along the run, and a window of each regime below.

    Raises:
        ValueError: as ``draw_run``.

    Source: ours.
    """
    run = RunSeries.read(trace, theta)
    windows = find_windows(run, trace.lag_dot.shape[1], size)
    rows = figure.add_gridspec(2, 1, height_ratios=(1.6, 1.0))
    geometry_panels(figure.add_subfigure(rows[0]), run, windows)
    window_panels(figure.add_subfigure(rows[1]), trace, windows)


def plot_windows(figure: FigureBase, trace: GeometryTrace, theta: float = 0.9, *, size: int | None = None) -> None:
    """Fill a (sub-)figure as ``draw_windows`` does: the correlations in a smooth and in a zigzag window.

    Raises:
        ValueError: as ``draw_windows``.

    Source: ours.
    """
    run = RunSeries.read(trace, theta)
    window_panels(figure, trace, find_windows(run, trace.lag_dot.shape[1], size))


def plot_loss(axes: Axes, trace: GeometryTrace, theta: float = 0.9) -> None:
    """Draw the loss against step, the regimes shaded, a divergence marked.

    Raises:
        ValueError: ``theta`` outside (0, 1).

    Source: ours.
    """
    _panel(axes, trace, theta, loss_panel)


def plot_adjacent_cosine(axes: Axes, trace: GeometryTrace, theta: float = 0.9) -> None:
    """Draw c_t against step, the regimes shaded, the thresholds as lines, a divergence marked.

    Raises:
        ValueError: ``theta`` outside (0, 1).

    Source: ours, after Morchdi, Zhou, Ding, Wang (2022).
    """
    _panel(axes, trace, theta, cosine_panel)


def plot_step_curvature(axes: Axes, trace: GeometryTrace, theta: float = 0.9) -> None:
    """Draw kappa_t against step, the regimes shaded, with lines at 1 and 2, a divergence marked.

    A dot has the colour of the regime of step t + 1, since kappa_t compares the gradients whose correlation is c_{t+1}.

    Raises:
        ValueError: ``theta`` outside (0, 1).

    Source: ours.
    """
    _panel(axes, trace, theta, kappa_panel)


def plot_layer_cosines(axes: Axes, trace: Any) -> None:
    """Draw the adjacent correlation of every layer as a map, steps to the right, the first layer above.

    Args:
        axes: the axes to draw on.
        trace: what ``fastgeom.open_trace`` returns, or any object with ``step``, ``grad_sq``, ``layers`` and
            ``layer_lag_cosine``; ``loss`` marks a divergence too, where there is one.

    Source: ours, after the layers of Morchdi, Zhou, Ding, Wang (2023).
    """
    end = end_of(trace)
    cosine = trace.layer_lag_cosine[:end, :, 0].T
    axes.set(xlabel="optimiser step $t$")
    axes.set_yticks(range(len(trace.layers)), trace.layers)
    if not np.isfinite(cosine).any():
        explain_missing(axes, "too short: no two adjacent steps measured")
        return
    for stretch in analysis.stretches(trace.step[:end] - np.arange(end)):
        first, last = float(trace.step[stretch.start]), float(trace.step[stretch.stop - 1])
        extent = (first - 0.5, last + 0.5, len(trace.layers) - 0.5, -0.5)
        correlation_image(axes, cosine[:, stretch.start : stretch.stop], extent, "auto")
    axes.set_xlim(float(trace.step[0]) - 0.5, float(trace.step[end - 1]) + 0.5)
    if end < len(trace.step):
        mark_divergence(axes, int(trace.step[end]))


def plot_correlations(axes: Axes, cosine: ArrayLike, first: int = 0) -> None:
    """Draw a matrix of correlations of gradients, the first step at the upper left.

    Args:
        axes: the axes to draw on.
        cosine: correlations, shape (step, step), within [-1, 1]; NaN is left white.
        first: number of the first step.

    Raises:
        ValueError: a matrix that is not square.

    Source: ours.
    """
    matrix = np.asarray(cosine, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"cosine: expected shape (step, step), got {matrix.shape}")
    correlation_panel(axes, matrix, first)


def plot_correlation_bar(figure: FigureBase, panels: Any) -> None:
    """Put the colour bar of the correlation maps beside ``panels``, one Axes or several.

    Source: ours.
    """
    correlation_bar(figure, panels)


def plot_shade(axes: Axes, trace: GeometryTrace, theta: float = 0.9) -> None:
    """Shade smooth and zigzag stretches behind axes over steps that show something else.

    Raises:
        ValueError: ``theta`` outside (0, 1).

    Source: ours.
    """
    shade(axes, RunSeries.read(trace, theta))


def _panel(axes: Axes, trace: GeometryTrace, theta: float, fill: Any) -> None:
    run = RunSeries.read(trace, theta)
    shade(axes, run)
    axes.margins(x=0.01)
    fill(axes, run)
    axes.set_xlabel("optimiser step $t$")
    if run.diverged_at is not None:
        mark_divergence(axes, run.diverged_at)

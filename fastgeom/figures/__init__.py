"""Figures of a run's geometry: regimes along the run, and the window of gradients in each regime.

Every ``draw_`` function takes a trace (or any object with the same arrays as attributes) and returns a matplotlib
figure, made without pyplot, so that nothing global changes; the ``plot_`` functions fill axes or (sub-)figures of the
caller's. What a trace lacks becomes a panel that says so, never an exception.
"""

from fastgeom.figures.draw import STYLE, draw_geometry, draw_run, draw_windows
from fastgeom.figures.panels import COLOURS, CORRELATION_MAP, GREY, INK, LINE
from fastgeom.figures.plots import (
    CYCLE,
    plot_adjacent_cosine,
    plot_correlation_bar,
    plot_correlations,
    plot_geometry,
    plot_layer_cosines,
    plot_loss,
    plot_run,
    plot_shade,
    plot_step_curvature,
    plot_windows,
)
from fastgeom.figures.view import GeometryTrace

__all__ = [
    "COLOURS",
    "CORRELATION_MAP",
    "CYCLE",
    "GREY",
    "INK",
    "LINE",
    "STYLE",
    "GeometryTrace",
    "draw_geometry",
    "draw_run",
    "draw_windows",
    "plot_adjacent_cosine",
    "plot_correlation_bar",
    "plot_correlations",
    "plot_geometry",
    "plot_layer_cosines",
    "plot_loss",
    "plot_run",
    "plot_shade",
    "plot_step_curvature",
    "plot_windows",
]

"""Figures of a run's geometry: regimes along the run, and the window of gradients in each regime.

Every function takes a trace (or any object with the same arrays as attributes) and returns a matplotlib figure, made
without pyplot, so that nothing global changes. What a trace lacks becomes a panel that says so, never an exception.
"""

from fastgeom.figures.draw import draw_geometry, draw_run, draw_windows
from fastgeom.figures.view import GeometryTrace

__all__ = ["GeometryTrace", "draw_geometry", "draw_run", "draw_windows"]

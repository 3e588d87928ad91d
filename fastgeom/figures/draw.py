"""Whole figures: panels arranged, with a title above and a caption below."""

from __future__ import annotations

from typing import Any

import matplotlib
from matplotlib.figure import Figure

from fastgeom.figures.panels import LINE
from fastgeom.figures.plots import plot_geometry, plot_run, plot_windows
from fastgeom.figures.view import GeometryTrace

STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.titlepad": 4.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": False,
    "figure.dpi": 100,
    "hatch.linewidth": 0.4,
    "mathtext.fontset": "dejavusans",
}


def draw_geometry(trace: GeometryTrace, theta: float = 0.9, *, title: str = "", caption: str = "") -> Figure:
    r"""Draw loss, adjacent correlation and step curvature against step, the regimes shaded behind all three.

    Args:
        trace: what ``fastgeom.open_trace`` returns, or any object with ``step``, ``grad_sq``, ``lag_dot`` and
            ``lag_cosine``; ``loss``, ``grad_dot_update`` and ``next_grad_dot_update`` are drawn where there are any.
        theta: threshold of the regimes, 0 < theta < 1.
        title: line above the figure.
        caption: lines below it: what was trained, how, and on what.

    Returns:
        A figure of 10 by 7 inches; ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: ``theta`` outside (0, 1).

    Source: ours, after the two geometries of Morchdi, Zhou, Ding, Wang (2022).

    Example:
        >>> import numpy as np
        >>> from types import SimpleNamespace
        >>> gradient = np.array([1.0, 0.9, 0.8, -0.7, 0.6, -0.5])
        >>> trace = SimpleNamespace(
        ...     step=np.arange(6), loss=gradient**2, grad_sq=gradient**2,
        ...     lag_dot=np.array([[np.nan], *(gradient[1:] * gradient[:-1])[:, None]]),
        ...     lag_cosine=np.array([[np.nan], [1.0], [1.0], [-1.0], [-1.0], [-1.0]]),
        ... )
        >>> [axes.get_ylabel() for axes in draw_geometry(trace).axes]
        ['loss $f_t$', 'correlation $c_t$', 'curvature $\\kappa_t$']
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 7), layout="constrained")
        plot_geometry(figure.add_subfigure(figure.add_gridspec()[0]), trace, theta)
        _write_around(figure, title, caption)
    return figure


def draw_windows(
    trace: GeometryTrace, theta: float = 0.9, *, size: int | None = None, title: str = "", caption: str = ""
) -> Figure:
    """Draw the correlations of all gradients of a window, in a smooth and in a zigzag stretch side by side.

    Smooth training shows a block of +1, zigzag a checkerboard of +1 and -1. Each window is the one with most steps of
    its regime, and its title says how many they are.

    Args:
        trace: as for ``draw_geometry``.
        theta: threshold of the regimes, 0 < theta < 1.
        size: number of steps in a window, at least 2; by default lag + 1, or as many as were measured in a row.
        title: line above the figure.
        caption: lines below it.

    Returns:
        A figure of 10 by 5 inches.

    Raises:
        ValueError: ``theta`` outside (0, 1), or ``size`` below 2.

    Source: ours.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 5), layout="constrained")
        plot_windows(figure, trace, theta, size=size)
        _write_around(figure, title, caption)
    return figure


def draw_run(
    trace: GeometryTrace, theta: float = 0.9, *, size: int | None = None, title: str = "", caption: str = ""
) -> Figure:
    """Draw both in one picture: the geometry along the run above, a window of each regime below, marked above.

    Args:
        trace: as for ``draw_geometry``.
        theta: threshold of the regimes, 0 < theta < 1.
        size: number of steps in a window, as for ``draw_windows``.
        title: line above the figure.
        caption: lines below it.

    Returns:
        A figure of 10 by 11 inches.

    Raises:
        ValueError: as ``draw_windows``.

    Source: ours.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 11), layout="constrained")
        plot_run(figure, trace, theta, size=size)
        _write_around(figure, title, caption)
    return figure


def _write_around(figure: Figure, title: str, caption: str) -> None:
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold")
    if caption:
        figure.supxlabel(caption, fontsize=8.5, color=LINE)

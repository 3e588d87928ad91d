"""The frame around every figure: title, verdict and settings; writing its files."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure, SubFigure

from fastgeom import figures

DPI = 110
INCHES_A_CHARACTER = {9: 0.068, 8: 0.060}
"""Mean width of a character by its size in points, a little too wide rather than too narrow."""


def new_picture(size: tuple[float, float], title: str, verdict: str, caption: str) -> tuple[Figure, SubFigure]:
    """Make a figure with its texts, and the sub-figure for what is drawn.

    Args:
        size: width and height in inches.
        title: bold, above.
        verdict: the claim and its numbers, below the title.
        caption: data, network, optimiser, rate, seeds, below the figure; long lines are broken.
    """
    matplotlib.rcParams.update(figures.STYLE)
    matplotlib.rcParams["svg.hashsalt"] = "fastgeom"
    matplotlib.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    body = figure.add_subfigure(figure.add_gridspec()[0])
    body.suptitle(_wrap(verdict, size[0], 9), fontsize=9, x=0.01, ha="left")
    figure.supxlabel(_wrap(caption, size[0], 8), fontsize=8, color=figures.LINE, x=0.01, ha="left")
    return figure, body.add_subfigure(body.add_gridspec()[0])


def save_picture(figure: Figure, stem: Path) -> Path:
    """Write ``<stem>.png`` and ``<stem>.svg``, and return the path of the first.

    Both bear no date: the same runs give the same picture, to the rounding of matplotlib's layout.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    path = stem.with_suffix(".png")
    layout = figure.get_layout_engine()
    assert layout is not None
    layout.execute(figure)
    figure.set_layout_engine("none")  # one layout serves both files; each would compute it again
    figure.savefig(path)
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
    return path


def _wrap(text: str, inches: float, points: int) -> str:
    characters = int(inches / INCHES_A_CHARACTER[points])
    return "\n".join(line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, characters) or [""])

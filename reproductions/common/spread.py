"""Statistics of several seeds on one panel: their mean, each seed, and a note where there is no value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from fastgeom import figures

TOO_SHORT = "too short: no run has a value"


def finite_mean(values: ArrayLike) -> Any:
    """Mean of the finite values over the first axis; NaN where there is none."""
    array = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(array)
    count = finite.sum(axis=0)
    return np.where(count > 0, np.where(finite, array, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)[()]


def finite_median(values: ArrayLike) -> float:
    """Median of the finite values; NaN where there is none."""
    array = np.asarray(values, dtype=np.float64)
    finite = array[np.isfinite(array)]
    return float(np.median(finite)) if finite.size else float("nan")


def percent(share: float) -> str:
    """Format a share for a title."""
    return f"{share:.0%}" if np.isfinite(share) else "unknown share"


def plot_seeds(
    axes: Axes,
    x: Sequence[float],
    values: ArrayLike,
    style: Mapping[str, Any],
    *,
    label: str,
    shift: float = 1.0,
    band: bool = True,
) -> bool:
    """Draw the mean over seeds as a line, the range of the seeds as a band and each seed as a point.

    Args:
        axes: the panel drawn on.
        x: positions, shape (n,).
        values: shape (seed, n); NaN is not drawn.
        style: an entry of ``figures.CYCLE``.
        label: of the line.
        shift: the points stand at x times this, so that those of several lines keep apart.
        band: whether the range of the seeds is shaded.

    Returns:
        Whether there was anything to draw.
    """
    array = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(array)
    has_value = finite.any(axis=0)
    if not has_value.any():
        return False
    positions, means = np.asarray(x, dtype=np.float64), finite_mean(array)[has_value]
    low = np.where(finite, array, np.inf).min(axis=0)[has_value]
    high = np.where(finite, array, -np.inf).max(axis=0)[has_value]
    if band:
        axes.fill_between(positions[has_value], low, high, color=style["color"], alpha=0.12, linewidth=0)
    axes.plot(positions[has_value], means, **{**style, "marker": None}, linewidth=1.6, label=label)
    for seed in array:
        axes.plot(
            positions * shift,
            seed,
            color=style["color"],
            marker=style["marker"],
            markersize=3.5,
            linestyle="none",
            markerfacecolor="white",
            markeredgewidth=0.8,
        )
    return True


def plot_strips(
    axes: Axes, groups: Mapping[str, Sequence[float]], colours: Sequence[str] | None = None, middle: str = "mean"
) -> None:
    """Draw one row a group, the first above; the mean or median of the finite values is a bar with its number above.

    Args:
        axes: the panel drawn on; values lie along x.
        groups: name -> one value a seed, NaN where it is unknown. Groups differ in marker and, unless ``colours`` are
            given, in colour as in ``figures.CYCLE``.
        colours: one a group.
        middle: ``"mean"`` or ``"median"``.
    """
    axes.set_ylim(len(groups) - 0.5, -0.75)
    axes.set_yticks(range(len(groups)), list(groups))
    if not np.isfinite(np.concatenate([np.asarray(values, float) for values in groups.values()])).any():
        note_missing(axes, TOO_SHORT, "x")
        return
    for row, values in enumerate(groups.values()):
        finite = np.asarray([value for value in values if np.isfinite(value)])
        if not len(finite):
            axes.text(
                0.5,
                row,
                "no value",
                transform=axes.get_yaxis_transform(),
                ha="center",
                va="center",
                fontsize=8,
                fontstyle="italic",
            )
            continue
        style = figures.CYCLE[row % len(figures.CYCLE)]
        colour = style["color"] if colours is None else colours[row]
        heights = row + np.linspace(-0.15, 0.15, len(finite)) if len(finite) > 1 else [row]
        axes.plot(finite, heights, linestyle="none", color=colour, marker=style["marker"], markersize=5, alpha=0.8)
        bar = float(finite.mean() if middle == "mean" else np.median(finite))
        axes.plot([bar] * 2, [row - 0.28, row + 0.28], color=figures.INK, linewidth=1.6)
        axes.annotate(
            f"{bar:.2f}",
            (bar, row - 0.28),
            xytext=(0, 1),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
        )
    axes.margins(x=0.08)


def note_missing(axes: Axes, text: str, axis: Literal["x", "y", "both"] = "y") -> None:
    """Write why there is nothing to draw; the axis that would show it loses its ticks.

    Args:
        axes: the panel written on.
        text: the reason.
        axis: whose ticks are removed.
    """
    if axis != "y":
        axes.set_xticks([])
    if axis != "x":
        axes.set_yticks([])
    axes.text(
        0.5,
        0.5,
        text,
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=figures.INK,
        fontstyle="italic",
        bbox={"facecolor": "white", "linewidth": 0, "pad": 2},
    )

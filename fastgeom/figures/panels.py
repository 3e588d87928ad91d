"""Draw single panels of a figure on axes of the caller's, in one style."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import FigureBase
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from fastgeom import analysis
from fastgeom.figures.view import FloatArray, GeometryTrace, RunSeries, StepSpan

INK, LINE, GREY = "#1A1A1A", "#404040", "#7A7A7A"
COLOURS = {"smooth": "#0072B2", "mixed": GREY, "zigzag": "#D55E00"}
"""Colour of each regime."""

SHADE = {analysis.SMOOTH: ("#DCEEF9", None, "none"), analysis.ZIGZAG: ("#F6C08E", "/////", "#D9904E")}
"""Fill, hatch and hatch colour: hue for most readers, lightness and hatching for the rest and for grey print."""

CORRELATION_MAP = "cividis"
"""Its lightness rises all the way, so that -1 and +1 differ in grey print too; blue to yellow is safe for most eyes."""

MISSING = "#FFFFFF"
"""Where a map has no value."""

BRACKET = {"arrowstyle": "|-|, widthA=0.3, widthB=0.3", "shrinkA": 0, "shrinkB": 0}

KAPPA_RANGE = (-1.0, 6.0)
"""Largest range drawn of kappa: what lies outside is drawn as a triangle at the border."""


def geometry_panels(figure: FigureBase, run: RunSeries, windows: dict[str, StepSpan | None] | None = None) -> None:
    """Draw loss, adjacent correlation and step curvature on one step axis, regimes shaded, ``windows`` marked a, b."""
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    for axes in (top, middle, bottom):
        shade(axes, run)
        axes.margins(x=0.01)
    loss_panel(top, run)
    if run.diverged_at is not None:
        mark_divergence(top, run.diverged_at)
    cosine_panel(middle, run)
    kappa_panel(bottom, run)
    bottom.set_xlabel("optimiser step $t$")
    if not len(run.step):
        bottom.set_xticks([])
    for letter, window in zip("ab", (windows or {}).values(), strict=False):
        if window is not None:
            _bracket(middle, letter, window)
    counts = analysis.regime_counts(run.labels)
    rule = {"smooth": rf"$c_t > {run.theta:g}$", "mixed": "else", "zigzag": rf"$c_t < -{run.theta:g}$"}
    handles = []
    for name, label in analysis.REGIMES.items():
        fill, hatch, edge = SHADE.get(label, ("white", None, GREY))
        share = counts[name] / max(1, len(run.labels))
        text = f"{name} ({rule[name]}): {counts[name]:,} step{'s' * (counts[name] != 1)}, {share:.1%}"
        handles.append(Patch(facecolor=fill, hatch=hatch, edgecolor=edge if edge != "none" else GREY, label=text))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)


def loss_panel(axes: Axes, run: RunSeries) -> None:
    """Draw the loss, on a logarithmic axis where it falls by more than a factor of ten."""
    axes.set(ylabel="loss $f_t$", title="Loss, $f_t$")
    finite = np.zeros(0, np.bool_) if run.loss is None else np.isfinite(run.loss)
    if run.loss is None or not finite.any():
        explain_missing(axes, "no loss in this trace")
        return
    loss = run.loss[finite]
    axes.plot(run.step[finite], loss, color=INK, linewidth=1.2, marker=None if finite.all() else ".", markersize=4)
    if loss.min() > 0 and loss.max() > 10 * loss.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if loss.max() < 50 * loss.min() else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def mark_divergence(axes: Axes, step: int) -> None:
    """Mark the step at which a run diverged, as text on the side that has more room."""
    axes.axvline(step, color=INK, linewidth=1.2, linestyle=":")
    early = step < sum(axes.get_xlim()) / 2
    axes.annotate(
        f"diverged at step {step}",
        (step, 0.96),
        xytext=(4 if early else -4, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="left" if early else "right",
        va="top",
    )


def cosine_panel(axes: Axes, run: RunSeries) -> None:
    """Draw the correlation of adjacent gradients, between the thresholds of the regimes."""
    formula = r"$c_t = \langle g_t, g_{t-1}\rangle \,/\, \|g_t\|\,\|g_{t-1}\|$"
    axes.set(ylabel="correlation $c_t$", title=f"Correlation of adjacent gradients, {formula}")
    axes.set_ylim(-1.1, 1.1)
    if not np.isfinite(run.cosine).any():
        explain_missing(axes, "too short: no two adjacent steps measured")
        return
    _dots(axes, run, run.cosine, run.labels)
    _level(axes, run.theta, rf"$+\theta = {run.theta:g}$")
    _level(axes, -run.theta, rf"$-\theta = -{run.theta:g}$")


def kappa_panel(axes: Axes, run: RunSeries) -> None:
    """Draw the step curvature, in the colour of the label of step t + 1, with lines at 1 and 2."""
    formula = r"$\kappa_t = 1 - \langle g_{t+1}, u_t\rangle \,/\, \langle g_t, u_t\rangle$"
    axes.set(ylabel=r"curvature $\kappa_t$", title=f"Curvature met by the step $u_t$, {formula}")
    if run.kappa is None:
        explain_missing(axes, "no updates in this trace: record them with track_updates=True")
        return
    if not np.isfinite(run.kappa).any():
        explain_missing(axes, "too short: no step with a measured successor")
        return
    low, high = KAPPA_RANGE
    # kappa_t compares the gradients at both ends of its step, as c_{t+1} does
    _dots(axes, run, np.clip(run.kappa, low, high), np.append(run.labels[1:], analysis.MIXED))
    for beyond, edge, marker in ((run.kappa > high, high, "^"), (run.kappa < low, low, "v")):
        axes.plot(run.step[beyond], np.full(np.count_nonzero(beyond), edge), marker, color=INK, markersize=5)
    bottom, top = axes.get_ylim()
    axes.set_ylim(min(bottom, -0.15), max(top, 2.3))
    _level(axes, 1, "$\\kappa = 1$: minimum\nalong the step", side="top")
    _level(axes, 2, "$\\kappa = 2$: edge of\nstability of plain GD", side="bottom")


def window_panels(figure: FigureBase, trace: GeometryTrace, windows: dict[str, StepSpan | None]) -> None:
    """Draw one heat map of correlations for each window, side by side, with one colour bar."""
    panels = figure.subplots(1, 2)
    for axes, letter, (regime, window) in zip(panels, "ab", windows.items(), strict=True):
        if window is None:
            axes.set_title(f"{letter}   {regime} window")
            axes.set_box_aspect(1)
            axes.set_xticks([])
            explain_missing(axes, f"no {regime} stretch in this run")
            continue
        size = window.last - window.first + 1
        cosine = analysis.window_cosine(trace.lag_dot, trace.grad_sq, window.last, size=size, step=trace.step)
        correlation_panel(axes, cosine, window.first)
        axes.set_title(
            f"{letter}   {regime} window: steps {window.first}–{window.last}, {window.n_of_regime} of {size} {regime}"
        )
    correlation_bar(figure, panels)


def correlation_panel(axes: Axes, cosine: FloatArray, first: int) -> None:
    """Draw the correlations of all pairs of steps from ``first`` on, the first at the upper left."""
    low, high = first - 0.5, first + len(cosine) - 0.5
    correlation_image(axes, cosine, (low, high, high, low), "equal")
    axes.set(xlabel="optimiser step $t$", ylabel="optimiser step $s$")


def correlation_image(
    axes: Axes, cosine: FloatArray, extent: tuple[float, float, float, float], aspect: Literal["equal", "auto"]
) -> None:
    """Draw correlations as colours, within ``extent``: left, right, bottom, top."""
    axes.set_facecolor(MISSING)
    axes.imshow(cosine, cmap=CORRELATION_MAP, vmin=-1, vmax=1, extent=extent, interpolation="nearest", aspect=aspect)


def correlation_bar(figure: FigureBase, panels: Any) -> None:
    """Draw the colour bar of correlations beside some panels."""
    colours = ScalarMappable(Normalize(-1, 1), CORRELATION_MAP)
    bar = figure.colorbar(colours, ax=panels, ticks=[-1, -0.5, 0, 0.5, 1], shrink=0.9)
    bar.set_label("correlation: cosine of two gradients (no unit)")


def shade(axes: Axes, run: RunSeries) -> None:
    """Shade the smooth and the zigzag stretches behind a panel over steps."""
    for label, (fill, hatch, edge) in SHADE.items():
        intervals = [
            (float(run.step[stretch.start]) - 0.5, float(run.step[stretch.stop - 1] - run.step[stretch.start]) + 1.0)
            for stretch in analysis.stretches(run.labels)
            if stretch.label == label
        ]
        axes.broken_barh(
            intervals,
            (0, 1),
            transform=axes.get_xaxis_transform(),
            facecolor=fill,
            hatch=hatch,
            edgecolor=edge,
            linewidth=0,
            zorder=0,
        )


def _dots(axes: Axes, run: RunSeries, values: FloatArray, labels: NDArray[np.integer[Any]]) -> None:
    axes.plot(run.step, values, color=LINE, linewidth=0.5, alpha=0.6, zorder=2)
    for regime, colour in COLOURS.items():
        chosen = labels == analysis.REGIMES[regime]
        axes.plot(run.step[chosen], values[chosen], ".", color=colour, markersize=3.5, zorder=3)


def _level(axes: Axes, height: float, text: str, *, side: Literal["top", "center", "bottom"] = "center") -> None:
    """Draw a dashed line with its text right of the axes, aligned by its ``side`` so that neighbours keep apart."""
    axes.axhline(height, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
    offset = {"top": 5, "center": 0, "bottom": -5}[side]
    axes.annotate(
        text,
        (1, height),
        xytext=(5, offset),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va=side,
        fontsize=8,
        color=INK,
    )


def _bracket(axes: Axes, letter: str, window: StepSpan) -> None:
    axes.annotate("", (window.first, 0), (window.last, 0), arrowprops=BRACKET)
    axes.annotate(
        letter,
        ((window.first + window.last) / 2, 0),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=11,
        fontweight="bold",
    )


def explain_missing(axes: Axes, text: str) -> None:
    """Write why there is nothing to draw, and remove the ticks of the vertical axis."""
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=INK, fontstyle="italic")

"""One picture of a run: how near every statistic comes to what the memory of the machine allows.

A statistic that does I multiply-adds for each byte that it must move can do no more than I times the measured peak of
them in a second: the slope. A point below it is a case; the fraction beside its name is that of its own peak, taken
round by round.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from bench.pages.document import DRAWN, Document, Facts, of_kind, picture_cases
from bench.pages.formatting import count, number
from fastgeom.figures import COLOURS, LINE, STYLE

WIDTH = 8.0
BORDERS = 1.75
"""Inches above and below the panel."""

PANEL_LEFT, PANEL_WIDTH = 0.085, 0.895
MARKERS = dict(zip(DRAWN, (("o", COLOURS["smooth"]), ("s", COLOURS["zigzag"])), strict=True))
"""Marker and colour of each dtype that is drawn."""

LABEL_INCHES, INCHES_A_CHARACTER = 0.17, 0.07
"""Height of a label, and the width of a character, a little too wide rather than too narrow."""

LABELS_BELOW = 0.75
"""Of the height of the panel, what is at least below the roof where the labels start."""

FAR = 30
"""A compute roof that no case comes nearer to than this is not drawn."""


def intensity(case: Facts) -> float:
    """Multiply-adds for each byte."""
    return case["operations"] / case["bytes_moved"]


def attained(case: Facts) -> float:
    """1e9 multiply-adds a second."""
    return case["operations"] / case["time_ms"] / 1e6


def draw(document: Document, path: Path) -> None:
    """Write the picture; its ending says in which format. The same document gives the same picture."""
    with matplotlib.rc_context({"svg.hashsalt": "fastgeom", "svg.fonttype": "none"}):
        picture(document).savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {})


def picture(document: Document) -> Figure:
    """The picture.

    Raises:
        ValueError: if there is no case to draw.
    """
    cases = picture_cases(document)
    if not cases:
        raise ValueError("no float32 or bfloat16 case of kind speed says its operations, bytes, time and peak")
    roof = next((roof for roof in of_kind(document, "roof") if roof["gflop_per_s"]), None)
    height = BORDERS + max(3.4, len(cases) * LABEL_INCHES / (LABELS_BELOW - 0.1))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_axes((PANEL_LEFT, 1.2 / height, PANEL_WIDTH, 1 - BORDERS / height))
        figure.text(0.012, 1 - 0.26 / height, f"Roofline: {document['device']['name']}", fontsize=12, weight="bold")
        figure.text(0.012, 0.1 / height, _caption(document, cases), fontsize=8, color=LINE)
        _panel(axes, cases, roof)
    return figure


def _panel(axes: Axes, cases: Sequence[Facts], roof: Facts | None) -> None:
    """Both roofs, and the cases below them."""
    peaks = sorted(case["peak_gb_per_s"] for case in cases)
    slope = peaks[len(peaks) // 2]
    xs, ys = [intensity(case) for case in cases], [attained(case) for case in cases]
    if roof and roof["gflop_per_s"] / 2 > FAR * max(xs) * slope:
        roof = None
    flat = roof["gflop_per_s"] / 2 if roof else math.inf
    longest = INCHES_A_CHARACTER * max(len(_label(case)) for case in cases)
    labels_at = max(0.35, 1 - longest / (WIDTH * PANEL_WIDTH))
    left = min(xs) / 1.6
    right = left * (1.3 * max(xs) / left) ** (1 / labels_at)  # the points end where the labels start
    right = max(right, 4 * flat / slope if roof else right)
    highest = min(left * (right / left) ** labels_at * slope, flat)  # the roof over the start of the labels
    top = 2 * flat if roof else 3 * highest
    bottom = min(min(ys) / 2, (highest / top**LABELS_BELOW) ** (1 / (1 - LABELS_BELOW)))
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, top))
    axes.set_xlabel("multiply-adds for each byte that must move")
    axes.set_title("10⁹ multiply-adds a second", loc="left", x=-PANEL_LEFT / PANEL_WIDTH + 0.014)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_formatter(NullFormatter())

    corner = min(flat / slope, right, top / slope)
    axes.plot([left, corner], [left * slope, corner * slope], color=LINE, linewidth=1.2)
    box = axes.get_window_extent()
    angle = math.degrees(math.atan(box.height / math.log(top / bottom) / (box.width / math.log(right / left))))
    middle = left * (corner / left) ** 0.65  # beyond most points
    beside = {"textcoords": "offset points", "va": "bottom", "color": LINE}
    along = {"rotation": angle, "rotation_mode": "anchor", "ha": "center"}
    axes.annotate(f"measured peak, {_range(peaks)} GB/s", (middle, middle * slope), (-4, 4), **beside, **along)
    if roof:
        axes.plot([corner, right], [flat, flat], color=LINE, linewidth=1.2)
        axes.annotate(f"{roof['what']}: {number(flat)}", (right, flat), (-2, 4), **beside, ha="right")
    _points(axes, cases, labels_at, math.log(highest / bottom) / math.log(top / bottom))


def _points(axes: Axes, cases: Sequence[Facts], labels_at: float, highest: float) -> None:
    """A marker a case, and its name in a column at the right, in the order of their heights.

    ``labels_at`` and ``highest`` say where the column starts and where it meets the roof, of the panel's size.
    """
    to_panel = axes.transData + axes.transAxes.inverted()
    positions = sorted(
        (*reversed(to_panel.transform((intensity(case), attained(case)))), n) for n, case in enumerate(cases)
    )
    gap = LABEL_INCHES * axes.figure.dpi / axes.get_window_extent().height
    heights = spread([y for y, _, _ in positions], gap, 0.6 * gap, highest - 0.8 * gap)
    for (y, x, n), height in zip(positions, heights, strict=True):
        marker, colour = MARKERS[cases[n]["case"]["dtype"]]
        within = {"transform": axes.transAxes, "color": colour}
        axes.plot([x, labels_at - 0.006], [y, height], **within | {"color": "#BBBBBB"}, linewidth=0.6, zorder=1.5)
        axes.plot(x, y, marker, markeredgecolor="white", markersize=7, zorder=3, **within)
        axes.text(labels_at, height, _label(cases[n]), fontsize=8.5, va="center", **within)


def spread(wanted: Sequence[float], gap: float, lowest: float, highest: float) -> list[float]:
    """Heights near the wanted ones, which ascend: ``gap`` apart or more, from ``lowest`` to ``highest`` if they fit."""
    heights: list[float] = []
    for height in wanted:
        heights.append(max(height, heights[-1] + gap if heights else lowest))
    for k in reversed(range(len(heights))):
        heights[k] = min(heights[k], heights[k + 1] - gap if k + 1 < len(heights) else highest)
    return heights


def _label(case: Facts) -> str:
    return f"{case['title']}, {case['case']['dtype']}: {case['fraction_of_peak']:.2f}"


def _caption(document: Document, cases: Sequence[Facts]) -> str:
    sizes = sorted(case["n_elements"] for case in cases)
    n_left = sum(1 for _ in of_kind(document, "speed")) - len(cases)
    text = (
        "Of each statistic, in float32 and in bfloat16, the case that moves the most bytes "
        f"({count(sizes[0])} to {count(sizes[-1])} elements); {n_left} others are in the tables only. Beside each "
        "name: what it reaches of the peak, round by round; the slope is the median of those peaks. Bytes and "
        f"multiply-adds are the fewest that the statistic needs, whoever computes it. {document['date'][:10]}."
    )
    return "\n".join(textwrap.wrap(text, 132))


def _range(peaks: Sequence[float]) -> str:
    low, high = number(peaks[0], 2), number(peaks[-1], 2)
    return low if low == high else f"{low} to {high}"

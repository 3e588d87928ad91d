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

from bench.pages.document import DRAWN, STATISTICS, Document, Facts, of_kind, picture_cases
from bench.pages.formatting import count, number
from fastgeom.figures import INK, LINE, STYLE

MARKERS = dict(zip(DRAWN, "os", strict=True))
COLOURS = dict(zip(STATISTICS, matplotlib.colormaps["tab10"].colors, strict=False))
FAR = 30
"""A compute roof that no case comes nearer to than this is not drawn."""


def intensity(case: Facts) -> float:
    """Multiply-adds for each byte."""
    return case["operations"] / case["bytes_moved"]


def attained(case: Facts) -> float:
    """1e9 multiply-adds a second."""
    return case["operations"] / case["time_ms"] / 1e6


def draw(document: Document, path: Path) -> None:
    """Write the picture as SVG; the same document gives the same picture."""
    with matplotlib.rc_context({"svg.hashsalt": "fastgeom", "svg.fonttype": "none"}):
        picture(document).savefig(path, metadata={"Date": None})


def picture(document: Document) -> Figure:
    """Draw both roofs, the cases below them, and the names of the cases at the right, the highest first."""
    cases = sorted(picture_cases(document), key=attained, reverse=True)
    roof = next((roof["gflop_per_s"] / 2 for roof in of_kind(document, "roof") if roof["gflop_per_s"]), math.inf)
    height = max(4.6, 1.4 + 0.25 * len(cases))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.0, height))
        axes = figure.add_axes((0.065, 1.15 / height, 0.53, 1 - 1.85 / height))
        figure.text(0.012, 1 - 0.26 / height, f"Roofline: {document['device']['name']}", fontsize=12, weight="bold")
        figure.text(0.012, 0.1 / height, _caption(document, cases), fontsize=8, color=LINE)
        _draw_roofs(axes, cases, roof)
        for case in cases:
            statistic, dtype = case["case"]["statistic"], case["case"]["dtype"]
            label = f"{case['title']}, {dtype}: {case['fraction_of_peak']:.2f}"
            style = {"color": COLOURS.get(statistic, INK), "markeredgecolor": "white", "markersize": 8, "zorder": 3}
            axes.plot(intensity(case), attained(case), MARKERS[dtype], label=label, linestyle="", **style)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=8.5, frameon=False, handletextpad=0.2)
    return figure


def _draw_roofs(axes: Axes, cases: Sequence[Facts], roof: float) -> None:
    """The slope of the median peak, and the compute roof where it is near enough."""
    peaks = sorted(case["peak_gb_per_s"] for case in cases)
    slope = peaks[len(peaks) // 2]
    xs, ys = [intensity(case) for case in cases], [attained(case) for case in cases]
    left, right = min(xs) / 2, 2 * max(xs)
    if roof > FAR * max(xs) * slope:
        roof = math.inf
    right = max(right, 2 * roof / slope) if roof < math.inf else right
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(min(ys) / 2, 2 * min(roof, right * slope)))
    axes.set_xlabel("multiply-adds for each byte that must move")
    axes.set_title("10⁹ multiply-adds a second", loc="left")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_formatter(NullFormatter())
    corner = min(roof / slope, right)
    axes.plot([left, corner, right], [left * slope, corner * slope, corner * slope], color=LINE, linewidth=1.2)
    span = " to ".join(dict.fromkeys(number(peak, 2) for peak in (peaks[0], peaks[-1])))
    beside = {"textcoords": "offset points", "ha": "right", "va": "bottom", "color": LINE}
    middle = math.sqrt(left * corner)
    axes.annotate(f"measured peak, {span} GB/s", (middle, middle * slope), (-6, 2), **beside)
    if roof < math.inf:
        axes.annotate(f"compute roof: {number(roof)}", (right, roof), (-2, 4), **beside)


def _caption(document: Document, cases: Sequence[Facts]) -> str:
    sizes = sorted(case["n_elements"] for case in cases)
    n_left = sum(1 for _ in of_kind(document, "speed")) - len(cases)
    text = (
        "Of each statistic, in float32 and in bfloat16, the case that moves the most bytes "
        f"({count(sizes[0])} to {count(sizes[-1])} elements); {n_left} others are in the tables only. Beside each "
        "name: what it reaches of the peak, round by round; the slope is the median of those peaks. Bytes and "
        f"multiply-adds are the fewest that the statistic needs, whoever computes it. {document['date'][:10]}."
    )
    return "\n".join(textwrap.wrap(text, 160))

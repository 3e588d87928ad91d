"""What the geometry of a run says, from its trace alone: numpy in, numpy out, no torch.

>>> import fastgeom
>>> trace = fastgeom.open_trace("run.h5")                                           # doctest: +SKIP
>>> labels = fastgeom.analysis.classify(trace.lag_cosine[:, 0])                     # doctest: +SKIP
>>> fastgeom.analysis.progress_shares(trace.loss, labels, trace.step).net.zigzag    # doctest: +SKIP
"""

from fastgeom.analysis.curvature import directional_curvature, path_smoothness, step_curvature
from fastgeom.analysis.progress import ProgressShares, RegimeShares, progress_shares
from fastgeom.analysis.regimes import (
    MIXED,
    REGIMES,
    SMOOTH,
    THETAS,
    ZIGZAG,
    Run,
    classify,
    regime_counts,
    runs,
    sensitivity,
)
from fastgeom.analysis.window import densest_window, window_cosine, window_gram
from fastgeom.trace.derived import lag_cosine

__all__ = [
    "MIXED",
    "REGIMES",
    "SMOOTH",
    "THETAS",
    "ZIGZAG",
    "ProgressShares",
    "RegimeShares",
    "Run",
    "classify",
    "densest_window",
    "directional_curvature",
    "lag_cosine",
    "path_smoothness",
    "progress_shares",
    "regime_counts",
    "runs",
    "sensitivity",
    "step_curvature",
    "window_cosine",
    "window_gram",
]

"""Shares of a run: of its progress, by the four definitions in the order of the figures, and of its steps."""

from __future__ import annotations

import numpy as np

from fastgeom import analysis
from reproductions.common.runs import TrainingRun

DEFINITIONS = {"net": "net", "gross": "gross", "log_loss": "log-loss", "segment": "segment"}
"""Fields of ``analysis.ProgressShares``, and how a figure calls them."""


def share_table(run: TrainingRun, labels: np.ndarray) -> np.ndarray:
    """Progress of each regime by each definition, shape (definition, regime): smooth, mixed, zigzag."""
    end = run.end
    shares = analysis.progress_shares(run.trace.loss[:end], labels, run.trace.step[:end])
    return np.array([getattr(shares, name) for name in DEFINITIONS])


def oscillating_share(cosine: np.ndarray) -> float:
    """Share of the steps with a finite correlation at which it is negative; NaN without one."""
    measured = cosine[np.isfinite(cosine)]
    return float(np.mean(measured < 0)) if len(measured) else float("nan")

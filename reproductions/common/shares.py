"""Progress shares of a run, by the four definitions in the order of the figures."""

from __future__ import annotations

import numpy as np

from fastgeom import analysis
from reproductions.common.runs import Run

DEFINITIONS = {"net": "net", "gross": "gross", "log_loss": "log-loss", "segment": "segment"}
"""Fields of ``analysis.ProgressShares``, and how a figure calls them."""


def share_table(run: Run, labels: np.ndarray) -> np.ndarray:
    """Progress of each regime by each definition, shape (definition, regime): smooth, mixed, zigzag."""
    end = run.end
    shares = analysis.progress_shares(run.trace.loss[:end], labels, run.trace.step[:end])
    return np.array([getattr(shares, name) for name in DEFINITIONS])

"""Check c_t and the regimes against plain numpy over saved gradients.

A short run keeps every gradient. c_t and the labels are computed from these in float64 with numpy alone, and compared
with ``trace.lag_cosine`` and ``fastgeom.analysis.classify``. The exit status is 1 where they do not agree.

    python -m reproductions check-regimes
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reproductions.common.arguments import OneLineParser, positive_integer, seed_number
from reproductions.common.configuration import Configuration
from reproductions.common.pool import finish
from reproductions.common.runs import RunError, find

PROGRAM = "python -m reproductions check-regimes"
THETA = 0.9
TOLERANCE = 1e-6
"""Of c_t. The trace adds up float32 gradients; rounding leaves a few 1e-8. A label whose c_t lies nearer to the
threshold than this may differ."""


def plain_regimes(gradients: np.ndarray, theta: float = THETA) -> tuple[np.ndarray, np.ndarray]:
    """c_t (step,) and labels (step,): +1 smooth, -1 zigzag, 0 else; regimes last two steps or more."""
    g = gradients.astype(np.float64)
    norm = np.sqrt((g * g).sum(1))
    c = np.full(len(g), np.nan)
    c[1:] = (g[1:] * g[:-1]).sum(1) / (norm[1:] * norm[:-1])
    side = np.where(c > theta, 1, np.where(c < -theta, -1, 0))
    padded = np.concatenate([[0], side, [0]])
    has_neighbour = (padded[1:-1] == padded[:-2]) | (padded[1:-1] == padded[2:])
    return c, np.where(has_neighbour, side, 0)


def compare(cosine: np.ndarray, labels: np.ndarray, gradients: np.ndarray) -> list[str]:
    """List how the library's c_t and labels differ from plain numpy's, a line each; none where they agree."""
    plain_cosine, plain_labels = plain_regimes(gradients)
    differences = []
    if not np.array_equal(np.isnan(cosine), np.isnan(plain_cosine)):
        differences.append("c_t is unknown at different steps")
    elif largest_difference(cosine, plain_cosine) > TOLERANCE:
        differences.append(f"c_t differs by {largest_difference(cosine, plain_cosine):.2g}, more than {TOLERANCE:g}")
    is_near_threshold = np.abs(np.abs(plain_cosine) - THETA) < TOLERANCE
    undecidable = is_near_threshold | np.roll(is_near_threshold, 1) | np.roll(is_near_threshold, -1)
    for step in np.flatnonzero((labels != plain_labels) & ~undecidable):
        differences.append(f"step {step}: label {labels[step]:+d}, plain numpy says {plain_labels[step]:+d}")
    return differences


def largest_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Largest absolute difference where both are finite; 0 where neither is."""
    both = np.isfinite(one) & np.isfinite(other)
    return float(np.max(np.abs(one - other)[both], initial=0.0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, compare, print; the exit status is 0, 1 where the two disagree, 2 for what cannot be used."""
    options = parse(arguments)
    configuration = Configuration(
        data="digits",
        n_examples=300,
        network="cnn",
        lr=0.3,
        steps=options.steps,
        seed=options.seed,
        loss="mse",
        keep_gradients=True,
    )
    try:
        finish([configuration], options.runs, workers=1)
        run = find(configuration, options.runs)
        assert run is not None
        cosine, labels, gradients = run.cosine, run.labels(THETA), run.arrays["gradients"][: run.end]
    except (RunError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    differences = compare(cosine, labels, gradients)
    counts = ", ".join(
        f"{np.count_nonzero(labels == label)} {name}" for name, label in (("smooth", 1), ("mixed", 0), ("zigzag", -1))
    )
    difference = largest_difference(cosine, plain_regimes(gradients)[0])
    print(
        f"{len(cosine)} steps ({counts}) of {run.n_parameters:,} parameters: largest difference of c_t {difference:.2g}"
    )
    print("\n".join(differences) if differences else "All labels agree.")
    return 1 if differences else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(prog=PROGRAM, description="c_t and regimes against plain numpy.")
    parser.add_argument("--steps", type=positive_integer, default=120, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=seed_number, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="FOLDER",
        help="where the run is stored and looked for (default: %(default)s)",
    )
    return parser.parse_args(arguments)

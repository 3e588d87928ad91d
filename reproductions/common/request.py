"""Options of every figure, and the request that they make; imports no torch, so that help is immediate."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reproductions.common.arguments import positive_integer, positive_number, seed_number, threshold

Effort = Literal["quick", "default", "full"]


@dataclass(frozen=True)
class Request:
    """What the command line asks of a figure, or of all.

    Attributes:
        effort: which settings.
        seeds: how many seeds; None for the effort's number.
        first_seed: the first of them; None for the figure's own.
        theta: threshold of the regimes, between 0 and 1.
        steps: no run is longer; None leaves them as planned.
        lr_scale: every learning rate times this.
        runs_folder: where runs are stored.
        out: where pictures and verdicts go.
        workers: runs made at a time.
    """

    effort: Effort = "default"
    seeds: int | None = None
    first_seed: int | None = None
    theta: float = 0.9
    steps: int | None = None
    lr_scale: float = 1.0
    runs_folder: Path = Path("runs")
    out: Path = Path("runs")
    workers: int = 1

    @property
    def is_default(self) -> bool:
        """Whether these are the settings that a committed result stands for."""
        plain = Request(runs_folder=self.runs_folder, out=self.out, workers=self.workers)
        return self == plain


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every figure to a parser."""
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", action="store_true", help="seconds: does it work")
    effort.add_argument("--full", action="store_true", help="CIFAR-10 on a CUDA card; FASTGEOM_DATA names the data")
    number = {"type": positive_integer, "metavar": "N"}
    folder = {"type": Path, "metavar": "FOLDER"}
    parser.add_argument("--seeds", **number, help="number of seeds (default: the figure's, 5 or 10; quick: 2)")
    parser.add_argument(
        "--first-seed", type=seed_number, metavar="N", help="first of successive seeds (default: the figure's)"
    )
    theta = "threshold of the regimes, between 0 and 1 (default: %(default)s)"
    parser.add_argument("--theta", type=threshold, default=0.9, metavar="X", help=theta)
    parser.add_argument("--steps", **number, help="no run is longer than this")
    parser.add_argument("--lr-scale", type=positive_number, default=1.0, metavar="X", help="times every learning rate")
    workers = "runs made at a time, one thread each (default: one a core; quick, full: 1)"
    parser.add_argument("--workers", **number, help=workers)
    runs = "where runs are stored and looked for (default: %(default)s)"
    parser.add_argument("--runs", **folder, default=Path("runs"), dest="runs_folder", help=runs)
    parser.add_argument("--out", **folder, help="for pictures and verdicts (default: that of --runs)")


def read_request(options: argparse.Namespace) -> Request:
    """Make a request of the parsed options that ``add_options`` added."""
    effort: Effort = "quick" if options.quick else "full" if options.full else "default"
    return Request(
        effort=effort,
        seeds=options.seeds,
        first_seed=options.first_seed,
        theta=options.theta,
        steps=options.steps,
        lr_scale=options.lr_scale,
        runs_folder=options.runs_folder,
        out=options.out or options.runs_folder,
        workers=options.workers or (default_workers() if effort == "default" else 1),
    )


def default_workers() -> int:
    """One run a core that this process may use."""
    return len(os.sched_getaffinity(0))

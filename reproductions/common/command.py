"""The command line of every figure: finish the runs, draw, say the verdict."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path

import torch

from reproductions.common.arguments import OneLineParser, positive_integer, positive_number, seed_number, threshold
from reproductions.common.data import DataNotFoundError
from reproductions.common.pool import default_workers
from reproductions.common.reproduction import Reproduction, Request, conclude, train_all, verdict_line
from reproductions.common.runs import RunError


def main(figure: Reproduction, arguments: Sequence[str] | None = None) -> int:
    """Make one figure; the exit status is 0, 2 for what cannot be used, 130 after Ctrl-C."""
    program = f"{figure.name}.py"
    return make([figure], program, parse(program, f"{figure.id}: {figure.title}.", arguments))


def make(figures: Sequence[Reproduction], program: str, request: Request) -> int:
    """Make some figures: finish their runs, then draw each and print its verdict; the exit status."""
    try:
        check(request)
        train_all(list(figures), request)
        for figure in figures:
            verdict, path = conclude(figure, request)
            print(f"{figure.id:4}{verdict_line(figure, verdict, request.theta)}\n    {verdict.reason}\n    {path}")
    except (DataNotFoundError, RunError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except (BrokenExecutor, torch.OutOfMemoryError) as error:
        reason = (
            "a process that trained was killed" if isinstance(error, BrokenExecutor) else "the card's memory is full"
        )
        print(f"{program}: {reason}: finished runs are kept ({str(error).splitlines()[0]})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: finished runs are kept, and the same command goes on from there.", file=sys.stderr)
        return 130
    return 0


def check(request: Request) -> None:
    """Raise an error where the settings of a GPU are asked for and there is none."""
    if request.effort == "full" and not torch.cuda.is_available():
        raise RunError("--full: expected a CUDA device, found none (torch.cuda.is_available() is False)")


def parse(program: str, description: str, arguments: Sequence[str] | None) -> Request:
    """Read the command line."""
    parser = OneLineParser(prog=program, description=description)
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", action="store_const", const="quick", dest="effort", help="seconds: does it work")
    effort.add_argument("--full", action="store_const", const="full", dest="effort",
                        help="CIFAR-10 on a CUDA card; FASTGEOM_DATA names the data")  # fmt: skip
    parser.add_argument("--seeds", type=positive_integer, metavar="N",
                        help="number of seeds (default: the figure's, 5 or 10; quick: 2)")  # fmt: skip
    parser.add_argument("--first-seed", type=seed_number, metavar="N",
                        help="the seeds are this one and those after it (default: the figure's)")  # fmt: skip
    parser.add_argument("--theta", type=threshold, default=0.9, metavar="X",
                        help="threshold of the regimes, between 0 and 1 (default: %(default)s)")  # fmt: skip
    parser.add_argument("--steps", type=positive_integer, metavar="N", help="no run is longer than this")
    parser.add_argument("--lr-scale", type=positive_number, default=1.0, metavar="X", help="times every learning rate")
    parser.add_argument("--workers", type=positive_integer, metavar="N",
                        help="runs made at a time, one thread each (default: one a core; quick, full: 1)")  # fmt: skip
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", dest="runs_folder",
                        help="where runs are kept and looked for (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for pictures and verdicts (default: that of --runs)"
    )
    options = parser.parse_args(arguments)
    options.effort = options.effort or "default"
    options.out = options.out or options.runs_folder
    options.workers = options.workers or (default_workers() if options.effort == "default" else 1)
    return Request(**vars(options))

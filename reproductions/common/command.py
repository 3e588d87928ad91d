"""Make figures: finish their runs, draw them, print their verdicts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor

import torch

from reproductions.common.data import DataNotFoundError
from reproductions.common.reproduction import Reproduction, conclude, train_all, verdict_line
from reproductions.common.request import Request
from reproductions.common.runs import RunError


def make_figures(figures: Sequence[Reproduction], program: str, request: Request) -> int:
    """Make some figures: finish all their runs, then draw each and print its verdict.

    Args:
        figures: in the order in which they are drawn.
        program: what an error message begins with.
        request: what the command line asks for.

    Returns:
        The exit status: 0, 1 where a run was lost, 2 for what cannot be used, 130 after Ctrl-C.
    """
    try:
        check_device(request)
        train_all(figures, request)
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


def check_device(request: Request) -> None:
    """Raise ``RunError`` where the settings of a GPU are asked for and there is none."""
    if request.effort == "full" and not torch.cuda.is_available():
        raise RunError("--full: expected a CUDA device, found none (torch.cuda.is_available() is False)")

"""All figures: ``make figures``. Runs that several of them need are made once; kept runs are not made again."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproductions.common.command import make, parse
from reproductions.common.page import read_results, render
from reproductions.common.reproduction import Reproduction

NAMES = (
    "p1_two_geometries",
    "p2_networks",
    "p3_windows",
    "p4_learning_rates",
    "p5_restarts",
    "p6_progress",
    "p7_smoothness",
    "p8_skips_and_norms",
    "p9_optimisers_and_batches",
    "p10_scale_sweep",
    "a1_stages",
    "a2_layers_large_rate",
    "a3_layers_small_rate",
    "a4_progress_oscillating",
    "b1_edge_of_stability",
    "b2_kinks",
)
PAGE = Path(__file__).with_name("README.md")
RESULTS = Path(__file__).with_name("results")
"""Where the kept pictures and verdicts stand; elsewhere the page goes beside the pictures."""


def load_figures(names: Sequence[str] = NAMES) -> list[Reproduction]:
    """The figure of each script."""
    return [importlib.import_module(f"reproductions.{name}").FIGURE for name in names]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make all figures and their page; the exit status is 0, 2 for what cannot be used, 130 after Ctrl-C."""
    program = "make figures"
    request = parse(program, "All figures of the reproductions, and their page.", arguments)
    kept = request.out.resolve() == RESULTS.resolve()
    if kept and not request.is_default:
        print(f"{program}: {request.out} keeps results of the default settings only: add --out FOLDER", file=sys.stderr)
        return 2
    status = make(load_figures(), program, request)
    if status == 0:
        page = PAGE if kept else request.out / PAGE.name
        page.write_text(render(read_results(request.out, NAMES), RESULTS.name if kept else "."), encoding="utf-8")
        print(f"page    {page}")
    return status


if __name__ == "__main__":
    sys.exit(main())

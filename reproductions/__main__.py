"""The command line: ``python -m reproductions p1 --quick`` makes one figure; without a name it makes all of them.

Nothing here imports torch before a program is chosen: the demo sets a variable that torch reads when it is loaded.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reproductions.common.arguments import OneLineParser
from reproductions.common.request import Request, add_options, read_request

if TYPE_CHECKING:
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
PROGRAMS = {"demo": "demo", "check-regimes": "check_regimes"}
"""Programs with options of their own, and their modules."""

PROGRAM = "python -m reproductions"
HERE = Path(__file__).parent
PAGE = HERE / "README.md"
RESULTS = HERE / "results"
"""The committed pictures and verdicts; for any other folder the page is written beside the pictures."""


def load_figures(names: Sequence[str] = NAMES) -> list[Reproduction]:
    """Import the figure of each module."""
    return [importlib.import_module(f"reproductions.{name}").FIGURE for name in names]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named program, or make the named figures; without a name all figures and their page.

    Args:
        arguments: of the command line; None reads those of the process.

    Returns:
        The exit status: 0, 1 where a run was lost, 2 for what cannot be used, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in PROGRAMS:
        return importlib.import_module(f"reproductions.{PROGRAMS[arguments[0]]}").main(arguments[1:])
    options = build_parser().parse_intermixed_args(arguments)
    names, request = list(dict.fromkeys(options.figures)), read_request(options)
    if request.out.resolve() == RESULTS.resolve() and not request.is_default:
        message = f"{request.out} keeps results of the default settings only: add --out FOLDER"
        print(f"{PROGRAM}: {message}", file=sys.stderr)
        return 2

    from reproductions.common.command import make_figures

    status = make_figures(load_figures(names or NAMES), PROGRAM, request)
    if status == 0 and not names:
        print(f"page    {write_page(request)}")
    return status


def write_page(request: Request) -> Path:
    """Write the page of all figures whose results are in the folder, and return its path."""
    from reproductions.common.page import read_results, render

    is_committed = request.out.resolve() == RESULTS.resolve()
    page = PAGE if is_committed else request.out / PAGE.name
    page.write_text(render(read_results(request.out, NAMES), RESULTS.name if is_committed else "."), encoding="utf-8")
    return page


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the figures; its help lists them and the other programs."""
    entries = [(figure_id(name), summary(name)) for name in NAMES]
    entries += [(program, summary(module)) for program, module in PROGRAMS.items()]
    parser = OneLineParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [FIGURE ...] [options]\n"
        + "".join(f"       {PROGRAM} {program} [options]\n" for program in PROGRAMS),
        description="Make figures, each with its verdict. Without a name: all of them, and their page.\n"
        "Runs that several figures need are made once, and finished runs are not made again.",
        epilog="figures and programs:\n" + "\n".join(f"  {name:15}{text}" for name, text in entries),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "figures", nargs="*", type=parse_figure, metavar="FIGURE", help="p1, P1 or p1_two_geometries (default: all)"
    )
    add_options(parser)
    return parser


def parse_figure(text: str) -> str:
    """Resolve ``p1``, ``P1`` or ``p1_two_geometries`` to the name of a figure."""
    wanted = text.lower()
    for name in NAMES:
        if wanted in {name, figure_id(name)}:
            return name
    if wanted in PROGRAMS:
        raise argparse.ArgumentTypeError(f"{wanted} has options of its own: write {PROGRAM} {wanted} [options]")
    close = difflib.get_close_matches(wanted, [*map(figure_id, NAMES), *NAMES, *PROGRAMS])
    hint = f"did you mean {' or '.join(close)}?" if close else "--help lists them"
    raise argparse.ArgumentTypeError(f"expected the name of a figure, got {text!r}: {hint}")


def figure_id(name: str) -> str:
    """The part of a figure's name before the first ``_``: ``p1``."""
    return name.partition("_")[0]


def summary(module: str) -> str:
    """First line of a module's docstring without the id before it, read without importing the module."""
    docstring = ast.get_docstring(ast.parse((HERE / f"{module}.py").read_text(encoding="utf-8")))
    assert docstring is not None
    return docstring.splitlines()[0].removeprefix(f"{figure_id(module).upper()}: ")


if __name__ == "__main__":
    sys.exit(main())

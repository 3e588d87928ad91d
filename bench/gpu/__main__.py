"""The command line: see the package."""

import argparse
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from bench.gpu.supervising import run_cells

ROOT = Path(__file__).resolve().parent.parent.parent
NEEDED = ("torch", "triton", "numpy", "numba", "h5py", "pytest", "pytest_benchmark")

VALUE_TESTS = (
    "tests/kernels/*/test_*.py", "tests/engines/triton/test_engine.py", "tests/recording/test_device_copy.py",
    "tests/history/test_sketch*.py", "tests/layout/test_count_sketch.py",
)  # fmt: skip
NATIVE_TESTS = ("bench/gpu/native_*.py",)
DRY_TESTS = ("tests/test_schedules.py",)
DRY_NATIVE = "window_of_one or never_waits[exact] or updates-drained-kept and exact-updates or 16-bit-exact"
"""What is run of them where Triton's interpreter takes long."""

SECONDS = 470.0
"""For everything; `make` and the writing of results come on top."""
VALUE_S, NATIVE_S, LAST_S = 190.0, 75.0, 5.0
"""Limits of the two kinds of tests, and what is kept for the end; the benches take what is left."""


def missing() -> list[str]:
    """Packages that are not there."""
    return [package.replace("_", "-") for package in NEEDED if importlib.util.find_spec(package) is None]


def environment(*, dry: bool) -> dict[str, str]:
    """Of the processes: this checkout first, kernels compiled, or interpreted in a dry run."""
    found = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), found.get("PYTHONPATH")]))
    return found | ({"TRITON_INTERPRET": "1", "FASTGEOM_GPU_DRY": "1"} if dry else {"FASTGEOM_GPU_DRY": "0"})


def files(*patterns: str) -> list[str]:
    """The files of the checkout that match."""
    return [str(path.relative_to(ROOT)) for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def say(text: str) -> None:
    """Progress, at once."""
    print(text, flush=True)


def measure(work: Path, *, dry: bool) -> dict[str, object]:
    """Run all parts, each in its own time; the document of this run."""
    from bench.gpu.cells import TINY, Sizes, all_cells
    from bench.gpu.report import document
    from bench.gpu.testing import run_tests

    started = time.monotonic()
    options = {"folder": ROOT, "environment": environment(dry=dry)}
    tests: dict[str, Mapping[str, object]] = {}
    for kind, patterns, seconds, more in (
        ("values", DRY_TESTS if dry else VALUE_TESTS, VALUE_S, {"spread": not dry}),
        ("native", NATIVE_TESTS, NATIVE_S, {"spread": False, "only": DRY_NATIVE if dry else ""}),
    ):
        say(f"tests, {kind}: at most {seconds:.0f} s")
        run = run_tests(files(*patterns), work, seconds=seconds, **more, **options)
        say("\n".join([f"  {run.text()}", *(f"  {test}: {why}" for test, why in run.failures.items()), run.said]))
        tests[kind] = run.as_dict()
    left = SECONDS - LAST_S - (time.monotonic() - started)
    cells = all_cells(TINY if dry else Sizes())
    say(f"benches: {len(cells)} cells, at most {left:.0f} s")
    card, found = run_cells(len(cells), work, seconds=left, **options)
    return document(card, cells, found, tests, ROOT, dry=dry, seconds=time.monotonic() - started)


def write(found: Mapping[str, object], folder: Path) -> list[Path]:
    """The document and its page."""
    from bench.gpu.table import page

    folder.mkdir(parents=True, exist_ok=True)
    card = re.sub(r"[^a-z0-9]+", "-", str(found["card"].get("name", "no card")).lower()).strip("-")
    data = folder / f"gpu-{card}-{str(found['date'])[:10]}.json"
    data.write_text(json.dumps(found, indent=1) + "\n")
    table = folder / "gpu.md"
    table.write_text(page(found))
    return [data, table]


def main() -> int:
    """Run everything, print the page, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Tests, checks and benches on a card.")
    parser.add_argument(
        "--dry", action="store_true", help="on CPU tensors of tiny sizes, with a clock that means nothing"
    )
    parser.add_argument("--out", type=Path, help="folder of the results; default bench/results, dry build/gpu")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the logs of all processes in this folder")
    options = parser.parse_args()
    if absent := missing():
        print(
            f"fastgeom: make gpu installs nothing, and these packages are missing: {', '.join(absent)}", file=sys.stderr
        )
        return 2
    import torch

    if not options.dry and not torch.cuda.is_available():
        print("fastgeom: no CUDA card found: make gpu needs one (see --dry)", file=sys.stderr)
        return 2
    from bench.gpu.report import passed
    from bench.gpu.table import page

    with tempfile.TemporaryDirectory() as folder:
        work = options.keep or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        found = measure(work, dry=options.dry)
    paths = write(found, options.out or ROOT / ("build/gpu" if options.dry else "bench/results"))
    say(page(found))
    say("\n".join(f"written: {path}" for path in paths))
    return 0 if passed(found) else 1


if __name__ == "__main__":
    sys.exit(main())

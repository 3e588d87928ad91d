"""The runner of the mutants: see the package."""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tests.mutation.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_S = 600
T = TypeVar("T")

TESTS_FAILED = 1
"""The exit status of pytest if and only if tests ran and some failed."""


def copy_checkout(target: Path) -> Path:
    """Copy what a commit would hold: tracked files and new ones that are not ignored."""
    command = ("git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        source = ROOT / name
        if source.is_symlink() or source.is_file():  # a deleted file is listed until its deletion is staged
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)
    return target


def run_tests(checkout: Path, tests: str, only: str) -> tuple[int, str]:
    """Run some tests; return the exit status of pytest and the first line of its reason."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE", tests]
    command += ["-k", only] if only else []
    environment = os.environ | {
        "PYTHONPATH": str(checkout),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TRITON_CACHE_DIR": str(ROOT / "build" / "codegen"),  # keyed by the content of the sources
    }
    try:
        completed = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, f"not finished within {LIMIT_S} s"
    lines = (completed.stdout + completed.stderr).splitlines()
    reasons = [line for line in lines if line.startswith(("FAILED", "ERROR"))] or lines[-1:]
    return completed.returncode, reasons[0] if reasons else ""


def try_mutant(checkout: Path, mutant: Mutant) -> tuple[bool, str]:
    """Apply a mutant and run its tests; whether one failed, and which, or why none did."""
    path = checkout / mutant.file
    source = path.read_text() if path.exists() else ""
    if source.count(mutant.old) != 1:
        return False, f"its text occurs {source.count(mutant.old)} times in {mutant.file}"
    status = path.stat()
    path.write_text(source.replace(mutant.old, mutant.new))
    try:
        code, reason = run_tests(checkout, mutant.tests, mutant.only)
    finally:
        path.write_text(source)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # numba caches code by its time
    return code == TESTS_FAILED, reason if code == TESTS_FAILED else f"no test failed (pytest: {code}): {reason}"


def try_unchanged(checkout: Path, selection: tuple[str, str]) -> tuple[bool, str]:
    """Run tests where nothing was changed; whether all passed, and the first reason if not."""
    code, reason = run_tests(checkout, *selection)
    return code == 0, reason


def on_copies(
    check: Callable[[Path, T], tuple[bool, str]], items: Sequence[T], name: Callable[[T], str], copies: Iterable[Path]
) -> list[str]:
    """Check every item, one at a time on each copy, with a line for each; return the names of those that failed."""
    idle: queue.Queue[Path] = queue.Queue()
    for copy in copies:
        idle.put(copy)
    failed: list[str] = []
    finished: list[str] = []

    def one(item: T) -> None:
        copy = idle.get()
        start = time.perf_counter()
        try:
            passed, reason = check(copy, item)
        finally:
            idle.put(copy)
        finished.append(name(item))
        if not passed:
            failed.append(name(item))
        progress = f"{len(finished):3}/{len(items)} {time.perf_counter() - start:4.0f} s"
        print(f"{progress}  {'ok    ' if passed else 'FAILED'}  {name(item):<60}  {reason[:120]}", flush=True)

    with ThreadPoolExecutor(idle.qsize()) as pool:
        list(pool.map(one, items))
    return failed


def main() -> int:
    """Run the chosen mutants, and return the exit status."""
    parser = argparse.ArgumentParser(prog="mutation", description="Change the source; some test must turn red.")
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="only mutants whose name contains one of these")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tried at once")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if not options.patterns or any(p in m.name for p in options.patterns)]
    selections = list(dict.fromkeys((m.tests, m.only) for m in chosen))
    with tempfile.TemporaryDirectory(prefix="fastgeom-mutation-") as folder:
        copies = [copy_checkout(Path(folder) / str(number)) for number in range(options.jobs)]
        print("unchanged: every test must be green")
        red = on_copies(try_unchanged, selections, " -k ".join, copies)
        print("changed: some test must be red")
        tried = [m for m in chosen if " -k ".join((m.tests, m.only)) not in red]
        survivors = [m.name for m in chosen if m not in tried]
        survivors += on_copies(try_mutant, tried, lambda mutant: mutant.name, copies)
    print(
        f"{len(chosen) - len(survivors)} of {len(chosen)} mutants found"
        + "".join(f"\n  survived: {s}" for s in survivors)
    )
    return int(bool(survivors) or not chosen)


if __name__ == "__main__":
    raise SystemExit(main())

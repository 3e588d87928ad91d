"""The command line: see the package."""

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import triton

from bench.codegen.cases import ROOT, TARGETS, Case, collect, kernel_files
from bench.codegen.compiling import compile_case
from bench.codegen.rules import Examination, Record
from bench.codegen.table import render

CACHE = ROOT / "build" / "codegen"
"""Where compiled kernels and their disassembly are kept, so that a second run is quick."""


def examine(case: Case, target: str) -> Record:
    """Compile and judge one variant for one target; what the compiler raises is a broken rule."""
    if refused := _unusable.get(case.variant["kernel"].__name__):
        return Record(case.file, case.name, target, broken={"compiles": refused})
    try:
        return Examination(case, TARGETS[target], compile_case(case, TARGETS[target])).record()
    except Exception as error:  # of whatever kind: it must not hide the other variants
        return Record(case.file, case.name, target, broken={"compiles": _cause(error)})


def _cause(error: BaseException) -> str:
    """The first cause of an error, on one line."""
    while error.__cause__:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())


def examine_all(cases: Sequence[Case], targets: Sequence[str] | None, jobs: int) -> list[Record]:
    """Every variant for these targets or for the one that tells most, over processes; in the order of the cases."""
    global _cases, _unusable  # noqa: PLW0603 - kernels cannot be pickled; a forked process has them already
    _cases, _unusable = cases, unusable(cases)
    tasks = [
        (index, target)
        for index, case in enumerate(cases)
        for target in targets or [case.quick_target.name]
        if case.runs_on(TARGETS[target])
    ]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        running = {pool.submit(_examine_task, *task): task for task in tasks}
        records = {}
        for done in as_completed(running):
            index, target = running[done]
            records[running[done]] = done.result()
            _progress(f"{len(records)}/{len(tasks)} {cases[index].name} {target}")
    _progress("")
    return [records[task] for task in tasks]


def unusable(cases: Sequence[Case]) -> dict[str, str]:
    """Kernels, by name, that triton refuses to look at, and why.

    It looks when a process first uses a kernel, at it and at what it calls, and refuses once: what it has looked at
    it takes for good from then on. So this must come before anything is compiled.
    """
    reasons = {}
    for kernel in {case.variant["kernel"].__name__: case.variant["kernel"] for case in cases}.values():
        try:
            kernel.cache_key  # noqa: B018 - it looks when this is read
        except Exception as error:
            reasons[kernel.__name__] = _cause(error)
    return reasons


_cases: Sequence[Case] = ()
_unusable: dict[str, str] = {}


def _examine_task(index: int, target: str) -> Record:
    return examine(_cases[index], target)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def main() -> int:
    """Run, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="codegen", description="Compile every kernel ahead of time; check the code.")
    parser.add_argument("--kernel", action="append", choices=kernel_files(), help="this kernel file; may be repeated")
    parser.add_argument("--variant", action="append", help="this variant; may be repeated")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="this target; may be repeated")
    parser.add_argument("--quick", action="store_true", help="every variant for the one target that tells most")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes; default: one a core")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the table into this file")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") not in {"", "0"}:
        parser.error("TRITON_INTERPRET is set, under which triton compiles nothing: unset it")
    CACHE.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TRITON_CACHE_DIR", str(CACHE))

    cases = [c for c in collect(options.kernel or ()) if not options.variant or c.name in options.variant]
    records = examine_all(cases, None if options.quick else options.target or list(TARGETS), options.jobs)
    page = render(records, triton.__version__)
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(page)
    print(json.dumps([dataclasses.asdict(r) for r in records], indent=1) if options.json else page)
    for r in records:
        for rule, problem in r.broken.items():
            print(f"{r.file}: {r.variant} on {r.target}: {rule}: {problem}", file=sys.stderr)
    return int(any(r.broken for r in records))


if __name__ == "__main__":
    raise SystemExit(main())

"""Runs tests in a process of their own, over several where pytest-xdist is there, and counts how they ended."""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.gpu.recording import RECORD
from bench.gpu.supervising import run

_MOST_PROCESSES = 12


@dataclass
class TestRun:
    """How a run of tests ended.

    Attributes:
        collected, passed, skipped: numbers of tests.
        failures: name → reason.
        seconds: it took.
        status: of pytest; ``None`` where the time ran out.
        said: the last lines that it printed, unless all went well.
    """

    collected: int = 0
    passed: int = 0
    skipped: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    status: int | None = None
    said: str = ""

    __test__ = False  # its name begins like one

    @property
    def fine(self) -> bool:
        """Whether every test ran and none failed."""
        return self.status == 0 and self.passed > 0 and not self.failures

    def text(self) -> str:
        """In a line."""
        found = f"{self.passed} of {self.collected} passed, {len(self.failures)} failed, {self.skipped} skipped"
        return f"{found}, {self.seconds:.0f} s{'; the time ran out' if self.status is None else ''}"

    def as_dict(self) -> dict[str, object]:
        """For the file."""
        return asdict(self) | {"fine": self.fine, "summary": self.text()}


def run_tests(
    paths: Sequence[str], work: Path, *, folder: Path, environment: Mapping[str, str], seconds: float,
    spread: bool = True, only: str = "",
) -> TestRun:  # fmt: skip
    """Run pytest.

    Args:
        paths: files of tests.
        work: folder for what is written meanwhile.
        folder, environment: of the process; the root of the checkout.
        seconds: its limit.
        spread: over several processes, if that can be.
        only: what pytest's ``-k`` takes.
    """
    name = Path(paths[0]).stem
    record, log = work / f"{name}.jsonl", work / f"{name}.log"
    record.touch()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=short",
        "-p",
        "bench.gpu.recording",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-k", only] if only else []
    if spread and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(_MOST_PROCESSES, os.cpu_count() or 1))]
    started = time.monotonic()
    status = run(
        [*command, *paths], log, folder=folder, environment={**environment, RECORD: str(record)}, seconds=seconds
    )
    found = TestRun(status=status, seconds=time.monotonic() - started)
    for line in map(json.loads, record.read_text().splitlines()):
        if "collected" in line:
            found.collected = max(found.collected, line["collected"])
        elif line["outcome"] == "failed":
            found.failures.setdefault(line["test"], line["why"])
        elif line["outcome"] == "skipped":
            found.skipped += 1
        else:
            found.passed += 1
    if not found.fine:
        found.said = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
    return found

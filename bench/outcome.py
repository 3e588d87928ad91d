"""How a run of pytest ended, by the lines that the plugin `bench.record` has written."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECORD = "FASTGEOM_RECORD"
"""Names the file of the lines, in the environment."""


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        name: of the run.
        ending: "finished", "the time ran out", "not started", or "crashed" with the status and the last test.
        ok: whether every test that ran has passed, and all ran.
        failures: test → reason.
        tail: the last lines that it printed, unless it is ok.
    """

    name: str
    ending: str = "not started: the time ran out"
    ok: bool = False
    seconds: float = 0.0
    collected: int = 0
    passed: int = 0
    skipped: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    tail: str = ""

    def summary(self) -> str:
        """Give the counts and the ending in a line."""
        counts = f"{self.passed} of {self.collected} passed, {len(self.failures)} failed, {self.skipped} skipped"
        return f"{counts}, {self.seconds:.0f} s" + (f"; {self.ending}" if self.ending != "finished" else "")


def read_record(path: Path, name: str, status: int | None) -> tuple[Outcome, list[dict[str, Any]]]:
    """How a run ended, and what its benches recorded; the last line may be cut short.

    The status is that of the process, ``None`` where the time ran out.
    """
    outcome, benches, last = Outcome(name), [], "no test"
    text = path.read_text()
    for line in map(json.loads, text[: text.rfind("\n") + 1].splitlines()):
        if "collected" in line:
            outcome.collected = max(outcome.collected, line["collected"])
        elif "started" in line:
            last = line["started"]
        elif "fullname" in line:
            benches.append(line)
        elif line["outcome"] == "failed":
            outcome.failures.setdefault(line["test"], line["reason"])
        elif line["outcome"] == "skipped":
            outcome.skipped += 1
        else:
            outcome.passed += 1
    if status is None:
        outcome.ending = f"the time ran out in {last}"
    elif status == 0 or (status == 1 and outcome.failures):
        outcome.ending = "finished"
    else:
        outcome.ending = f"crashed with status {status} in {last}"
    outcome.ok = status == 0 and outcome.passed + outcome.skipped > 0
    return outcome, benches

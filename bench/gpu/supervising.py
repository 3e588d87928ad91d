"""Processes with a limit: the time that each may take, and what is known of one that was ended."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

CELL_S = 60.0
"""The longest that one cell may take, the start of its process included."""
SICK = 3
"""Exit status of a worker after a cell of whose error the device has not recovered."""
_MOST_IDLE_STARTS = 3
_POLL_S = 0.1

Found = dict[str, object]


def run(
    command: Sequence[str], log: Path, *, folder: Path, environment: Mapping[str, str], seconds: float,
    goes_on: Callable[[], bool] = lambda: True,
) -> int | None:  # fmt: skip
    """Run a command, its output appended to ``log``; end it, and all that it started, after so many seconds.

    Args:
        command, folder, environment: as ``subprocess.Popen`` takes them.
        log: where stdout and stderr go.
        seconds: the limit.
        goes_on: asked all the time; False ends the command at once.

    Returns:
        Its exit status, ``None`` where it was ended.
    """
    deadline = time.monotonic() + seconds
    with log.open("a") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None:
                if time.monotonic() > deadline or not goes_on():
                    return None
                time.sleep(_POLL_S)
            return process.returncode
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and the group that it leads."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # all of it has ended by itself
    process.wait()


def run_cells(
    n_cells: int, work: Path, *, folder: Path, environment: Mapping[str, str], seconds: float,
    cell_s: float = CELL_S, worker: Sequence[str] = (sys.executable, "-m", "bench.gpu.worker"),
) -> tuple[Found, list[Found]]:  # fmt: skip
    """Run all cells in worker processes: a new one wherever a cell has ended the last, or taken too long.

    Args:
        n_cells: how many there are.
        work: folder for what the workers write.
        folder, environment: of the workers.
        seconds: for all cells.
        cell_s: for one cell.
        worker: the command; a file and numbers of cells are added.

    Returns:
        What the card says of itself, and what was found of each cell.
    """
    deadline = time.monotonic() + seconds
    log = work / "worker.log"
    card: Found = {}
    found: dict[int, Found] = {}
    idle_starts = 0
    while (left := [k for k in range(n_cells) if k not in found]) and time.monotonic() < deadline:
        lines = work / f"cells-{len(found)}-{idle_starts}.jsonl"
        lines.touch()
        status = run(
            [*worker, str(lines), *map(str, left)], log, folder=folder, environment=environment,
            seconds=deadline - time.monotonic(), goes_on=_grows(lines, cell_s),
        )  # fmt: skip
        said = _parsed(lines)
        card = next((line["card"] for line in said if "card" in line), card)
        found |= {line["cell"]: line["found"] for line in said if "cell" in line}
        if time.monotonic() >= deadline:
            break
        idle_starts = 0 if said else idle_starts + 1
        stuck = [k for k in left if k not in found]
        if stuck and status != SICK:
            reason = f"no result within {cell_s:g} s" if status is None else f"its process ended with status {status}"
            found[stuck[0]] = {"error": f"{reason}: {_last_line(log)}"}
        if idle_starts == _MOST_IDLE_STARTS:
            out = {"error": f"the benches do not start: {_last_line(log)}"}
            return card, [found.get(k, out) for k in range(n_cells)]
    out = {"error": "the time for the benches ran out before this cell"}
    return card, [found.get(k, out) for k in range(n_cells)]


def _grows(lines: Path, seconds: float) -> Callable[[], bool]:
    """Whether a file has grown within the last seconds, each time this is called."""
    seen = [lines.stat().st_size, time.monotonic()]

    def goes_on() -> bool:
        size = lines.stat().st_size
        if size != seen[0]:
            seen[:] = size, time.monotonic()
        return time.monotonic() - seen[1] < seconds

    return goes_on


def _parsed(lines: Path) -> list[dict[str, Any]]:
    """The lines of a worker; the last may be cut short where it was ended."""
    text = lines.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    said = [line for line in lines if line and not line.startswith("USDT:")]  # these are the profiler's
    return said[-1][:300] if said else "it printed nothing"

"""Runs cells one after the other and writes a line of JSON for each, as soon as it is done.

    python -m bench.gpu.worker FILE 0 1 2 ...          the numbers of cells, to be appended to FILE

A cell that fails leaves its error in its line. If the device does not answer after that, which is so after a memory
fault, the process ends with status 3, and whoever started it goes on with a new one.
"""

import argparse
import json
import sys
import traceback
from pathlib import Path

import torch

from bench.common.device import Device, this_device
from bench.common.methods import WAYS
from bench.common.problem import Problem
from bench.common.ways import OURS, Work
from bench.gpu.cells import COPY, PEAK, SUM, TINY, Cell, Sizes, all_cells
from bench.gpu.supervising import SICK


def _make_ready(device: Device, cell: Cell, n: int) -> tuple[Work, int, int]:
    """What is to be timed of a cell of about ``n`` elements; how many there are; the bytes that a step must move."""
    if cell.case == PEAK:
        return _peak(device, cell, n)
    problem = Problem(device, cell.problem(n))
    name = OURS if cell.method.startswith(OURS) else cell.method
    way = next(way for way in WAYS[problem.case.statistic] if way.name == name)
    return way.build(problem), problem.g.n_elements, problem.bytes_moved()


def _bytes_per_element(cell: Cell) -> float:
    """Of memory that a cell takes."""
    if cell.case == PEAK:
        return 2 * cell.item_bytes
    case = cell.problem(cell.elements)
    name = OURS if cell.method.startswith(OURS) else cell.method
    way = next(way for way in WAYS[case.statistic] if way.name == name)
    return case.memory_bytes() + way.more_gradients(case) * cell.item_bytes


def _peak(device: Device, cell: Cell, n: int) -> tuple[Work, int, int]:
    """A copy, a sum, or a dot product of large vectors."""
    a, b = (torch.ones(n, dtype=getattr(torch, cell.dtype), device=device.device) for _ in range(2))
    row = n * int(cell.item_bytes)
    if cell.method == COPY:
        return Work(lambda: b.copy_(a), 0.0), n, 2 * row
    if cell.method == SUM:
        return Work(a.sum, 0.0), n, row
    return Work(lambda: torch.dot(a, b), 0.0), n, 2 * row


def run_cell(device: Device, cell: Cell) -> dict[str, object]:
    """Make a cell ready, time it, and say what was found, or what went wrong."""
    found: dict[str, object] = {}
    try:
        n = min(cell.elements, int(device.room_bytes() / _bytes_per_element(cell)))
        if n < cell.elements:
            found["note"] = f"{n:,} elements; {cell.elements:,} would take more than 60 % of the memory"
        work, n_elements, bytes_moved = _make_ready(device, cell, n)
        try:
            timing = device.time(work.call)
            found |= {
                "n_elements": n_elements,
                "bytes_moved": bytes_moved,
                "relative_error": work.relative_error,
                "time_ms": timing.device_s / work.steps * 1e3,
                "host_ms": timing.host_s / work.steps * 1e3,
                "repeats": timing.repeats,
                "launches": _launches(device, work),
            }
        finally:
            work.close()
    except Exception as error:  # of whatever kind: the other cells go on
        traceback.print_exc()
        found["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:400]
    return found


def _launches(device: Device, work: Work) -> float | None:
    """Launches of a step; a profiler that does not run costs this column alone."""
    try:
        count = device.launches(work.call)
    except Exception:
        traceback.print_exc()
        return None
    return None if count is None else count / work.steps


def main() -> int:
    """Run the cells that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("cells", type=int, nargs="*")
    options = parser.parse_args()
    device = this_device()
    cells = all_cells(TINY if device.dry else Sizes())
    with options.file.open("a") as lines:

        def say(**line: object) -> None:
            print(json.dumps(line), file=lines, flush=True)

        say(card=device.facts())
        for number in options.cells:
            found = run_cell(device, cells[number])
            say(cell=number, found=found)
            try:
                device.forget()
                device.synchronize()
            except Exception:
                traceback.print_exc()
                return SICK
    return 0


if __name__ == "__main__":
    sys.exit(main())

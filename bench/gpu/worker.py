"""Runs cells one after the other and writes a line of JSON for each, as soon as it is done.

    python -m bench.gpu.worker FILE 0 1 2 ...          the numbers of cells, to be appended to FILE

A cell that fails leaves its error in its line. If the device does not answer after that, which is so after a memory
fault, the process ends with status 3, and whoever started it goes on with a new one.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from bench.gpu import building, torch_ways
from bench.gpu.building import Work
from bench.gpu.cells import (
    CAT_DOTS,
    COMPILED,
    DEFERRED,
    EAGER,
    FOREACH,
    LEAN,
    NORM,
    OURS,
    PEAK,
    SKETCH,
    SKETCH_STEP,
    SMALL_NORM,
    SMALL_STEP,
    TINY,
    UPDATE,
    WINDOW,
    Cell,
    Sizes,
    all_cells,
)
from bench.gpu.device import Device, this_device
from bench.gpu.supervising import SICK

Builder = Callable[[Device, Cell, int], Work]


def _builder(cell: Cell) -> tuple[Builder, float]:
    """What makes a cell ready, and the bytes of memory that it takes for each element."""
    item, rows = cell.item_bytes, cell.window
    known: dict[tuple[str, str], tuple[Builder, float]] = {
        (NORM, OURS): (building.norm, item),
        (NORM, FOREACH): (torch_ways.foreach_norm, item),
        (NORM, COMPILED): (torch_ways.compiled_norm, item),
        (WINDOW, OURS): (building.window, (rows + 2) * item),
        (WINDOW, LEAN): (torch_ways.lean, (rows + 1) * item),
        (WINDOW, CAT_DOTS): (torch_ways.cat_dots, (rows + 2) * item),
        (WINDOW, COMPILED): (torch_ways.compiled_window, (rows + 1) * item),
        (DEFERRED, OURS): (building.deferred, (rows + cell.block + 2) * item),
        (UPDATE, OURS): (building.update, 6 * item),
        (UPDATE, EAGER): (torch_ways.update, 4 * item + 20),
        (UPDATE, COMPILED): (torch_ways.compiled_update, 4 * item + 8),
        (SKETCH, OURS): (building.sketch, item),
        (SKETCH_STEP, OURS): (building.sketch_step, item),
        (SMALL_STEP, LEAN): (torch_ways.lean, (rows + 1) * item),
        (SMALL_NORM, OURS): (building.norm, item),
        (SMALL_NORM, FOREACH): (torch_ways.foreach_norm, item),
    }
    if cell.case == PEAK:
        return torch_ways.peak, 2 * item
    if cell.case == SMALL_STEP and cell.method.startswith(OURS):
        return building.small_step, (rows + 3) * item
    return known[cell.case, cell.method]


def run_cell(device: Device, cell: Cell) -> dict[str, object]:
    """Make a cell ready, time it, and say what was found, or what went wrong."""
    found: dict[str, object] = {}
    try:
        build, bytes_per_element = _builder(cell)
        n = min(cell.elements, int(device.room_bytes() / bytes_per_element))
        if n < cell.elements:
            found["note"] = f"{n:,} elements; {cell.elements:,} would take more than 60 % of the memory"
        work = build(device, cell, n)
        try:
            timing = device.time(work.call)
            found |= {
                "n_elements": work.n_elements,
                "bytes_moved": work.bytes_moved,
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

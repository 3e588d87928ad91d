"""From what was run to one document: speeds, fractions of the peak and of the data sheet, targets, versions."""

import datetime
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.common.case import DEFERRED, WINDOW
from bench.common.facts import versions
from bench.common.ways import OURS
from bench.gpu.cells import PEAK, Cell, target
from bench.gpu.supervising import Found

SCHEMA = 1

DATASHEET_GB_PER_S = {
    r"H100 80GB HBM3": 3350,
    r"\bH200\b": 4800,
    r"A100-SXM4-80GB": 2039,
    r"\bB200\b": 8000,
    r"MI300X": 5300,
}
"""Bandwidth of cards, by what their names hold."""


def datasheet_gb_per_s(card: str) -> int | None:
    """What the maker says of a card's memory; ``None`` for a card that is not in the list."""
    return next((speed for pattern, speed in DATASHEET_GB_PER_S.items() if re.search(pattern, card)), None)


def commit(checkout: Path) -> str:
    """The commit of a checkout, and whether files differ from it; empty where git knows none."""

    def git(*arguments: str) -> str:
        command = ["git", "-c", "safe.directory=*", *arguments]
        return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True, timeout=20).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no").strip()
        return git("rev-parse", "HEAD").strip() + (" with changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def document(
    card: Found, cells: Sequence[Cell], found: Sequence[Found], tests: Mapping[str, Found], checkout: Path, *,
    dry: bool, seconds: float,
) -> dict[str, object]:  # fmt: skip
    """All of one run, as it is written.

    Args:
        card: its facts; none where no bench started.
        cells, found: what was to be timed, and what came of each.
        tests: by kind, what `testing.TestRun.as_dict` says.
        checkout: the root of the sources.
        dry: whether numbers mean nothing.
        seconds: how long all of it took.
    """
    datasheet = datasheet_gb_per_s(str(card.get("name", "")))
    rows = [cell.as_dict() | dict(result) for cell, result in zip(cells, found, strict=True)]
    for row in rows:
        if "error" not in row:
            row["bandwidth_gb_per_s"] = row["bytes_moved"] / row["time_ms"] / 1e6
    peak = max((row["bandwidth_gb_per_s"] for row in rows if row["case"] == PEAK and "error" not in row), default=None)
    for cell, row in zip(cells, rows, strict=True):
        if "error" not in row:
            row["fraction_of_peak"] = row["bandwidth_gb_per_s"] / peak if peak else None
            row["fraction_of_datasheet"] = row["bandwidth_gb_per_s"] / datasheet if datasheet else None
            row["times_as_long"] = _times_as_long(cell, row, cells, rows)
            row["times_per_step_window"] = _times_per_step_window(cell, row, cells, rows)
        row["target"], row["missed"] = "", None
        if (goal := target(cell)) is not None:
            row["target"] = goal.text()
            value = row.get(goal.column)
            row["missed"] = None if value is None or dry else goal.missed(value)
    return {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "dry": dry,
        "card": dict(card),
        "datasheet_gb_per_s": datasheet,
        "peak_gb_per_s": peak,
        "versions": versions(),
        "commit": commit(checkout),
        "seconds": seconds,
        "tests": {kind: dict(run) for kind, run in tests.items()},
        "cells": rows,
    }


def _ns_per_element(row: Mapping[str, float]) -> float:
    """Time of a step an element, so that cells of which one has shrunk can be compared."""
    return row["time_ms"] * 1e6 / row["n_elements"]


def _times_as_long(cell: Cell, row: Found, cells: Sequence[Cell], rows: Sequence[Found]) -> float | None:
    """How many times as long as ours another way takes, for the same."""
    for other, ours in zip(cells, rows, strict=True):
        if other.method == OURS != cell.method and other.workload == cell.workload and "error" not in ours:
            return _ns_per_element(row) / _ns_per_element(ours)
    return None


def _times_per_step_window(cell: Cell, row: Found, cells: Sequence[Cell], rows: Sequence[Found]) -> float | None:
    """How many times as long a step takes where its lags are taken at once."""
    if cell.case != DEFERRED:
        return None
    wanted = (WINDOW, OURS, cell.dtype, cell.elements, cell.window)
    for other, ours in zip(cells, rows, strict=True):
        same = (other.case, other.method, other.dtype, other.elements, other.window) == wanted
        if same and "error" not in ours:
            return _ns_per_element(ours) / _ns_per_element(row)
    return None


def passed(found: Mapping[str, object]) -> bool:
    """Whether every test passed and every cell ran; missed targets do not count."""
    return all(run["fine"] for run in found["tests"].values()) and not any("error" in row for row in found["cells"])

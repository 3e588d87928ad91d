"""Runs a case: every implementation is prepared, checked, timed in the same rounds, and recorded."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

from bench.common.case import FEW_ELEMENTS, OURS, Case
from bench.common.device import Device
from bench.common.implementations.base import Implementation, Work
from bench.common.peak import Peak
from bench.common.problem import Problem
from bench.common.registry import REGISTRY
from bench.common.shapes import numels
from bench.common.timing import Bench, Rounds
from bench.peers.available import Missing

_MOST_COPIES = 16


def fit(device: Device, case: Case) -> tuple[Case, str]:
    """Shrink a case that would take more than 60 % of the memory, and give a note of it; else the note is empty."""
    wanted = sum(numels(case.tensors, case.elements))
    room = int(device.room_bytes() / REGISTRY[case.statistic].memory_bytes(case, lent=device.backend is None))
    if wanted <= room:
        return replace(case, elements=wanted), ""
    fitting = sum(numels(case.tensors, room))
    note = f"{fitting:,} elements; {wanted:,} would take more than 60 % of the memory"
    return replace(case, elements=fitting), note


class Rotation:
    """Copies of one problem, used in turn: no implementation finds in a cache what another has just read.

    All copies together are half as large again as the last cache, or are as many as the calls of a round; between
    rounds the plain reads go through it twice.
    """

    def __init__(self, copies: Sequence[Problem]) -> None:
        self.copies = copies
        self._next = cycle(range(len(copies)))

    def build(self, implementation: Implementation) -> Work:
        """One implementation over all copies, of which the first is checked."""
        works = [implementation.build(copy) for copy in self.copies]
        if len(works) == 1:
            return works[0]

        def call() -> object:
            return works[next(self._next)].call()

        def close() -> None:
            for work in works:
                work.close()

        return Work(call, max(w.relative_error for w in works), works[0].steps, close)


def run_case(bench: Bench, peak: Peak, case: Case) -> None:
    """Time ours and the others at one case, beside the plain reads, and record them."""
    device = bench.device
    wanted = case if device.timed else replace(case, elements=min(case.elements, FEW_ELEMENTS))
    case, note = fit(device, wanted)
    statistic = REGISTRY[case.statistic]
    first = Problem(device, case)
    size = first.g.n_elements * statistic.memory_bytes(case)
    copies = max(1, min(_MOST_COPIES, math.ceil(1.5 * device.cache_bytes / size))) if device.timed else 1
    rotation = Rotation([first, *(Problem(device, case, again=True) for _ in range(copies - 1))])
    works: dict[str, Work] = {}
    skipped: dict[str, str] = {}
    try:
        for implementation in statistic.implementations:
            name = implementation.name
            if case.only is not None and name not in (OURS, *case.only):
                skipped[name] = "left out here, for time; see other cases"
                continue
            try:
                _check_room(first, implementation)
                works[name] = rotation.build(implementation)
            except Missing as missing:
                if name == OURS:
                    raise
                skipped[name] = str(missing)
            except Exception as error:  # at full size it may be wrong or fail; at few elements its code here is
                if name == OURS or not device.timed:
                    raise
                skipped[name] = _reason(error)
                device.forget()
        timed = bench.rounds({name: work.call for name, work in works.items()} | peak.work, rounds=case.rounds)
        result = _ours(bench, first, works[OURS], timed) | peak.measured(timed)
        moved = statistic.bytes_moved(first) * works[OURS].steps
        result["fraction_of_peak"] = peak.fraction(timed, OURS, moved)
        result["peers"] = _peers(bench, first, works, timed)
        result["peers"] |= {name: {"skipped": reason} for name, reason in skipped.items()}
    finally:
        for work in works.values():
            work.close()
    result["case"]["elements"] = wanted.elements
    goals = [goal.judge(result) for goal in case.goals if goal.on in ("", device.kind)]
    result["goals"] = [goal for goal in goals if goal["what"] != "of the data sheet" or goal["value"] is not None]
    bench.record(**result, **({"note": note} if note else {}))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    kind = "wrong, and so not timed" if isinstance(error, AssertionError) else f"failed, {type(error).__name__}"
    return f"{kind}: {text}"


def _check_room(problem: Problem, implementation: Implementation) -> None:
    """Leave out an implementation that needs more memory of its own than there is."""
    needed = int(implementation.more_gradients(problem.case) * problem.g.n_elements * problem.case.item_bytes)
    if needed > problem.device.free_bytes():
        raise Missing(f"it needs {needed / 1e9:.1f} GB more")


def _ours(bench: Bench, problem: Problem, work: Work, timed: Rounds) -> dict[str, Any]:
    """What is recorded of ours."""
    case, n = problem.case, problem.g.n_elements
    statistic = REGISTRY[case.statistic]
    moved = statistic.bytes_moved(problem)
    result = {
        "kind": "speed",
        "case": case.as_dict(),
        "title": case.title,
        "n_elements": n,
        "bytes_moved": moved,
        "operations": statistic.operations(case) * n,
        "host_ms": timed.host_median(OURS) / work.steps * 1e3,
        **_measured(bench, problem, work, timed, OURS),
    }
    result["bandwidth_gb_per_s"] = moved / result["time_ms"] / 1e6
    if bench.device.datasheet_gb_per_s:
        result["fraction_of_datasheet"] = result["bandwidth_gb_per_s"] / bench.device.datasheet_gb_per_s
    return result


def _peers(bench: Bench, problem: Problem, works: Mapping[str, Work], timed: Rounds) -> dict[str, dict[str, Any]]:
    """What is recorded of the others."""
    return {
        name: _measured(bench, problem, work, timed, name)
        | timed.ratio(name, OURS).facts(works[OURS].steps / work.steps)
        for name, work in works.items()
        if name != OURS
    }


def _measured(bench: Bench, problem: Problem, work: Work, timed: Rounds, name: str) -> dict[str, Any]:
    """What is recorded of each; memory and launches are those of one more call."""
    seconds = timed.median(name) / work.steps
    launches: list[int | None] = [None]
    counted = {each.name: each.counted for each in REGISTRY[problem.case.statistic].implementations}[name]
    call = (lambda: launches.append(bench.device.launches(work.call))) if counted else work.call
    peak_bytes = bench.device.peak_bytes(call)
    return {
        "time_ms": seconds * 1e3,
        "ns_per_element": seconds / problem.g.n_elements * 1e9,
        "relative_error": work.relative_error,
        "rounds": len(timed.seconds[name]),
        "peak_memory_bytes": peak_bytes,
        "launches": None if launches[-1] is None else launches[-1] / work.steps,
    }

"""Runs a case: every way of it is made ready, seen to be right, timed in the same rounds, and recorded."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from bench.common.case import Case
from bench.common.measuring import Bench
from bench.common.methods import WAYS
from bench.common.problem import Problem, fit
from bench.common.reads import Reads
from bench.common.rounds import Rounds
from bench.common.ways import OURS, Way, Work
from bench.peers.available import Missing

ROUNDS = 5
_MOST_COPIES = 16


@dataclass(frozen=True)
class Goal:
    """What a case is meant to reach.

    Attributes:
        what: ``fraction_of_peak``, ``ns_per_element``, or ``ratio``: the time of another way over ours.
        least, most: the bound, one of them.
        way: the way it is said of; ours where none is named.
    """

    what: str
    least: float | None = None
    most: float | None = None
    way: str = OURS

    def judged(self, found: Mapping[str, Any]) -> dict[str, object]:
        """For the file: what it says, the value that was found, and the bound."""
        of = found if self.way == OURS else found["peers"][self.way]
        text = {
            "fraction_of_peak": "of the measured peak",
            "ns_per_element": f"ns an element, {self.way}",
            "ratio": f"times as fast as {self.way}",
        }[self.what]
        bound = {"most": self.most} if self.least is None else {"least": self.least}
        return {"what": text, "value": of.get(self.what), **bound}


class Rotation:
    """Copies of one problem, which every way goes through in turn: none finds in a cache what another has just read.

    All copies together are half as large again as the last cache, or are as many as the calls of a round; between
    rounds the plain reads go through it twice.
    """

    def __init__(self, copies: Sequence[Problem]) -> None:
        self.copies = copies
        self._next = cycle(range(len(copies)))

    def build(self, way: Way) -> Work:
        """One way over all copies, of which the first is seen to be right."""
        works = [way.build(copy) for copy in self.copies]
        if len(works) == 1:
            return works[0]

        def call() -> object:
            return works[next(self._next)].call()

        def close() -> None:
            for work in works:
                work.close()

        return Work(call, max(w.relative_error for w in works), works[0].steps, close)


def run_case(
    bench: Bench, reads: Reads, case: Case, *, goals: Sequence[Goal] = (), others: Sequence[str] | None = None,
    rounds: int = ROUNDS,
) -> None:  # fmt: skip
    """Time ours and the others at one case, and record them.

    Args:
        bench, reads: the fixtures.
        case: what is timed.
        goals: what it is meant to reach.
        others: names of the other ways; all of them by default.
        rounds: how many.
    """
    device = bench.device
    if not device.timed:
        case = case.few()
    shrunk = fit(device, case)
    first = Problem(device, shrunk.case)
    size = first.g.n_elements * shrunk.case.memory_bytes()
    copies = max(1, min(_MOST_COPIES, math.ceil(1.5 * device.cache_bytes / size))) if device.timed else 1
    rotation = Rotation([first, *(Problem(device, shrunk.case, again=True) for _ in range(copies - 1))])
    works: dict[str, Work] = {}
    skipped: dict[str, str] = {}
    try:
        for way in WAYS[case.statistic]:
            if others is not None and way.name not in (OURS, *others):
                skipped[way.name] = "left out here, for time; see other cases"
                continue
            try:
                _check_room(first, way)
                works[way.name] = rotation.build(way)
            except Missing as missing:
                if way.name == OURS:
                    raise
                skipped[way.name] = str(missing)
            except Exception as error:  # at full size it may be wrong or fail; at few elements its code here is
                if way.name == OURS or not device.timed:
                    raise
                skipped[way.name] = _why(error)
                device.forget()
        calls = {name: work.call for name, work in works.items()}
        timed = bench.rounds(calls | reads.work, rounds=rounds)
        found = _ours(bench, first, works[OURS], timed) | reads.peak(timed)
        found["fraction_of_peak"] = reads.fraction(timed, OURS, first.bytes_moved() * works[OURS].steps)
        found["peers"] = _peers(bench, first, works, timed) | {name: {"skipped": why} for name, why in skipped.items()}
    finally:
        for work in works.values():
            work.close()
    found["case"]["elements"] = case.elements
    found["goals"] = [goal.judged(found) for goal in goals]
    bench.record(**found, **({"note": shrunk.note} if shrunk.note else {}))
    _say(bench, case, found)


def _why(error: Exception) -> str:
    said = " ".join(str(error).split())[:200]
    kind = "wrong, and so not timed" if isinstance(error, AssertionError) else f"failed, {type(error).__name__}"
    return f"{kind}: {said}"


def _check_room(problem: Problem, way: Way) -> None:
    """Leave out a way that needs memory of its own where there is not as much."""
    needed = int(way.more_gradients(problem.case) * problem.g.n_elements * problem.case.item_bytes)
    if needed > problem.device.free_bytes():
        raise Missing(f"it needs {needed / 1e9:.1f} GB more")


def _ours(bench: Bench, problem: Problem, work: Work, timed: Rounds) -> dict[str, Any]:
    """What is recorded of ours."""
    case, n = problem.case, problem.g.n_elements
    seconds = timed.median(OURS) / work.steps
    moved = problem.bytes_moved()
    return {
        "kind": "speed",
        "case": case.as_dict(),
        "title": case.title,
        "n_elements": n,
        "bytes_moved": moved,
        "operations": case.operations(n),
        "time_ms": seconds * 1e3,
        "ns_per_element": seconds / n * 1e9,
        "host_ms": timed.host_median(OURS) / work.steps * 1e3,
        "bandwidth_gb_per_s": moved / seconds / 1e9,
        "relative_error": work.relative_error,
        "rounds": len(timed.seconds[OURS]),
        **_cost(bench, work),
    }


def _peers(bench: Bench, problem: Problem, works: Mapping[str, Work], timed: Rounds) -> dict[str, dict[str, object]]:
    """What is recorded of the others."""
    found: dict[str, dict[str, object]] = {}
    counted = {way.name: way.counted for way in WAYS[problem.case.statistic]}
    for name, work in works.items():
        if name == OURS:
            continue
        ratio, scale = timed.ratio(name, OURS), works[OURS].steps / work.steps
        seconds = timed.median(name) / work.steps
        found[name] = {
            "time_ms": seconds * 1e3,
            "ns_per_element": seconds / problem.g.n_elements * 1e9,
            "ratio": ratio.value * scale,
            "ratio_low": ratio.low * scale,
            "ratio_high": ratio.high * scale,
            "relative_error": work.relative_error,
            "rounds": len(timed.seconds[name]),
            **_cost(bench, work, counted=counted[name]),
        }
    return found


def _cost(bench: Bench, work: Work, *, counted: bool = True) -> dict[str, object]:
    """What a step costs beside time, both seen in one call."""
    launches: list[int | None] = []
    call = (lambda: launches.append(bench.device.launches(work.call))) if counted else work.call
    peak_bytes = bench.device.peak_bytes(call)
    count = launches[0] if launches else None
    return {"peak_memory_bytes": peak_bytes, "launches": None if count is None else count / work.steps}


def _say(bench: Bench, case: Case, found: dict[str, object]) -> None:
    bench.say(
        f"{case.name:<56}{found['time_ms']:>10.4g} ms {found['bandwidth_gb_per_s']:>7.1f} GB/s"
        f"{found['fraction_of_peak']:>7.2f} of peak"
    )
    for name, peer in found["peers"].items():
        bench.say(f"    {name:<52}" + (f"skipped: {peer['skipped']}" if "skipped" in peer else
                  f"{peer['ratio']:>10.2f} x [{peer['ratio_low']:.2f}, {peer['ratio_high']:.2f}]"))  # fmt: skip
    for goal in found["goals"]:
        bench.say_goal(goal)

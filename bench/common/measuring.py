"""The fixture that every bench uses: correctness first, then rounds in which ours and every other way run in turn.

Ratios are taken inside one run, round by round, so that a machine shared with others slows both sides alike. Of the
numbers of a bench all go into pytest-benchmark's ``extra_info``; `bench.report` makes the page of them.
"""

from collections.abc import Mapping
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from bench.common.device import Device, Work
from bench.common.rounds import Rounds

SLOW_S, SLOW_ROUNDS = 1.5, 3


class Bench:
    """Times the ways of one bench and records what was found.

    Args:
        benchmark: pytest-benchmark's fixture.
        device: where the ways run.
        facts: what every result says: device, versions, threads.

    Attributes:
        lines: of the table that is printed at the end.
    """

    lines: list[str] = []

    def __init__(self, benchmark: BenchmarkFixture, device: Device, facts: Mapping[str, object]) -> None:
        self._benchmark, self.device = benchmark, device
        benchmark.extra_info.update(facts)

    def record(self, **found: Any) -> None:
        """Put what was found into pytest-benchmark's file."""
        self._benchmark.extra_info.update(found)

    def say(self, line: str) -> None:
        """Put a line into the table at the end."""
        self.lines.append(line)

    def say_goal(self, goal: Mapping[str, Any]) -> None:
        """Put a goal into the table at the end, beside what was reached."""
        value, least, most = goal["value"], goal.get("least"), goal.get("most")
        reached = value is not None and (value >= least if most is None else value <= most)
        bound = f">= {least:g}" if most is None else f"<= {most:g}"
        found = "not measured" if value is None else f"{value:.3g}"
        self.say(f"    {'goal: ' + goal['what']:<52}{found:>12} {bound}{'' if reached else '  MISSED'}")

    def rounds(
        self, ways: Mapping[str, Work], *, rounds: int = 7, slow_rounds: int = SLOW_ROUNDS, single: bool = False
    ) -> Rounds:
        """Time all ways in turn, round after round; the first is what pytest-benchmark calls the benchmark.

        Its own table shows the first way's samples, each of some calls where a call is short. A way that takes longer
        than `SLOW_S` is timed in the first ``slow_rounds`` only. With ``single`` every way is called once before the
        first round and once in each, so that all have taken as many steps.
        """
        clocks = {name: self.device.clock(work, single=single) for name, work in ways.items()}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        ours, *others = ways

        def run_others() -> None:
            if others:
                others.append(others.pop(0))  # nobody always comes after the same one
            for name in others:
                if len(taken[name]) < slow_rounds or taken[name][0][0] < SLOW_S:
                    clocks[name].ready()
                    taken[name].append(clocks[name].sample())
            clocks[ours].ready()

        self._benchmark.pedantic(
            lambda: taken[ours].append(clocks[ours].sample()),
            setup=run_others,
            rounds=rounds if self.device.timed else 1,
        )
        return Rounds(
            {name: [seconds for seconds, _ in samples] for name, samples in taken.items()},
            {name: [host for _, host in samples] for name, samples in taken.items()},
        )

    def time_once(self, work: Work) -> float:
        """Seconds of one call."""
        return self.rounds({"once": work}, rounds=1).median("once")

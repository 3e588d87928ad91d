"""The fixture that every bench uses: rounds in which ours and every other implementation run in turn.

Ratios are taken inside one run, round by round, so that a machine shared with others slows both sides alike. All
numbers of a bench go into pytest-benchmark's ``extra_info``; `bench.report` makes the page of them.
"""

from collections.abc import Mapping
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from bench.common.device import Device, Work
from bench.common.rounds import Rounds

SLOW_S, SLOW_ROUNDS = 1.5, 3


class Bench:
    """Times the implementations of one bench and records the results.

    Args:
        benchmark: pytest-benchmark's fixture.
        device: where they run.
        facts: recorded with every result: device, versions, threads.
    """

    def __init__(self, benchmark: BenchmarkFixture, device: Device, facts: Mapping[str, object]) -> None:
        self._benchmark, self.device = benchmark, device
        benchmark.extra_info.update(facts)

    def record(self, **results: Any) -> None:
        """Put results into pytest-benchmark's file."""
        self._benchmark.extra_info.update(results)

    def rounds(self, calls: Mapping[str, Work], *, rounds: int = 7, single: bool = False) -> Rounds:
        """Time all calls in turn, round after round; the first is what pytest-benchmark calls the benchmark.

        Args:
            calls: by name. pytest-benchmark's own table shows the samples of the first, each of some calls where a call
                is short.
            rounds: how many; of a call that takes longer than `SLOW_S` at most `SLOW_ROUNDS`.
            single: call everything once before the first round and once in each, slow or not, so that all have taken as
                many steps.
        """
        clocks = {name: self.device.clock(work, single=single) for name, work in calls.items()}
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        ours, *others = calls

        def run_others() -> None:
            if others:
                others.append(others.pop(0))  # nobody always comes after the same one
            for name in others:
                if single or len(samples[name]) < SLOW_ROUNDS or samples[name][0][0] < SLOW_S:
                    clocks[name].ready()
                    samples[name].append(clocks[name].sample())
            clocks[ours].ready()

        self._benchmark.pedantic(
            lambda: samples[ours].append(clocks[ours].sample()),
            setup=run_others,
            rounds=rounds if self.device.timed else 1,
        )
        return Rounds(
            {name: [seconds for seconds, _ in each] for name, each in samples.items()},
            {name: [host for _, host in each] for name, each in samples.items()},
        )

    def time_once(self, work: Work) -> float:
        """Seconds of one call."""
        return self.rounds({"once": work}, rounds=1).median("once")

"""The fixture that every bench uses: rounds in which ours and every other implementation run in turn.

Ratios are taken inside one run, round by round, so that a machine shared with others slows both sides alike. All
numbers of a bench go into pytest-benchmark's ``extra_info``; `bench.report` makes the page of them.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from bench.common.device import Device, Work

SLOW_S, SLOW_ROUNDS = 1.5, 3
_COVERAGE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A median, and the interval that holds the true one with 95 % probability, or as near as so few values allow."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """From independent values: the order statistics between which the median lies."""
        ordered = sorted(values)
        n = len(ordered)
        outside, cut = 0.0, 0
        while cut < (n - 1) // 2:
            outside += 2 * math.comb(n, cut) / 2**n
            if outside > 1 - _COVERAGE:
                break
            cut += 1
        cut = max(0, cut - 1)
        return cls(statistics.median(ordered), ordered[cut], ordered[n - 1 - cut])

    def facts(self, scale: float = 1.0) -> dict[str, float]:
        """As a ratio is recorded."""
        return {"ratio": self.value * scale, "ratio_low": self.low * scale, "ratio_high": self.high * scale}


@dataclass(frozen=True)
class Rounds:
    """Seconds of a call, in each round, by name; of a slow one in the first rounds only.

    Attributes:
        seconds: name → one number a round, on the device.
        host_s: name → one number a round, until the call has returned.
    """

    seconds: dict[str, list[float]]
    host_s: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Seconds of one call."""
        return statistics.median(self.seconds[name])

    def host_median(self, name: str) -> float:
        """Seconds until one call has returned."""
        return statistics.median(self.host_s[name])

    def ratio(self, name: str, over: str) -> Estimate:
        """How many times as long ``name`` takes as ``over``: of each round, so that what slows a round slows both."""
        pairs = zip(self.seconds[name], self.seconds[over], strict=False)
        return Estimate.of([a / b for a, b in pairs])


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

    def time_once(self, work: Work) -> None:
        """Time one call, for pytest-benchmark's own table."""
        self.rounds({"once": work}, rounds=1)

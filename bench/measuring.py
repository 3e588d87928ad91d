"""How a bench here is made: correctness first, then rounds in which ours and every peer run in turn.

Ratios are taken inside one run, between medians over the same rounds, so that a machine shared with others slows both
sides alike. The *measured peak* is the fastest of several plain ways through memory in those same rounds.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from pytest_benchmark.fixture import BenchmarkFixture

Work = Callable[[], object]

MEMORY_SHARE = 0.6
LINES: list[str] = []
"""The table that is printed at the end."""


def elements(wanted: int, bytes_per_element: int) -> int:
    """How many elements fit in 60 % of the free memory, at most ``wanted``; a multiple of 400."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    fit = int(MEMORY_SHARE * free / bytes_per_element)
    if fit < wanted:
        LINES.append(f"memory: {wanted:.0e} elements would not fit, {fit:.1e} are taken instead")
    return min(wanted, fit) // 400 * 400


@dataclass
class Rounds:
    """Median seconds of ours and of each peer over the same rounds."""

    ours: float
    peers: dict[str, float] = field(default_factory=dict)

    def ratio(self, peer: str) -> float:
        """How many times as long the peer takes."""
        return self.peers[peer] / self.ours


class Bench:
    """Runs one case and notes what it found, for the table at the end and for pytest-benchmark's own files."""

    def __init__(self, benchmark: BenchmarkFixture, name: str) -> None:
        self._benchmark, self._name = benchmark, name
        benchmark.extra_info |= {
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "threads": torch.get_num_threads(),
            "processor": platform.processor() or platform.machine(),
        }

    def rounds(self, ours: Work, peers: Mapping[str, Work], *, rounds: int = 7) -> Rounds:
        """Time ours; before each round, every peer once. Under ``--benchmark-disable`` everything runs once."""
        taken: dict[str, list[float]] = {name: [] for name in peers}
        ours_taken: list[float] = []

        def run_peers() -> None:
            for name, peer in peers.items():
                taken[name].append(seconds(peer))

        self._benchmark.pedantic(
            lambda: ours_taken.append(seconds(ours)), setup=run_peers, rounds=rounds, warmup_rounds=2
        )
        timed = {name: statistics.median(times[-rounds:]) for name, times in taken.items()}
        return Rounds(statistics.median(ours_taken[-rounds:]), timed)

    def note(
        self, what: str, value: float, unit: str = "", *, least: float | None = None, most: float | None = None
    ) -> None:
        """Put a number into the table, beside the goal it has."""
        self._benchmark.extra_info[what] = value
        goal = f"goal ≥ {least:g}" if least is not None else f"goal ≤ {most:g}" if most is not None else ""
        missed = (least is not None and value < least) or (most is not None and value > most)
        LINES.append(f"{self._name:<50}{what:<46}{value:>10.3g} {unit:<7}{goal}{'  MISSED' if missed else ''}")


def seconds(work: Work) -> float:
    """Time one call, once the idle threads of the call before have stopped spinning (OpenBLAS's take 30 ms).

    The wait is a busy one: a core that has slept takes milliseconds to wake, and a training loop never lets it.
    """
    awake_until = time.perf_counter() + 0.05
    while time.perf_counter() < awake_until:
        pass
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def plain_reads(rows: torch.Tensor) -> tuple[dict[str, Work], dict[str, int]]:
    """Plain ways through a matrix of float32 rows, and the bytes each moves: what the measured peak is the best of."""
    first, second, last = rows[0], rows[1], rows[-1]
    matrix, vector = rows.numpy(), first.numpy().copy()
    spare = torch.from_numpy(vector)
    chunk = 1 << 18

    def gemv() -> None:
        for start in range(0, len(vector), chunk):
            matrix[:, start : start + chunk] @ vector[start : start + chunk]

    work: dict[str, Work] = {
        "torch sum": last.sum,
        "torch dot": lambda: torch.dot(first, second),
        "torch copy": lambda: spare.copy_(second),
        "torch gemv": lambda: torch.mv(rows, spare),
        "numpy gemv in chunks": gemv,
    }
    row = 4 * len(vector)
    return work, dict(zip(work, (row, 2 * row, 2 * row, rows.nbytes + row, rows.nbytes + row), strict=True))


def peak_bytes_per_second(rounds: Rounds, moved: Mapping[str, int]) -> float:
    """The fastest of the plain reads."""
    return max(size / rounds.peers[name] for name, size in moved.items())


def note_speed(
    bench: Bench, rounds: Rounds, moved: Mapping[str, int], bytes_moved: int, *, least: float | None = None
) -> None:
    """Bytes per second of ours, and that as a fraction of the peak of the same rounds."""
    speed, peak = bytes_moved / rounds.ours, peak_bytes_per_second(rounds, moved)
    bench.note("bandwidth_gb_per_s", speed / 1e9, "GB/s")
    bench.note("measured peak", peak / 1e9, "GB/s")
    bench.note("fraction_of_peak", speed / peak, least=least)

"""The CPU as the device under test: its clock, memory, passes and facts."""

import contextlib
import functools
import gc
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

Work = Callable[[], object]

_MEMORY_SHARE = 0.6
_IDLE_S = 0.03
_SAMPLE_S, _MOST_CALLS = 0.005, 8


class WallClock:
    """Times calls on their own, by the wall.

    Args:
        call: what is timed.
        wait: until nothing else runs.
        finish: until the device is done.

    Attributes:
        calls: of a sample.
    """

    def __init__(self, call: Work, wait: Work, finish: Work = lambda: None) -> None:
        self._call, self.ready, self._finish, self.calls = call, wait, finish, 1

    def sample(self) -> tuple[float, float]:
        """Seconds of a call, and until it has returned."""
        start = time.perf_counter()
        for _ in range(self.calls):
            self._call()
        host = time.perf_counter()
        self._finish()
        return (time.perf_counter() - start) / self.calls, (host - start) / self.calls


class Cpu:
    """The processor, with as many threads as torch takes.

    Args:
        timed: whether times are wanted; without, everything runs once, of few elements.
    """

    kind = "cpu"
    backend = None
    datasheet_gb_per_s = None

    def __init__(self, *, timed: bool = True) -> None:
        self.device, self.timed = torch.device("cpu"), timed

    def facts(self) -> dict[str, str | int]:
        """Facts of the processor that a result records."""
        import cpuinfo

        info = cpuinfo.get_cpu_info()
        brand = info.get("brand_raw") or info.get("arch_string_raw", "unknown processor")
        widest = next((name for name in ("avx512f", "avx2", "asimd") if name in info.get("flags", ())), "")
        cores = len(os.sched_getaffinity(0))
        slug = slugify(f"{brand} {widest.removesuffix('f')} {cores} cores")
        return {
            "kind": self.kind,
            "name": f"{brand}, {cores} cores{f', {widest}' if widest else ''}",
            "slug": slug,
            "cores": cores,
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "caches": f"last level {self.cache_bytes / 2**20:.0f} MiB",
        }

    @functools.cached_property
    def cache_bytes(self) -> int:
        """Of the last level, as the system shows it: in a virtual machine it may be shared with others."""
        sizes = [
            int(file.read_text().strip().removesuffix("K")) << 10
            for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        ]
        return max(sizes, default=32 << 20)

    def room_bytes(self) -> int:
        """What one case may take: 60 % of the memory, less where others use it."""
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = page * os.sysconf("SC_PHYS_PAGES"), self.free_bytes()
        return int(min(_MEMORY_SHARE * min(total, _container_bytes()), 0.9 * free))

    def free_bytes(self) -> int:
        """What is left."""
        try:
            return _kilobytes("/proc/meminfo", "MemAvailable")
        except (OSError, StopIteration):
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")

    def forget(self) -> None:
        """Give back the memory of what is no longer used."""
        gc.collect()

    def clock(self, call: Work, *, single: bool = False) -> WallClock:
        """A clock for one call, of some calls a sample where one takes less than 5 ms.

        With ``single`` a sample is one call, after one that is not timed. Before each the idle threads of whoever ran
        before have stopped spinning.
        """
        clock = WallClock(call, self._wait)
        first = clock.sample()[0]
        if self.timed and not single and first < 4 * _SAMPLE_S:
            clock.calls = max(1, min(_MOST_CALLS, int(_SAMPLE_S / min(first, clock.sample()[0]))))
        return clock

    def _wait(self) -> None:
        """OpenBLAS's threads spin for 30 ms.

        The wait is a busy one: a core that has slept takes milliseconds to wake, and a training loop never lets it.
        """
        awake_until = time.perf_counter() + (_IDLE_S if self.timed else 0.0)
        while time.perf_counter() < awake_until:
            pass

    def launches(self, call: Work) -> int:
        """Operations of torch, and passes of our engine, in one call."""
        from fastgeom.engines.cpu import threads

        passes, run_chunks = [0], threads.run_chunks

        def counted(*arguments: object) -> None:
            passes[0] += 1
            run_chunks(*arguments)

        threads.run_chunks = counted
        try:
            with _Operations() as operations:
                call()
        finally:
            threads.run_chunks = run_chunks
        return operations.count + passes[0]

    def peak_bytes(self, call: Work) -> int | None:
        """By how much the memory of this process grows during one call, at most; ``None`` where nothing tells."""
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            before = _kilobytes("/proc/self/status", "VmRSS")
            call()
            return max(0, _kilobytes("/proc/self/status", "VmHWM") - before)
        except OSError:
            return None

    def forbid_waiting(self) -> contextlib.AbstractContextManager[None]:
        """Nothing waits here."""
        return contextlib.nullcontext()

    def capture(self, work: Work, warm_up: int) -> Work:
        """The work itself, after as many calls as `bench.common.device.Card.capture` makes."""
        for _ in range(warm_up):
            work()
        return work


class _Operations(TorchDispatchMode):
    def __enter__(self) -> "_Operations":
        self.count = 0
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
        self.count += 1
        return func(*args, **(kwargs or {}))


def numpy_threads() -> int:
    """Threads of numpy's own matrix products; 1 where threadpoolctl is absent or does not know."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return 1

    np.dot(np.ones(2), np.ones(2))
    return max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)


def slugify(text: str) -> str:
    """A name as part of the name of a file."""
    return "-".join(re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm)\)", "", text.lower())))


def _container_bytes() -> float:
    """What a container may take, where it is told."""
    try:
        return float(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return float("inf")


def _kilobytes(file: str, field: str) -> int:
    """Of a field that the system gives in kilobytes: as bytes."""
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

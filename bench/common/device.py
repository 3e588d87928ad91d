"""The device under test: its clock, memory, launches, and what a result has to say of it.

Everything that only a card can do is a method here, with a twin that runs the same work on CPU tensors without one.
"""

import contextlib
import gc
import math
import os
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from bench.common.cpu import Cpu, words

Work = Callable[[], object]

DRY = "FASTGEOM_GPU_DRY"
"""Set in the environment of a dry run."""

_COVER_BYTES = 256 << 20
"""What is read before each timed call: several times the second cache of any card."""
_MEMORY_SHARE = 0.6


@dataclass(frozen=True)
class Timing:
    """Medians over ``repeats`` calls: seconds on the device, and seconds until the call has returned."""

    device_s: float
    host_s: float
    repeats: int


class CardClock:
    """Times calls on their own, each behind reads that take the device longer than the host takes for the call."""

    def __init__(self, work: Work, read_cover: Callable[[int], None], passes: int) -> None:
        self._work, self._read_cover, self.passes, self.calls = work, read_cover, passes, 1

    def ready(self) -> None:
        """Wait until nothing else runs."""
        torch.cuda.synchronize()

    def sample(self) -> tuple[float, float]:
        """Seconds of a call on the device, and until it has returned."""
        begin, end = _event(), _event()
        self._read_cover(self.passes)
        begin.record()
        host_s = _host_seconds(self._work)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3, host_s


class WallClock:
    """Times single calls of work that uses host and device by turns, from the call until the device is done."""

    calls = 1

    def __init__(self, work: Work) -> None:
        self._work = work
        work()

    def ready(self) -> None:
        """Wait until nothing else runs."""
        torch.cuda.synchronize()

    def sample(self) -> tuple[float, float]:
        """Seconds until all is done, and until the call has returned."""
        start = time.perf_counter()
        host_s = _host_seconds(self._work)
        torch.cuda.synchronize()
        return time.perf_counter() - start, host_s


class Card:
    """The current CUDA device.

    Args:
        timed: whether times are wanted; without, everything runs once, of few elements.
    """

    name = kind = "cuda"
    dry = False
    backend = "triton"
    cache_bytes = 0
    """Every call is timed behind reads that clear the caches: nothing need be rotated."""

    def __init__(self, *, timed: bool = True) -> None:
        self.device, self.timed = torch.device("cuda", torch.cuda.current_device()), timed
        self._cover = torch.zeros(_COVER_BYTES // 4, device=self.device)
        passes = 20
        self._read_cover(3)
        begin, end = _event(), _event()
        begin.record()
        self._read_cover(passes)
        end.record()
        end.synchronize()
        self._pass_s = begin.elapsed_time(end) * 1e-3 / passes

    def facts(self) -> dict[str, str | int | float]:
        """What a result has to say of the card."""
        found = torch.cuda.get_device_properties(self.device)
        return {
            "kind": self.kind,
            "name": found.name,
            "slug": "-".join(words(found.name)),
            "memory_bytes": found.total_memory,
            "multiprocessors": found.multi_processor_count,
            "l2_bytes": int(getattr(found, "L2_cache_size", 0)),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(self.device))),
            "driver": _driver(),
            "cuda": str(torch.version.cuda or torch.version.hip),
        }

    def room_bytes(self) -> int:
        """What one cell may take: 60 % of the card's memory, less where others use it."""
        free, total = torch.cuda.mem_get_info(self.device)
        return int(min(_MEMORY_SHARE * total, 0.9 * free))

    def free_bytes(self) -> int:
        """What is left."""
        cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + cached

    def synchronize(self) -> None:
        """Wait for the device; raises what went wrong there."""
        torch.cuda.synchronize(self.device)

    def forget(self) -> None:
        """Give back the memory of what is no longer used."""
        gc.collect()
        torch.cuda.empty_cache()

    def time(self, work: Work, seconds: float = 0.4) -> Timing:
        """Time calls on their own, each behind reads that take the device longer than the host takes for the call.

        So the device never waits for the host inside the timed part, and finds nothing of it in its caches.
        """
        clock = self.clock(work)
        first = clock.sample()
        repeats = max(10, min(100, int(seconds / (first[0] + clock.passes * self._pass_s))))
        samples = [clock.sample() for _ in range(repeats)]
        device, host = (statistics.median(column) for column in zip(*samples, strict=True))
        return Timing(device, host, repeats)

    def clock(self, work: Work, *, single: bool = False) -> "CardClock | WallClock":
        """For one way of measuring; with ``single`` by the wall, the host's own work included."""
        if single:
            return WallClock(work)
        for _ in range(3):
            work()
        self.synchronize()
        host_s = _host_seconds(work)
        self.synchronize()
        return CardClock(work, self._read_cover, math.ceil((1.5 * host_s + 1e-4) / self._pass_s))

    def peak_bytes(self, work: Work) -> int:
        """By how much the memory taken grows during one call, at most."""
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.device) - before

    def threads(self) -> int:
        """Of the host that torch uses."""
        return torch.get_num_threads()

    def launches(self, work: Work) -> int | None:
        """Kernels, copies and fills that one call sends to the device; ``None`` where the profiler sees none."""
        return _profiled(work, self.synchronize, torch.autograd.DeviceType.CUDA)

    def compile(self, function: Callable[..., object]) -> Callable[..., object]:
        """What ``torch.compile`` makes of it."""
        return torch.compile(function, dynamic=True)

    @contextlib.contextmanager
    def forbid_waiting(self) -> Iterator[None]:
        """Raise wherever the host would wait for the device."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls the mode a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def capture(self, work: Work, warm_up: int) -> Work:
        """Call ``work`` some times on a stream of its own, then capture it in a graph; what replays it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warm_up):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay

    def _read_cover(self, passes: int) -> None:
        for _ in range(passes):
            self._cover.sum()


class Twin:
    """CPU tensors in the place of a card: everything runs, no number means anything."""

    name = kind = "cpu"
    dry = True
    timed = False
    cache_bytes = 0
    backend = "triton"

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def facts(self) -> dict[str, str | int | float]:
        """As `Card.facts`."""
        return {"name": "dry run on CPU tensors", "memory_bytes": 1 << 20, "multiprocessors": 0, "l2_bytes": 0,
                "capability": "", "driver": "", "cuda": ""}  # fmt: skip

    def room_bytes(self) -> int:
        """So little that the largest cells shrink."""
        return 8 << 10

    def free_bytes(self) -> int:
        """As much as is wanted."""
        return 1 << 40

    def synchronize(self) -> None:
        """Nothing is under way."""

    def forget(self) -> None:
        """There is so little of it."""

    def time(self, work: Work, seconds: float = 0.4) -> Timing:
        """As if a call took a millisecond, and a tenth of it on the host; `launches` makes the call."""
        del work, seconds
        return Timing(1e-3, 1e-4, 1)

    def threads(self) -> int:
        """One way is as good as another."""
        return 1

    def launches(self, work: Work) -> int | None:
        """Operations of torch in one call."""
        return _profiled(work, self.synchronize, torch.autograd.DeviceType.CPU)

    def compile(self, function: Callable[..., object]) -> Callable[..., object]:
        """The function itself."""
        return function

    @contextlib.contextmanager
    def forbid_waiting(self) -> Iterator[None]:
        """Nothing waits."""
        yield

    def capture(self, work: Work, warm_up: int) -> Work:
        """The work itself, after as many calls as `Card.capture` makes that run."""
        for _ in range(warm_up):
            work()
        return work


Device = Card | Twin | Cpu


def this_device() -> Card | Twin:
    """The card, or its twin in a dry run."""
    return Twin() if os.environ.get(DRY) == "1" else Card()


def device_under_test(*, timed: bool) -> Card | Cpu:
    """The card where there is one, else the processor."""
    return Card(timed=timed) if torch.cuda.is_available() else Cpu(timed=timed)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _host_seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _profiled(work: Work, synchronize: Work, kind: torch.autograd.DeviceType) -> int | None:
    """Events of one kind in one call."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if kind is torch.autograd.DeviceType.CUDA:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    synchronize()
    with torch.profiler.profile(activities=activities) as found:
        work()
        synchronize()
    return sum(event.device_type == kind for event in found.events() or ()) or None


def _driver() -> str:
    """Version of the driver, where something knows it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.split("\n", 1)[0].strip()

"""The card, and the CPU tensors that play it in a dry run: clocks, memory, launches, compilation, capture.

Everything that only a card can do is a method here, with a twin that runs the same work without one.
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


class Card:
    """The current CUDA device."""

    name = "cuda"
    dry = False

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._cover = torch.zeros(_COVER_BYTES // 4, device=self.device)
        passes = 20
        self._read_cover(3)
        begin, end = self._event(), self._event()
        begin.record()
        self._read_cover(passes)
        end.record()
        end.synchronize()
        self._pass_s = begin.elapsed_time(end) * 1e-3 / passes

    def facts(self) -> dict[str, str | int | float]:
        """What a result has to say of the card."""
        found = torch.cuda.get_device_properties(self.device)
        return {
            "name": found.name,
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
        for _ in range(3):
            work()
        self.synchronize()
        host_s = _host_seconds(work)
        self.synchronize()
        passes = math.ceil((1.5 * host_s + 1e-4) / self._pass_s)
        first = self._sample(work, passes)
        repeats = max(10, min(100, int(seconds / (first[0] + passes * self._pass_s))))
        samples = [self._sample(work, passes) for _ in range(repeats)]
        device, host = (statistics.median(column) for column in zip(*samples, strict=True))
        return Timing(device, host, repeats)

    def launches(self, work: Work) -> int | None:
        """Kernels, copies and fills that one call sends to the device; ``None`` where the profiler sees none."""
        return _profiled(work, self.synchronize, torch.autograd.DeviceType.CUDA)

    def compile(self, function: Callable[..., object]) -> Callable[..., object]:
        """What ``torch.compile`` makes of it."""
        return torch.compile(function)

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

    def _event(self) -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True)

    def _read_cover(self, passes: int) -> None:
        for _ in range(passes):
            self._cover.sum()

    def _sample(self, work: Work, passes: int) -> tuple[float, float]:
        begin, end = self._event(), self._event()
        self._read_cover(passes)
        begin.record()
        host_s = _host_seconds(work)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3, host_s


class Twin:
    """CPU tensors in the place of a card: everything runs, no number means anything."""

    name = "cpu"
    dry = True

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def facts(self) -> dict[str, str | int | float]:
        """As `Card.facts`."""
        return {"name": "dry run on CPU tensors", "memory_bytes": 1 << 20, "multiprocessors": 0, "l2_bytes": 0,
                "capability": "", "driver": "", "cuda": ""}  # fmt: skip

    def room_bytes(self) -> int:
        """So little that the largest cells shrink."""
        return 8 << 10

    def synchronize(self) -> None:
        """Nothing is under way."""

    def forget(self) -> None:
        """There is so little of it."""

    def time(self, work: Work, seconds: float = 0.4) -> Timing:
        """As if a call took a millisecond, and a tenth of it on the host; `launches` makes the call."""
        del work, seconds
        return Timing(1e-3, 1e-4, 1)

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


Device = Card | Twin


def this_device() -> Device:
    """The card, or its twin in a dry run."""
    return Twin() if os.environ.get(DRY) == "1" else Card()


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

"""The device under test: a card with its clock, memory and launches, or the processor of `bench.common.cpu`."""

import contextlib
import functools
import gc
import importlib.metadata
import math
import platform
import re
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator

import torch

from bench.common.cpu import Cpu, WallClock, Work, slugify

PACKAGES = ("torch", "triton", "numpy", "numba", "h5py")
DATASHEET_GB_PER_S = {
    r"H100 80GB HBM3": 3350,
    r"\bH200\b": 4800,
    r"A100-SXM4-80GB": 2039,
    r"\bB200\b": 8000,
    r"MI300X": 5300,
}
"""Bandwidth of cards, by a pattern of their names."""

_COVER_BYTES = 256 << 20
"""What is read before each timed call: several times the second cache of any card."""
_MEMORY_SHARE = 0.6


class CardClock:
    """Times calls on their own, each behind reads that take the device longer than the host takes for the call."""

    def __init__(self, work: Work, read_cover: Callable[[int], None], passes: int) -> None:
        self._work, self._read_cover, self.passes = work, read_cover, passes

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


class Card:
    """The current CUDA device.

    Args:
        timed: whether times are wanted; without, everything runs once, of few elements.
    """

    kind = "cuda"
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
        """Facts of the card that a result records."""
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "kind": self.kind,
            "name": properties.name,
            "slug": slugify(properties.name),
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": int(getattr(properties, "L2_cache_size", 0)),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(self.device))),
            "driver": _driver(),
            "cuda": str(torch.version.cuda or torch.version.hip),
            "datasheet_gb_per_s": self.datasheet_gb_per_s,
        }

    @functools.cached_property
    def datasheet_gb_per_s(self) -> int | None:
        """What the maker says of its memory; ``None`` for a card that is not in the list."""
        return datasheet_gb_per_s(torch.cuda.get_device_properties(self.device).name)

    def room_bytes(self) -> int:
        """What one case may take: 60 % of the card's memory, less where others use it."""
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

    def clock(self, work: Work, *, single: bool = False) -> CardClock | WallClock:
        """A clock for one call; with ``single`` by the wall, the host's own work included."""
        if single:
            work()
            return WallClock(work, torch.cuda.synchronize, torch.cuda.synchronize)
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

    def launches(self, work: Work) -> int | None:
        """Kernels, copies and fills that one call sends to the device; ``None`` where the profiler cannot tell."""
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        self.synchronize()
        try:
            with torch.profiler.profile(activities=activities) as profile:
                work()
                self.synchronize()
        except RuntimeError:  # a profiler that does not run costs this number alone
            return None
        return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events() or ()) or None

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


Device = Card | Cpu


def device_under_test(*, timed: bool) -> Card | Cpu:
    """The card where there is one, else the processor."""
    return Card(timed=timed) if torch.cuda.is_available() else Cpu(timed=timed)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _host_seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def datasheet_gb_per_s(name: str) -> int | None:
    """Bandwidth of a card by its name."""
    return next((speed for pattern, speed in DATASHEET_GB_PER_S.items() if re.search(pattern, name)), None)


def versions() -> dict[str, str]:
    """Of Python and of the packages that measure; empty where one is not there."""
    result = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            result[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            result[package] = ""
    return result


def _driver() -> str:
    """Version of the driver, where something knows it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.split("\n", 1)[0].strip()

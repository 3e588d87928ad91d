"""The measured peak: the fastest of several plain reads of memory."""

import numpy as np
import torch

from bench.common.device import Device, Work
from bench.common.timing import Rounds

ROWS = 16
_LEAST_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}
_CHUNK = 1 << 18


class Peak:
    """Reads of a matrix of float32 rows, twice as large as the last cache, so that nothing of it is cached.

    A roof taken from one kind of read is too low: a matrix-vector product may pass a sum by half.

    Attributes:
        work: name → what reads.
        moved: name → bytes.
    """

    def __init__(self, device: Device) -> None:
        least = _LEAST_BYTES[device.kind] if device.timed else 1 << 16
        size = min(max(least, 2 * device.cache_bytes * device.timed), device.room_bytes() // 4)
        n = size // 4 // ROWS // 64 * 64
        on_cpu = device.device.type == "cpu"  # there in huge pages, as numpy asks for them and torch does not
        memory = (
            torch.from_numpy(np.zeros((ROWS, n), np.float32)) if on_cpu else torch.empty(ROWS, n, device=device.device)
        )
        rows = memory.fill_(1.0)
        half, vector, result = n * ROWS // 2, rows[0].clone(), torch.empty(ROWS, device=device.device)
        first, second = rows.view(-1)[:half], rows.view(-1)[half:]
        self.work: dict[str, Work] = {
            "torch sum": rows.sum,
            "torch dot": lambda: torch.dot(first, second),
            "torch copy": lambda: second.copy_(first),
            "torch mv": lambda: torch.mv(rows, vector, out=result),
        }
        self.moved = dict.fromkeys(self.work, rows.nbytes)
        self.moved["torch mv"] += vector.nbytes
        if on_cpu:
            matrix, numbers = rows.numpy(), vector.numpy()

            def gemv() -> None:
                for start in range(0, n, _CHUNK):
                    matrix[:, start : start + _CHUNK] @ numbers[start : start + _CHUNK]

            self.work["numpy gemv in chunks"] = gemv
            self.moved["numpy gemv in chunks"] = self.moved["torch mv"]

    def select_fastest(self, device: Device, count: int = 2, rounds: int = 5) -> None:
        """Time all of them and drop all but the fastest: every case times these beside itself."""
        clocks = {name: device.clock(work) for name, work in self.work.items()}
        best = dict.fromkeys(clocks, 0.0)
        for _ in range(rounds):
            for name, clock in clocks.items():
                clock.ready()
                best[name] = max(best[name], self.moved[name] / clock.sample()[0])
        fastest = sorted(best, key=best.__getitem__, reverse=True)[:count]
        self.work = {name: self.work[name] for name in fastest}

    def measured(self, timed: Rounds) -> dict[str, float | str]:
        """The fastest in these rounds."""
        speeds = {name: self.moved[name] / timed.median(name) / 1e9 for name in self.work}
        fastest = max(speeds, key=speeds.__getitem__)
        return {"peak_gb_per_s": speeds[fastest], "peak_way": fastest}

    def fraction(self, timed: Rounds, name: str, bytes_moved: int) -> float:
        """Bytes a second of ``name`` over those of the fastest read: round by round, as all ratios are."""
        ratios = {read: timed.ratio(read, over=name).value for read in self.work}
        return min(ratio * bytes_moved / self.moved[read] for read, ratio in ratios.items())

"""CUDA graphs: whether one is being captured, and tables whose memory its replays read again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.triton.device import to_device
from fastgeom.layout.chunks import Ints

_MAX_TABLES = 16


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the current stream: Python runs now, but not in its replays."""
    return can_capture(device) and torch.cuda.is_current_stream_capturing()


def can_capture(device: torch.device) -> bool:
    """Whether work on this device can be captured in a CUDA graph."""
    return device.type == "cuda"


class PinnedPool:
    """Pinned memory for tables that are copied to the device in a capture, during which nothing can be pinned.

    Every replay reads that memory again, so what was filled in a capture is never reused.

    Args:
        device: the device that the tables are copied to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: list[Tensor] = []
        self._captured: list[Tensor] = []

    def reserve(self, shape: Sequence[int]) -> None:
        """Pin memory for one table of this shape, for the next capture. Not to be called in one."""
        if can_capture(self._device) and not any(pinned.shape == torch.Size(shape) for pinned in self._free):
            self._free.append(torch.empty(tuple(shape), dtype=torch.int64, pin_memory=True, device="cpu"))

    def fill(self, table: Ints) -> Tensor:
        """Copy the table into reserved memory.

        Raises:
            RuntimeError: none of this shape was reserved before the capture.
        """
        for index, pinned in enumerate(self._free):
            if pinned.shape == table.shape:
                self._captured.append(self._free.pop(index).copy_(torch.from_numpy(table)))
                return self._captured[-1]
        raise RuntimeError("expected the same call once before a CUDA graph is captured, got none")


class DeviceTable:
    """A table on the device that is sent again when it has changed, always to the same address.

    A graph that has captured it sends it in every replay, which the host does not see: after a capture it is sent at
    every call.

    Args:
        device: where the table is.

    Attributes:
        tensor: int64, the table on the device.
    """

    tensor: Tensor

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = PinnedPool(device)
        self._sent: Ints | None = None
        self._captured = False

    def send(self, table: Ints) -> None:
        """Make this the table on the device, without waiting.

        Args:
            table: of the same shape at every call.

        Raises:
            RuntimeError: in a capture, where none was sent since the last one.
        """
        if capturing(self._device):
            pinned = self._pool.fill(table)
            self.tensor.copy_(pinned, non_blocking=True)
            self._captured = True
            return
        if self._sent is None:
            self.tensor = to_device(table, self._device)
        elif self._captured or not np.array_equal(table, self._sent):
            self.tensor.copy_(to_device(table, self._device), non_blocking=True)
        self._sent = table
        self._pool.reserve(table.shape)


class TableCache:
    """Tables on the device that are reused by later calls with the same key; those of a capture stay for its replays.

    Args:
        device: where the tables are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tables: dict[bytes, list[Tensor]] = {}
        self._pool = PinnedPool(device)
        self._captured: list[list[Tensor]] = []

    def get(self, key: bytes, make: Callable[[], list[Ints]]) -> list[Tensor]:
        """The tables of a key on the device, without waiting.

        Args:
            key: what the tables are made from.
            make: makes them, where they are not on the device yet.

        Raises:
            RuntimeError: in a capture, where the same call was not made before.
        """
        if capturing(self._device):
            self._captured.append([self._pool.fill(t).to(self._device, non_blocking=True) for t in make()])
            return self._captured[-1]
        if key not in self._tables:
            while len(self._tables) >= _MAX_TABLES:
                del self._tables[next(iter(self._tables))]
            tables = make()
            self._tables[key] = [to_device(t, self._device) for t in tables]
            for table in tables:
                self._pool.reserve(table.shape)
        return self._tables[key]

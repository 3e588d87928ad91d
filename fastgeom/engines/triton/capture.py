"""CUDA graphs: whether one is being captured, and pinned memory for what it copies to the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgeom.layout.chunks import Ints


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the current stream: Python runs now, and not when it is replayed."""
    return can_capture(device) and torch.cuda.is_current_stream_capturing()


def can_capture(device: torch.device) -> bool:
    """Whether work on this device can be captured in a CUDA graph."""
    return device.type == "cuda"


class PinnedPool:
    """Pinned memory for tables that go to the device while a CUDA graph is captured, when nothing may be pinned.

    Every replay reads again what was pinned, so what is taken is never given back.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: list[Tensor] = []
        self._taken: list[Tensor] = []

    def ensure(self, shape: Sequence[int]) -> None:
        """Have room for one table of this shape in the next capture. Call it outside of one."""
        if can_capture(self._device) and not any(pinned.shape == torch.Size(shape) for pinned in self._free):
            self._free.append(torch.empty(tuple(shape), dtype=torch.int64, pin_memory=True, device="cpu"))

    def take(self, table: Ints) -> Tensor:
        """The table in pinned memory.

        Raises:
            RuntimeError: there is no room: nothing of this shape was sent before the capture.
        """
        for place, pinned in enumerate(self._free):
            if pinned.shape == table.shape:
                self._taken.append(self._free.pop(place).copy_(torch.from_numpy(table)))
                return self._taken[-1]
        raise RuntimeError("expected the same call once before a CUDA graph is captured, got none")

"""The device that Triton kernels are launched on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


class TritonDevice:
    """One device, its memory, and launches on it.

    Args:
        device: a GPU; or the CPU, where kernels are interpreted.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def zeros(self, rows: int, n_elements: int, dtype: torch.dtype) -> Tensor:
        """Memory of shape (rows, n_elements), zeroed."""
        return torch.zeros(rows, n_elements, dtype=dtype, device=self.device)

    def current(self) -> AbstractContextManager[object]:
        """Makes the device the current one, where launches go."""
        if self.device.type == "cpu":
            return nullcontext()
        context: AbstractContextManager[object] = torch.get_device_module(self.device).device(self.device)
        return context

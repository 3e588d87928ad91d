"""The device that Triton kernels are launched on, and what is sent there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
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
        """A context in which the device is the current one, which kernels are launched on."""
        if self.device.type == "cpu":
            return nullcontext()
        context: AbstractContextManager[object] = torch.get_device_module(self.device).device(self.device)
        return context


def to_device(array: NDArray[np.integer], device: torch.device) -> Tensor:
    """Copy an array to the device without waiting. Not in a capture: see `PinnedPool`."""
    host = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return host.clone()
    return host.pin_memory().to(device, non_blocking=True)


def reciprocal(grad_scale: Tensor | None) -> Tensor | None:
    """The factor that undoes a gradient scaler's scale, float64 (); ``None`` where gradients are not scaled."""
    return None if grad_scale is None else grad_scale.reshape(()).double().reciprocal()

"""Asynchronous copies from the device to the host.

The only code that copies a measurement from the device: into pinned memory, followed by an event that is polled. Values
in CPU memory are copied at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Value = Tensor | float | int
HostValue = NDArray[np.generic] | float | int

_SPARSE = 4
"""A storage is copied as one unless it has more than this many times the bytes that are asked for."""


class Transfer:
    """An asynchronous copy of a set of values.

    Args:
        values: tensors, and numbers, which are not copied, by name.
    """

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._host: dict[str, HostValue | Tensor] = {}
        self._events: list[torch.Event] = []
        on_device: dict[str, Tensor] = {}
        for name, value in values.items():
            if not isinstance(value, Tensor):
                self._host[name] = value
            elif value.device.type == "cpu":
                self._host[name] = value.detach().clone()
            else:
                on_device[name] = value.detach()
        if on_device:
            self._host |= _to_pinned(on_device)
            for device in {value.device for value in on_device.values()}:
                event = torch.Event(device)
                event.record(torch.accelerator.current_stream(device))
                self._events.append(event)

    def ready(self) -> bool:
        """Whether all values have arrived."""
        return all(event.query() for event in self._events)

    def wait(self) -> None:
        """Wait until all values have arrived."""
        for event in self._events:
            event.synchronize()

    def result(self) -> dict[str, HostValue]:
        """The values as numpy arrays and numbers; valid once they are `ready`."""
        return {name: _number_or_array(value) for name, value in self._host.items()}


def _to_pinned(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Start the copies to pinned memory, one for each storage that several values are views of."""
    asked: dict[tuple[int, torch.dtype], int] = {}
    for value in values.values():
        key = value.untyped_storage().data_ptr(), value.dtype
        asked[key] = asked.get(key, 0) + value.numel() * value.element_size()
    copied: dict[tuple[int, torch.dtype], Tensor] = {}
    arriving = {}
    for name, value in values.items():
        storage = value.untyped_storage()
        key = storage.data_ptr(), value.dtype
        if storage.nbytes() > _SPARSE * asked[key]:
            arriving[name] = _copy(value)
            continue
        if key not in copied:
            copied[key] = _copy(torch.empty(0, dtype=value.dtype, device=value.device).set_(storage))
        arriving[name] = copied[key].as_strided(value.shape, value.stride(), value.storage_offset())
    return arriving


def _copy(value: Tensor) -> Tensor:
    pinned = torch.empty(value.shape, dtype=value.dtype, pin_memory=True, device="cpu")
    return pinned.copy_(value, non_blocking=True)


def _number_or_array(value: HostValue | Tensor) -> HostValue:
    if not isinstance(value, Tensor):
        return value
    if value.ndim:
        array: NDArray[np.generic] = value.numpy() if value.dtype is not torch.bfloat16 else value.float().numpy()
        return array
    number: float | int = value.item()
    return number


def wait_for(value: Tensor) -> int:
    """The value of a 0-d integer tensor; waits for the device."""
    return int(value)

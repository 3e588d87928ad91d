"""Rows of steps that a captured graph replays, where Python does not run: they collect on the device until `drain`.

Everything here but `take` is a few operations of torch with fixed addresses, which a graph captures and repeats: the
row is written at a place that a counter on the device names, and the counter goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastgeom.recording.device_copy import HostValue
from fastgeom.schema import Field

_BYTES = 4 << 20
_MOST_ROWS = 1024


class ReplayRows:
    """A ring of rows on the device, 4 MB of them or 1,024, and at least two.

    Made outside of a capture, since a graph repeats what it captured, the beginning of the count too.

    Args:
        device: where the rows are measured.
        fields: of a row that come from the device.
        sizes: of the dimensions.
    """

    def __init__(self, device: torch.device, fields: tuple[Field, ...], sizes: Mapping[str, int]) -> None:
        self._shapes = {f.name: tuple(sizes[d] for d in f.dims[1:]) for f in fields}
        self._dtypes = {f.name: f.dtype for f in fields}
        ends = np.cumsum([prod(shape) for shape in self._shapes.values()])
        self._slices = {
            name: slice(int(end) - prod(shape), int(end))
            for (name, shape), end in zip(self._shapes.items(), ends, strict=True)
        }
        width = int(ends[-1])
        self._capacity = min(_MOST_ROWS, max(2, _BYTES // (8 * width)))
        self._rows = torch.zeros(self._capacity, width, dtype=torch.float64, device=device)
        self._blank = torch.full((width,), torch.nan, dtype=torch.float64, device=device)
        self._count = torch.zeros(1, dtype=torch.int64, device=device)
        self._taken = 0

    def append(self, values: Mapping[str, Tensor]) -> None:
        """A new row."""
        parts = [_flat(values[name]) if name in values else self._blank[part] for name, part in self._slices.items()]
        self._rows.index_copy_(0, self._count % self._capacity, torch.cat(parts)[None])
        self._count += 1

    def complete(self, values: Mapping[str, Tensor]) -> None:
        """Late fields of the row before the next: the last one here, or one that left the device before any came."""
        place = (self._count - 1) % self._capacity
        for name, value in values.items():
            self._rows[:, self._slices[name]].index_copy_(0, place, _flat(value)[None])

    def take(self) -> tuple[list[dict[str, HostValue]], int, dict[str, HostValue]]:
        """The rows since the last call, on the host; how many were overwritten; the row before, for its late fields.

        Waits for the device. The row before is empty where nothing is new, or where it was overwritten.
        """
        count, taken = int(self._count), self._taken
        if count == taken:
            return [], 0, {}
        host = self._rows.cpu().numpy()
        lost = max(0, count - taken - self._capacity)
        found = [self._row(host, index) for index in range(taken + lost, count)]
        before = self._row(host, taken - 1) if count - taken < self._capacity else {}
        self._taken = count
        return found, lost, before

    def _row(self, host: NDArray[np.float64], index: int) -> dict[str, HostValue]:
        row = host[index % self._capacity]
        return {
            name: row[part].reshape(self._shapes[name]).astype(self._dtypes[name])
            for name, part in self._slices.items()
        }


def _flat(value: Tensor) -> Tensor:
    return value.detach().to(torch.float64).reshape(-1)

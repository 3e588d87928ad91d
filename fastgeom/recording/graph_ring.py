"""Rows of steps that a captured CUDA graph replays, where Python does not run: they stay on the device until `drain`.

All of `GraphRing` but `drain` is a few torch operations at fixed addresses, which a graph captures and repeats: the row
is written at the index that a counter on the device gives, and the counter is incremented.
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

_RING_BYTES = 4 << 20
_MAX_ROWS = 1024


class GraphRing:
    """The last rows of replayed steps, on the device: as many as 4 MB contain, but 2 to 1,024.

    It is made outside of a capture, as a graph would repeat the initialisation of the counter too.

    Args:
        device: where the rows are measured.
        fields: the fields of a row that come from the device.
        sizes: lengths of their dimensions.
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
        self._capacity = min(_MAX_ROWS, max(2, _RING_BYTES // (8 * width)))
        self._rows = torch.zeros(self._capacity, width, dtype=torch.float64, device=device)
        self._blank = torch.full((width,), torch.nan, dtype=torch.float64, device=device)
        self._count = torch.zeros(1, dtype=torch.int64, device=device)
        self._n_drained = 0

    def append(self, values: Mapping[str, Tensor]) -> None:
        """Append a row; fields without a value are NaN."""
        columns = [_flat(values[name]) if name in values else self._blank[s] for name, s in self._slices.items()]
        self._rows.index_copy_(0, self._count % self._capacity, torch.cat(columns)[None])
        self._count += 1

    def complete(self, values: Mapping[str, Tensor]) -> None:
        """Set late fields of the last row; before the first `append`, of the row that preceded it."""
        index = (self._count - 1) % self._capacity
        for name, value in values.items():
            self._rows[:, self._slices[name]].index_copy_(0, index, _flat(value)[None])

    def drain(self) -> tuple[list[dict[str, HostValue]], int, dict[str, HostValue]]:
        """Copy the rows since the last call to the host; waits for the device.

        Returns:
            The rows; how many more were overwritten; and the row before them, which may have new late fields. The last
            is empty where nothing is new, or where that row was overwritten.
        """
        count, n_drained = int(self._count), self._n_drained
        if count == n_drained:
            return [], 0, {}
        host = self._rows.cpu().numpy()
        lost = max(0, count - n_drained - self._capacity)
        rows = [self._row(host, index) for index in range(n_drained + lost, count)]
        previous = self._row(host, n_drained - 1) if count - n_drained < self._capacity else {}
        self._n_drained = count
        return rows, lost, previous

    def _row(self, host: NDArray[np.float64], index: int) -> dict[str, HostValue]:
        row = host[index % self._capacity]
        return {
            name: row[columns].reshape(self._shapes[name]).astype(self._dtypes[name])
            for name, columns in self._slices.items()
        }


def _flat(value: Tensor) -> Tensor:
    return value.detach().to(torch.float64).reshape(-1)

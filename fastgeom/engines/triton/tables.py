"""What Triton kernels are told of lists of tensors: where each unit of work lies, and which partial sums go together.

Tables are made on the host with numpy and move to the device by an asynchronous copy out of pinned memory, and only
when an address has changed. Their columns are those that ``fastgeom.kernels.loads`` reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastgeom.engines.triton.capture import PinnedPool, capturing
from fastgeom.kernels.loads import ABSENT, ITEM_BYTES, SHORT
from fastgeom.kernels.reduce import SEGMENT_ROWS
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.chunks import ChunkTable, Ints, chunk_table
from fastgeom.validation import DTYPES

FLOAT64 = DTYPES.index(torch.float64)
ITEM: Ints = np.array(ITEM_BYTES, np.int64)
VECTOR_BYTES = 16


def unit_addresses(units: ChunkTable, table: AddressTable, whole: int) -> tuple[Ints, Ints]:
    """Byte address and code of each unit, of tensors that lie as ``table`` says; 0 and 8 + dtype where there is none.

    Args:
        units: tensor, start and length of each.
        table: where the tensors lie.
        whole: elements of a whole unit.
    """
    base, dtype = table.address[units.tensor], table.code[units.tensor].astype(np.int64)
    address = base + units.start * ITEM[dtype]
    fast = (units.length == whole) & (address % VECTOR_BYTES == 0)
    code = dtype + np.where(base == 0, ABSENT.value, np.where(fast, 0, SHORT.value))
    return np.where(base == 0, 0, address), code


@dataclass(frozen=True)
class PartialRows:
    """A run of rows of partial sums that one launch writes: ``per_unit`` for each unit, from ``first`` on."""

    first: int
    per_unit: int
    layer: Ints
    """(unit,) the layer of each; not falling."""

    @property
    def end(self) -> int:
        """The row after the last."""
        return self.first + self.per_unit * len(self.layer)


def spans(runs: list[list[PartialRows]], layers: int) -> tuple[list[Ints], Ints]:
    """Which rows make a segment, and which segments a layer.

    Args:
        runs: for each matrix of partial sums, the runs of rows in it.
        layers: number of layers.

    Returns:
        For each matrix (3, n): first row, end, and the number of the segment; and (3, layer + 1): first segment, end,
        and the layer, the last being all of them. Segments are numbered layer by layer.
    """
    begins, ends, owners, matrices = [], [], [], []
    for matrix, rows in ((m, rows) for m, several in enumerate(runs) for rows in several if len(rows.layer)):
        present, first = np.unique(rows.layer, return_index=True)
        edges = rows.first + rows.per_unit * np.append(first, len(rows.layer))
        cut = chunk_table(np.diff(edges), SEGMENT_ROWS)
        begin = edges[cut.tensor] + cut.start
        begins.append(begin)
        ends.append(begin + cut.length)
        owners.append(present[cut.tensor])
        matrices.append(np.full(len(begin), matrix))
    columns = (np.concatenate([np.zeros(0, np.int64), *c]) for c in (begins, ends, owners, matrices))
    begin, end, owner, matrix_of = columns
    order = np.argsort(owner, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    segments = [np.stack([begin, end, place])[:, matrix_of == m] for m in range(len(runs))]
    edges = np.searchsorted(owner[order], np.arange(layers + 1))
    by_layer = np.stack([edges[:-1], edges[1:], np.arange(layers)])
    everything = np.array([[0], [len(order)], [layers]], np.int64)
    return segments, np.concatenate([by_layer, everything], axis=1)


def to_device(array: NDArray[np.integer], device: torch.device) -> Tensor:
    """The array on the device; the host does not wait for it. Not while a graph is captured: see `PinnedPool`."""
    host = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return host.clone()
    return host.pin_memory().to(device, non_blocking=True)


class Upload:
    """A table on the device that is sent again when it has changed, always to the same place.

    A graph that captured it sends it at every replay, behind the host's back: from then on it is sent every time.

    Attributes:
        table: on the device.
    """

    table: Tensor

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = PinnedPool(device)
        self._sent: Ints | None = None
        self._captured = False

    def send(self, table: Ints) -> None:
        """Make this the table; the host does not wait for it.

        Raises:
            RuntimeError: in a capture, where none was sent since the last one.
        """
        if capturing(self._device):
            pinned = self._pool.take(table)
            self.table.copy_(pinned, non_blocking=True)
            self._captured = True
            return
        if self._sent is None:
            self.table = to_device(table, self._device)
        elif self._captured or not np.array_equal(table, self._sent):
            self.table.copy_(to_device(table, self._device), non_blocking=True)
        self._sent = table
        self._pool.ensure(table.shape)

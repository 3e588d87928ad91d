"""Host tables for the Triton kernels: the address of each unit, and which partial rows are added together.

Tables are made on the host with numpy, and copied to the device asynchronously out of pinned memory when an address has
changed. Their columns are those that ``fastgeom.kernels.loads`` reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fastgeom.kernels.loads import ABSENT, ITEM_BYTES, SHORT
from fastgeom.kernels.reduce import SEGMENT_ROWS
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.chunks import ChunkTable, Ints, chunk_table
from fastgeom.validation import DTYPES

FLOAT64 = DTYPES.index(torch.float64)
ITEM: Ints = np.array(ITEM_BYTES, np.int64)
VECTOR_BYTES = 16


def unit_addresses(units: ChunkTable, table: AddressTable, unit_elements: int) -> tuple[Ints, Ints]:
    """Byte address and code of each unit; 0 and 8 + dtype where there is no tensor.

    Args:
        units: tensor, start and length of each.
        table: addresses of the tensors.
        unit_elements: elements of a full unit.
    """
    base, dtype = table.address[units.tensor], table.code[units.tensor].astype(np.int64)
    address = base + units.start * ITEM[dtype]
    fast = (units.length == unit_elements) & (address % VECTOR_BYTES == 0)
    code = dtype + np.where(base == 0, ABSENT.value, np.where(fast, 0, SHORT.value))
    return np.where(base == 0, 0, address), code


@dataclass(frozen=True)
class PartialRows:
    """The partial rows that one launch writes, consecutive rows of a matrix.

    Attributes:
        first: the first row.
        per_unit: rows of each unit.
        layer: (unit,) the layer of each unit; not falling.
    """

    first: int
    per_unit: int
    layer: Ints

    @property
    def end(self) -> int:
        """The row after the last."""
        return self.first + self.per_unit * len(self.layer)


def segment_tables(launches: list[list[PartialRows]], layers: int) -> tuple[list[Ints], Ints]:
    """Assign partial rows to segments, and segments to layers.

    Args:
        launches: for each matrix of partial sums, the rows of each launch that writes to it.
        layers: number of layers.

    Returns:
        For each matrix (3, n): first row, end, and the number of the segment; and (3, layer + 1): first segment, end,
        and the layer, the last being all of them. Segments are numbered layer by layer.
    """
    begins, ends, owners, matrices = [], [], [], []
    for matrix, rows in ((m, rows) for m, several in enumerate(launches) for rows in several if len(rows.layer)):
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
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    segments = [np.stack([begin, end, number])[:, matrix_of == m] for m in range(len(launches))]
    edges = np.searchsorted(owner[order], np.arange(layers + 1))
    by_layer = np.stack([edges[:-1], edges[1:], np.arange(layers)])
    everything = np.array([[0], [len(order)], [layers]], np.int64)
    return segments, np.concatenate([by_layer, everything], axis=1)

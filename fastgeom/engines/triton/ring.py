"""Device memory for the last gradients, and the launches that go over it.

Each tensor is a chunk of every row, padded to 1 KB. Its full units of 16 KB belong to one launch; what remains, in
units of 1 KB, belongs to a second one: two launches for each dtype of ring, however many tensors there are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.triton.capture import DeviceTable
from fastgeom.engines.triton.device import TritonDevice
from fastgeom.engines.triton.tables import FLOAT64, ITEM, PartialRows, unit_addresses
from fastgeom.kernels.window.window import BIG_WARPS, SMALL_WARPS, WINDOW_BIG, WINDOW_SMALL
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.chunks import ChunkTable, Ints, chunk_table
from fastgeom.layout.layout import Layout
from fastgeom.validation import DTYPES


@dataclass(frozen=True)
class GradientRing:
    """The rows of the tensors of one dtype of ring.

    Attributes:
        memory: (slots, elements).
        wide: compute in float64.
        layer: (tensor,) the layer of each tensor along a row, not falling.
        padded: (tensor,) the elements of a row that belong to it.
    """

    memory: Tensor
    wide: bool
    layer: Ints
    padded: Ints


@dataclass(frozen=True)
class Launch:
    """The units of one launch: those of one size in one ring.

    Attributes:
        ring: where the gradients are stored.
        small: units of 1 KB of ring, else of 16 KB.
        keep: whether the ring loses precision of some tensor, whose last gradient is then stored in full beside it.
        elements: elements of a full unit.
        units: tensor, start and length of each unit, by layer.
        offset: (unit,) first element in a row of the ring.
        keep_address: (unit,) address of the last gradient in full; 0 where there is none.
        snapshot_address: (unit,) address of the parameters' snapshot; 0 where there is none.
        rows: the rows of partial sums that it writes.
        device_table: the table on the device; columns as ``fastgeom.kernels.window.window`` and ``.update`` read them.
    """

    ring: GradientRing
    small: bool
    keep: bool
    elements: int
    units: ChunkTable
    offset: Ints
    keep_address: Ints
    snapshot_address: Ints
    rows: PartialRows
    device_table: DeviceTable

    @property
    def table(self) -> Tensor:
        """(8, unit) int64, on the device."""
        return self.device_table.tensor

    def locate(self, gradient: AddressTable, parameter: AddressTable | None) -> None:
        """Send the addresses of the tensors to the device, if they have changed."""
        gradients, absent = unit_addresses(self.units, gradient, self.elements), np.zeros_like(self.offset)
        parameters = unit_addresses(self.units, parameter, self.elements) if parameter else (absent, absent)
        columns = [*gradients, self.units.length, self.offset, self.keep_address, *parameters, self.snapshot_address]
        self.device_table.send(np.stack(columns))


class GradientRings:
    """All rings of a layout.

    Args:
        layout: the measured tensors.
        engine: allocates the memory.
        slots: number of rows.
        dtypes: the dtype that each gradient is stored in.
        gradient: addresses of the gradients now.
        parameter: addresses of the parameters now; ``None`` where no updates are measured.

    Attributes:
        launches: two for each ring, or one.
        rings: one for each dtype, and two where some of its tensors need float64.
        n_rows: number of float32 and of float64 partial rows.
    """

    def __init__(
        self,
        layout: Layout,
        engine: TritonDevice,
        slots: int,
        dtypes: list[torch.dtype],
        *,
        gradient: AddressTable,
        parameter: AddressTable | None,
    ) -> None:
        self._layout, self._engine, self._slots = layout, engine, slots
        self._gradient, self._parameter = gradient.code, None if parameter is None else parameter.code
        self._buffers: list[Tensor] = []
        self.launches: list[Launch] = []
        self.rings: list[GradientRing] = []
        self.n_rows = [0, 0]
        code = np.array([DTYPES.index(d) for d in dtypes], np.int64)
        wide = gradient.code == FLOAT64
        if parameter is not None:
            wide = wide | (parameter.code == FLOAT64)
        for ring_code, is_wide in sorted({(int(c), int(w) == 1) for c, w in zip(code, wide, strict=True)}):
            members = np.flatnonzero((code == ring_code) & (wide == is_wide) & (layout.numels > 0))
            if len(members):
                self._add(members[np.argsort(layout.layer[members], kind="stable")], ring_code, is_wide)

    def _add(self, members: Ints, code: int, wide: bool) -> None:
        """Add the ring of these tensors and its launches."""
        numels, item = self._layout.numels[members], int(ITEM[code])
        big, small = WINDOW_BIG // item, WINDOW_SMALL // item
        padded = -(-numels // small) * small
        memory = self._engine.zeros(self._slots, int(padded.sum()), DTYPES[code])
        ring = GradientRing(memory, wide, self._layout.layer[members], padded)
        self.rings.append(ring)
        keeps = self._gradient[members] != code
        keep = self._allocate(np.where(keeps, padded * ITEM[self._gradient[members]], 0))
        parameter_items = np.int64(0) if self._parameter is None else ITEM[self._parameter[members]]
        snapshot = self._allocate(padded * parameter_items)
        offset = np.cumsum(padded) - padded
        full = numels // big * big
        for elements, warps, begin, length in (
            (big, BIG_WARPS, np.zeros_like(full), full),
            (small, SMALL_WARPS, full, numels - full),
        ):
            units = chunk_table(length, elements)
            if not len(units):
                continue
            member, tensor = units.tensor, members[units.tensor]
            units = replace(units, tensor=tensor, start=units.start + begin[member])
            rows = PartialRows(self.n_rows[wide], warps, self._layout.layer[tensor])
            self.n_rows[wide] = rows.end
            gradient_item = ITEM[self._gradient[tensor]]
            parameter_item = 0 if self._parameter is None else ITEM[self._parameter[tensor]]
            self.launches.append(
                Launch(
                    ring,
                    small=elements == small,
                    keep=len(np.flatnonzero(keeps)) > 0,
                    elements=elements,
                    units=units,
                    offset=offset[member] + units.start,
                    keep_address=np.where(keep[member] == 0, 0, keep[member] + units.start * gradient_item),
                    snapshot_address=snapshot[member] + units.start * parameter_item,
                    rows=rows,
                    device_table=DeviceTable(self._engine.device),
                )
            )

    def _allocate(self, sizes: Ints) -> Ints:
        """Addresses of zeroed memory of so many bytes for each tensor; 0 for none."""
        if not sizes.any():
            return np.zeros_like(sizes)
        buffer = self._engine.zeros(1, int(sizes.sum()), torch.uint8)
        self._buffers.append(buffer)
        return np.where(sizes == 0, 0, buffer.data_ptr() + np.cumsum(sizes) - sizes)

"""Device memory for the last gradients, and the launches that go over it.

Each tensor has a run of every row, padded to 1 KB. Its whole 16 KB units are one launch; what remains goes in units of
1 KB in a second one: for each dtype of ring two launches, however many tensors there are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.triton.device import TritonDevice
from fastgeom.engines.triton.tables import FLOAT64, ITEM, PartialRows, Upload, unit_addresses
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
        layer, padded: (tensor,) the layer of each tensor along a row, not falling, and the elements that it takes.
    """

    memory: Tensor
    wide: bool
    layer: Ints
    padded: Ints


@dataclass(frozen=True)
class Launch:
    """The units of one launch: those of one size in one ring.

    Attributes:
        ring: where the gradients are kept.
        small: units of 1 KB of ring, else of 16 KB.
        keep: whether the ring loses precision of some tensor, whose last gradient is then kept in full beside it.
        elements: of a whole unit.
        units: tensor, start and length of each unit, by layer.
        offset, kept_at, snapshot_at: (unit,) element within a row of the ring; address of what is kept in full and of
            the parameters' snapshot, 0 where there is none.
        rows: the rows of partial sums that it writes.
        places: the table on the device; columns as ``fastgeom.kernels.window`` and ``.update`` read them.
    """

    ring: GradientRing
    small: bool
    keep: bool
    elements: int
    units: ChunkTable
    offset: Ints
    kept_at: Ints
    snapshot_at: Ints
    rows: PartialRows
    places: Upload

    @property
    def table(self) -> Tensor:
        """On the device."""
        return self.places.table

    def locate(self, gradient: AddressTable, parameter: AddressTable | None) -> None:
        """Tell the device where the tensors lie, if that has changed."""
        columns = [*unit_addresses(self.units, gradient, self.elements), self.units.length, self.offset, self.kept_at]
        nowhere = np.zeros_like(self.offset)
        parameters = unit_addresses(self.units, parameter, self.elements) if parameter else (nowhere, nowhere)
        self.places.send(np.stack([*columns, *parameters, self.snapshot_at]))


class GradientRings:
    """All rings of a layout.

    Args:
        layout: the measured tensors.
        engine: gives the memory.
        slots: rows.
        kept: the dtype that each gradient is kept in.
        gradient, parameter: where the tensors lie now; parameters only where their updates are measured.

    Attributes:
        launches: all of them.
        rings: one for each dtype of ring, and two where some of its tensors need float64.
        n_rows: of float32 and of float64 partial sums.
    """

    def __init__(
        self, layout: Layout, engine: TritonDevice, slots: int, kept: list[torch.dtype], *, gradient: AddressTable,
        parameter: AddressTable | None,
    ) -> None:  # fmt: skip
        self._layout, self._engine, self._slots = layout, engine, slots
        self._gradient, self._parameter = gradient.code, None if parameter is None else parameter.code
        self._buffers: list[Tensor] = []
        self.launches: list[Launch] = []
        self.rings: list[GradientRing] = []
        self.n_rows = [0, 0]
        code = np.array([DTYPES.index(d) for d in kept], np.int64)
        wide = gradient.code == FLOAT64
        if parameter is not None:
            wide = wide | (parameter.code == FLOAT64)
        for each, is_wide in sorted({(int(c), int(w) == 1) for c, w in zip(code, wide, strict=True)}):
            members = np.flatnonzero((code == each) & (wide == is_wide) & (layout.numels > 0))
            if len(members):
                self._add(members[np.argsort(layout.layer[members], kind="stable")], each, is_wide)

    def _add(self, members: Ints, code: int, wide: bool) -> None:
        """The ring of these tensors and its launches."""
        numels, item = self._layout.numels[members], int(ITEM[code])
        big, small = WINDOW_BIG // item, WINDOW_SMALL // item
        padded = -(-numels // small) * small
        memory = self._engine.zeros(self._slots, int(padded.sum()), DTYPES[code])
        ring = GradientRing(memory, wide, self._layout.layer[members], padded)
        self.rings.append(ring)
        keeps = self._gradient[members] != code
        keep = self._memory(np.where(keeps, padded * ITEM[self._gradient[members]], 0))
        own = padded * 0 if self._parameter is None else padded * ITEM[self._parameter[members]]
        snapshot = self._memory(own)
        offset = np.cumsum(padded) - padded
        whole = numels // big * big
        for elements, warps, begin, length in (
            (big, BIG_WARPS, np.zeros_like(whole), whole),
            (small, SMALL_WARPS, whole, numels - whole),
        ):
            units = chunk_table(length, elements)
            if not len(units):
                continue
            place, tensor = units.tensor, members[units.tensor]
            units = replace(units, tensor=tensor, start=units.start + begin[place])
            rows = PartialRows(self.n_rows[wide], warps, self._layout.layer[tensor])
            self.n_rows[wide] = rows.end
            parameter_item = 0 if self._parameter is None else ITEM[self._parameter[tensor]]
            self.launches.append(
                Launch(
                    ring,
                    small=elements == small,
                    keep=len(np.flatnonzero(keeps)) > 0,
                    elements=elements,
                    units=units,
                    offset=offset[place] + units.start,
                    kept_at=np.where(keep[place] == 0, 0, keep[place] + units.start * ITEM[self._gradient[tensor]]),
                    snapshot_at=snapshot[place] + units.start * parameter_item,
                    rows=rows,
                    places=Upload(self._engine.device),
                )
            )

    def _memory(self, sizes: Ints) -> Ints:
        """Address of so many zeroed bytes for each tensor; 0 for none."""
        if not sizes.any():
            return np.zeros_like(sizes)
        buffer = self._engine.zeros(1, int(sizes.sum()), torch.uint8)
        self._buffers.append(buffer)
        return np.where(sizes == 0, 0, buffer.data_ptr() + np.cumsum(sizes) - sizes)

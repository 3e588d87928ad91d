"""Rows of a trace: their fields, and a queue of rows that are not complete yet.

A row waits for its late fields and for its copy from the device (`Transfer`), which is polled when the next row comes.
Rows leave in order. The number of pending rows is bounded, and so is the queue to the disk: a row that finds it full is
dropped and counted, and so is one that the device has lost.
"""

from __future__ import annotations

import logging
import queue
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastgeom.recording.device_copy import HostValue, Transfer, Value
from fastgeom.schema import BUCKET, LAG, LAYER, LAYER_LAG, LAYER_PREFIX, Field, recorded_fields

Row = dict[str, HostValue]

LAYER_LAG_FIELDS = {f"{LAYER_PREFIX}lag_dot", f"{LAYER_PREFIX}lag_dot_error"}
"""Fields of which the trace may record only some lags."""

MAX_COPYING_ROWS = 64
"""Most rows that wait for nothing but the device."""
MAX_PENDING_ROWS = 4 * MAX_COPYING_ROWS
"""Most rows that wait at all."""

logger = logging.getLogger("fastgeom")


@dataclass(frozen=True)
class TraceShape:
    """Fields and dimensions of a run's rows; all are fixed before the first row but the names of the scalars.

    Attributes:
        layers: names of the layers.
        window: number of lags.
        layer_lags: the lags recorded per layer.
        track_updates: whether rows have update fields.
        errors: whether rows have standard errors.
        buckets: length of the sketch in each row; 0 for none.
    """

    layers: tuple[str, ...]
    window: int
    layer_lags: tuple[int, ...]
    track_updates: bool
    errors: bool = False
    buckets: int = 0

    @property
    def all_layer_lags(self) -> bool:
        """Whether every lag is recorded per layer."""
        return len(self.layer_lags) == self.window

    def fields(self, scalars: Sequence[str]) -> tuple[Field, ...]:
        """The fields of a row with these scalars.

        Raises:
            ValueError: a scalar has the name of a field or dimension, or no valid one.
        """
        return recorded_fields(
            track_updates=self.track_updates,
            scalars=scalars,
            all_layer_lags=self.all_layer_lags,
            errors=self.errors,
            sketch=self.buckets > 0,
        )

    def coordinates(self) -> dict[str, NDArray[np.int64] | Sequence[str]]:
        """The values along each dimension but the step."""
        lags = np.arange(1, self.window + 1)
        optional = {} if self.all_layer_lags else {LAYER_LAG: np.array(self.layer_lags, np.int64)}
        if self.buckets:
            optional[BUCKET] = np.arange(self.buckets)
        return {LAG: lags, LAYER: self.layers, **optional}

    def sizes(self) -> dict[str, int]:
        """Lengths of the dimensions but the step."""
        return {dim: len(values) for dim, values in self.coordinates().items()}

    def row_bytes(self, scalars: Sequence[str]) -> int:
        """Size of one row with these scalars."""
        sizes = self.sizes()
        return sum(
            np.dtype(f.dtype).itemsize * int(np.prod([sizes[d] for d in f.dims[1:]])) for f in self.fields(scalars)
        )


@dataclass
class PendingRow:
    """One row that is not complete: copies from the device, and the groups of late fields that are still to come."""

    step: int
    transfers: list[Transfer]
    late: set[str]
    values: Row = field(default_factory=dict)

    def ready(self) -> bool:
        """Whether all copies have arrived."""
        return all(transfer.ready() for transfer in self.transfers)

    def row(self, shape: TraceShape) -> Row:
        """The row for the writer; waits for copies that have not arrived."""
        for transfer in self.transfers:
            transfer.wait()
            self.values |= transfer.result()
        indices = [lag - 1 for lag in shape.layer_lags]
        for name in LAYER_LAG_FIELDS & self.values.keys():
            lags = np.asarray(self.values[name])
            if lags.shape[1] == shape.window > len(indices):
                self.values[name] = np.ascontiguousarray(lags[:, indices])
        return self.values


class PendingRows:
    """A bounded queue of rows that are not complete, oldest first.

    Args:
        shape: fields and dimensions of rows.
        output: the queue that complete rows go to.
        count_dropped: called for each row that is dropped.
    """

    def __init__(self, shape: TraceShape, output: queue.Queue[Row | None], count_dropped: Callable[[], None]) -> None:
        self._shape, self._output, self._count_dropped = shape, output, count_dropped
        self._rows: deque[PendingRow] = deque()

    def __iter__(self) -> Iterator[PendingRow]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, row: PendingRow) -> None:
        """Append the newest row."""
        self._rows.append(row)

    def complete(self, group: str, values: Mapping[str, Value], step: int | None) -> None:
        """Add late fields to a row.

        Args:
            group: name of the group of late fields.
            values: the fields by name.
            step: number of the row's step; ``None`` for the newest row.
        """
        for row in list(self._rows)[-1:] if step is None else [row for row in self._rows if row.step == step]:
            if group in row.late:
                row.transfers.append(Transfer(values))
                row.late.discard(group)

    def give_up(self, *groups: str) -> None:
        """Stop waiting for these groups of late fields, or for all where none is given."""
        for row in self._rows:
            row.late -= set(groups or row.late)

    def release(self) -> None:
        """Send on complete rows without waiting; drop the oldest rows where too many are pending."""
        while self._rows and not self._rows[0].late and self._rows[0].ready():
            row = self._pop()
            try:
                if row is not None:
                    self._output.put_nowait(row)
            except queue.Full:
                self._count_dropped()
        while sum(not row.late for row in self._rows) > MAX_COPYING_ROWS or len(self._rows) > MAX_PENDING_ROWS:
            self._rows.popleft()
            self._count_dropped()

    def flush(self) -> None:
        """Send on all rows that wait for no late fields; waits for the device and for the disk."""
        while self._rows and not self._rows[0].late:
            if (row := self._pop()) is not None:
                self._output.put(row)

    def _pop(self) -> Row | None:
        """Remove the oldest row; ``None`` where the device has failed since."""
        try:
            return self._rows.popleft().row(self._shape)
        except RuntimeError as error:
            logger.warning("step lost on its way from the device, the run goes on: %s", error)
            self._count_dropped()
            return None

"""The rows of a trace: what one looks like, and those that wait until they are whole.

A row waits for its late fields and for its copy from the device (`Transfer`), which is looked at when the next row
comes. Rows leave in order. What waits is bounded, and so is the queue to the disk: a row that finds them full is
dropped and counted, and so is one that the device cannot give any more.
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

LAYER_LAGS = {f"{LAYER_PREFIX}lag_dot", f"{LAYER_PREFIX}lag_dot_error"}
"""The fields of which the trace may keep some lags only."""

WAITING_ROWS = 64
"""How many rows may wait for the device beyond those that wait for late fields."""
MOST_ROWS = 4 * WAITING_ROWS
"""How many may wait at all."""

logger = logging.getLogger("fastgeom")


@dataclass(frozen=True)
class TraceShape:
    """What the rows of a run look like, all of it known before the first but the names of the scalars.

    Attributes:
        layers: names of the layers.
        window: number of lags.
        layer_lags: the lags kept per layer.
        track_updates: whether rows have update fields.
        errors: whether rows have standard errors.
        buckets: length of the sketch that each row has; 0 for none.
    """

    layers: tuple[str, ...]
    window: int
    layer_lags: tuple[int, ...]
    track_updates: bool
    errors: bool = False
    buckets: int = 0

    @property
    def all_layer_lags(self) -> bool:
        """Whether every lag is kept per layer."""
        return len(self.layer_lags) == self.window

    def fields(self, scalars: Sequence[str]) -> tuple[Field, ...]:
        """The fields of a row."""
        return recorded_fields(
            track_updates=self.track_updates, scalars=scalars, all_layer_lags=self.all_layer_lags,
            errors=self.errors, sketch=self.buckets > 0,
        )  # fmt: skip

    def coordinates(self) -> dict[str, NDArray[np.int64] | Sequence[str]]:
        """The values along each dimension but the step."""
        lags = np.arange(1, self.window + 1)
        chosen = {} if self.all_layer_lags else {LAYER_LAG: np.array(self.layer_lags, np.int64)}
        if self.buckets:
            chosen[BUCKET] = np.arange(self.buckets)
        return {LAG: lags, LAYER: self.layers, **chosen}

    def sizes(self) -> dict[str, int]:
        """Lengths of the dimensions but the step."""
        return {dim: len(values) for dim, values in self.coordinates().items()}

    def row_bytes(self, scalars: Sequence[str]) -> int:
        """Size of one row."""
        sizes = self.sizes()
        return sum(
            np.dtype(f.dtype).itemsize * int(np.prod([sizes[d] for d in f.dims[1:]])) for f in self.fields(scalars)
        )


@dataclass
class WaitingRow:
    """A row on its way: what has left the device, and the groups of fields that are still to come."""

    step: int
    parts: list[Transfer]
    late: set[str]
    values: Row = field(default_factory=dict)

    def ready(self) -> bool:
        """Whether everything has arrived."""
        return all(part.ready() for part in self.parts)

    def row(self, shape: TraceShape) -> Row:
        """The row for the writer; waits for what has not arrived."""
        for part in self.parts:
            part.wait()
            self.values |= part.take()
        chosen = [lag - 1 for lag in shape.layer_lags]
        for name in LAYER_LAGS & self.values.keys():
            lags = np.asarray(self.values[name])
            if lags.shape[1] == shape.window > len(chosen):
                self.values[name] = np.ascontiguousarray(lags[:, chosen])
        return self.values


class WaitingRows:
    """The rows that are not whole yet, or not here yet, oldest first.

    Args:
        shape: what rows look like.
        to: where rows go that are whole.
        count_dropped: called for a row that finds no room.
    """

    def __init__(self, shape: TraceShape, to: queue.Queue[Row | None], count_dropped: Callable[[], None]) -> None:
        self._shape, self._to, self._count_dropped = shape, to, count_dropped
        self._rows: deque[WaitingRow] = deque()

    def __iter__(self) -> Iterator[WaitingRow]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, row: WaitingRow) -> None:
        """A new row, the newest."""
        self._rows.append(row)

    def complete(self, group: str, values: Mapping[str, Value], step: int | None) -> None:
        """Give a row the late fields of a group: that of a step, or the newest."""
        for row in list(self._rows)[-1:] if step is None else [row for row in self._rows if row.step == step]:
            if group in row.late:
                row.parts.append(Transfer(values))
                row.late.discard(group)

    def give_up(self, *groups: str) -> None:
        """Wait for these late fields no longer; for none at all if none is named."""
        for row in self._rows:
            row.late -= set(groups or row.late)

    def release(self) -> None:
        """Send on what is whole and here; where too much is not, the oldest is dropped."""
        while self._rows and not self._rows[0].late and self._rows[0].ready():
            row = self._take()
            try:
                if row is not None:
                    self._to.put_nowait(row)
            except queue.Full:
                self._count_dropped()
        while sum(not row.late for row in self._rows) > WAITING_ROWS or len(self._rows) > MOST_ROWS:
            self._rows.popleft()
            self._count_dropped()

    def flush(self) -> None:
        """Send on what is whole; waits for the device and for the disk."""
        while self._rows and not self._rows[0].late:
            if (row := self._take()) is not None:
                self._to.put(row)

    def _take(self) -> Row | None:
        """The oldest row, or ``None`` where the device has failed since."""
        try:
            return self._rows.popleft().row(self._shape)
        except RuntimeError as error:
            logger.warning("step lost on its way from the device, the run goes on: %s", error)
            self._count_dropped()
            return None

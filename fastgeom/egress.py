"""The way out: rows of device tensors become numpy rows, wait until they are whole, and go to the writer thread.

This is the one place where a measurement leaves the device. A row whose late fields are still to come waits here; rows
leave in order. Nothing on this way ever stops or slows a run: the queue to the disk is bounded, and a row that finds it
full is dropped and counted; a disk that fails is reported once in the log, and its rows are counted too.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastgeom.schema import LAG, LAYER, LAYER_LAG, LAYER_PREFIX, Field, recorded_fields
from fastgeom.trace.writer import TraceWriter

Value = Tensor | float | int
Row = dict[str, NDArray[np.generic] | float | int]

logger = logging.getLogger("fastgeom")

_QUEUE_BYTES = 2 << 20
_QUEUE_ROWS = 1024


@dataclass(frozen=True)
class TraceShape:
    """What the rows of a run look like, all of it known before the first but the names of the scalars.

    Attributes:
        layers: names of the layers.
        window: number of lags.
        layer_lags: the lags kept per layer.
        track_updates: whether rows have update fields.
    """

    layers: tuple[str, ...]
    window: int
    layer_lags: tuple[int, ...]
    track_updates: bool

    @property
    def all_layer_lags(self) -> bool:
        """Whether every lag is kept per layer."""
        return len(self.layer_lags) == self.window

    def fields(self, scalars: Sequence[str]) -> tuple[Field, ...]:
        """The fields of a row."""
        return recorded_fields(track_updates=self.track_updates, scalars=scalars, all_layer_lags=self.all_layer_lags)

    def coordinates(self) -> dict[str, NDArray[np.int64] | Sequence[str]]:
        """The values along each dimension but the step."""
        lags = np.arange(1, self.window + 1)
        chosen = {} if self.all_layer_lags else {LAYER_LAG: np.array(self.layer_lags, np.int64)}
        return {LAG: lags, LAYER: self.layers, **chosen}

    def row_bytes(self, scalars: Sequence[str]) -> int:
        """Size of one row."""
        sizes = {dim: len(values) for dim, values in self.coordinates().items()}
        return sum(
            np.dtype(f.dtype).itemsize * int(np.prod([sizes[d] for d in f.dims[1:]])) for f in self.fields(scalars)
        )


class Egress:
    """Takes measured rows to a trace file.

    Args:
        path: of the trace.
        mode: ``"x"`` refuses an existing file, ``"w"`` replaces it.
        shape: what rows look like.
        attributes: the run's own provenance, written to the file.

    Raises:
        OSError, ValueError: the trace cannot be written there; see `TraceWriter`.
    """

    def __init__(
        self, path: str | os.PathLike[str], mode: str, shape: TraceShape, attributes: Mapping[str, str | int | float]
    ) -> None:
        self._shape, self._attributes = shape, dict(attributes)
        self._writer = TraceWriter(path, mode)
        self._scalars: tuple[str, ...] | None = None
        self._waiting: list[Row] = []
        self._queue: queue.Queue[Row | None] | None = None
        self._thread: threading.Thread | None = None
        self._at_end(_abandon, self._writer, os.getpid())

    def submit(self, values: Mapping[str, Value], scalars: Mapping[str, Value], *, started: float) -> None:
        """Take the row of one step.

        Args:
            values: the measured fields by name. Its late fields come with `complete`, or never.
            scalars: the trainer's own; the first row fixes their names.
            started: ``time.perf_counter()`` at the beginning of the measurement.

        Raises:
            ValueError: a scalar that the first row did not have, or whose name is taken; nothing is recorded then.
        """
        self.check_scalars(scalars)
        rows = self._queue or self._start(tuple(scalars))
        _release(self._waiting, self._writer, rows)
        row: Row = {name: _to_host(value) for name, value in {**values, **scalars}.items()}
        lags = f"{LAYER_PREFIX}lag_dot"
        if not self._shape.all_layer_lags:
            row[lags] = np.ascontiguousarray(np.asarray(row[lags])[:, [lag - 1 for lag in self._shape.layer_lags]])
        row["wall_time"] = time.time()
        row["measure_time_ms"] = (time.perf_counter() - started) * 1e3
        self._waiting.append(row)
        if not self._shape.track_updates:
            _release(self._waiting, self._writer, rows)

    def complete(self, values: Mapping[str, Value]) -> None:
        """Give the row that waits its late fields."""
        for row in self._waiting:
            row.update({name: _to_host(value) for name, value in values.items()})

    def check_scalars(self, scalars: Mapping[str, Value]) -> None:
        """Raise unless these scalars can stand in the file: see `submit`."""
        if self._scalars is None:
            self._shape.fields(tuple(scalars))
        elif unknown := [name for name in scalars if name not in self._scalars]:
            raise ValueError(
                f"scalar {unknown[0]!r}: expected one of those of the first measured step "
                f"({', '.join(self._scalars) or 'none'}); the trace {self._writer.path} has no place for a new one"
            )

    def drain(self) -> None:
        """Wait until every row that is whole has reached the writer; a chunk that is full is then on disk."""
        if self._queue is not None:
            self._queue.join()

    def close(self) -> None:
        """Finish: the last row leaves without its late fields, the writer ends the file. A second call does nothing."""
        if not self._finalizer.alive:
            return
        if self._thread is None or self._queue is None:
            _abandon(self._writer, os.getpid())
        else:
            _finish(self._waiting, self._writer, self._queue, self._thread, os.getpid())
        self._forget_end()  # only now: a close that was interrupted can be called again

    def _at_end(self, finish: Callable[..., None], *arguments: object) -> None:
        """Have this done when the object goes, or the interpreter.

        Registered with atexit here, and not by weakref, whose own hook may be older than h5py's: hooks run in the
        opposite order, and after its own h5py writes nothing any more.
        """
        self._finalizer: weakref.finalize[Any, Any] = weakref.finalize(self, finish, *arguments)
        self._finalizer.atexit = False
        atexit.register(self._finalizer)

    def _forget_end(self) -> None:
        self._finalizer.detach()
        atexit.unregister(self._finalizer)

    def _start(self, scalars: tuple[str, ...]) -> queue.Queue[Row | None]:
        rows = min(_QUEUE_ROWS, max(2, _QUEUE_BYTES // self._shape.row_bytes(scalars)))
        self._scalars = scalars
        self._queue = queue.Queue(rows)
        self._thread = threading.Thread(
            target=_write_rows,
            args=(self._writer, self._queue, self._shape, scalars, self._attributes),
            name="fastgeom-trace",
            daemon=True,
        )
        self._forget_end()
        self._at_end(_finish, self._waiting, self._writer, self._queue, self._thread, os.getpid())
        self._thread.start()
        return self._queue


def _to_host(value: Value) -> NDArray[np.generic] | float | int:
    if not isinstance(value, Tensor):
        return value
    host = value.cpu()
    return host.numpy().copy() if host.ndim else host.item()


def _write_rows(
    writer: TraceWriter,
    rows: queue.Queue[Row | None],
    shape: TraceShape,
    scalars: tuple[str, ...],
    attributes: Mapping[str, str | int | float],
) -> None:
    """The writer thread: from the queue to the file, until ``None`` comes; never raises."""
    report = _Report(writer, shape.layers)
    report.guard(lambda: writer.create(shape.fields(scalars), shape.coordinates(), attributes))
    while (row := rows.get()) is not None:
        report.guard(partial(report.nonfinite, row))
        failure = report.guard(partial(writer.append, row))
        if failure is not None and not isinstance(failure, OSError):
            writer.count_dropped()  # where the disk refuses, the writer counts by itself
        rows.task_done()
    report.guard(writer.close)
    if writer.rows_dropped:
        logger.warning("%s: %d rows were dropped", writer.path, writer.rows_dropped)
    rows.task_done()


class _Report:
    """What the writer thread has to say, each thing once."""

    def __init__(self, writer: TraceWriter, layers: Sequence[str]) -> None:
        self._writer, self._layers = writer, layers
        self._failed = self._named = False

    def guard(self, action: Callable[[], None]) -> Exception | None:
        """Do it; return what went wrong, which is said once."""
        try:
            action()
        except Exception as error:
            if not self._failed:
                logger.warning("the trace is incomplete, the run goes on: %s", error)
            self._failed = True
            return error
        return None

    def nonfinite(self, row: Row) -> None:
        """Name the first layer of the run whose gradient has an inf or a NaN."""
        if self._named or not row["nonfinite"]:
            return
        self._named = True
        counts = np.asarray(row[f"{LAYER_PREFIX}nonfinite"])
        first = int(np.flatnonzero(counts)[0])
        logger.warning(
            "step %s: %s inf or NaN in the gradient, the first in layer %r (%d); later steps are counted in the trace",
            row["step"], row["nonfinite"], self._layers[first], counts[first],
        )  # fmt: skip


def _release(waiting: list[Row], writer: TraceWriter, rows: queue.Queue[Row | None]) -> None:
    """Send the row that waits to the writer, or count it as dropped where the queue is full."""
    while waiting:
        try:
            rows.put_nowait(waiting.pop())
        except queue.Full:
            writer.count_dropped()


def _finish(
    waiting: list[Row], writer: TraceWriter, rows: queue.Queue[Row | None], thread: threading.Thread, process: int
) -> None:
    """The end of a run, closed or not; a forked child has the objects, but neither the thread nor the right."""
    if os.getpid() == process and thread.is_alive():
        _release(waiting, writer, rows)
        rows.put(None)
        thread.join()


def _abandon(writer: TraceWriter, process: int) -> None:
    if os.getpid() == process:
        writer.close()

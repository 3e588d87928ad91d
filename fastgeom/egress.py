"""The way out: rows of device tensors become numpy rows, wait until they are whole, and go to the writer thread.

A row waits here for its late fields and for its copy from the device (`Transfer`), which is looked at when the next row
comes; rows leave in order. Nothing on this way ever stops or slows a run: what waits is bounded, and so is the queue to
the disk; a row that finds them full is dropped and counted. A disk that fails is reported once in the log, and its rows
are counted too.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastgeom.replay import ReplayRows
from fastgeom.schema import BUCKET, LAG, LAYER, LAYER_LAG, LAYER_PREFIX, STEP, Field, recorded_fields
from fastgeom.tables import can_capture, capturing
from fastgeom.trace.file import ROWS_DROPPED
from fastgeom.trace.writer import TraceWriter
from fastgeom.transfer import HostValue, Transfer, Value

Row = dict[str, HostValue]

logger = logging.getLogger("fastgeom")

_LAYER_LAGS = {f"{LAYER_PREFIX}lag_dot", f"{LAYER_PREFIX}lag_dot_error"}
UPDATE = "update"
"""The group of the fields of the update, which are known at the next step."""
LAGS = "lags"
"""The group of the fields that a deferred window finds some steps later."""

_QUEUE_BYTES = 2 << 20
_QUEUE_ROWS = 1024
_WAITING_ROWS = 64
"""How many rows may wait for the device beyond those that wait for late fields."""


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
class _Waiting:
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
        for name in _LAYER_LAGS & self.values.keys():
            lags = np.asarray(self.values[name])
            if lags.shape[1] == shape.window > len(chosen):
                self.values[name] = np.ascontiguousarray(lags[:, chosen])
        return self.values


class Egress:
    """Takes measured rows to a trace file.

    Args:
        path: of the trace.
        mode: ``"x"`` refuses an existing file, ``"w"`` replaces it.
        shape: what rows look like.
        attributes: the run's own provenance, written to the file.
        device: where rows are measured.

    Raises:
        OSError, ValueError: the trace cannot be written there; see `TraceWriter`.
    """

    def __init__(
        self, path: str | os.PathLike[str], mode: str, shape: TraceShape, attributes: Mapping[str, str | int | float],
        device: torch.device,
    ) -> None:  # fmt: skip
        self._shape, self._attributes, self._device = shape, dict(attributes), device
        self._replayed: ReplayRows | None = None
        self._writer = TraceWriter(path, mode)
        self._scalars: tuple[str, ...] | None = None
        self._waiting: deque[_Waiting] = deque()
        self._queue: queue.Queue[Row | None] | None = None
        self._thread: threading.Thread | None = None
        self._at_end(_abandon, self._writer, os.getpid())

    def submit(
        self, values: Mapping[str, Value], scalars: Mapping[str, Value], *, started: float, late: Sequence[str] = ()
    ) -> None:
        """Take the row of one step.

        Args:
            values: the measured fields by name.
            late: groups of fields that come with `complete`.
            scalars: the trainer's own; the first row fixes their names.
            started: ``time.perf_counter()`` at the beginning of the measurement.

        Raises:
            ValueError: a scalar that the first row did not have, or whose name is taken; nothing is recorded then.

        While a graph is captured the row goes to the device's own ring, where every replay adds one, until `drain`.
        """
        self.check_scalars(scalars)
        rows = self._queue or self._start(tuple(scalars))
        if capturing(self._device) and self._replayed is not None:
            self._replayed.append(self._on_device({**values, **scalars}))
            return
        for earlier in self._waiting:
            earlier.late.discard(UPDATE)  # it comes with the next step, or never
        row = _Waiting(int(values[STEP]), [Transfer({**values, **scalars})], set(late))
        row.values["wall_time"] = time.time()
        row.values["measure_time_ms"] = (time.perf_counter() - started) * 1e3
        self._waiting.append(row)
        _release(self._waiting, self._shape, self._writer, rows)

    def complete(self, group: str, values: Mapping[str, Value], step: int | None = None) -> None:
        """Give a row that waits the late fields of a group.

        Args:
            group: one of those that `submit` was told of.
            values: the fields by name.
            step: whose; by default the last row's.
        """
        if capturing(self._device) and self._replayed is not None:
            self._replayed.complete(self._on_device(values))
            return
        for row in list(self._waiting)[-1:] if step is None else [w for w in self._waiting if w.step == step]:
            if group in row.late:
                row.parts.append(Transfer(values))
                row.late.discard(group)

    def release(self) -> None:
        """Let the rows go that have become whole."""
        if self._queue is not None:
            _release(self._waiting, self._shape, self._writer, self._queue)

    def check_scalars(self, scalars: Mapping[str, Value]) -> None:
        """Raise unless these scalars can stand in the file: see `submit`."""
        if self._scalars is None:
            self._shape.fields(tuple(scalars))
        elif unknown := [name for name in scalars if name not in self._scalars]:
            raise ValueError(
                f"scalar {unknown[0]!r}: expected one of those of the first measured step "
                f"({', '.join(self._scalars) or 'none'}); the trace {self._writer.path} has no place for a new one"
            )

    def drain(self) -> int | None:
        """Wait until every row that is whole has reached the writer; a chunk that is full is then on disk.

        Returns:
            The newest step of those that a graph has replayed since the last call, if there are any.
        """
        if self._queue is None:
            return None
        newest = self._take_replayed(self._queue)
        _release(self._waiting, self._shape, self._writer, self._queue, wait=True)
        self._queue.join()
        return newest

    def _take_replayed(self, rows: queue.Queue[Row | None]) -> int | None:
        """Rows that a graph has left on the device; what waits here is older, and was completed by the first replay."""
        found, lost, before = self._replayed.take() if self._replayed is not None else ([], 0, {})
        if not found:
            return None
        late = {f.name for f in self._shape.fields(()) if f.late}
        self.complete(UPDATE, {name: torch.from_numpy(np.asarray(before[name])) for name in late & before.keys()})
        for row in self._waiting:
            row.late.clear()
        _release(self._waiting, self._shape, self._writer, rows, wait=True)
        for _ in range(lost):
            self._writer.count_dropped()
        for row in found:
            row |= {"wall_time": time.time()}
        for row in found[:-1]:
            rows.put(row)
        last = int(found[-1][STEP])
        self._waiting.append(_Waiting(last, [], {UPDATE} if self._shape.track_updates else set(), found[-1]))
        return last

    def _on_device(self, values: Mapping[str, Value]) -> dict[str, Tensor]:
        """Values as tensors; every replay repeats those that are none."""
        lags = [lag - 1 for lag in self._shape.layer_lags]
        found = {}
        for name, value in values.items():
            tensor = value if isinstance(value, Tensor) else torch.full((), value, device=self._device)
            found[name] = tensor[:, lags] if name in _LAYER_LAGS and not self._shape.all_layer_lags else tensor
        return found

    def close(self) -> None:
        """Finish: the last row leaves without its late fields, the writer ends the file. A second call does nothing."""
        if not self._finalizer.alive:
            return
        if self._thread is None or self._queue is None:
            _abandon(self._writer, os.getpid())
        else:
            self._take_replayed(self._queue)
            _finish(self._waiting, self._shape, self._writer, self._queue, self._thread, os.getpid())
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
        if can_capture(self._device):
            on_host = {"wall_time", "measure_time_ms", ROWS_DROPPED}
            fields = tuple(f for f in self._shape.fields(scalars) if f.name not in on_host)
            self._replayed = ReplayRows(self._device, fields, self._shape.sizes())
        self._queue = queue.Queue(rows)
        self._thread = threading.Thread(
            target=_write_rows,
            args=(self._writer, self._queue, self._shape, scalars, self._attributes),
            name="fastgeom-trace",
            daemon=True,
        )
        self._forget_end()
        self._at_end(_finish, self._waiting, self._shape, self._writer, self._queue, self._thread, os.getpid())
        self._thread.start()
        return self._queue


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


def _release(
    waiting: deque[_Waiting], shape: TraceShape, writer: TraceWriter, rows: queue.Queue[Row | None], *,
    wait: bool = False,
) -> None:  # fmt: skip
    """Send the rows that are whole to the writer, in order, or count them as dropped where the queue is full.

    With ``wait``, copies that are under way are waited for; else too many of them cost the oldest row.
    """
    while waiting and not waiting[0].late and (wait or waiting[0].ready()):
        row = waiting.popleft().row(shape)
        try:
            rows.put_nowait(row)
        except queue.Full:
            writer.count_dropped()
    while waiting and not waiting[0].late and sum(not row.late for row in waiting) > _WAITING_ROWS:
        waiting.popleft()
        writer.count_dropped()


def _finish(  # noqa: PLR0917 (atexit calls it with all it needs)
    waiting: deque[_Waiting], shape: TraceShape, writer: TraceWriter, rows: queue.Queue[Row | None],
    thread: threading.Thread, process: int,
) -> None:  # fmt: skip
    """The end of a run, closed or not; a forked child has the objects, but neither the thread nor the right."""
    if os.getpid() == process and thread.is_alive():
        for row in waiting:
            row.late.clear()
        _release(waiting, shape, writer, rows, wait=True)
        rows.put(None)
        thread.join()


def _abandon(writer: TraceWriter, process: int) -> None:
    if os.getpid() == process:
        writer.close()

"""Copy each step's statistics to the host asynchronously, wait for late fields, and queue rows for the writer thread.

Recording never stops or slows a run. A disk that fails is reported once in the log, and lost rows are counted in the
file.
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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.triton.capture import can_capture, capturing
from fastgeom.recording.device_copy import Transfer, Value
from fastgeom.recording.graph_ring import GraphRing
from fastgeom.recording.pending_rows import LAYER_LAG_FIELDS, PendingRow, PendingRows, Row, TraceShape
from fastgeom.recording.writer_thread import start_writing
from fastgeom.schema import STEP
from fastgeom.trace.file import ROWS_DROPPED
from fastgeom.trace.writer import TraceWriter
from fastgeom.validation import checked_scalars

__all__ = ["LATE_LAGS", "LATE_UPDATE", "Recorder", "TraceShape"]

logger = logging.getLogger("fastgeom")

LATE_UPDATE = "update"
"""Group of late fields: those of the update, computed at the next step."""
LATE_LAGS = "lags"
"""Group of late fields: the lags of a deferred window, computed some steps later."""

_QUEUE_BYTES = 2 << 20
_QUEUE_ROWS = 1024
_ON_HOST = {"wall_time", "measure_time_ms", ROWS_DROPPED}


class Recorder:
    """Records measured rows to a trace file.

    Args:
        path: of the trace.
        mode: ``"x"`` refuses an existing file, ``"w"`` replaces it.
        shape: fields and dimensions of rows.
        attributes: root attributes of the file.
        device: where rows are measured.

    Raises:
        OSError, ValueError: the trace cannot be written there; see `TraceWriter`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        mode: str,
        shape: TraceShape,
        attributes: Mapping[str, str | int | float],
        device: torch.device,
    ) -> None:
        self._shape, self._attributes, self._device = shape, dict(attributes), device
        self._process = os.getpid()
        self._graph_ring: GraphRing | None = None
        self._writer = TraceWriter(path, mode)
        self._scalars: tuple[str, ...] | None = None
        self._queue: queue.Queue[Row | None] | None = None
        self._pending: PendingRows | None = None
        self._thread: threading.Thread | None = None
        self._at_end(_abandon, self._writer, os.getpid())

    def checked_scalars(self, scalars: Mapping[str, Tensor | float]) -> dict[str, Tensor | float]:
        """The trainer's scalars in the form that `submit` takes; nothing is recorded yet.

        Args:
            scalars: by name; the first row fixes the names.

        Raises:
            ValueError, TypeError: a scalar is not one number, the first row did not have it, its name is taken, or it
                lies off the device while a CUDA graph is captured.
        """
        checked = checked_scalars(
            scalars,
            names=self._scalars,
            path=str(self._writer.path),
            graph_device=self._device if capturing(self._device) else None,
        )
        if self._scalars is None:
            self._shape.fields(tuple(checked))
        return checked

    def submit(
        self, values: Mapping[str, Value], scalars: Mapping[str, Value], *, started: float, late: Sequence[str] = ()
    ) -> None:
        """Record the row of one step.

        Args:
            values: the measured fields by name.
            scalars: the trainer's own, from `checked_scalars`.
            started: ``time.perf_counter()`` at the beginning of the measurement.
            late: groups of fields that `complete` will add.

        While a graph is captured the row goes to the `GraphRing`, to which every replay appends one, until `drain`.
        """
        pending = self._start(tuple(scalars)) if self._pending is None else self._pending
        if capturing(self._device) and self._graph_ring is not None:
            self._graph_ring.append(self._on_device({**values, **scalars}))
            return
        pending.give_up(LATE_UPDATE)  # it comes with the next step, or never
        row = PendingRow(int(values[STEP]), [Transfer({**values, **scalars})], set(late))
        row.values["wall_time"] = time.time()
        row.values["measure_time_ms"] = (time.perf_counter() - started) * 1e3
        pending.append(row)
        pending.release()

    def complete(self, group: str, values: Mapping[str, Value], step: int | None = None) -> None:
        """Add late fields to a pending row.

        Args:
            group: one of the groups that `submit` was given.
            values: the fields by name.
            step: number of the row's step; by default that of the last row.
        """
        if capturing(self._device) and self._graph_ring is not None:
            self._graph_ring.complete(self._on_device(values))
            return
        if self._pending is not None:
            self._pending.complete(group, values, step)

    def release(self) -> None:
        """Send on rows that have become complete; while a graph is captured no event may be queried."""
        if self._pending is not None and not capturing(self._device):
            self._pending.release()

    def drain(self) -> None:
        """Wait until every complete row has reached the writer; full chunks of the file are then on disk."""
        if self._queue is None or self._pending is None or os.getpid() != self._process:
            return
        self._drain_graph_ring(self._queue, self._pending)
        self._pending.flush()
        self._queue.join()

    def _drain_graph_ring(self, output: queue.Queue[Row | None], pending: PendingRows) -> None:
        """Send on the rows of replayed steps, after the pending rows, the last of which the first replay completed."""
        if self._graph_ring is None:
            return
        rows, lost, previous = self._graph_ring.drain()
        if not rows:
            return
        late = {f.name for f in self._shape.fields(()) if f.late}
        completed = {name: torch.from_numpy(np.asarray(previous[name])) for name in late & previous.keys()}
        pending.complete(LATE_UPDATE, completed, None)
        pending.give_up()
        pending.flush()
        for _ in range(lost):
            self._writer.count_dropped()
        for row in rows:
            row |= {"wall_time": time.time()}
        for row in rows[:-1]:
            output.put(row)
        last = int(rows[-1][STEP])
        pending.append(PendingRow(last, [], {LATE_UPDATE} if self._shape.track_updates else set(), rows[-1]))

    def _on_device(self, values: Mapping[str, Value]) -> dict[str, Tensor]:
        """Values as tensors; a number becomes a constant that every replay repeats."""
        tensors = {}
        for name, value in values.items():
            tensor = value if isinstance(value, Tensor) else torch.full((), value, device=self._device)
            some_lags = name in LAYER_LAG_FIELDS and not self._shape.all_layer_lags
            tensors[name] = tensor.index_select(1, self._layer_lags) if some_lags else tensor
        return tensors

    def close(self) -> None:
        """Write the last row without its late fields and finish the file; a second call does nothing."""
        if not self._finalizer.alive:
            return
        if self._thread is None or self._queue is None or self._pending is None:
            _abandon(self._writer, os.getpid())
        else:
            if os.getpid() == self._process:
                try:
                    self._drain_graph_ring(self._queue, self._pending)
                except RuntimeError as error:
                    logger.warning("replayed steps are lost, the device has failed: %s", error)
            _finish(self._pending, self._queue, self._thread, os.getpid())
        self._forget_end()  # only now: a close that was interrupted can be called again

    def _at_end(self, finish: Callable[..., None], *arguments: object) -> None:
        """Call ``finish`` when the recorder is collected or the interpreter exits.

        Registered with atexit here, and not by weakref, whose own hook may be older than h5py's: hooks run in the
        opposite order, and after its own h5py writes nothing any more.
        """
        self._finalizer: weakref.finalize[Any, Any] = weakref.finalize(self, finish, *arguments)
        self._finalizer.atexit = False
        atexit.register(self._finalizer)

    def _forget_end(self) -> None:
        self._finalizer.detach()
        atexit.unregister(self._finalizer)

    def _start(self, scalars: tuple[str, ...]) -> PendingRows:
        """Start the writer thread at the first row."""
        max_rows = min(_QUEUE_ROWS, max(2, _QUEUE_BYTES // self._shape.row_bytes(scalars)))
        self._scalars = scalars
        if can_capture(self._device):
            fields = tuple(f for f in self._shape.fields(scalars) if f.name not in _ON_HOST)
            self._layer_lags = torch.tensor(self._shape.layer_lags, device=self._device) - 1
            self._graph_ring = GraphRing(self._device, fields, self._shape.sizes())
        self._queue = queue.Queue(max_rows)
        self._pending = PendingRows(self._shape, self._queue, self._writer.count_dropped)
        self._forget_end()
        self._thread = start_writing(
            self._writer, self._queue, self._shape, scalars=scalars, attributes=self._attributes
        )
        self._at_end(_finish, self._pending, self._queue, self._thread, os.getpid())
        return self._pending


def _finish(pending: PendingRows, rows: queue.Queue[Row | None], thread: threading.Thread, process: int) -> None:
    """Finish the file, closed or not; a forked child has the objects, but no thread, and must not write."""
    if os.getpid() == process and thread.is_alive():
        try:
            pending.give_up()
            pending.flush()
        finally:
            rows.put(None)
            thread.join()


def _abandon(writer: TraceWriter, process: int) -> None:
    """Close the writer of a run without rows."""
    if os.getpid() == process:
        writer.close()

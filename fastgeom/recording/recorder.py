"""The way out: rows of device tensors become numpy rows, wait until they are whole, and go to the writer thread.

Nothing on this way ever stops or slows a run. A disk that fails is reported once in the log; rows that were lost are
counted in the file.
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
from fastgeom.recording.graph_ring import ReplayRows
from fastgeom.recording.pending_rows import LAYER_LAGS, Row, TraceShape, WaitingRow, WaitingRows
from fastgeom.recording.writer_thread import start_writing
from fastgeom.schema import STEP
from fastgeom.trace.file import ROWS_DROPPED
from fastgeom.trace.writer import TraceWriter

__all__ = ["LAGS", "UPDATE", "Recorder", "TraceShape"]

logger = logging.getLogger("fastgeom")

UPDATE = "update"
"""The group of the fields of the update, which are known at the next step."""
LAGS = "lags"
"""The group of the fields that a deferred window finds some steps later."""

_QUEUE_BYTES = 2 << 20
_QUEUE_ROWS = 1024
_ON_HOST = {"wall_time", "measure_time_ms", ROWS_DROPPED}


class Recorder:
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
        self._process = os.getpid()
        self._replayed: ReplayRows | None = None
        self._writer = TraceWriter(path, mode)
        self._scalars: tuple[str, ...] | None = None
        self._queue: queue.Queue[Row | None] | None = None
        self._waiting: WaitingRows | None = None
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
        waiting = self._start(tuple(scalars)) if self._waiting is None else self._waiting
        if capturing(self._device) and self._replayed is not None:
            self._replayed.append(self._on_device({**values, **scalars}))
            return
        waiting.give_up(UPDATE)  # it comes with the next step, or never
        row = WaitingRow(int(values[STEP]), [Transfer({**values, **scalars})], set(late))
        row.values["wall_time"] = time.time()
        row.values["measure_time_ms"] = (time.perf_counter() - started) * 1e3
        waiting.append(row)
        waiting.release()

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
        if self._waiting is not None:
            self._waiting.complete(group, values, step)

    def release(self) -> None:
        """Let the rows go that have become whole; while a graph is captured no event may be asked."""
        if self._waiting is not None and not capturing(self._device):
            self._waiting.release()

    def check_scalars(self, scalars: Mapping[str, Value]) -> None:
        """Raise unless these scalars can stand in the file: see `submit`."""
        if capturing(self._device):
            for name, value in scalars.items():
                if isinstance(value, Tensor) and value.device != self._device:
                    raise ValueError(
                        f"scalar {name!r}: expected a tensor on {self._device} in a CUDA graph, got {value.device}"
                    )
        if self._scalars is None:
            self._shape.fields(tuple(scalars))
        elif unknown := [name for name in scalars if name not in self._scalars]:
            raise ValueError(
                f"scalar {unknown[0]!r}: expected one of those of the first measured step "
                f"({', '.join(self._scalars) or 'none'}); the trace {self._writer.path} has no place for a new one"
            )

    def drain(self) -> None:
        """Wait until every row that is whole has reached the writer; a chunk that is full is then on disk."""
        if self._queue is None or self._waiting is None or os.getpid() != self._process:
            return
        self._take_replayed(self._queue, self._waiting)
        self._waiting.flush()
        self._queue.join()

    def _take_replayed(self, rows: queue.Queue[Row | None], waiting: WaitingRows) -> None:
        """Rows that a graph has left on the device; what waits here is older, and was completed by the first replay."""
        found, lost, before = self._replayed.take() if self._replayed is not None else ([], 0, {})
        if not found:
            return
        late = {f.name for f in self._shape.fields(()) if f.late}
        waiting.complete(
            UPDATE, {name: torch.from_numpy(np.asarray(before[name])) for name in late & before.keys()}, None
        )
        waiting.give_up()
        waiting.flush()
        for _ in range(lost):
            self._writer.count_dropped()
        for row in found:
            row |= {"wall_time": time.time()}
        for row in found[:-1]:
            rows.put(row)
        last = int(found[-1][STEP])
        waiting.append(WaitingRow(last, [], {UPDATE} if self._shape.track_updates else set(), found[-1]))

    def _on_device(self, values: Mapping[str, Value]) -> dict[str, Tensor]:
        """Values as tensors; every replay repeats those that are none."""
        found = {}
        for name, value in values.items():
            tensor = value if isinstance(value, Tensor) else torch.full((), value, device=self._device)
            chosen = name in LAYER_LAGS and not self._shape.all_layer_lags
            found[name] = tensor.index_select(1, self._layer_lags) if chosen else tensor
        return found

    def close(self) -> None:
        """Finish: the last row leaves without its late fields, the writer ends the file. A second call does nothing."""
        if not self._finalizer.alive:
            return
        if self._thread is None or self._queue is None or self._waiting is None:
            _abandon(self._writer, os.getpid())
        else:
            if os.getpid() == self._process:
                try:
                    self._take_replayed(self._queue, self._waiting)
                except RuntimeError as error:
                    logger.warning("replayed steps are lost, the device has failed: %s", error)
            _finish(self._waiting, self._queue, self._thread, os.getpid())
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

    def _start(self, scalars: tuple[str, ...]) -> WaitingRows:
        room = min(_QUEUE_ROWS, max(2, _QUEUE_BYTES // self._shape.row_bytes(scalars)))
        self._scalars = scalars
        if can_capture(self._device):
            fields = tuple(f for f in self._shape.fields(scalars) if f.name not in _ON_HOST)
            self._layer_lags = torch.tensor(self._shape.layer_lags, device=self._device) - 1
            self._replayed = ReplayRows(self._device, fields, self._shape.sizes())
        self._queue = queue.Queue(room)
        self._waiting = WaitingRows(self._shape, self._queue, self._writer.count_dropped)
        self._forget_end()
        self._thread = start_writing(
            self._writer, self._queue, self._shape, scalars=scalars, attributes=self._attributes
        )
        self._at_end(_finish, self._waiting, self._queue, self._thread, os.getpid())
        return self._waiting


def _finish(waiting: WaitingRows, rows: queue.Queue[Row | None], thread: threading.Thread, process: int) -> None:
    """The end of a run, closed or not; a forked child has the objects, but neither the thread nor the right."""
    if os.getpid() == process and thread.is_alive():
        try:
            waiting.give_up()
            waiting.flush()
        finally:
            rows.put(None)
            thread.join()


def _abandon(writer: TraceWriter, process: int) -> None:
    if os.getpid() == process:
        writer.close()

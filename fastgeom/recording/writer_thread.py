"""The writer thread: writes queued rows to a trace file; a disk that fails does not stop the run."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from fastgeom.recording.pending_rows import Row, TraceShape
from fastgeom.schema import LAYER_PREFIX
from fastgeom.trace.writer import TraceWriter

logger = logging.getLogger("fastgeom")


def start_writing(
    writer: TraceWriter,
    rows: queue.Queue[Row | None],
    shape: TraceShape,
    *,
    scalars: tuple[str, ...],
    attributes: Mapping[str, str | int | float],
) -> threading.Thread:
    """Start a thread that creates the file and writes rows to it, until it gets ``None``.

    Args:
        writer: of the file.
        rows: queue of rows.
        shape: fields and dimensions of rows.
        scalars: names of the trainer's scalars.
        attributes: root attributes of the file.
    """
    thread = threading.Thread(
        target=_write_rows, args=(writer, rows, shape, scalars, attributes), name="fastgeom-trace", daemon=True
    )
    thread.start()
    return thread


def _write_rows(
    writer: TraceWriter,
    rows: queue.Queue[Row | None],
    shape: TraceShape,
    scalars: tuple[str, ...],
    attributes: Mapping[str, str | int | float],
) -> None:
    """Write rows from the queue to the file until ``None`` comes; never raises."""
    log = _FailureLog(writer, shape.layers)
    log.guard(lambda: writer.create(shape.fields(scalars), shape.coordinates(), attributes))
    while (row := rows.get()) is not None:
        log.guard(partial(log.log_nonfinite, row))
        failure = log.guard(partial(writer.append, row))
        if failure is not None and not isinstance(failure, OSError):
            writer.count_dropped()  # where the disk refuses, the writer counts by itself
        rows.task_done()
    log.guard(writer.close)
    if writer.rows_dropped:
        logger.warning("%s: %d rows were dropped", writer.path, writer.rows_dropped)
    rows.task_done()


class _FailureLog:
    """Log each kind of failure at most once."""

    def __init__(self, writer: TraceWriter, layers: Sequence[str]) -> None:
        self._writer, self._layers = writer, layers
        self._failed = self._named = False

    def guard(self, action: Callable[[], None]) -> Exception | None:
        """Run ``action``, log its first failure, and return the exception."""
        try:
            action()
        except Exception as error:
            if not self._failed:
                logger.warning("the trace is incomplete, the run goes on: %s", error)
            self._failed = True
            return error
        return None

    def log_nonfinite(self, row: Row) -> None:
        """Log the first layer of the run whose gradient has an inf or a NaN."""
        if self._named or not row["nonfinite"]:
            return
        self._named = True
        counts = np.asarray(row[f"{LAYER_PREFIX}nonfinite"])
        first = int(np.flatnonzero(counts)[0])
        logger.warning(
            "step %s: %s inf or NaN in the gradient, the first in layer %r (%d); later steps are counted in the trace",
            row["step"],
            row["nonfinite"],
            self._layers[first],
            counts[first],
        )

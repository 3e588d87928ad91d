"""Write a trace: rows in, complete chunks out, in an order that a kill cannot break."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Lock
from time import monotonic

import h5py
import numpy as np
from h5py import h5s

from fastgeom.schema import LAYER, STEP, Field
from fastgeom.trace.errors import HDF5_ERRORS
from fastgeom.trace.file import (
    FINISHED,
    ROWS_DROPPED,
    ROWS_PER_CHUNK,
    Coordinates,
    close_synced,
    create_file,
    row_buffers,
    sync,
    sync_folder,
)
from fastgeom.trace.lock import WriterLock


class TraceWriter:
    """Writer of a trace file: lock first, file at ``create()``, rows after it, the end at ``close()``.

    A row is acknowledged once its chunk is flushed: from then on the death of the process does not lose it, and another
    process reads it. A chunk has 64 rows, or as many as fit 1 MiB in the largest dataset where that is fewer.

    A sync (fdatasync) sends what is acknowledged to the disk itself, where the loss of power does not reach it. It
    follows a chunk when the last one is ``sync_interval_s`` ago, so that a power loss costs the rows of at most that
    time and of one chunk more. ``create`` syncs the file and its name, ``close`` the rows and then the end.
    Not promised: a power loss while pages are on their way to the disk, in a sync or whenever the kernel writes some by
    itself, can leave HDF5's metadata half old and half new. The synced rows are on the disk then, but the trace may
    read as damaged, or show wrong rows behind them. Nor is anything promised after a sync that failed, or of a
    disk that confirms what is still in its cache.

    Memory: one chunk of all fields. Time: see ``append``. ``create``, ``append`` and ``close`` belong to one thread;
    ``count_dropped`` may be called from any.

    Attributes:
        rows_written: rows acknowledged so far.
        rows_dropped: rows that are lost, the caller's (``count_dropped``) and the writer's own.

    Args:
        path: the file to write. It appears under this name at ``create()``, complete, and not before.
        mode: ``"x"`` refuses an existing file; ``"w"`` replaces it, at ``create()``.
        sync_interval_s: seconds; 0 syncs every chunk, ``math.inf`` none but the first and the last.

    Raises:
        ValueError: unknown mode; a ``sync_interval_s`` that is negative or no number.
        TraceLockedError: another writer holds the path; its file is untouched.
        FileExistsError: mode ``"x"`` and the file exists.
        OSError: the folder is missing or cannot be written, or the path is a folder.
    """

    def __init__(self, path: str | os.PathLike[str], mode: str = "x", sync_interval_s: float = 30.0) -> None:
        if mode not in ("x", "w"):
            raise ValueError(f"trace mode: expected 'x' (refuse an existing file) or 'w' (replace it), got {mode!r}")
        self.path = Path(path)
        self.mode = mode
        self.sync_interval_s = _seconds("sync_interval_s", sync_interval_s)
        self._target = Path(os.path.realpath(path))
        self.rows_written = self.rows_dropped = 0
        self._count_lock = Lock()
        self._file: h5py.File | None = None
        self._datasets: dict[str, h5py.Dataset] = {}
        self._buffers: dict[str, np.ndarray] = {}
        self._fills: dict[str, float | int] = {}
        self._filled = self._capacity = 0
        self._last_step: int | None = None
        self._failure: OSError | None = None
        self._drops_until_retry = 0
        self._last_sync = 0.0
        self._closed = False
        self._lock = WriterLock(path)
        try:
            self._check_path()
        except BaseException:
            self._lock.release()
            raise

    def create(
        self, fields: Sequence[Field], coordinates: Coordinates, attributes: Mapping[str, str | int | float]
    ) -> None:
        """Create the file: every dataset, attribute and dimension scale, then SWMR; nothing can be added later.

        Args:
            fields: what a row has; ``step`` among them.
            coordinates: values along every dimension of the fields but ``step``: the lags, the names of the layers.
            attributes: root attributes, beside the provenance that the trace package gathers itself.

        Raises:
            ValueError: called twice; a field without coordinate; two layers of one name; no ``step``.
            OSError: the file cannot be created. Nothing is left behind, an existing file is untouched.
        """
        self._check_usable(created=False)
        _check_schema(fields, coordinates)
        self._check_path()
        part = self._target.with_name(self._target.name + ".part")
        part.unlink(missing_ok=True)  # of a process that died here: the lock is ours
        try:
            file, datasets = create_file(part, fields, coordinates, attributes)
            with ExitStack() as undo:
                undo.callback(file.close)
                sync(
                    file
                )  # before the rename: after a power loss the name is that of the old file or of a complete new one
                os.replace(part, self._target)
                undo.pop_all()
        except HDF5_ERRORS as error:
            part.unlink(missing_ok=True)
            raise OSError(f"{self.path}: the trace could not be created: {error}") from error
        sync_folder(self._target.parent)
        self._last_sync = monotonic()
        self._file, self._datasets = file, datasets
        self._buffers = row_buffers(fields, {name: len(values) for name, values in coordinates.items()})
        self._fills = {f.name: f.fill for f in fields}
        self._capacity = len(self._buffers[STEP])

    def append(self, row: Mapping[str, np.ndarray | float | int]) -> None:
        """Append one row, and write the chunk that it completes.

        Args:
            row: a value or array for each field; a missing one becomes the field's fill. ``step`` must be there and
                larger than the last; ``rows_dropped`` is counted by the writer.

        Raises:
            ValueError: before ``create()`` or after ``close()``; an unknown field, a wrong shape, a step out of order.
            OSError: the disk refuses. The full chunk stays in memory and is tried again every 64 rows; until it is
                written, rows are dropped and counted, and each of them raises. Where it refuses only the sync, the row
                is accepted, those of the chunk count as written, and the next sync is tried an interval later.

        Cost: a copy into the buffers, about 10 us; each complete chunk one write and one flush a field, 2 to 5 ms; a
        sync as long as the disk needs, while other threads run.
        """
        self._check_usable(created=True)
        step, acknowledged = self._check_row(row), self.rows_written
        if self._filled == self._capacity:
            self._retry()
        i = self._filled
        for name, buffer in self._buffers.items():
            buffer[i] = row.get(name, self._fills[name])
        if ROWS_DROPPED in self._buffers:
            self._buffers[ROWS_DROPPED][i] = self.rows_dropped
        self._filled, self._last_step = i + 1, step
        if self._filled == self._capacity:
            self._commit()
        if self._file is not None and self.rows_written > acknowledged:
            if monotonic() - self._last_sync >= self.sync_interval_s:
                self._sync(self._file)

    def count_dropped(self, n: int = 1) -> None:
        """Count rows that the caller could not append; the sum is in later rows and in the closed file.

        Args:
            n: how many.
        """
        with self._count_lock:
            self.rows_dropped += n

    def close(self) -> None:
        """Write the last rows, mark the file finished, close it and release the lock; a second call does nothing.

        Raises:
            OSError: the disk refused the last rows, which are counted as dropped where that can still be written, or
                their sync, or the mark. All the rest is done all the same; the file reads as that of a crashed run,
                or as finished where only the very last sync was refused.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._file is not None:
                self._finish(self._file)
        finally:
            self._file, self._datasets, self._buffers = None, {}, {}
            self._lock.release()

    def _finish(self, file: h5py.File) -> None:
        failure: Exception | None = None
        try:
            if self._filled:
                self._commit()
            self._sync(file)  # before the mark: a file that says it is finished has all its rows
        except OSError as error:
            failure = error
            self.count_dropped(self._filled)  # none where only the sync was refused
        try:
            file.attrs.modify(ROWS_DROPPED, np.int64(self.rows_dropped))
            if failure is None:
                file.attrs.modify(FINISHED, np.int8(1))
            close_synced(file)
        except HDF5_ERRORS as error:
            failure = failure or error
            with suppress(*HDF5_ERRORS):  # the first attempt has failed and is reported; this one frees the handles
                file.close()
        if failure is not None:
            raise OSError(f"{self.path}: the end of the trace could not be written: {failure}") from failure

    def _commit(self) -> None:
        """Write and flush all fields, and only then ``step``: a row counts when its step is in the file."""
        start, stop = self.rows_written, self.rows_written + self._filled
        try:
            for name, dataset in self._datasets.items():
                if name != STEP:
                    _extend(dataset, self._buffers[name], start, stop)
            for name, dataset in self._datasets.items():
                if name != STEP:
                    dataset.id.flush()
            _extend(self._datasets[STEP], self._buffers[STEP], start, stop)
            self._datasets[STEP].id.flush()
        except HDF5_ERRORS as error:
            with suppress(*HDF5_ERRORS):  # a step that was extended and not written would read as a row of zeros
                self._datasets[STEP].id.set_extent((start,))
            self._failure = OSError(f"{self.path}: rows {start} to {stop - 1} could not be written: {error}")
            self._drops_until_retry = ROWS_PER_CHUNK
            raise self._failure from error
        self.rows_written, self._filled, self._failure = stop, 0, None

    def _sync(self, file: h5py.File) -> None:
        self._last_sync = monotonic()  # also of one that fails: a disk that dies slowly must not hold up every chunk
        try:
            sync(file)
        except HDF5_ERRORS as error:
            raise OSError(f"{self.path}: rows were written, but the disk did not confirm them: {error}") from error

    def _retry(self) -> None:
        """Write the chunk that the disk refused: the same rows at the same index, so that no reader sees a mixture."""
        try:
            if self._drops_until_retry:
                self._drops_until_retry -= 1
                raise OSError(f"{self.path}: row dropped, the disk refused the rows before it") from self._failure
            self._commit()
        except OSError:
            self.count_dropped()
            raise

    def _check_path(self) -> None:
        if self._target.is_dir():
            raise IsADirectoryError(f"expected a file to write the trace to, got the folder {self.path}")
        if self.mode == "x" and self._target.exists():
            raise FileExistsError(
                f"{self.path} exists: expected a new file for mode 'x'; give another path, or mode 'w' to replace it"
            )

    def _check_usable(self, *, created: bool) -> None:
        if self._closed:
            raise ValueError(f"{self.path}: the trace writer is closed")
        if created != (self._file is not None):
            raise ValueError(f"{self.path}: the file {'is not created yet' if created else 'has been created already'}")

    def _check_row(self, row: Mapping[str, np.ndarray | float | int]) -> int:
        for name, value in row.items():
            buffer = self._buffers.get(name)
            if buffer is None or name == ROWS_DROPPED:
                raise ValueError(f"{self.path}: expected a row of {', '.join(self._buffers)}; got also {name!r}")
            shape = getattr(value, "shape", ())
            if shape != buffer.shape[1:]:
                raise ValueError(f"{self.path}: {name}: expected shape {buffer.shape[1:]}, got {shape}")
        if STEP not in row:
            raise ValueError(f"{self.path}: expected a row with its step, got only {', '.join(row) or 'nothing'}")
        step = int(row[STEP])
        if step < 0 or (self._last_step is not None and step <= self._last_step):
            raise ValueError(f"{self.path}: expected a step above {self._last_step}, got {step}")
        return step


def _seconds(name: str, value: float) -> float:
    try:
        seconds = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not seconds >= 0:
        raise ValueError(f"{name}: expected seconds, 0 or more, got {value!r}")
    return seconds


def _extend(dataset: h5py.Dataset, rows: np.ndarray, start: int, stop: int) -> None:
    count, row_shape = stop - start, rows.shape[1:]
    dataset.id.set_extent((stop, *row_shape))
    target = dataset.id.get_space()
    target.select_hyperslab((start, *(0 for _ in row_shape)), (count, *row_shape))
    dataset.id.write(h5s.create_simple((count, *row_shape)), target, rows[:count])


def _check_schema(fields: Sequence[Field], coordinates: Coordinates) -> None:
    if STEP not in {f.name for f in fields}:
        raise ValueError(f"expected fields with {STEP!r} among them, got {[f.name for f in fields]}")
    for field in fields:
        for dim in field.dims[1:]:
            if not len(coordinates.get(dim, ())):
                raise ValueError(f"field {field.name!r}: expected coordinates along {dim!r}, got none")
    layers = list(coordinates.get(LAYER, ()))
    for name, count in Counter(layers).items():
        if count > 1:
            raise ValueError(f"expected layers of different names, got {name!r} {count} times")
        if "\0" in name:
            raise ValueError(f"layer {name!r}: expected a name without the character NUL, which HDF5 cannot hold")

"""What is written is sent to the disk itself, in time and in order; what a power loss tears apart is not tested."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from fastgeom.trace import TraceWriter, open_trace
from fastgeom.trace import writer as trace_writer
from tests.trace.rows import assert_right, coordinates, fields, row, run_python

FIELDS, ALONG = fields(), coordinates()


class Disk:
    """Keeps, at each sync, the file as it is then: what a power loss leaves where nothing written later arrives."""

    def __init__(self, folder: Path) -> None:
        self.copy = folder / "disk.h5"
        self.calls: list[tuple[str, int]] = []
        self.refuses: set[str] = set()

    def fdatasync(self, fd: int) -> None:
        self.calls.append(("file", os.fstat(fd).st_ino))
        if "file" in self.refuses:
            raise OSError(errno.EIO, "the disk is dying")
        shutil.copy(f"/proc/self/fd/{fd}", self.copy)

    def fsync(self, fd: int) -> None:
        self.calls.append(("folder", os.fstat(fd).st_ino))
        if "folder" in self.refuses:
            raise OSError(errno.EINVAL, "no syncs of folders here")

    def rows(self) -> int:
        trace = open_trace(self.copy)
        assert_right(trace)
        return len(trace)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs" / "run.h5"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(tmp_path)
    monkeypatch.setattr(os, "fdatasync", disk.fdatasync)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    return disk


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [1000.0]
    monkeypatch.setattr(trace_writer, "monotonic", lambda: clock[0])
    return clock


@contextmanager
def created(path: Path, **options: float) -> Iterator[TraceWriter]:
    writer = TraceWriter(path, **options)
    writer.create(FIELDS, ALONG, {})
    try:
        yield writer
    finally:
        with suppress(OSError):
            writer.close()


def append(writer: TraceWriter, first: int, end: int) -> None:
    for step in range(first, end):
        writer.append(row(step, FIELDS, ALONG))


def test_the_file_is_synced_before_it_gets_its_name_and_the_folder_after(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def replaced(source: Path, target: Path) -> None:
        disk.calls.append(("renamed", 0))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    with created(path):
        file, folder = path.stat().st_ino, path.parent.stat().st_ino
        assert disk.calls == [("file", file), ("renamed", 0), ("folder", folder)]
        assert disk.rows() == 0


def test_a_chunk_is_synced_when_the_last_sync_is_an_interval_ago_and_never_sooner(
    path: Path, disk: Disk, clock: list[float]
) -> None:
    with created(path, sync_interval_s=10) as writer:
        synced = []
        for chunk in range(8):
            before = len(disk.calls)
            append(writer, 64 * chunk, 64 * chunk + 63)
            clock[0] += 4
            assert len(disk.calls) == before  # no whole chunk, nothing to keep
            append(writer, 64 * chunk + 63, 64 * chunk + 64)
            synced.append(len(disk.calls) - before)
            if synced[-1]:
                assert disk.calls[-1] == ("file", path.stat().st_ino)
                assert disk.rows() == 64 * (chunk + 1)
        # At 4, 8, 12, ... seconds: due from 10 on, thus at 12; then from 22 on, thus at 24.
        assert synced == [0, 0, 1, 0, 0, 1, 0, 0]


def test_by_default_30_seconds_pass_between_two_syncs(path: Path, disk: Disk, clock: list[float]) -> None:
    with created(path) as writer:
        clock[0] += 29.9
        append(writer, 0, 64)
        assert disk.rows() == 0
        clock[0] += 0.1
        append(writer, 64, 128)
        assert disk.rows() == 128


def test_interval_0_syncs_every_chunk_and_an_infinite_one_none(path: Path, disk: Disk, clock: list[float]) -> None:
    with created(path, sync_interval_s=0) as writer:
        for chunk in range(3):
            append(writer, 64 * chunk, 64 * chunk + 64)
            assert disk.rows() == 64 * (chunk + 1)
    with created(path.with_name("other.h5"), sync_interval_s=math.inf) as writer:
        clock[0] += 1e9
        append(writer, 0, 64)
        assert disk.rows() == 0


def test_close_syncs_the_rows_before_it_says_finished_and_the_end_after_it(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with created(path) as writer:
        append(writer, 0, 70)
        disk.calls.clear()
        states = []

        def fdatasync(fd: int) -> None:
            disk.fdatasync(fd)
            states.append((disk.rows(), open_trace(disk.copy).status))

        monkeypatch.setattr(os, "fdatasync", fdatasync)
        writer.close()
    assert states == [(70, "crashed"), (70, "finished")]
    with h5py.File(disk.copy) as file:  # needs one that is closed cleanly
        assert len(file["step"]) == 70
    assert str(path) not in [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert disk.calls == [("file", path.stat().st_ino)] * 2


@pytest.mark.parametrize("bad", [-1, -0.001, math.nan, "30", None, True, [1]])
def test_a_bad_interval_is_refused_by_its_name_and_leaves_nothing(path: Path, bad: object) -> None:
    with pytest.raises(ValueError, match="sync_interval_s.*got"):
        TraceWriter(path, sync_interval_s=bad)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("good", [0, 2.5, np.float32(2.5), np.int64(3)])
def test_numbers_of_every_kind_are_intervals(path: Path, good: float) -> None:
    writer = TraceWriter(path, sync_interval_s=good)
    assert writer.sync_interval_s == good
    writer.close()


def test_a_sync_that_is_refused_raises_and_costs_no_row(path: Path, disk: Disk, clock: list[float]) -> None:
    with created(path, sync_interval_s=10) as writer:
        append(writer, 0, 63)
        disk.refuses, clock[0] = {"file"}, clock[0] + 10
        with pytest.raises(OSError, match=f"{path}.*not confirm.*dying"):
            append(writer, 63, 64)
        assert (writer.rows_written, writer.rows_dropped) == (64, 0)
        assert len(open_trace(path)) == 64
        append(writer, 64, 128)  # the next is due an interval later
        disk.refuses, clock[0] = set(), clock[0] + 10
        append(writer, 128, 200)
        assert disk.rows() == 192
        writer.close()
    trace = open_trace(path)
    assert (trace.status, len(trace), trace.attributes["rows_dropped"]) == ("finished", 200, 0)
    assert_right(trace)


def test_a_sync_that_is_refused_at_the_end_raises_and_the_file_is_not_called_finished(path: Path, disk: Disk) -> None:
    with created(path) as writer:
        append(writer, 0, 70)
        disk.refuses = {"file"}
        with pytest.raises(OSError, match=f"{path}.*dying"):
            writer.close()
    trace = open_trace(path)
    assert (trace.status, len(trace), trace.attributes["rows_dropped"]) == ("crashed", 70, 0)
    assert_right(trace)
    assert [p.name for p in path.parent.iterdir()] == ["run.h5"]


def test_a_file_that_cannot_be_synced_is_not_created(path: Path, disk: Disk) -> None:
    disk.refuses = {"file"}
    writer = TraceWriter(path)
    with pytest.raises(OSError, match=f"{path}.*dying"):
        writer.create(FIELDS, ALONG, {})
    writer.close()
    assert list(path.parent.iterdir()) == []


def test_a_folder_that_cannot_be_synced_keeps_no_trace_from_being_written(path: Path, disk: Disk) -> None:
    disk.refuses = {"folder"}
    with created(path) as writer:
        append(writer, 0, 70)
        writer.close()
    assert ("folder", path.parent.stat().st_ino) in disk.calls
    assert open_trace(path).status == "finished"
    assert disk.rows() == 70


def test_a_trace_is_written_and_synced_whatever_driver_hdf5_is_told_to_use(path: Path) -> None:
    code = """
import os, pathlib, sys
os.environ["HDF5_DRIVER"] = "stdio"
from tests.trace.rows import write
write(pathlib.Path(sys.argv[1]), range(70))
"""
    run_python(code, path)
    assert len(open_trace(path)) == 70

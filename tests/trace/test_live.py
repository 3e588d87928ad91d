"""More than one process at a trace: one writer, readers beside it, and whoever comes second refused."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from fastgeom.trace import TraceLockedError, TraceWriter, is_being_written, lock, open_trace
from fastgeom.trace import file as file_module
from tests.trace.rows import STEERED, assert_right, coordinates, fields, row, run_python, start, write

LATE_WRITER = """
import sys
from fastgeom.trace import TraceLockedError, TraceWriter
try:
    TraceWriter(*sys.argv[1:])
except TraceLockedError as error:
    print(error)
"""


def test_another_process_reads_whole_right_rows_while_a_chunk_is_being_written(tmp_path: Path) -> None:
    path, rows = tmp_path / "run.h5", 64 * 3 + 17
    trace, n_whole, at_rest, written = None, 0, [], []
    with start(path, "--rows", rows, "--steered") as process:
        assert process.stdin and process.stdout
        for line in process.stdout:  # the writer waits: after a dataset, whose name it says, or after a complete chunk
            if line == "closed\n":
                break
            if line.strip().isdigit():
                n_whole = int(line)
                at_rest.append(n_whole)
            else:
                written.append(line.strip())
            trace = trace or open_trace(path)
            assert_right(trace)  # as of the point before
            trace.refresh()
            fresh = open_trace(path)
            for now in (trace, fresh):
                assert now.status == "live"
                # Once the steps are written, and not yet flushed, HDF5 may show them or not.
                assert len(now) == n_whole or line == "step\n" and len(now) == min(n_whole + 64, rows)
                assert_right(now)
            process.stdin.write("\n")
            process.stdin.flush()
    assert at_rest == [64, 128, 192]
    assert written == [*STEERED] * 4
    assert trace
    trace.refresh()
    assert trace.status == "finished"
    assert len(trace) == rows
    assert_right(trace)


def test_another_process_reads_whole_right_rows_beside_a_run_that_waits_for_nobody(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with start(path, "--rows", 64 * 20 + 17, "--slow", 0.002) as process:
        assert process.stdout
        process.stdout.readline()
        trace = open_trace(path)
        lengths = []
        while process.poll() is None:
            assert_right(trace)
            fresh = open_trace(path)
            assert_right(fresh)
            lengths += [len(trace), len(fresh)]
            trace.refresh()
        assert lengths == sorted(lengths)
        assert all(n % 64 == 0 for n in lengths[:-1] if n != 64 * 20 + 17)
    trace.refresh()
    assert trace.status == "finished"
    assert len(trace) == 64 * 20 + 17
    assert_right(trace)


def test_arrays_of_a_live_trace_fit_together_until_it_is_refreshed(tmp_path: Path) -> None:
    all_fields, along = fields(), coordinates()
    writer = TraceWriter(tmp_path / "run.h5")
    writer.create(all_fields, along, {})
    trace = open_trace(tmp_path / "run.h5")
    for step in range(64):
        writer.append(row(step, all_fields, along))
    assert trace.loss.shape == (0,)
    trace.refresh()
    assert trace.status == "live"
    assert trace.loss.shape == (64,)
    for step in range(64, 128):
        writer.append(row(step, all_fields, along))
    assert trace.lr.shape == (64,)
    writer.close()
    assert trace.grad_norm.shape == (64,)
    trace.refresh()
    assert trace.status == "finished"
    assert_right(trace)


def test_a_reader_in_the_writing_process_disturbs_neither_the_writer_nor_another_reader(tmp_path: Path) -> None:
    all_fields, along = fields(), coordinates()
    writer = TraceWriter(tmp_path / "run.h5")
    writer.create(all_fields, along, {})
    for step in range(200):
        writer.append(row(step, all_fields, along))
        if step % 20 == 0:
            with open_trace(tmp_path / "run.h5") as one, open_trace(tmp_path / "run.h5") as other:
                assert_right(one)
                assert len(other) == 64 * ((step + 1) // 64)
    writer.close()
    assert len(open_trace(tmp_path / "run.h5")) == 200


@pytest.mark.parametrize("mode", ["x", "w"])
def test_a_second_writer_is_refused_and_the_first_ones_file_is_the_same_bit_for_bit(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "run.h5"
    all_fields, along = fields(), coordinates()
    writer = TraceWriter(path)
    writer.create(all_fields, along, {})
    for step in range(100):
        writer.append(row(step, all_fields, along))
    before, lock_before = path.read_bytes(), path.with_name("run.h5.lock").read_bytes()
    message = run_python(LATE_WRITER, path, mode)
    for part in (str(path), f"process {os.getpid()}", socket.gethostname(), "nobody is writing"):
        assert part in message
    with pytest.raises(TraceLockedError, match=str(os.getpid())):
        TraceWriter(path, mode)
    assert path.read_bytes() == before
    assert path.with_name("run.h5.lock").read_bytes() == lock_before
    writer.close()
    assert_right(open_trace(path))
    assert len(open_trace(path)) == 100


def test_two_names_of_one_file_share_a_lock(tmp_path: Path) -> None:
    (tmp_path / "link.h5").symlink_to(tmp_path / "run.h5")
    writer = TraceWriter(tmp_path / "run.h5")
    with pytest.raises(TraceLockedError):
        TraceWriter(tmp_path / "link.h5", "w")
    writer.close()


def test_a_lock_file_that_its_holder_has_just_removed_is_worth_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.h5"
    first, try_lock = lock.WriterLock(path), lock._try_lock

    def first_leaves(fd: int, kind: int) -> bool:
        first.release()
        return try_lock(fd, kind)

    with monkeypatch.context() as patch:
        patch.setattr(lock, "_try_lock", first_leaves)
        second = lock.WriterLock(path)
    assert is_being_written(path)
    with pytest.raises(TraceLockedError):
        lock.WriterLock(path)
    second.release()


def test_one_lock_is_never_held_twice_while_holders_come_and_go(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    code = f"""
import pathlib, time
from fastgeom.trace.lock import TraceLockedError, WriterLock
counter, taken = pathlib.Path({str(counter)!r}), 0
while taken < 150:
    try:
        lock = WriterLock({str(tmp_path / "run.h5")!r})
    except TraceLockedError:
        continue
    counter.write_text(str(int(counter.read_text()) + 1))
    lock.release()
    taken += 1
"""
    threads = [threading.Thread(target=run_python, args=(code,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.read_text() == "450"
    assert not (tmp_path / "run.h5.lock").exists()


def test_a_reader_that_asks_whether_a_trace_is_live_never_keeps_a_writer_out(tmp_path: Path) -> None:
    path, stop = tmp_path / "run.h5", threading.Event()

    def ask() -> None:
        while not stop.is_set():
            is_being_written(path)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(100):
            writer = TraceWriter(path)
            assert is_being_written(path)
            writer.close()
    finally:
        stop.set()
        thread.join()
    assert not is_being_written(path)


def test_a_waiting_writer_shows_no_file_and_leaves_none(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "run.h5")
    with pytest.raises(FileNotFoundError, match="has not measured a step yet"):
        open_trace(tmp_path / "run.h5")
    writer.close()
    writer.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"run\.h5$"):
        open_trace(tmp_path / "run.h5")


def test_mode_w_keeps_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    all_fields, along = fields(), coordinates()
    for attempt in range(2):
        old = open_trace(path) if attempt else None
        writer = TraceWriter(path, "w")
        if old:
            assert len(open_trace(path)) == 1
        writer.create(all_fields, along, {})
        writer.append(row(attempt, all_fields, along))
        writer.close()
        assert open_trace(path).step.tolist() == [attempt]
    assert old
    with pytest.raises(OSError, match="taken the place"):
        _ = old.loss
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.h5"]


def test_a_child_that_inherits_the_file_as_it_is_made_does_not_lock_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a data loader's worker does, forked at this moment: it holds a copy of the descriptor while it lives."""
    inherited: list[int] = []
    lay_out = file_module._lay_out

    def forked(file: h5py.File, *arguments: object) -> None:
        inherited.append(os.dup(file.id.get_vfd_handle()))
        lay_out(file, *arguments)

    monkeypatch.setattr(file_module, "_lay_out", forked)
    write(tmp_path / "run.h5", range(3))
    assert len(inherited) == 1 and len(open_trace(tmp_path / "run.h5")) == 3
    os.close(inherited[0])


def test_a_writer_on_a_background_thread_is_read_from_the_main_one(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    all_fields, along = fields(), coordinates()
    writer = TraceWriter(path)

    def work() -> None:
        writer.create(all_fields, along, {})
        for step in range(640):
            writer.append(row(step, all_fields, along))
        writer.close()

    thread = threading.Thread(target=work)
    thread.start()
    while not path.exists():
        time.sleep(0.001)
    trace = open_trace(path)
    while thread.is_alive():
        assert_right(trace)
        trace.refresh()
    thread.join()
    trace.refresh()
    np.testing.assert_array_equal(trace.step, np.arange(640))

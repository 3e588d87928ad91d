"""A process that dies, a disk that fills, a chunk that rots: acknowledged rows read back, what is wrong is named."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from fastgeom.trace import TraceDamagedError, TraceFormatError, TraceWriter, is_being_written, open_trace
from tests.trace.rows import assert_right, coordinates, fields, run_python, start, write

NAMED = (TraceDamagedError, TraceFormatError)


@pytest.mark.parametrize("kill", range(8))
def test_kill_9_loses_no_acknowledged_row_and_gives_back_no_wrong_one(tmp_path: Path, kill: int) -> None:
    path = tmp_path / "run.h5"
    with start(path, "--slow", 0.001 * (kill % 2)) as process:
        assert process.stdout
        first = process.stdout.readline()
        time.sleep(random.Random(kill).uniform(0, 0.1))
        process.kill()
        acknowledged = int([first, *process.stdout][-1])
    trace = open_trace(path)
    assert trace.status == "crashed"
    assert len(trace) >= acknowledged >= 64
    assert_right(trace)


def test_the_lock_of_a_killed_process_does_not_block_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with start(path) as process:
        assert process.stdout
        process.stdout.readline()
        process.kill()
    assert path.with_name("run.h5.lock").exists()
    assert not is_being_written(path)
    TraceWriter(path, "w").close()
    assert not path.with_name("run.h5.lock").exists()


def test_a_forked_worker_that_outlives_its_killed_trainer_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with start(path, "--worker") as process:
        assert process.stdout
        worker = int(process.stdout.readline().split()[1])
        process.stdout.readline()
        process.kill()
        try:
            process.wait()
            assert Path(f"/proc/{worker}").exists()
            TraceWriter(path, "w").close()
        finally:
            run_python("import os, sys; os.kill(int(sys.argv[1]), 9)", worker)


def test_a_run_killed_before_its_first_chunk_is_an_empty_trace(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with start(path, "--rows", 63, "--hold") as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        assert open_trace(path).status == "live"
        process.kill()
    trace = open_trace(path)
    assert trace.status == "crashed"
    assert len(trace) == 0
    assert trace.layer_lag_cosine.shape == (0, 3, 8)
    assert trace.loss.shape == (0,)
    assert "0 steps" in repr(trace)
    assert dict(trace.to_xarray().sizes) == {"step": 0, "layer": 3, "lag": 8}


def test_a_full_disk_costs_no_acknowledged_row_and_the_lost_ones_are_counted(tmp_path: Path) -> None:
    results = json.loads(run_python(FULL_DISK, tmp_path, "stays"))
    assert {r["written"] for r in results} >= {0, 64, 128}
    for result in results:
        with open_trace(result["path"]) as trace:
            assert result["raised"]
            assert trace.status == "crashed"
            assert len(trace) == result["written"]
            assert len(trace) + trace.attributes["rows_dropped"] == 320
            _assert_rows_right(trace)


def test_a_disk_that_has_room_again_takes_rows_again(tmp_path: Path) -> None:
    results = json.loads(run_python(FULL_DISK, tmp_path, "ends"))
    assert any(r["raised"] for r in results)
    for result in results:
        with open_trace(result["path"]) as trace:
            assert trace.status == "finished"
            assert len(trace) == result["written"] >= 128
            assert len(trace) + trace.attributes["rows_dropped"] == 320
            assert trace.rows_dropped[-1] == trace.attributes["rows_dropped"]
            _assert_rows_right(trace)


FULL_DISK = """
import json, os, resource, sys
import numpy as np
from fastgeom.schema import recorded_fields
from fastgeom.trace import TraceWriter

folder, end = sys.argv[1:]
fields = [f for f in recorded_fields(scalars=("loss",)) if f.name in ("step", "rows_dropped", "loss", "lag_dot")]
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
results = []
for room in range(0, 9000, 250):
    path = f"{folder}/{room}.h5"
    writer = TraceWriter(path)
    writer.create(fields, {"lag": [1, 2]}, {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path) + room, unlimited[1]))
    raised = False
    for step in range(320):
        if end == "ends" and step == 192:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        try:
            writer.append({"step": step, "loss": step / 8, "lag_dot": np.array([step, -step])})
        except OSError:
            raised = True
    try:
        writer.close()
    except OSError:
        raised = True
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert not os.path.exists(path + ".lock")
    results.append({"path": path, "written": writer.rows_written, "raised": raised})
print(json.dumps(results))
"""


def _assert_rows_right(trace) -> None:
    np.testing.assert_array_equal(trace.loss, trace.step / 8)
    np.testing.assert_array_equal(trace.lag_dot, np.stack([trace.step, -trace.step], axis=1))


@pytest.mark.parametrize("name", ["lag_dot", "layer_diff_sq", "nonfinite"])
def test_a_flipped_bit_in_a_chunk_is_an_error_that_names_dataset_and_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run.h5"
    write(path, range(130))
    _flip(path, _chunk_offset(path, name) + 5)
    trace = open_trace(path)
    with pytest.raises(TraceDamagedError, match=f"{path}.*{name}"):
        trace[name]
    assert len(trace.loss) == 130


def test_a_flipped_bit_in_the_steps_is_an_error_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    write(path, range(130))
    _flip(path, _chunk_offset(path, "step") + 5)
    with pytest.raises(TraceDamagedError, match="'step'"):
        open_trace(path)


def test_a_flipped_bit_in_a_layer_name_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    write(path, range(3))
    _flip(path, path.read_bytes().index(b"blocks.1"))
    with pytest.raises(TraceDamagedError, match="names of the layers"):
        open_trace(path)


@pytest.mark.parametrize("size", [8, 20, 100, 3000, 40000])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, size: int) -> None:
    path = tmp_path / "run.h5"
    write(path, range(130))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(TraceDamagedError, match=str(path)):
        open_trace(path)


def test_flipped_bits_in_the_metadata_are_errors_and_never_hang(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    write(path, range(70))
    with h5py.File(path) as file:
        root, group = h5py.h5o.get_info(file.id).addr, h5py.h5o.get_info(file["loss"].id).addr
    for offset in (20, 40, root + 10, group + 10):
        _flip(path, offset)
        with pytest.raises(NAMED, match=str(path)):
            open_trace(path)
        _flip(path, offset)
    assert_right(open_trace(path))


def test_a_create_that_fails_leaves_nothing_behind_and_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.h5"
    write(path, range(3))
    before = path.read_bytes()
    writer = TraceWriter(path, "w")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(h5py.h5d, "create", refuse)
    with pytest.raises(OSError, match="no room"):
        writer.create(fields(), coordinates(), {})
    writer.close()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]


def _chunk_offset(path: Path, name: str) -> int:
    with h5py.File(path) as file:
        return int(file[name].id.get_chunk_info(0).byte_offset)


def _flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)

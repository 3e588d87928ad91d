"""What stands in a finished file, who can open it, and which input a writer refuses."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import socket
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

from fastgeom.schema import SCHEMA_VERSION, STEP, recorded_fields
from fastgeom.trace import TraceWriter, open_trace
from fastgeom.trace.file import MAX_CHUNK_BYTES, row_buffers
from tests.trace.rows import PROVENANCE, coordinates, fields, row, run_python, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.h5"


def test_plain_h5py_finds_one_dataset_a_quantity_with_named_dimensions_and_units(path: Path) -> None:
    write(path, range(70))
    with h5py.File(path) as file:
        assert set(file) == {f.name for f in fields()} | {"lag", "layer"}
        for field in fields():
            dataset = file[field.name]
            assert dataset.dtype == field.dtype
            assert dataset.fletcher32
            assert dataset.compression is None
            assert dataset.shape[0] == 70
            assert dataset.attrs["units"] == field.unit
            assert dataset.attrs["formula"] == field.formula
            if field.name != STEP:
                assert tuple(d[0].name[1:] for d in dataset.dims) == field.dims
        assert file["layer"].asstr()[:].tolist() == ["stem", "blocks.0", "blocks.1"]
        assert file["lag"][:].tolist() == list(range(1, 9))


def test_the_file_is_of_the_format_that_hdf5_1_10_reads_and_is_closed_cleanly(path: Path) -> None:
    write(path, range(70))
    version, flags = path.read_bytes()[8], path.read_bytes()[11]
    assert (version, flags) == (3, 0)


def test_plain_xarray_opens_a_finished_file_with_dimensions_units_and_decoded_times(path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    write(path, range(70))
    with xarray.open_dataset(path) as dataset:
        assert dict(dataset.sizes) == {"step": 70, "lag": 8, "layer": 3}
        assert dataset.layer_lag_dot.dims == ("step", "layer", "lag")
        assert dataset.wall_time.dtype.kind == "M"
        assert dataset.wall_time.values[3] == np.datetime64("1970-01-01T00:00:04.015625")
        assert dataset.measure_time_ms.attrs["units"] == "ms"
        assert dataset.sel(layer="blocks.1", lag=2, step=69).layer_lag_dot == open_trace(path).layer_lag_dot[69, 2, 1]
        assert dataset.attrs["device"] == "cpu"
        assert dataset.step.values.tolist() == list(range(70))


def test_provenance_says_what_wrote_the_file_where_and_when(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--name", "two words"])
    write(path, range(2))
    attributes = open_trace(path).attributes
    assert attributes["schema_version"] == SCHEMA_VERSION
    assert attributes["argv"] == "train.py --name 'two words'"
    assert attributes["hostname"] == socket.gethostname()
    assert attributes["python_version"] == platform.python_version()
    assert attributes["numpy_version"] == np.__version__
    assert attributes["h5py_version"] == h5py.__version__
    assert attributes["created"].endswith("+00:00")
    assert attributes["configuration"] == json.loads(PROVENANCE["configuration"])
    assert (attributes["finished"], attributes["rows_dropped"]) == (1, 0)


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_commit_of_the_working_directory_is_recorded_and_where_there_is_none_left_out(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "outside.h5", range(2))
    assert "git_commit" not in open_trace(tmp_path / "outside.h5").attributes
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *command], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    write(path, range(2))
    assert open_trace(path).attributes["git_commit"] == head


def test_a_missing_value_is_nan_and_a_missing_count_zero(path: Path) -> None:
    writer = TraceWriter(path)
    writer.create(fields(), coordinates(), {})
    writer.append({"step": 5, "loss": 1.5})
    writer.close()
    trace = open_trace(path)
    assert trace.loss.tolist() == [1.5]
    assert np.isnan(trace.layer_lag_dot).all()
    assert np.isnan(trace.clip_coefficient).all()
    assert trace.nonfinite.tolist() == [0]


def test_rows_that_the_caller_lost_stand_in_later_rows_and_in_the_end(path: Path) -> None:
    writer = TraceWriter(path)
    writer.create(fields(), coordinates(), {})
    writer.append({"step": 0})
    writer.count_dropped(3)
    writer.append({"step": 4})
    writer.count_dropped()
    writer.close()
    trace = open_trace(path)
    assert trace.rows_dropped.tolist() == [0, 3]
    assert trace.attributes["rows_dropped"] == writer.rows_dropped == 4


def test_rows_are_flushed_in_whole_chunks_of_64_and_fewer_where_a_row_is_large() -> None:
    many = recorded_fields()
    for layers, lags, rows in ((3, 8, 64), (2000, 32, 2), (2000, 256, 1)):
        buffers = row_buffers(many, {"layer": layers, "lag": lags})
        assert {len(b) for b in buffers.values()} == {rows}


def test_no_chunk_is_larger_than_a_mebibyte_even_where_a_row_is(path: Path) -> None:
    along = coordinates(layers=[f"layer {i}" for i in range(1500)], window=128)
    all_fields = recorded_fields()
    writer = TraceWriter(path)
    writer.create(all_fields, along, {})
    for step in range(3):
        writer.append(row(step, all_fields, along))
    assert len(open_trace(path)) == 3
    writer.close()
    with h5py.File(path) as file:
        assert max(np.prod(d.chunks) * d.dtype.itemsize for d in file.values() if d.chunks) <= MAX_CHUNK_BYTES
    trace = open_trace(path)
    expected = row(2, all_fields, along)["layer_lag_dot"]
    np.testing.assert_array_equal(trace.layer_lag_dot[2], expected)
    np.testing.assert_array_equal(trace.layer("layer 1499").lag_dot[2], expected[1499])


def test_2000_layers_cost_the_writer_a_few_mebibytes_however_many_rows_it_writes(tmp_path: Path) -> None:
    grown = run_python(MEMORY, tmp_path / "run.h5")
    assert float(grown) < 8


MEMORY = """
import sys
import numpy as np
from fastgeom.schema import recorded_fields
from fastgeom.trace import TraceWriter

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096 / 2**20

fields = recorded_fields(track_updates=True)
sizes = {"layer": 2000, "lag": 16}
row = {f.name: np.ones([sizes[d] for d in f.dims[1:]], f.dtype) for f in fields if len(f.dims) > 1}
before = resident()
writer = TraceWriter(sys.argv[1])
writer.create(fields, {"layer": [f"l{i}" for i in range(2000)], "lag": np.arange(1, 17)}, {})
for step in range(100):
    writer.append(row | {"step": step})
print(resident() - before)
writer.close()
"""


def test_a_trace_is_written_and_read_without_torch(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["torch"] = None
from pathlib import Path
from fastgeom.trace import open_trace
from tests.trace.rows import assert_right, write
path = Path(sys.argv[1])
write(path, range(70))
assert_right(open_trace(path))
open_trace(path).to_xarray()
"""
    run_python(code, tmp_path / "run.h5")


def test_mode_x_refuses_an_existing_file_and_names_mode_w(path: Path) -> None:
    write(path, range(2))
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=f"{path}.*mode 'w'"):
        TraceWriter(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["run.h5"]


def test_an_unknown_mode_names_the_known_ones(path: Path) -> None:
    with pytest.raises(ValueError, match=r"'x'.*'w'.*got 'q'"):
        TraceWriter(path, "q")


def test_a_missing_folder_and_a_file_in_its_place_are_errors_that_name_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"folder.*{tmp_path / 'no'}"):
        TraceWriter(tmp_path / "no" / "run.h5")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=f"folder.*{tmp_path / 'file'}"):
        TraceWriter(tmp_path / "file" / "run.h5")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        TraceWriter(tmp_path, "w")


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = tmp_path
    if os.geteuid():
        folder.chmod(0o500)
    else:  # root writes everywhere but where the kernel itself says no
        folder = Path("/proc/self")
    with pytest.raises(OSError, match=f"can be written, got {folder.resolve()}"):
        TraceWriter(folder / "run.h5")
    folder.chmod(0o700) if folder == tmp_path else None


@pytest.mark.parametrize("size", [251, 300])
def test_a_name_too_long_for_the_trace_or_for_its_lock_says_so(tmp_path: Path, size: int) -> None:
    with pytest.raises(OSError, match=f"shorter name.*{size + len('.lock')} bytes.*{tmp_path}") as caught:
        TraceWriter(tmp_path / ("n" * size))
    assert caught.value.errno == errno.ENAMETOOLONG
    assert list(tmp_path.iterdir()) == []
    TraceWriter(tmp_path / ("n" * 250)).close()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"step": 1, "los": 2.0}, "'los'"),
        ({"step": 1, "rows_dropped": 2}, "'rows_dropped'"),
        ({"loss": 1.0}, "with its step"),
        ({"step": 0}, "above 0, got 0"),
        ({"step": -1}, "above 0, got -1"),
        ({"step": 1, "lag_dot": np.zeros(7)}, r"lag_dot: expected shape \(8,\), got \(7,\)"),
        ({"step": 1, "loss": np.zeros(1)}, r"loss: expected shape \(\), got \(1,\)"),
        ({"step": 1, "lag_dot": 0.0}, r"lag_dot: expected shape \(8,\), got \(\)"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_and_the_next_one_is_taken(path: Path, bad: dict, message: str) -> None:
    writer = TraceWriter(path)
    writer.create(fields(), coordinates(), {})
    writer.append({"step": 0, "loss": 1.0})
    with pytest.raises(ValueError, match=message):
        writer.append(bad)
    writer.append({"step": 7, "loss": 3.0})
    writer.close()
    assert open_trace(path).loss.tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    ("along", "message"),
    [
        ({"lag": [1, 2]}, "'layer'"),
        ({"lag": [1], "layer": []}, "'layer'"),
        ({"lag": [1], "layer": ["a", "b", "a"]}, "'a' 2 times"),
        ({"lag": [1], "layer": ["a\0b"]}, "NUL"),
    ],
)
def test_coordinates_that_do_not_fit_are_refused_before_anything_is_created(
    path: Path, along: dict, message: str
) -> None:
    writer = TraceWriter(path)
    with pytest.raises(ValueError, match=message):
        writer.create(fields(), along, {})
    writer.close()
    assert list(path.parent.iterdir()) == []


def test_calls_in_the_wrong_order_are_errors(path: Path) -> None:
    writer = TraceWriter(path)
    with pytest.raises(ValueError, match="not created yet"):
        writer.append({"step": 0})
    writer.create(fields(), coordinates(), {})
    with pytest.raises(ValueError, match="created already"):
        writer.create(fields(), coordinates(), {})
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.append({"step": 0})

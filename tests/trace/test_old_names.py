"""Files of before the public names changed: values and attributes are read, the latter under the present names.

``data/`` holds two traces that the commit f9898d8 recorded, the last one with the old names: a network of two layers,
four steps of gradient descent; one with ``groups="global", record_lags=[1]``, one with ``groups="layer",
history=Sketch(size=256, seed=3, record=128)``.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from fastgeom.trace import TraceWriter, open_trace
from tests.trace.rows import coordinates, fields

DATA = Path(__file__).parent / "data"
NAN = np.nan


@pytest.fixture
def unpack(tmp_path: Path):
    def unpack(name: str) -> Path:
        path = tmp_path / name
        path.write_bytes(gzip.decompress((DATA / f"{name}.gz").read_bytes()))
        return path

    return unpack


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("global.h5", ("global", "Exact(dtype=None, defer=1)"), ("all", "Exact(dtype=None, defer=1)")),
        (
            "sketch.h5",
            ("layer", "Sketch(size=256, seed=3, record=128)"),
            ("module", "Sketch(size=256, seed=3, stored_size=128)"),
        ),
    ],
)
def test_the_configuration_of_an_old_file_has_the_present_names(unpack, name: str, old: tuple, new: tuple) -> None:
    path = unpack(name)
    with h5py.File(path) as file:
        stored = json.loads(file.attrs["configuration"])
    assert (stored.pop("groups"), stored.pop("history")) == old
    configuration = open_trace(path).attributes["configuration"]
    assert list(configuration)[:4] == ["window", "history", "history_chosen", "layers"]
    assert (configuration.pop("layers"), configuration.pop("history")) == new
    assert configuration == stored


def test_an_old_file_of_one_layer_and_some_lags_reads_value_by_value(unpack) -> None:
    trace = open_trace(unpack("global.h5"))
    assert trace.status == "finished"
    assert trace.attributes["git_commit"].startswith("f9898d8")
    assert (trace.layers, trace.window, trace.layer_lags.tolist()) == (("(all)",), 2, [1])
    assert trace.step.tolist() == [0, 1, 2, 3]
    assert trace.scalars == ("loss", "lr")
    assert trace.loss.tolist() == [0.14303506910800934, 0.03550954908132553, 0.015577392652630806, 0.009055549278855324]
    assert trace.lr.tolist() == [0.1] * 4
    assert trace.grad_absmax[0] == 0.6924813389778137
    dots = [[NAN, NAN], [0.6003529764465374, NAN], [0.13503934825258945, 0.2672152952824569]]
    np.testing.assert_array_equal(trace.lag_dot[:3], dots)
    np.testing.assert_array_equal(trace.layer_lag_dot[:, 0, 0], trace.lag_dot[:, 0])
    assert np.isnan(trace.layer_lag_dot[:, 0, 1]).all()
    np.testing.assert_allclose(trace.lag_cosine[3], [0.963286450475224, 0.8107704695744904], rtol=1e-14)
    np.testing.assert_array_equal(trace.layer("(all)").grad_norm, trace.grad_norm)


def test_an_old_file_of_sketches_reads_with_its_errors(unpack) -> None:
    trace = open_trace(unpack("sketch.h5"))
    assert trace.layers == ("0", "1")
    assert trace.sketch.shape == (4, 128)
    assert trace.sketch.dtype == np.float32
    assert np.isfinite(trace.sketch).all()
    np.testing.assert_array_equal(trace.layer_diff_sq_error[1], [0.033050124319791915, 0.0])
    assert trace.layer("0").lag_cosine_error.shape == (4, 2)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"groups": "parameter"}, {"layers": "parameter"}),
        ({"groups": "by_depth", "window": 8}, {"layers": "by_depth", "window": 8}),
        ({"layers": "layer", "history": "Sketch(size=8, record=4)"}, None),
        ({"layers": "all", "groups": "global"}, None),
        ({"window": 8}, None),
        (["groups"], None),
    ],
)
def test_only_an_old_configuration_is_renamed(tmp_path: Path, written: object, read: object) -> None:
    writer = TraceWriter(tmp_path / "run.h5")
    writer.create(fields(), coordinates(), {"configuration": json.dumps(written)})
    writer.close()
    assert open_trace(tmp_path / "run.h5").attributes["configuration"] == (written if read is None else read)


def test_xarray_gets_the_present_names(unpack) -> None:
    pytest.importorskip("xarray")
    attributes = open_trace(unpack("global.h5")).to_xarray().attrs
    assert json.loads(attributes["configuration"])["layers"] == "all"

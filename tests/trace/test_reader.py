"""Traces as arrays: names, dimensions, layers, gaps, derived fields, and files that are none."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from fastgeom.schema import recorded_fields
from fastgeom.trace import TraceDamagedError, TraceFormatError, TraceWriter, open_trace
from fastgeom.trace.derived import grad_norm, lag_cosine
from tests.trace.rows import LAYERS, assert_right, coordinates, fields, row, write

ODD_NAMES = ["", " ", "a/b", "блоки.3", "層", "🙂", "x" * 5000, "stem\n", "None"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.h5"


def test_a_finished_trace_knows_itself(path: Path) -> None:
    write(path, range(10, 80))
    with open_trace(path) as trace:
        assert trace.status == "finished"
        assert len(trace) == 70
        assert trace.window == 8
        assert trace.layers == LAYERS
        assert trace.scalars == ("loss", "lr")
        assert trace.lags.tolist() == trace.layer_lags.tolist() == list(range(1, 9))
        assert trace.step.dtype == np.int64
        assert repr(trace) == f"<Trace {path}: finished, 70 steps (10 to 79), 3 layers, window 8>"
        assert_right(trace)
        assert trace.loss is trace["loss"]
        assert trace.loss.dtype == np.float64
        assert trace.nonfinite.dtype == np.int64
        assert trace.dims("layer_lag_cosine") == ("step", "layer", "lag")


def test_an_array_that_the_trace_keeps_cannot_be_changed_under_it(path: Path) -> None:
    write(path, range(3))
    with pytest.raises(ValueError, match="read-only"):
        open_trace(path).loss[0] = 1


def test_a_closed_trace_says_so(path: Path) -> None:
    write(path, range(3))
    with open_trace(path) as trace:
        pass
    for use in (lambda: trace.loss, trace.refresh):
        with pytest.raises(ValueError, match=f"{path}: the trace is closed"):
            use()


def test_a_wrong_name_lists_close_ones(path: Path) -> None:
    write(path, range(3))
    trace = open_trace(path)
    with pytest.raises(AttributeError, match=r"'lag_cosin'; did you mean .*'lag_cosine'"):
        _ = trace.lag_cosin
    with pytest.raises(KeyError, match="did you mean 'loss'"):
        trace["los"]
    with pytest.raises(KeyError, match=r"no layer 'block.1'; did you mean 'blocks.1' or 'blocks.0'"):
        trace.layer("block.1")
    with pytest.raises(AttributeError, match=r"layer 'stem' has no 'grad_nrm'; did you mean 'grad_norm'"):
        _ = trace.layer("stem").grad_nrm
    with pytest.raises(KeyError, match="has no 'loss'"):
        trace.layer("stem")["loss"]
    assert {"lag_cosine", "layer_grad_norm", "loss", "to_xarray"} <= set(dir(trace))
    assert {"lag_cosine", "grad_norm"} <= set(dir(trace.layer("stem")))
    assert "loss" not in dir(trace.layer("stem"))


def test_a_field_that_the_run_did_not_record_is_told_from_a_wrong_name(path: Path) -> None:
    writer = TraceWriter(path)
    writer.create(recorded_fields(), coordinates(), {})
    writer.close()
    trace = open_trace(path)
    assert "update_sq" not in trace
    with pytest.raises(AttributeError, match="did not record 'update_sq'"):
        _ = trace.update_sq


def test_a_layer_is_a_slice_of_the_layered_arrays_read_alone_or_after_them(path: Path) -> None:
    write(path, range(70))
    alone, after = open_trace(path), open_trace(path)
    for index, name in enumerate(LAYERS):
        for quantity in ("lag_cosine", "lag_dot", "grad_norm", "diff_sq", "nonfinite", "update_sq"):
            expected = after["layer_" + quantity][:, index]
            np.testing.assert_array_equal(alone.layer(name)[quantity], expected)
            np.testing.assert_array_equal(getattr(after.layer(name), quantity), expected)
    assert alone.layer("stem").lag_cosine.shape == (70, 8)
    assert alone.layer("stem").step is alone.step


def test_a_layer_view_follows_a_refresh(path: Path) -> None:
    writer = TraceWriter(path)
    writer.create(fields(), coordinates(), {})
    trace = open_trace(path)
    view = trace.layer("stem")
    assert view.grad_sq.shape == (0,)
    writer.append(row(0, fields(), coordinates()))
    writer.close()
    trace.refresh()
    assert view.grad_sq.shape == (1,)


def test_layer_names_of_every_kind_come_back_as_they_were(path: Path) -> None:
    along, all_fields = coordinates(layers=ODD_NAMES), fields(scalars=("η", "loss"))
    writer = TraceWriter(path)
    writer.create(all_fields, along, {"note": "größe ✓"})
    writer.append(row(0, all_fields, along))
    writer.close()
    trace = open_trace(path)
    assert list(trace.layers) == ODD_NAMES
    assert trace.attributes["note"] == "größe ✓"
    assert trace.scalars == ("η", "loss")
    assert trace.η.shape == (1,)
    for index, name in enumerate(ODD_NAMES):
        assert trace.layer(name).grad_sq[0] == trace.layer_grad_sq[0, index]
    assert trace.to_xarray().layer.values.tolist() == ODD_NAMES


def test_lags_that_were_not_recorded_per_layer_are_nan_at_their_place(path: Path) -> None:
    write(path, range(70), layer_lags=[1, 2, 5])
    trace = open_trace(path)
    assert trace.layer_lags.tolist() == [1, 2, 5]
    assert trace.layer_lag_dot.shape == trace.layer_lag_cosine.shape == (70, 3, 8)
    assert np.isfinite(trace.layer_lag_dot[0, 0]).tolist() == [True, True, False, False, True, False, False, False]
    with h5py.File(path) as file:
        np.testing.assert_array_equal(trace.layer_lag_dot[..., [0, 1, 4]], file["layer_lag_dot"][:])
        assert file["layer_lag"][:].tolist() == [1, 2, 5]
    np.testing.assert_array_equal(trace.layer("stem").lag_cosine, trace.layer_lag_cosine[:, 0])
    assert np.isfinite(trace.lag_dot).all()
    assert trace.to_xarray().layer_lag_dot.dims == ("step", "layer", "lag")
    xarray = pytest.importorskip("xarray")
    with xarray.open_dataset(path) as dataset:
        assert dataset.layer_lag_dot.dims == ("step", "layer", "layer_lag")


def _gradients(steps: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((steps, 2, 5))


def test_lag_cosines_are_those_of_the_gradients_and_nan_where_the_earlier_step_has_no_row(path: Path) -> None:
    gradients, window = _gradients(30), 4
    measured = [0, 1, 2, 3, 7, 8, 10, 11, 12, 20, 29]
    all_fields = recorded_fields()
    writer = TraceWriter(path)
    writer.create(all_fields, {"lag": np.arange(1, window + 1), "layer": ["a", "b"]}, {})
    for t in measured:
        dots = np.full((2, window), np.nan)
        for k in range(1, window + 1):
            if t - k in measured:
                dots[:, k - 1] = (gradients[t] * gradients[t - k]).sum(-1)
        squares = (gradients[t] ** 2).sum(-1)
        layered = {"layer_lag_dot": dots, "layer_grad_sq": squares}
        writer.append({"step": t, "lag_dot": dots.sum(0), "grad_sq": squares.sum(), **layered})
    writer.close()
    trace = open_trace(path)
    for i, t in enumerate(measured):
        for k in range(1, window + 1):
            together, layered = trace.lag_cosine[i, k - 1], trace.layer_lag_cosine[i, :, k - 1]
            if t - k not in measured:
                assert np.isnan(together)
                assert np.isnan(layered).all()
                continue
            now, before = gradients[t], gradients[t - k]
            product = np.linalg.norm(now) * np.linalg.norm(before)
            assert together == pytest.approx((now * before).sum() / product, rel=1e-13)
            products = np.linalg.norm(now, axis=-1) * np.linalg.norm(before, axis=-1)
            np.testing.assert_allclose(layered, (now * before).sum(-1) / products, rtol=1e-13)


def test_a_lag_cosine_without_a_row_is_nan_even_where_a_dot_was_recorded() -> None:
    cosine = lag_cosine(np.ones((3, 2)), np.ones(3), np.array([0, 2, 3]))
    np.testing.assert_array_equal(cosine, [[np.nan, np.nan], [np.nan, 1], [1, np.nan]])


def test_a_lag_cosine_of_a_zero_or_non_finite_gradient_is_nan_and_warns_of_nothing() -> None:
    square = np.array([1.0, 0.0, 4.0, np.inf, np.nan, 1.0, 1.0])
    cosine = lag_cosine(np.full((7, 1), 1.0), square, np.arange(7))
    assert np.isnan(cosine[:6, 0]).all()
    assert cosine[6, 0] == 1


def test_lag_cosine_is_exact_over_the_range_of_gradients_that_is_promised() -> None:
    norms = np.array([1e-18, 1e18, 1e-18])
    cosine = lag_cosine(np.outer(norms, [1.0]) * np.array([[0], [1e-18], [1e18]]) / 2, norms**2, np.arange(3))
    np.testing.assert_allclose(cosine[1:, 0], 0.5, rtol=1e-14)


@pytest.mark.parametrize(
    ("dot", "square", "step"),
    [((3, 2), (4,), (3,)), ((3, 2), (3,), (4,)), ((3, 5, 2), (3,), (3,)), ((3, 2), (3, 2), (3,))],
)
def test_lag_cosine_refuses_shapes_that_do_not_fit(dot: tuple, square: tuple, step: tuple) -> None:
    with pytest.raises(ValueError, match=re.escape(f"got {dot}, {square} and {step}")):
        lag_cosine(np.ones(dot), np.ones(square), np.arange(step[0]))


def test_lag_cosine_refuses_steps_that_do_not_increase() -> None:
    with pytest.raises(ValueError, match="strictly increasing"):
        lag_cosine(np.ones((3, 1)), np.ones(3), np.array([0, 2, 2]))


def test_grad_norm_is_the_root_of_the_square() -> None:
    np.testing.assert_array_equal(grad_norm(np.array([0.0, 4.0, np.nan])), [0, 2, np.nan])


def test_xarray_gets_recorded_and_derived_with_coordinates_units_and_formulas(path: Path) -> None:
    pytest.importorskip("xarray")
    write(path, range(5, 75))
    trace = open_trace(path)
    dataset = trace.to_xarray()
    assert set(dataset.data_vars) == set(trace.names) - {"step"}
    assert dataset.layer_lag_cosine.dims == ("step", "layer", "lag")
    assert dataset.wall_time.dtype.kind == "M"
    assert "lag_dot / (|g_t| |g_{t-k}|)" in dataset.layer_lag_cosine.attrs["formula"]
    assert dataset.grad_sq.attrs["units"] == "1"
    np.testing.assert_array_equal(dataset.sel(layer="blocks.0").layer_lag_cosine, trace.layer("blocks.0").lag_cosine)
    assert dataset.sel(step=5).loss == trace.loss[0]
    dataset.to_netcdf(path.with_name("copy.nc"))


def test_a_file_that_is_no_hdf5_says_what_it_is(path: Path) -> None:
    path.write_bytes(b"epoch,loss\n1,2\n")
    with pytest.raises(TraceFormatError, match=f"{path}: expected a fastgeom trace .*b'epoch,lo"):
        open_trace(path)
    path.write_bytes(b"")
    with pytest.raises(TraceFormatError, match="an empty file"):
        open_trace(path)


@pytest.mark.parametrize("libver", ["earliest", "v110"])
def test_an_hdf5_file_that_is_no_trace_says_what_it_is(path: Path, libver: str) -> None:
    with h5py.File(path, "w", libver=(libver, "v110")) as file:
        file["weights"] = [1.0]
    with pytest.raises(TraceFormatError, match=f"{path}: expected a fastgeom trace.*HDF5 file"):
        open_trace(path)


def test_a_trace_of_a_newer_schema_says_so(path: Path) -> None:
    write(path, range(3))
    with h5py.File(path, "r+") as file:
        file.attrs.modify("schema_version", 99)
    with pytest.raises(TraceFormatError, match=f"{path}: expected .* at most 1, got 99; update fastgeom"):
        open_trace(path)


def test_a_missing_path_and_a_folder_are_errors_that_name_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"expected a trace file, got no file at {tmp_path / 'no.h5'}"):
        open_trace(tmp_path / "no.h5")
    with pytest.raises(IsADirectoryError, match=f"got the folder {tmp_path}"):
        open_trace(tmp_path)


def test_a_trace_is_read_beside_whoever_has_the_file_open_in_this_process(path: Path) -> None:
    write(path, range(70))
    with h5py.File(path):
        assert_right(open_trace(path))


def test_a_dataset_shorter_than_the_steps_is_damage_and_named(path: Path) -> None:
    write(path, range(70))
    with h5py.File(path, "r+") as file:
        file["loss"].resize(60, axis=0)
    with pytest.raises(TraceDamagedError, match="'loss': expected 70 rows, got 60"):
        _ = open_trace(path).loss

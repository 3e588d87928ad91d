"""The fields that type checkers and editors see are those of the schema, with their dtypes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import numpy as np
from numpy.typing import NDArray

from fastgeom.schema import DERIVED_FIELDS, READER_NAMES, Field, recorded_fields
from fastgeom.trace import LayerView, Trace, TraceWriter, open_trace
from tests.trace.rows import coordinates, row


def schema_fields() -> list[Field]:
    """Every field that a run can have, per-layer twins included, with ``loss`` for the scalars."""
    recorded = recorded_fields(track_updates=True, scalars=("loss",), errors=True, sketch=True)
    return [*recorded, *DERIVED_FIELDS, *(f.layered() for f in DERIVED_FIELDS)]


def types(fields: list[Field]) -> dict[str, object]:
    return {f.name: NDArray[np.dtype(f.dtype).type] for f in fields}


def test_a_trace_declares_the_fields_of_the_schema() -> None:
    declared = {name: hint for name, hint in get_type_hints(Trace).items() if name not in READER_NAMES}
    assert declared == types(schema_fields())


def test_a_layer_view_declares_the_fields_that_have_a_layer_twin() -> None:
    single = [replace(f, name=f.name.removeprefix("layer_")) for f in schema_fields() if f.name.startswith("layer_")]
    assert get_type_hints(LayerView) == types(single)
    assert set(get_type_hints(LayerView)) == {f.name for f in schema_fields() if f.per_layer and "layer" not in f.dims}


def test_every_declared_field_reads_with_its_dtype(tmp_path: Path) -> None:
    fields = recorded_fields(track_updates=True, scalars=("loss",), errors=True, sketch=True)
    along = coordinates() | {"bucket": np.arange(4)}
    writer = TraceWriter(tmp_path / "run.h5")
    writer.create(fields, along, {})
    writer.append(row(0, fields, along))
    writer.close()
    trace = open_trace(tmp_path / "run.h5")
    view = trace.layer("stem")
    assert set(trace.names) == set(types(schema_fields()))
    assert set(view.names) == set(get_type_hints(LayerView))
    for field in schema_fields():
        assert getattr(trace, field.name).dtype == field.dtype, field.name
    for name in view.names:
        assert getattr(view, name).dtype == trace["layer_" + name].dtype, name


def test_dir_lists_what_a_trace_has_and_not_all_that_is_declared(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "run.h5")
    writer.create(recorded_fields(scalars=("lr",)), coordinates(), {})
    writer.close()
    trace = open_trace(tmp_path / "run.h5")
    assert {"grad_norm", "layer_lag_cosine", "lr", "to_xarray"} <= set(dir(trace))
    assert not {"update_sq", "loss", "sketch", "lag_dot_error"} & set(dir(trace))
    assert "grad_norm" in dir(trace.layer("stem"))
    assert "update_sq" not in dir(trace.layer("stem"))
    assert not hasattr(trace, "loss")

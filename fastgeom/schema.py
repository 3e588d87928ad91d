"""One table of every quantity that a trace records or derives: name, symbol, unit, dims, formula, source.

The writer creates its datasets from this table, the reader documents its arrays with it, and nothing else in the
package spells the name of a recorded field in a second place with a second meaning. Numpy only.

Every per-step quantity that is a sum (or a maximum) over elements exists twice: once for all measured parameters and,
with the prefix ``layer_`` and one more dimension, once for each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

SCHEMA_VERSION = 1

STEP, LAYER, LAG, LAYER_LAG, BUCKET = "step", "layer", "lag", "layer_lag", "bucket"
LAYER_PREFIX = "layer_"

_PAPER = "Morchdi, Zhou, Ding, Wang: On the Mysterious Optimization Geometry of Deep Neural Networks"
_OURS = "fastgeom"


@dataclass(frozen=True)
class Field:
    """One recorded or derived quantity.

    Attributes:
        name: dataset name in the file, attribute name on a trace.
        symbol: how a figure writes it, in matplotlib's math text.
        unit: unit as written to the file's ``units`` attribute; "1" where there is none.
        dims: names of the dimensions, ``step`` first.
        dtype: numpy dtype name.
        formula: definition, with g_t the gradient, x_t the parameters and u_t = x_{t+1} - x_t.
        source: where the definition comes from.
        late: how many steps after its own step the value becomes known (0: at once).
        per_layer: whether a ``layer_`` twin is recorded too.
    """

    name: str
    symbol: str
    unit: str
    dims: tuple[str, ...]
    dtype: str
    formula: str
    source: str = _OURS
    late: int = 0
    per_layer: bool = False

    @property
    def fill(self) -> float | int:
        """The value of a row that never got this quantity: NaN for floats, 0 for integers."""
        return float("nan") if np.dtype(self.dtype).kind == "f" else 0

    def layered(self, *, lag_dim: str = LAG) -> Field:
        """The per-layer twin: prefix ``layer_``, and the dimension ``layer`` after ``step``."""
        dims = (STEP, LAYER, *(lag_dim if d == LAG else d for d in self.dims[1:]))
        return replace(self, name=LAYER_PREFIX + self.name, dims=dims, formula=self.formula + ", one value a layer")


ROW_FIELDS = (
    Field("step", "$t$", "1", (STEP,), "int64", "optimiser step, counted by the trainer; strictly increasing"),
    Field("wall_time", "wall time", "seconds since 1970-01-01 00:00:00", (STEP,), "float64", "clock when measured"),
    Field("measure_time_ms", "cost", "ms", (STEP,), "float64", "time spent inside Probe.step for this row"),
    Field("skipped", "skipped", "1", (STEP,), "int8", "1 where the optimiser skipped the step (overflow found)"),
    Field("clip_coefficient", "clip", "1", (STEP,), "float64", "min(1, max_norm / (|g_t| + 1e-6)); NaN: no clipping"),
    Field(
        "rows_dropped",
        "dropped",
        "1",
        (STEP,),
        "int64",
        "rows lost, as the disk could not follow, by the time this one was written",
    ),
)

GRADIENT_FIELDS = (
    Field("grad_sq", r"$\|g_t\|^2$", "1", (STEP,), "float64", "sum g_t^2", per_layer=True),
    Field("grad_absmax", r"$\max|g_t|$", "1", (STEP,), "float64", "max |g_t| over what is not NaN", per_layer=True),
    Field("nonfinite", "non-finite", "1", (STEP,), "int64", "count of inf and NaN in g_t", per_layer=True),
    Field(
        "lag_dot",
        r"$\langle g_t, g_{t-k}\rangle$",
        "1",
        (STEP, LAG),
        "float64",
        "sum g_t g_{t-k}; NaN where step t - k was not measured",
        _PAPER,
        per_layer=True,
    ),
    Field(
        "diff_sq",
        r"$\|g_t - g_{t-1}\|^2$",
        "1",
        (STEP,),
        "float64",
        "sum (g_t - g_{t-1})^2, accumulated directly",
        per_layer=True,
    ),
    Field(
        "sum_sq",
        r"$\|g_t + g_{t-1}\|^2$",
        "1",
        (STEP,),
        "float64",
        "sum (g_t + g_{t-1})^2, accumulated directly",
        per_layer=True,
    ),
)

UPDATE_FIELDS = (
    Field("param_sq", r"$\|x_t\|^2$", "1", (STEP,), "float64", "sum x_t^2", per_layer=True),
    Field("update_sq", r"$\|u_t\|^2$", "1", (STEP,), "float64", "sum u_t^2", late=1, per_layer=True),
    Field(
        "grad_dot_update", r"$\langle g_t, u_t\rangle$", "1", (STEP,), "float64", "sum g_t u_t", late=1, per_layer=True
    ),
    Field(
        "next_grad_dot_update",
        r"$\langle g_{t+1}, u_t\rangle$",
        "1",
        (STEP,),
        "float64",
        "sum g_{t+1} u_t",
        late=1,
        per_layer=True,
    ),
)

ERROR_FIELDS = (
    Field(
        "lag_dot_error",
        r"$\sigma(\langle g_t, g_{t-k}\rangle)$",
        "1",
        (STEP, LAG),
        "float64",
        "standard error of lag_dot: |g_t| |g_{t-k}| (1 - c^2) / sqrt(m), m the layer's buckets; 0 where it is "
        "stored as it is; overall the root of the layers' sum of squares",
        per_layer=True,
    ),
    Field(
        "diff_sq_error",
        r"$\sigma(\|g_t - g_{t-1}\|^2)$",
        "1",
        (STEP,),
        "float64",
        "standard error of diff_sq: sqrt(2 / m) diff_sq",
        per_layer=True,
    ),
    Field(
        "sum_sq_error",
        r"$\sigma(\|g_t + g_{t-1}\|^2)$",
        "1",
        (STEP,),
        "float64",
        "standard error of sum_sq: sqrt(2 / m) sum_sq",
        per_layer=True,
    ),
)
"""What a history of sketches records beside its estimates."""

UPDATE_ERROR_FIELDS = (
    Field(
        "grad_dot_update_error",
        r"$\sigma(\langle g_t, u_t\rangle)$",
        "1",
        (STEP,),
        "float64",
        "standard error of grad_dot_update, as that of lag_dot",
        late=1,
        per_layer=True,
    ),
)

SKETCH_FIELD = Field(
    "sketch",
    "$S(g_t)$",
    "1",
    (STEP, BUCKET),
    "float32",
    "count sketch of g_t over all layers; dot products of two rows estimate those of the gradients",
)

DERIVED_FIELDS = (
    Field("grad_norm", r"$\|g_t\|$", "1", (STEP,), "float64", "sqrt(grad_sq)", per_layer=True),
    Field(
        "lag_cosine",
        "$c_t(k)$",
        "1",
        (STEP, LAG),
        "float64",
        "lag_dot / (|g_t| |g_{t-k}|); NaN where step t - k was not measured or a norm is 0",
        _PAPER,
        per_layer=True,
    ),
    Field(
        "lag_cosine_error",
        r"$\sigma(c_t(k))$",
        "1",
        (STEP, LAG),
        "float64",
        "lag_dot_error / (|g_t| |g_{t-k}|)",
        per_layer=True,
    ),
)
"""What a reader computes from the recorded fields; nothing of it is stored."""


def scalar_field(name: str) -> Field:
    """The field of a scalar that the trainer hands to ``Probe.step``, such as the loss or the learning rate."""
    return Field(name, "$f_t$" if name == "loss" else name, "1", (STEP,), "float64", "given by the trainer")


def recorded_fields(
    *,
    track_updates: bool = False,
    scalars: Sequence[str] = (),
    all_layer_lags: bool = True,
    errors: bool = False,
    sketch: bool = False,
) -> tuple[Field, ...]:
    """All fields that a run records, global and per layer, in file order.

    Args:
        track_updates: whether the update fields are measured.
        scalars: names of the scalars given by the trainer.
        all_layer_lags: False where only some lags are kept per layer; ``layer_lag_dot`` then has the dimension
            ``layer_lag`` in the place of ``lag``.
        errors: whether the history is one of sketches, whose standard errors are recorded.
        sketch: whether a small sketch of each gradient is.

    Raises:
        ValueError: a scalar bears the name of a field or dimension, or is no Python identifier.
    """
    measured = GRADIENT_FIELDS + (UPDATE_FIELDS if track_updates else ())
    if errors:
        measured += ERROR_FIELDS + (UPDATE_ERROR_FIELDS if track_updates else ())
    lag_dim = LAG if all_layer_lags else LAYER_LAG
    layered = tuple(f.layered(lag_dim=lag_dim) for f in measured if f.per_layer)
    reserved = reserved_names()
    for name in scalars:
        if not name.isidentifier() or name.startswith("_") or name in reserved:
            what = "a name that the trace itself uses" if name in reserved else "no public Python identifier"
            raise ValueError(f"scalar {name!r}: expected a public Python identifier that is free, got {what}")
    sketches = (SKETCH_FIELD,) if sketch else ()
    return ROW_FIELDS + tuple(scalar_field(n) for n in scalars) + measured + layered + sketches


READER_NAMES = frozenset(
    "attributes close dims identity lags layer_lags layers names path refresh scalars status to_xarray window".split()
)
"""What a trace, once read, has beside its quantities."""


def reserved_names() -> frozenset[str]:
    """Every name that a scalar may not take: fields, derived fields, layer twins, dimensions, a reader's own names."""
    measured = GRADIENT_FIELDS + UPDATE_FIELDS + ERROR_FIELDS + UPDATE_ERROR_FIELDS
    fields = (*ROW_FIELDS, *measured, *DERIVED_FIELDS, SKETCH_FIELD)
    names = {f.name for f in fields} | {LAYER_PREFIX + f.name for f in fields if f.per_layer}
    return frozenset(names | {STEP, LAYER, LAG, LAYER_LAG, BUCKET} | READER_NAMES)

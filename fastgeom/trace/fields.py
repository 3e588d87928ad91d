"""Declarations of every field that a trace can have, for type checkers and editors.

They have no values: at run time a trace has the fields that its file has. ``tests/trace/test_fields.py`` compares them
with ``fastgeom.schema``, where formulas and units are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class LayerFields:
    """Fields of all measured parameters together and of each layer: shape (step,), or (step, lag)."""

    grad_sq: FloatArray
    grad_absmax: FloatArray
    nonfinite: IntArray
    lag_dot: FloatArray
    diff_sq: FloatArray
    sum_sq: FloatArray
    """Sums, maxima and counts over the gradient's elements."""

    param_sq: FloatArray
    update_sq: FloatArray
    grad_dot_update: FloatArray
    next_grad_dot_update: FloatArray
    """Recorded with ``track_updates=True``; all but ``param_sq`` are NaN where the next step was not measured."""

    lag_dot_error: FloatArray
    diff_sq_error: FloatArray
    sum_sq_error: FloatArray
    grad_dot_update_error: FloatArray
    """Standard errors, recorded with a history of sketches."""

    grad_norm: FloatArray
    lag_cosine: FloatArray
    lag_cosine_error: FloatArray
    """Derived when read."""


class TraceFields(LayerFields):
    """Fields of a trace: those of ``LayerFields``, their layer twins, and what a row has once."""

    step: IntArray
    wall_time: FloatArray
    measure_time_ms: FloatArray
    skipped: NDArray[np.int8]
    clip_coefficient: FloatArray
    rows_dropped: IntArray
    """The row itself, shape (step,)."""

    loss: FloatArray
    """Given to ``Probe.step``, shape (step,). Other scalars are ``trace["lr"]``: their names are the trainer's."""

    sketch: NDArray[np.float32]
    """Small count sketches of the gradients, shape (step, bucket); recorded with ``Sketch(stored_size=...)``."""

    layer_grad_sq: FloatArray
    layer_grad_absmax: FloatArray
    layer_nonfinite: IntArray
    layer_lag_dot: FloatArray
    layer_diff_sq: FloatArray
    layer_sum_sq: FloatArray
    """Sums, maxima and counts over the elements of a layer's gradient: shape (step, layer), or (step, layer, lag)."""

    layer_param_sq: FloatArray
    layer_update_sq: FloatArray
    layer_grad_dot_update: FloatArray
    layer_next_grad_dot_update: FloatArray
    """Recorded with ``track_updates=True``, shape (step, layer)."""

    layer_lag_dot_error: FloatArray
    layer_diff_sq_error: FloatArray
    layer_sum_sq_error: FloatArray
    layer_grad_dot_update_error: FloatArray
    """Standard errors of each layer, recorded with a history of sketches."""

    layer_grad_norm: FloatArray
    layer_lag_cosine: FloatArray
    layer_lag_cosine_error: FloatArray
    """Derived for each layer when read."""

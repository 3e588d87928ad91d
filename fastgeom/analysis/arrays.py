"""Checks of the arrays that every analysis is given, and arithmetic without warnings."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def as_series(name: str, values: ArrayLike) -> FloatArray:
    """Return ``values`` as a float64 array of shape (step,); an error that names the parameter otherwise."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected an array of shape (step,), got shape {array.shape}")
    return array


def as_steps(step: ArrayLike | None, n_rows: int) -> IntArray:
    """Return step numbers as int64 of shape (n_rows,), strictly increasing; 0, 1, 2, ... where ``step`` is None."""
    if step is None:
        return np.arange(n_rows, dtype=np.int64)
    numbers = np.asarray(step)
    if numbers.ndim != 1 or len(numbers) != n_rows:
        raise ValueError(f"step: expected one number for each of the {n_rows} rows, got shape {numbers.shape}")
    if numbers.size and numbers.dtype.kind not in "iu":
        raise ValueError(f"step: expected integers, got dtype {numbers.dtype}")
    if np.any(np.diff(numbers) <= 0):
        raise ValueError("step: expected strictly increasing numbers, got at least one that does not increase")
    return numbers.astype(np.int64)


def check_same_shape(**arrays: FloatArray) -> None:
    """Raise an error that lists the shapes unless all ``arrays`` have the same one."""
    if len({array.shape for array in arrays.values()}) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"{', '.join(arrays)}: expected arrays of one shape, got {shapes}")


def ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Divide elementwise, without a warning; NaN where the denominator is 0, NaN or infinite."""
    valid = np.isfinite(denominator) & (denominator != 0)
    result: FloatArray = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        np.divide(numerator, denominator, out=result, where=valid)
    return result


def root(squared: FloatArray) -> FloatArray:
    """Take the square root elementwise, without a warning; NaN where the square is negative, NaN or infinite."""
    return np.sqrt(np.where((squared >= 0) & np.isfinite(squared), squared, np.nan))


def as_rows(name: str, values: ArrayLike) -> FloatArray:
    """Return ``values`` as float64 with a first axis of steps; an error that names the parameter otherwise."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0:
        raise ValueError(f"{name}: expected shape (step,) or (step, layer), got a single number")
    return array


def as_gram(gram: ArrayLike, *, least: int = 1) -> FloatArray:
    """Return Gram matrices as float64 of shape (..., m, m); all NaN where any entry is NaN or infinite.

    Args:
        gram: shape (..., m, m).
        least: fewest steps m.

    Raises:
        ValueError: matrices that are not square, smaller than ``least``, not symmetric, or negative on the diagonal.
    """
    array = np.asarray(gram, dtype=np.float64)
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.shape[-1] < least:
        raise ValueError(f"gram: expected shape (..., m, m) with m at least {least}, got shape {array.shape}")
    valid = np.isfinite(array).all(axis=(-2, -1), keepdims=True)
    result: FloatArray = np.where(valid, array, np.nan)
    largest = np.abs(result).max(axis=(-2, -1), keepdims=True)
    with np.errstate(over="ignore"):
        skew = np.abs(result - result.swapaxes(-2, -1))
    if np.any(skew > 1e-6 * largest):
        raise ValueError("gram: expected symmetric matrices, got at least one that is not")
    if np.any(np.diagonal(result, axis1=-2, axis2=-1) < 0):
        raise ValueError("gram: expected squared norms on the diagonal, got at least one that is negative")
    return result


def quadratic_form(gram: FloatArray, weights: FloatArray) -> FloatArray:
    """Squared norms ||sum_i w_i g_i||^2 = w' G w, one a matrix, shape (...); never negative, whatever rounding does."""
    with np.errstate(over="ignore", invalid="ignore"):
        form: FloatArray = np.maximum(np.einsum("...i,...ij,...j->...", weights, gram, weights), 0.0)
    return form

"""What every analysis asks of the arrays it is given: the right shape, step numbers that increase, steps that meet."""

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
    known = np.isfinite(denominator) & (denominator != 0)
    result: FloatArray = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        np.divide(numerator, denominator, out=result, where=known)
    return result

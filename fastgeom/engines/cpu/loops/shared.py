"""What several loops share: blocks of a gradient, dots with rows, sums of squares, largest magnitudes, writing back."""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from fastgeom.engines.cpu.loops.jit import exact, fast
from fastgeom.engines.cpu.loops.memory import LINE_BYTES, as_float, at, narrow, widen
from fastgeom.engines.cpu.loops.simd import line_dots

BLOCK = 1 << 15
"""Elements of a block, which stays in the cache while it is multiplied with every history row."""
GRAD_SQ, DIFF_SQ, SUM_SQ = 0, 1, 2
"""Columns of the window's partial sums that follow the dots: sum g^2, sum (g - previous)^2, sum (g + previous)^2."""
CACHED_ELEMENTS = 2048
"""Elements of which a lane of a vector adds at most 256, and that are read twice while in the first cache."""


def gradient_block(address, like, size, scale, buffer):
    """``size`` elements of a gradient, widened and scaled: in ``buffer`` or, where nothing is to do, in place."""
    raise NotImplementedError("numba only")


@overload(gradient_block)
def _overload_gradient_block(address, like, size, scale, buffer):
    def in_place(address, like, size, scale, buffer):
        source = at(address, like, size)
        if scale == 1.0:
            return source
        block = buffer[:size]
        for i in range(size):
            block[i] = source[i] * scale
        return block

    def widened(address, like, size, scale, buffer):
        source = at(address, like, size)
        block = buffer[:size]
        for i in range(size):
            block[i] = widen(source[i]) * scale
        return block

    return in_place if like.dtype == buffer.dtype else widened


@fast
def dot(x, row):
    """Sum x row, the row widened."""
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(widen(row[i]))
    return total


@fast
def sum_squares(x):
    """Sum x^2."""
    total = 0.0
    for i in range(x.size):
        value = np.float64(widen(x[i]))
        total += value * value
    return total


@fast
def diff_and_sum_sq(x, previous):
    """Sum (x - previous)^2 and sum (x + previous)^2."""
    diff_sq, sum_sq = 0.0, 0.0
    for i in range(x.size):
        value, before = np.float64(x[i]), np.float64(widen(previous[i]))
        diff_sq += (value - before) * (value - before)
        sum_sq += (value + before) * (value + before)
    return diff_sq, sum_sq


def _largest_magnitude(x):
    """max |x| by bit pattern: not finite if and only if some element is not."""
    raise NotImplementedError("numba only")


@overload(_largest_magnitude)
def _overload_largest_magnitude(x):
    def largest_of_float32(x):
        bits = x.view(np.uint32)
        largest = np.uint32(0)
        for i in range(bits.size):
            largest = max(largest, np.uint32(bits[i] & np.uint32(0x7FFFFFFF)))
        return np.float64(as_float(largest))

    def largest_of_float64(x):
        bits = x.view(np.uint64)
        largest = np.uint64(0)
        for i in range(bits.size):
            largest = max(largest, bits[i] & np.uint64(0x7FFFFFFFFFFFFFFF))
        return as_float(largest)

    return largest_of_float32 if x.dtype == types.float32 else largest_of_float64


@exact
def largest_and_nonfinite(x):
    """max |x| over what is not NaN, and the count of inf and NaN.

    Without the sign bit floats order like their bit patterns, and every non-finite one lies above every finite one:
    one integer maximum, which vectorises, answers both for a finite block.
    """
    largest = _largest_magnitude(x)
    if np.isfinite(largest):
        return largest, 0
    largest, n_nonfinite = 0.0, 0
    for i in range(x.size):
        if not np.isfinite(x[i]):
            n_nonfinite += 1
        if not np.isnan(x[i]):
            largest = max(largest, np.float64(abs(x[i])))
    return largest, n_nonfinite


@exact
def _add_dots(x, addresses, like, sums):
    """Add the dots of ``x`` with rows at these addresses to as many ``sums``."""
    per_line = LINE_BYTES // like.itemsize
    done = x.size // per_line * per_line
    for begin in range(0, done, CACHED_ELEMENTS):
        n_lines = min(CACHED_ELEMENTS, done - begin) // per_line
        dots = line_dots(x.ctypes.data + begin * x.itemsize, addresses, begin * like.itemsize, n_lines, x, like)
        for row in range(len(addresses)):
            sums[row] += dots[row]
    if done < x.size:
        for row in range(len(addresses)):
            sums[row] += dot(x[done:], at(addresses[row] + done * like.itemsize, like, x.size - done))


@exact
def add_row_dots(x, rows, first, tensor, offset, like, sums):
    """Add sum x row to ``sums`` for the four rows from ``first`` on, or as many as there are."""
    if first + 4 <= rows.shape[0]:
        addresses = (
            rows[first, tensor] + offset,
            rows[first + 1, tensor] + offset,
            rows[first + 2, tensor] + offset,
            rows[first + 3, tensor] + offset,
        )
        _add_dots(x, addresses, like, sums[first:])
    else:
        for row in range(first, rows.shape[0]):
            _add_dots(x, (rows[row, tensor] + offset,), like, sums[row:])


@exact
def write(x, address, begin, like):
    """Round ``x`` to the type of ``like`` at element ``begin`` of the tensor at ``address``, unless that is 0."""
    if address != 0:
        row = at(address + begin * like.itemsize, like, x.size)
        for i in range(x.size):
            row[i] = narrow(x[i], like)

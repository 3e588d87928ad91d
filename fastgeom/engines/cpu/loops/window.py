"""The CPU engine's inner loops, compiled by numba: memory in, float64 partial sums out.

Tensors are named by address, so that a list of thousands of them is one call. A *chunk* is a piece of one tensor; each
gets its own row of partial sums, which makes the result independent of how chunks are dealt to threads. Inside a chunk
the work goes in blocks that stay in the cache: a block of the gradient is read from memory once and meets every history
row there, four of them side by side. Products and sums are float64 throughout, so that no block of equal or of extreme
values is rounded; a lane adds few before it is folded, so that their roundings do not add up.

numba looks for changes in the file of a cached function alone: after a change in ``cpu_memory`` or ``cpu_lines``,
``make clean``.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

from fastgeom.engines.cpu.loops.memory import EXACT, FAST, LINE_BYTES, as_float, at, narrow, prefetch, widen
from fastgeom.engines.cpu.loops.simd import line_dots, line_moments, stream_lines

BLOCK = 1 << 15
_PIECE = 2048
"""Elements of which a lane of a vector adds at most 256, and that are read twice while in the first cache."""
SUM_SQ, DIFF, SUM = 0, 1, 2
"""Columns of the window's partial sums that follow the dots: sum g^2, sum (g - previous)^2, sum (g + previous)^2."""


def _block(address, like, size, scale, buffer):
    """``size`` elements of a gradient, widened and scaled: in ``buffer`` or, where nothing is to do, in place."""
    raise NotImplementedError("numba only")


@overload(_block)
def _overload_block(address, like, size, scale, buffer):
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


@njit(**FAST)
def _dot(x, row):
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(widen(row[i]))
    return total


@njit(**FAST)
def _sum_sq(x):
    total = 0.0
    for i in range(x.size):
        value = np.float64(widen(x[i]))
        total += value * value
    return total


@njit(**FAST)
def _difference_and_sum_sq(x, previous):
    difference_sq, sum_sq = 0.0, 0.0
    for i in range(x.size):
        value, before = np.float64(x[i]), np.float64(widen(previous[i]))
        difference_sq += (value - before) * (value - before)
        sum_sq += (value + before) * (value + before)
    return difference_sq, sum_sq


@njit(**FAST)
def _update_sums(x, old, gradient, previous):
    """sum u^2, sum previous u, sum gradient u for u = x - old."""
    update_sq, before, after = 0.0, 0.0, 0.0
    for i in range(gradient.size):
        update = np.float64(widen(x[i])) - np.float64(widen(old[i]))
        update_sq += update * update
        before += np.float64(widen(previous[i])) * update
        after += np.float64(gradient[i]) * update
    return update_sq, before, after


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


@njit(**EXACT)
def _absmax_and_nonfinite(x):
    """max |x| over what is not NaN, and the count of inf and NaN.

    Without the sign bit floats order like their bit patterns, and every non-finite one lies above every finite one:
    one integer maximum, which vectorises, answers both for a finite block.
    """
    absmax = _largest_magnitude(x)
    if np.isfinite(absmax):
        return absmax, 0
    absmax, nonfinite = 0.0, 0
    for i in range(x.size):
        if not np.isfinite(x[i]):
            nonfinite += 1
        if not np.isnan(x[i]):
            absmax = max(absmax, np.float64(abs(x[i])))
    return absmax, nonfinite


@njit(**EXACT)
def _add_dots(x, addresses, like, sums):
    """Add the dots of ``x`` with rows at these addresses to as many ``sums``."""
    in_line = LINE_BYTES // like.itemsize
    done = x.size // in_line * in_line
    for begin in range(0, done, _PIECE):
        n_lines = min(_PIECE, done - begin) // in_line
        found = line_dots(x.ctypes.data + begin * x.itemsize, addresses, begin * like.itemsize, n_lines, x, like)
        for row in range(len(addresses)):
            sums[row] += found[row]
    if done < x.size:
        for row in range(len(addresses)):
            sums[row] += _dot(x[done:], at(addresses[row] + done * like.itemsize, like, x.size - done))


@njit(**EXACT)
def _row_dots(x, rows, first, tensor, offset, like, sums):
    """Add sum x row to ``sums`` for the four rows from ``first`` on, or as many as there are."""
    if first + 4 <= rows.shape[0]:
        addresses = (
            rows[first, tensor] + offset, rows[first + 1, tensor] + offset,
            rows[first + 2, tensor] + offset, rows[first + 3, tensor] + offset,
        )  # fmt: skip
        _add_dots(x, addresses, like, sums[first:])
    else:
        for row in range(first, rows.shape[0]):
            _add_dots(x, (rows[row, tensor] + offset,), like, sums[row:])


@njit(**EXACT)
def _first_pass(x, rows, tensor, offset, like, sums):
    """Sum x^2, max |x| and the count of inf and NaN of a piece, and how many rows it has met: four, one, or none.

    Their dots are added to ``sums``.
    """
    address, in_line, met = x.ctypes.data, LINE_BYTES // like.itemsize, 0
    n_lines = x.size // in_line
    if rows.shape[0] >= 4:
        four = (
            rows[0, tensor] + offset, rows[1, tensor] + offset, rows[2, tensor] + offset, rows[3, tensor] + offset,
        )  # fmt: skip
        a, b, c, d, sum_sq, absmax = line_moments(address, four, 0, n_lines, x, like)
        sums[0] += a
        sums[1] += b
        sums[2] += c
        sums[3] += d
        met = 4
    elif rows.shape[0] >= 1:
        a, sum_sq, absmax = line_moments(address, (rows[0, tensor] + offset,), 0, n_lines, x, like)
        sums[0] += a
        met = 1
    else:
        sum_sq, absmax = line_moments(address, (), 0, n_lines, x, like)
    lines, rest, bad = x[: n_lines * in_line], x[n_lines * in_line :], 0
    if not np.isfinite(absmax):
        absmax, bad = _absmax_and_nonfinite(lines)
    if rest.size:
        rest_absmax, rest_bad = _absmax_and_nonfinite(rest)
        sum_sq, absmax, bad = sum_sq + _sum_sq(rest), max(absmax, rest_absmax), bad + rest_bad
        for row in range(met):
            sums[row] += _dot(rest, at(rows[row, tensor] + offset + n_lines * LINE_BYTES, like, rest.size))
    return sum_sq, absmax, bad, met


@njit(**EXACT)
def _write(x, address, begin, like):
    """Round ``x`` to the type of ``like`` at element ``begin`` of the tensor at ``address``, unless that is 0."""
    if address != 0:
        row = at(address + begin * like.itemsize, like, x.size)
        for i in range(x.size):
            row[i] = narrow(x[i], like)


@njit(**EXACT)
def _stream(source, target, size, like):
    """Copy ``size`` elements past the caches, but for those in lines that are not theirs alone."""
    in_line = LINE_BYTES // like.itemsize
    head = min(size, -target % LINE_BYTES // like.itemsize)
    n_lines = (size - head) // in_line
    stream_lines(source + head * like.itemsize, target + head * like.itemsize, n_lines)
    x, row = at(source, like, size), at(target, like, size)
    for i in range(head):
        row[i] = x[i]
    for i in range(head + n_lines * in_line, size):
        row[i] = x[i]


@njit(**EXACT)
def window_moments(
    chunks, tensors, starts, lengths, gradient, rows, previous, store, keep,
    gradient_kind, row_kind, previous_kind, buffer_kind, scale, sums, absmax, nonfinite, streamed,
):  # fmt: skip
    """Window moments of these chunks; then the gradient is stored.

    Bytes: each gradient element once, each row element once, and the stored element; the previous row is in the cache
    where it is one of the rows.

    Args:
        chunks: indices into the arrays that follow, and into the results.
        tensors, starts, lengths: of each chunk, its tensor, first element and number of elements.
        gradient, previous, store, keep: address of each tensor; gradient 0 reads as zeros, the others are left out
            at 0.
        rows: (row, tensor) addresses.
        gradient_kind, row_kind, previous_kind: empty arrays of the types in memory; store is of row_kind, keep of
            previous_kind.
        buffer_kind: an empty array of the type to compute in.
        scale: what the gradient is multiplied by when read, in the type to compute in.
        sums: (chunk, row + 3) float64, added to: the dots, then SUM_SQ, DIFF, SUM.
        absmax, nonfinite: (chunk,) float64 and int64.
        streamed: whether what is stored goes past the caches, where it is the gradient as it stands.
    """
    streamed = streamed and gradient_kind.dtype == row_kind.dtype and scale == 1.0
    count = rows.shape[0]
    buffer = np.empty(BLOCK, buffer_kind.dtype)
    zeros = np.zeros(BLOCK if np.any(gradient == 0) else 0, buffer_kind.dtype)
    for chunk in chunks:
        tensor, start = tensors[chunk], starts[chunk]
        largest, bad = 0.0, 0
        for begin in range(start, start + lengths[chunk], BLOCK):
            size = min(BLOCK, start + lengths[chunk] - begin)
            present = gradient[tensor] != 0
            block = zeros[:size]
            source = gradient[tensor] + begin * gradient_kind.itemsize
            if present:
                block = _block(source, gradient_kind, size, scale, buffer)
            offset, met = begin * row_kind.itemsize, 0
            if present:
                for piece in range(0, size, _PIECE):
                    x = block[piece : min(size, piece + _PIECE)]
                    if gradient_kind.itemsize != buffer_kind.itemsize:  # widened, and so read before: the next one
                        prefetch(source + (piece + size) * gradient_kind.itemsize, x.size * gradient_kind.itemsize)
                    in_row = offset + piece * row_kind.itemsize
                    sum_sq, absmax_here, bad_here, met = _first_pass(x, rows, tensor, in_row, row_kind, sums[chunk])
                    sums[chunk, count + SUM_SQ] += sum_sq
                    largest, bad = max(largest, absmax_here), bad + bad_here
            if previous[tensor] != 0:  # most often the first of the rows, and in the cache
                before = at(previous[tensor] + begin * previous_kind.itemsize, previous_kind, size)
                for piece in range(0, size, _PIECE):
                    end = min(size, piece + _PIECE)
                    difference_sq, sum_sq = _difference_and_sum_sq(block[piece:end], before[piece:end])
                    sums[chunk, count + DIFF] += difference_sq
                    sums[chunk, count + SUM] += sum_sq
            if present:
                for first in range(met, count, 4):
                    _row_dots(block, rows, first, tensor, offset, row_kind, sums[chunk])
            if streamed and present and store[tensor] != 0 and store[tensor] % row_kind.itemsize == 0:
                _stream(source, store[tensor] + begin * row_kind.itemsize, size, row_kind)
            else:
                _write(block, store[tensor], begin, row_kind)
            _write(block, keep[tensor], begin, previous_kind)
        absmax[chunk], nonfinite[chunk] = largest, bad


@njit(**EXACT)
def update_moments(
    chunks, tensors, starts, lengths, gradient, previous, parameter, snapshot,
    gradient_kind, previous_kind, parameter_kind, buffer_kind, scale, known, sums,
):  # fmt: skip
    """Moments of the update u = parameter - snapshot, and the new snapshot, of these chunks.

    Bytes: gradient, previous gradient, parameter and snapshot once, and the snapshot written.

    Args:
        parameter, snapshot: address of each tensor, both of parameter_kind.
        known: whether the snapshot holds the parameters of the step before; else only sum x^2 is taken.
        sums: (chunk, 4) float64, added to: sum x^2, sum u^2, sum previous u, sum gradient u.
        The others are those of ``window_moments``.
    """
    buffer = np.empty(BLOCK, buffer_kind.dtype)
    zeros = np.zeros(BLOCK, buffer_kind.dtype)
    for chunk in chunks:
        tensor, start = tensors[chunk], starts[chunk]
        for begin in range(start, start + lengths[chunk], BLOCK):
            size = min(BLOCK, start + lengths[chunk] - begin)
            x = at(parameter[tensor] + begin * parameter_kind.itemsize, parameter_kind, size)
            old = at(snapshot[tensor] + begin * parameter_kind.itemsize, parameter_kind, size)
            sums[chunk, 0] += _sum_sq(x)
            if known:
                g = zeros[:size]
                if gradient[tensor] != 0:
                    g = _block(gradient[tensor] + begin * gradient_kind.itemsize, gradient_kind, size, scale, buffer)
                before = at(previous[tensor] + begin * previous_kind.itemsize, previous_kind, size)
                update_sq, before_dot, after_dot = _update_sums(x, old, g, before)
                sums[chunk, 1] += update_sq
                sums[chunk, 2] += before_dot
                sums[chunk, 3] += after_dot
            for i in range(size):
                old[i] = x[i]

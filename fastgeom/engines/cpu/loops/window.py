"""The CPU engine's inner loops, compiled by numba: memory in, float64 partial sums out.

Tensors are named by address, so that a list of thousands of them is one call. Each chunk of a tensor gets its own row
of partial sums, so that the result does not depend on which thread handles it. A chunk is processed in blocks that stay
in the cache: a block of the gradient is read from memory once and multiplied with every history row there, four side by
side. Products and sums are float64 throughout, so that no block of equal or of extreme values is rounded; a lane adds
few before it is folded, so that their roundings do not add up.
"""

from __future__ import annotations

import numpy as np

from fastgeom.engines.cpu.loops.jit import exact, fast
from fastgeom.engines.cpu.loops.memory import LINE_BYTES, at, prefetch, widen
from fastgeom.engines.cpu.loops.shared import (
    BLOCK,
    CACHED_ELEMENTS,
    DIFF_SQ,
    GRAD_SQ,
    SUM_SQ,
    add_row_dots,
    diff_and_sum_sq,
    dot,
    gradient_block,
    largest_and_nonfinite,
    sum_squares,
    write,
)
from fastgeom.engines.cpu.loops.simd import line_moments, stream_lines


@fast
def _update_sums(x, old, gradient, previous):
    """sum u^2, sum previous u, sum gradient u for u = x - old."""
    update_sq, before, after = 0.0, 0.0, 0.0
    for i in range(gradient.size):
        update = np.float64(widen(x[i])) - np.float64(widen(old[i]))
        update_sq += update * update
        before += np.float64(widen(previous[i])) * update
        after += np.float64(gradient[i]) * update
    return update_sq, before, after


@exact
def _first_pass(x, rows, tensor, offset, like, sums):
    """Sum x^2, max |x| and the count of inf and NaN of ``x``, and the first dots with rows, from one read of it.

    Returns these three, and ``n_rows_done``, the number of rows whose dots were added to ``sums``: four, one, or none.
    """
    address, per_line, n_rows_done = x.ctypes.data, LINE_BYTES // like.itemsize, 0
    n_lines = x.size // per_line
    if rows.shape[0] >= 4:
        four = (
            rows[0, tensor] + offset,
            rows[1, tensor] + offset,
            rows[2, tensor] + offset,
            rows[3, tensor] + offset,
        )
        a, b, c, d, grad_sq, largest = line_moments(address, four, 0, n_lines, x, like)
        sums[0] += a
        sums[1] += b
        sums[2] += c
        sums[3] += d
        n_rows_done = 4
    elif rows.shape[0] >= 1:
        a, grad_sq, largest = line_moments(address, (rows[0, tensor] + offset,), 0, n_lines, x, like)
        sums[0] += a
        n_rows_done = 1
    else:
        grad_sq, largest = line_moments(address, (), 0, n_lines, x, like)
    lines, rest, n_nonfinite = x[: n_lines * per_line], x[n_lines * per_line :], 0
    if not np.isfinite(largest):
        largest, n_nonfinite = largest_and_nonfinite(lines)
    if rest.size:
        rest_largest, rest_n_nonfinite = largest_and_nonfinite(rest)
        grad_sq += sum_squares(rest)
        largest, n_nonfinite = max(largest, rest_largest), n_nonfinite + rest_n_nonfinite
        for row in range(n_rows_done):
            sums[row] += dot(rest, at(rows[row, tensor] + offset + n_lines * LINE_BYTES, like, rest.size))
    return grad_sq, largest, n_nonfinite, n_rows_done


@exact
def _stream(source, target, size, like):
    """Copy ``size`` elements past the caches, but for those in lines that are not theirs alone."""
    per_line = LINE_BYTES // like.itemsize
    head = min(size, -target % LINE_BYTES // like.itemsize)
    n_lines = (size - head) // per_line
    stream_lines(source + head * like.itemsize, target + head * like.itemsize, n_lines)
    x, row = at(source, like, size), at(target, like, size)
    for i in range(head):
        row[i] = x[i]
    for i in range(head + n_lines * per_line, size):
        row[i] = x[i]


@exact
def window_moments(
    chunks,
    tensors,
    starts,
    lengths,
    gradient,
    rows,
    previous,
    store,
    keep,
    gradient_kind,
    row_kind,
    previous_kind,
    buffer_kind,
    scale,
    sums,
    grad_absmax,
    nonfinite,
    streamed,
):
    """Window moments of these chunks; then the gradient is stored.

    Bytes: each gradient element once, each row element once, and the stored element; the previous row is in the cache
    where it is one of the rows.

    Args:
        chunks: indices into the arrays that follow, and into the results.
        tensors: (chunk,) the tensor of each chunk.
        starts: (chunk,) first element.
        lengths: (chunk,) number of elements.
        gradient: (tensor,) address of each; 0 reads as zeros.
        rows: (row, tensor) addresses.
        previous: (tensor,) address of the gradient of the step before; left out at 0.
        store: (tensor,) address to write the gradient to; left out at 0.
        keep: (tensor,) address to write it to in full precision; left out at 0.
        gradient_kind: an empty array of the gradient's type in memory.
        row_kind: the same of rows and ``store``.
        previous_kind: the same of ``previous`` and ``keep``.
        buffer_kind: the same of the type to compute in.
        scale: what the gradient is multiplied by when read, in the type to compute in.
        sums: (chunk, row + 3) float64, added to: the dots, then GRAD_SQ, DIFF_SQ, SUM_SQ.
        grad_absmax: (chunk,) float64, written.
        nonfinite: (chunk,) int64, written.
        streamed: whether what is stored goes past the caches, where it is the gradient as it stands.
    """
    streamed = streamed and gradient_kind.dtype == row_kind.dtype and scale == 1.0
    count = rows.shape[0]
    buffer = np.empty(BLOCK, buffer_kind.dtype)
    zeros = np.zeros(BLOCK if np.any(gradient == 0) else 0, buffer_kind.dtype)
    for chunk in chunks:
        tensor, start = tensors[chunk], starts[chunk]
        largest, n_nonfinite = 0.0, 0
        for begin in range(start, start + lengths[chunk], BLOCK):
            size = min(BLOCK, start + lengths[chunk] - begin)
            present = gradient[tensor] != 0
            block = zeros[:size]
            source = gradient[tensor] + begin * gradient_kind.itemsize
            if present:
                block = gradient_block(source, gradient_kind, size, scale, buffer)
            offset, n_rows_done = begin * row_kind.itemsize, 0
            if present:
                for first in range(0, size, CACHED_ELEMENTS):
                    x = block[first : min(size, first + CACHED_ELEMENTS)]
                    if gradient_kind.itemsize != buffer_kind.itemsize:  # widened, and so read before: the next one
                        prefetch(source + (first + size) * gradient_kind.itemsize, x.size * gradient_kind.itemsize)
                    in_row = offset + first * row_kind.itemsize
                    grad_sq, largest_here, n_nonfinite_here, n_rows_done = _first_pass(
                        x, rows, tensor, in_row, row_kind, sums[chunk]
                    )
                    sums[chunk, count + GRAD_SQ] += grad_sq
                    largest, n_nonfinite = max(largest, largest_here), n_nonfinite + n_nonfinite_here
            if previous[tensor] != 0:  # most often the first of the rows, and in the cache
                before = at(previous[tensor] + begin * previous_kind.itemsize, previous_kind, size)
                for first in range(0, size, CACHED_ELEMENTS):
                    end = min(size, first + CACHED_ELEMENTS)
                    diff_sq, sum_sq = diff_and_sum_sq(block[first:end], before[first:end])
                    sums[chunk, count + DIFF_SQ] += diff_sq
                    sums[chunk, count + SUM_SQ] += sum_sq
            if present:
                for first in range(n_rows_done, count, 4):
                    add_row_dots(block, rows, first, tensor, offset, row_kind, sums[chunk])
            if streamed and present and store[tensor] != 0 and store[tensor] % row_kind.itemsize == 0:
                _stream(source, store[tensor] + begin * row_kind.itemsize, size, row_kind)
            else:
                write(block, store[tensor], begin, row_kind)
            write(block, keep[tensor], begin, previous_kind)
        grad_absmax[chunk], nonfinite[chunk] = largest, n_nonfinite


@exact
def update_moments(
    chunks,
    tensors,
    starts,
    lengths,
    gradient,
    previous,
    parameter,
    snapshot,
    gradient_kind,
    previous_kind,
    parameter_kind,
    buffer_kind,
    scale,
    adjacent,
    sums,
):
    """Moments of the update u = parameter - snapshot, and the new snapshot, of these chunks.

    Bytes: gradient, previous gradient, parameter and snapshot once, and the snapshot written.

    Args:
        chunks: see `window_moments`, as for the next five.
        tensors: see there.
        starts: see there.
        lengths: see there.
        gradient: see there.
        previous: see there.
        parameter: (tensor,) addresses.
        snapshot: (tensor,) addresses; overwritten.
        gradient_kind: an empty array of the gradient's type in memory.
        previous_kind: the same of ``previous``.
        parameter_kind: the same of parameter and snapshot.
        buffer_kind: the same of the type to compute in.
        scale: what the gradient is multiplied by when read, in the type to compute in.
        adjacent: whether the snapshot holds the parameters of the step before; else only sum x^2 is taken.
        sums: (chunk, 4) float64, added to: sum x^2, sum u^2, sum previous u, sum gradient u.
    """
    buffer = np.empty(BLOCK, buffer_kind.dtype)
    zeros = np.zeros(BLOCK, buffer_kind.dtype)
    for chunk in chunks:
        tensor, start = tensors[chunk], starts[chunk]
        for begin in range(start, start + lengths[chunk], BLOCK):
            size = min(BLOCK, start + lengths[chunk] - begin)
            x = at(parameter[tensor] + begin * parameter_kind.itemsize, parameter_kind, size)
            old = at(snapshot[tensor] + begin * parameter_kind.itemsize, parameter_kind, size)
            sums[chunk, 0] += sum_squares(x)
            if adjacent:
                g = zeros[:size]
                if gradient[tensor] != 0:
                    g = gradient_block(
                        gradient[tensor] + begin * gradient_kind.itemsize, gradient_kind, size, scale, buffer
                    )
                before = at(previous[tensor] + begin * previous_kind.itemsize, previous_kind, size)
                update_sq, previous_dot, gradient_dot = _update_sums(x, old, g, before)
                sums[chunk, 1] += update_sq
                sums[chunk, 2] += previous_dot
                sums[chunk, 3] += gradient_dot
            for i in range(size):
                old[i] = x[i]

"""The CPU engine's deferred pass, compiled by numba: dots of the new rows of a ring with all of its rows.

A block of every row is read from memory once, widened to float64, and stays in the second cache while each new row meets
each row there, twelve dots at a time: three rows by four new ones is what fills the registers of a processor with AVX2,
so that seven loads serve twelve products. Dots of two new rows are taken once and serve both.

numba looks for changes in the file of a cached function alone. After a change of ``_at`` or ``_widen``, which are those
of `cpu_loops`, touch this file too, or the compiled code that it left in ``__pycache__`` stays in use.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fastgeom.engines.cpu_loops import _EXACT, _FAST, _at, _widen

_CACHED_ELEMENTS = 1 << 15
"""Widened elements that fit the second cache with room to spare: 256 KiB of the 512 of most processors."""
_BLOCK = 1024
_OLD, _NEW = 3, 4
"""Rows and new rows of a tile of dots."""


@njit(**_EXACT)
def _widen_block(address, witness, out):
    source = _at(address, witness, out.size)
    for i in range(out.size):
        out[i] = np.float64(_widen(source[i]))


@njit(**_FAST)
def _tile(row0, row1, row2, new0, new1, new2, new3):
    """The twelve dots of three rows with four."""
    a0, a1, a2, a3 = 0.0, 0.0, 0.0, 0.0
    b0, b1, b2, b3 = 0.0, 0.0, 0.0, 0.0
    c0, c1, c2, c3 = 0.0, 0.0, 0.0, 0.0
    for i in range(row0.size):
        a, b, c = row0[i], row1[i], row2[i]
        new = new0[i]
        a0 += a * new
        b0 += b * new
        c0 += c * new
        new = new1[i]
        a1 += a * new
        b1 += b * new
        c1 += c * new
        new = new2[i]
        a2 += a * new
        b2 += b * new
        c2 += c * new
        new = new3[i]
        a3 += a * new
        b3 += b * new
        c3 += c * new
    return (a0, a1, a2, a3), (b0, b1, b2, b3), (c0, c1, c2, c3)


@njit(**_FAST)
def _difference_and_sum_sq(x, previous):
    difference_sq, sum_sq = 0.0, 0.0
    for i in range(x.size):
        difference, total = x[i] - previous[i], x[i] + previous[i]
        difference_sq += difference * difference
        sum_sq += total * total
    return difference_sq, sum_sq


@njit(**_EXACT)
def _order(n_rows, new):
    """The rows with the new ones first, and the place of each row in that order."""
    place = np.full(n_rows, -1)
    for i in range(new.size):
        place[new[i]] = i
    order = np.empty(n_rows, np.int64)
    order[: new.size] = new
    count = new.size
    for row in range(n_rows):
        if place[row] < 0:
            place[row] = count
            order[count] = row
            count += 1
    return order, place


@njit(**_EXACT)
def _add_dots(block, size, n_new, dots):
    """Add the dots of the first rows of ``block``, the new ones, with all rows; of those with a new one, half."""
    for new in range(0, n_new, _NEW):
        # Rows of a new place before this tile's are the other half: those dots are in the tile of that new row.
        for old in range(new - new % _OLD, block.shape[0] - _OLD + 1, _OLD):
            found = _tile(
                block[old, :size], block[old + 1, :size], block[old + 2, :size],
                block[new, :size], block[new + 1, :size], block[new + 2, :size], block[new + 3, :size],
            )  # fmt: skip
            for i in range(_OLD):
                for j in range(_NEW):
                    dots[new + j, old + i] += found[i][j]


@njit(**_EXACT)
def gram(chunks, tensors, starts, lengths, rows, new, before, row_kind, sums):
    """Dots of new rows with all rows, and sums over each new row and the one before it, of these chunks.

    Bytes: each row element once.

    Args:
        chunks: indices into the arrays that follow, and into the results.
        tensors, starts, lengths: of each chunk, its tensor, first element and number of elements.
        rows: (row, tensor) addresses.
        new: (new,) indices of the new rows, all different.
        before: (new,) index of the row before each; -1 for none.
        row_kind: an empty array of the rows' type in memory.
        sums: (chunk, new, row + 2) float64, overwritten: for each new row the dots with all rows, in their order, then
            sum (row - before)^2 and sum (row + before)^2, which are 0 where there is none before.
    """
    n_rows, n_new = rows.shape[0], new.size
    order, place = _order(n_rows, new)
    # Rows of zeros fill the last tiles. A place may be a row in one tile and new in another.
    n_places = max(n_rows + -n_rows % _OLD, n_new + -n_new % _NEW)
    n_places += -n_places % _OLD
    step = max(64, min(_BLOCK, _CACHED_ELEMENTS // n_places // 8 * 8))
    block = np.zeros((n_places, step))
    dots = np.empty((n_new + -n_new % _NEW, n_places))
    for chunk in chunks:
        tensor, end = tensors[chunk], starts[chunk] + lengths[chunk]
        dots[:] = 0.0
        sums[chunk, :, n_rows:] = 0.0
        for begin in range(starts[chunk], end, step):
            size = min(step, end - begin)
            for i in range(n_rows):
                _widen_block(rows[order[i], tensor] + begin * row_kind.itemsize, row_kind, block[i, :size])
            _add_dots(block, size, n_new, dots)
            for i in range(n_new):
                if before[i] >= 0:
                    difference_sq, sum_sq = _difference_and_sum_sq(block[i, :size], block[place[before[i]], :size])
                    sums[chunk, i, n_rows] += difference_sq
                    sums[chunk, i, n_rows + 1] += sum_sq
        for i in range(n_new):
            first = i - i % _NEW
            first -= first % _OLD
            for row in range(n_rows):
                at = place[row]
                sums[chunk, i, row] = dots[i, at] if at >= first else dots[at, i]

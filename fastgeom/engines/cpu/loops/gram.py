"""The CPU engine's deferred pass, compiled by numba: dots of the new rows of a ring with all of its rows.

A block of every row is read from memory once, widened to float64, and stays in the cache while the new rows meet the
others there, twelve dots at a time: three rows by four new ones, which fill the registers of a processor with AVX2, so
seven loads serve twelve products. Meanwhile the next block is fetched. Products and sums are float64, as they are at
every step without deferral; that arithmetic, not memory, sets the speed.
"""

from __future__ import annotations

import numpy as np

from fastgeom.engines.cpu.loops.jit import exact, fast
from fastgeom.engines.cpu.loops.memory import at, prefetch, widen
from fastgeom.engines.cpu.loops.shared import diff_and_sum_sq

_CACHED_ELEMENTS = 3 << 12
"""Widened elements of a block of all rows, 96 KiB: room in the second cache for as much of the next block."""
_SMALLEST_BLOCK, _LARGEST_BLOCK = 128, 1024
_OLD, _NEW = 3, 4
"""Rows and new rows of a tile of dots."""


@exact
def _widen_block(address, like, out):
    source = at(address, like, out.size)
    for i in range(out.size):
        out[i] = np.float64(widen(source[i]))


@fast
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


@exact
def _by_age(n_rows, new):
    """The rows, the new ones first, each kind from the newest back; and each row's position in that."""
    is_new = np.zeros(n_rows, np.bool_)
    is_new[new] = True
    newest = new[-1]
    for row in new:
        if not is_new[(row + 1) % n_rows]:
            newest = row
    order = np.empty(n_rows, np.int64)
    position = np.empty(n_rows, np.int64)
    count = 0
    for wanted in (True, False):
        for age in range(n_rows):
            row = (newest - age) % n_rows
            if is_new[row] == wanted:
                order[count] = row
                position[row] = count
                count += 1
    return order, position


@exact
def _end(new, n_rows, window):
    """Where the tiles of the new rows from ``new`` on may end: past the last position that is in the window of one."""
    return min(n_rows, new + _NEW + window)


@exact
def _add_dots(block, size, n_rows, n_new, window, dots, upcoming, n_bytes):
    """Add the dots of each of the first rows of ``block``, the new ones, with itself and the ``window`` that follow.

    Meanwhile the ``n_bytes`` at each address of ``upcoming`` are fetched, a row or so a tile.
    """
    n_tiles = 0
    for new in range(0, n_new, _NEW):
        n_tiles += (_end(new, n_rows, window) - new + _OLD - 1) // _OLD
    tile, fetched = 0, 0
    for new in range(0, n_new, _NEW):
        for old in range(new, _end(new, n_rows, window), _OLD):
            tile += 1
            while fetched < tile * upcoming.size // n_tiles:
                prefetch(upcoming[fetched], n_bytes)
                fetched += 1
            products = _tile(
                block[old, :size],
                block[old + 1, :size],
                block[old + 2, :size],
                block[new, :size],
                block[new + 1, :size],
                block[new + 2, :size],
                block[new + 3, :size],
            )
            for i in range(_OLD):
                for j in range(_NEW):
                    dots[new + j, old + i] += products[i][j]


@exact
def gram(chunks, tensors, starts, lengths, rows, new, before, row_kind, sums, window=1 << 30):
    """Dots of new rows of a ring with its rows, and sums over each new row and the one before it, of these chunks.

    Bytes: each row element once.

    Args:
        chunks: indices into the arrays that follow, and into the results.
        tensors: (chunk,) the tensor of each chunk.
        starts: (chunk,) first element.
        lengths: (chunk,) number of elements.
        rows: (row, tensor) addresses.
        new: (new,) indices of the new rows, all different and at least one.
        before: (new,) index of the row before each; -1 for none.
        row_kind: an empty array of the rows' type in memory.
        sums: (chunk, new, row + 2) float64, overwritten: for each new row the dots with all rows, in their order, then
            sum (row - before)^2 and sum (row + before)^2, which are 0 where there is none before.
        window: dots of rows that are further than this apart, back round the ring from the newest, are not taken: NaN.
            With 16 new rows and 16 before them, a window of 16 spares a quarter of the products.
    """
    n_rows, n_new = rows.shape[0], new.size
    order, position = _by_age(n_rows, new)
    n_positions = n_rows + _NEW - 1  # rows of zeros fill the last tiles
    step = max(_SMALLEST_BLOCK, min(_LARGEST_BLOCK, _CACHED_ELEMENTS // n_positions // 8 * 8))
    block = np.zeros((n_positions, step))
    dots = np.empty((n_new + _NEW - 1, n_positions))
    address = np.empty(n_rows, np.int64)
    for chunk in chunks:
        tensor, end = tensors[chunk], starts[chunk] + lengths[chunk]
        dots[:] = 0.0
        sums[chunk, :, n_rows:] = 0.0
        for begin in range(starts[chunk], end, step):
            size = min(step, end - begin)
            for i in range(n_rows):
                address[i] = rows[order[i], tensor] + begin * row_kind.itemsize
                _widen_block(address[i], row_kind, block[i, :size])
                address[i] += size * row_kind.itemsize
            n_bytes = min(step, end - begin - size) * row_kind.itemsize
            _add_dots(block, size, n_rows, n_new, window, dots, address, n_bytes)
            for i in range(n_new):
                if before[i] >= 0:
                    diff_sq, sum_sq = diff_and_sum_sq(block[position[new[i]], :size], block[position[before[i]], :size])
                    sums[chunk, i, n_rows] += diff_sq
                    sums[chunk, i, n_rows + 1] += sum_sq
        for i in range(n_new):
            for row in range(n_rows):
                newer, older = min(position[new[i]], position[row]), max(position[new[i]], position[row])
                sums[chunk, i, row] = dots[newer, older] if older - newer <= window else np.nan

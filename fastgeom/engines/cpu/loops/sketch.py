"""The inner loops of count sketches on the CPU: one read of the gradient; its sketch, moments and dots out.

Whoever owns a tile of buckets reads all elements that go there, so that threads share nothing and no sum depends on how
many they are. Tiles are small enough to stay in the first cache, next to the run of elements that is added to them. The
blocks of one q are added up where they lie, eight neighbours at a time in one vector, and q is applied to their sum. A
tile that is whole meets the same buckets of past sketches at once, and may then take the place of the oldest: no sketch
is ever in memory but those that are remembered.

`fastgeom.layout.count_sketch` defines buckets and signs; the sums of ``window`` and the conversions of ``memory`` do
the rest. numba looks for changes in this file alone: after a change in those, ``make clean``.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastgeom.engines.cpu.loops.memory import EXACT, FAST, at, widen
from fastgeom.engines.cpu.loops.window import (
    DIFF,
    SUM,
    SUM_SQ,
    _absmax_and_nonfinite,
    _block,
    _difference_and_sum_sq,
    _row_dots,
    _sum_sq,
    _write,
)
from fastgeom.layout.count_sketch import FLIP_STREAM, ORDER_STREAM

TILE = 2048

_FLOAT32, _FLOAT64 = np.empty(0, np.float32), np.empty(0, np.float64)
_BFLOAT16, _FLOAT16 = np.empty(0, np.uint16), np.empty(0, np.int16)
_ORDER, _FLIP = np.uint32(ORDER_STREAM), np.uint32(FLIP_STREAM)


@intrinsic
def _add_signed(typing_context, target, at, source, start, word):
    """``target[at + p] += s_p source[start + p]`` for p < 8, one vector; see ``_SIGN_SHIFTS`` for the signs s_p."""
    signature = types.void(target, types.int64, source, types.int64, types.uint32)
    floats, words = ir.VectorType(ir.FloatType(), 8), ir.VectorType(cgutils.int32_t, 8)

    def vector_at(context, builder, array_type, array, index):
        data = context.make_array(array_type)(context, builder, array).data
        return builder.bitcast(builder.gep(data, [index]), floats.as_pointer())

    def codegen(context, builder, signature, arguments):
        target, at, source, start, word = arguments
        total = vector_at(context, builder, signature.args[0], target, at)
        added = builder.load(vector_at(context, builder, signature.args[2], source, start), align=4)
        lanes = builder.insert_element(ir.Constant(words, ir.Undefined), word, cgutils.int32_t(0))
        lanes = builder.shuffle_vector(lanes, ir.Constant(words, ir.Undefined), ir.Constant(words, [0] * 8))
        signs = builder.and_(builder.shl(lanes, words(_SIGN_SHIFTS)), words([1 << 31] * 8))
        added = builder.bitcast(builder.xor(builder.bitcast(added, words), signs), floats)
        builder.store(builder.fadd(builder.load(total, align=4), added), total, align=4)
        return context.get_dummy_value()

    return signature, codegen


_SIGN_SHIFTS = [19 - (p >> 1) - 16 * (p & 1) for p in range(8)]
"""How far left the sign of position p is from the top of a word already shifted left by 12 - 4 (i & 3)."""


@njit(**EXACT)
def _mix32(x):
    """`fastgeom.layout.count_sketch.mix32`."""
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@njit(**EXACT)
def _draw_signs(words, first, seed):
    for u in range(words.size):
        words[u] = _mix32(np.uint32(np.uint32(first + u) ^ seed))


@njit(**EXACT)
def _add_run(tile, x, mask, words, shift, tail):
    """Add a run of elements, position p of it to bucket p XOR 8 ``mask``."""
    whole = x.size >> 3
    for v in range(whole):
        u = v ^ mask
        _add_signed(tile, u << 3, x, v << 3, np.uint32(words[u] << shift))
    rest = x.size & 7
    if rest:
        tail[:] = 0
        for p in range(rest):
            tail[p] = x[(whole << 3) + p]
        u = whole ^ mask
        _add_signed(tile, u << 3, tail, 0, np.uint32(words[u] << shift))


@njit(**EXACT)
def _gradient_run(address, code, begin, size, scale, x32, x64, sums, bad):
    """``size`` elements of a gradient as float32; their moments are added to ``sums`` (2,) and ``bad`` (1,)."""
    if code == 1:
        wide = _block(address + begin * 8, _FLOAT64, size, scale, x64)
        sums[0] += _sum_sq(wide)
        largest, count = _absmax_and_nonfinite(wide)
        x = x32[:size]
        for i in range(size):
            x[i] = np.float32(wide[i])
    else:
        factor = np.float32(scale)
        if code == 0:
            x = _block(address + begin * 4, _FLOAT32, size, factor, x32)
        elif code == 2:
            x = _block(address + begin * 2, _BFLOAT16, size, factor, x32)
        else:
            x = _block(address + begin * 2, _FLOAT16, size, factor, x32)
        sums[0] += _sum_sq(x)
        largest, count = _absmax_and_nonfinite(x)
    sums[1] = max(sums[1], largest)
    bad[0] += count
    return x


@njit(**FAST)
def _update_sums(x, old, g, u, sums):
    """The update x - old as float32 in ``u``; sum x^2, sum u^2 and sum g u are added to ``sums``; old is renewed."""
    x_sq, u_sq, g_dot_u = 0.0, 0.0, 0.0
    for i in range(g.size):
        value = np.float64(widen(x[i]))
        update = value - np.float64(widen(old[i]))
        x_sq += value * value
        u_sq += update * update
        g_dot_u += g[i] * update
        u[i] = np.float32(update)
        old[i] = x[i]
    sums[0] += x_sq
    sums[1] += u_sq
    sums[2] += g_dot_u


@njit(**EXACT)
def _wide_run(address, code, begin, size, scale, x64):
    """``size`` elements of a gradient as float64."""
    if address == 0:
        x = x64[:size]
        x[:] = 0
        return x
    if code == 0:
        return _block(address + begin * 4, _FLOAT32, size, scale, x64)
    if code == 1:
        return _block(address + begin * 8, _FLOAT64, size, scale, x64)
    if code == 2:
        return _block(address + begin * 2, _BFLOAT16, size, scale, x64)
    return _block(address + begin * 2, _FLOAT16, size, scale, x64)


@njit(**EXACT)
def _update_run(address, old, code, begin, size, g, x32, sums):
    """``size`` elements of the update x - old as float32; its moments are added to ``sums`` (3,)."""
    u = x32[:size]
    if code == 0:
        x, before = at(address + begin * 4, _FLOAT32, size), at(old + begin * 4, _FLOAT32, size)
        _update_sums(x, before, g, u, sums)
    elif code == 1:
        x, before = at(address + begin * 8, _FLOAT64, size), at(old + begin * 8, _FLOAT64, size)
        _update_sums(x, before, g, u, sums)
    elif code == 2:
        x, before = at(address + begin * 2, _BFLOAT16, size), at(old + begin * 2, _BFLOAT16, size)
        _update_sums(x, before, g, u, sums)
    else:
        x, before = at(address + begin * 2, _FLOAT16, size), at(old + begin * 2, _FLOAT16, size)
        _update_sums(x, before, g, u, sums)
    return u


@njit(**EXACT)
def _run(tensor, begin, size, addresses, codes, scale, x32, x64, sums, bad):
    """A run of the gradient, or of the update where ``addresses`` has rows for parameters and snapshots."""
    if addresses.shape[0] == 1:
        return _gradient_run(addresses[0, tensor], codes[0, tensor], begin, size, scale, x32, x64, sums, bad)
    g = _wide_run(addresses[0, tensor], codes[0, tensor], begin, size, scale, x64)
    return _update_run(addresses[1, tensor], addresses[2, tensor], codes[1, tensor], begin, size, g, x32, sums)


@njit(**EXACT)
def _hash_tile(
    bucket, width, buckets, blocks, seed, first,
    tensors, numels, first_block, end_block, addresses, codes, scale, x32, x64, out, sums, bad,
):  # fmt: skip
    """The buckets ``out`` of one tile: for every q, the runs of all its blocks, four of them to a word of signs."""
    tile, words, tail = np.empty(width, np.float32), np.empty(width >> 3, np.uint32), np.empty(8, np.float32)
    for q in range(8):
        place, empty = first, True
        for j in range((blocks + 31) >> 5):
            drawn = False
            order = _mix32(np.uint32(np.uint32(j) ^ seed ^ _ORDER))
            for t in range(4):
                b = (j << 5) + (t << 3) + (q ^ np.int64((order >> np.uint32(3 * t)) & np.uint32(7)))
                if b >= blocks:
                    break
                while b >= end_block[place]:
                    place += 1
                flip = np.int64(_mix32(np.uint32(np.uint32(b) ^ seed ^ _FLIP))) & (buckets - 8)
                begin = (b - first_block[place]) * buckets + (bucket ^ (flip & -width))
                size = min(width, numels[tensors[place]] - begin)
                if size <= 0 or addresses[-1, tensors[place]] == 0:
                    continue
                x = _run(tensors[place], begin, size, addresses, codes, scale, x32, x64, sums, bad)
                if empty:
                    tile[:] = 0
                    empty = False
                if not drawn:
                    _draw_signs(words, np.uint32(j * buckets + q * (buckets >> 3) + (bucket >> 3)), seed)
                    drawn = True
                _add_run(tile, x, (flip & (width - 1)) >> 3, words, np.uint32(12 - 4 * t), tail)
        if not empty:
            for k in range(width):
                out[k] += tile[k ^ q]


@njit(**EXACT)
def _compare(x, place, rows, previous, store, out, sums):
    """A finished run of a sketch, at ``place``, against the same run of past ones; then it is written.

    The row at ``store`` may be one of ``rows``, or the previous one: it has been read.
    """
    count, offset = rows.shape[0], place * 4
    for first in range(0, count, 4):
        _row_dots(x, rows, first, 0, offset, _FLOAT32, sums)
    sums[count + SUM_SQ] += _sum_sq(x)
    if previous != 0:
        difference_sq, sum_sq = _difference_and_sum_sq(x, at(previous + offset, _FLOAT32, x.size))
        sums[count + DIFF] += difference_sq
        sums[count + SUM] += sum_sq
    _write(x, store, place, _FLOAT32)
    _write(x, out, place, _FLOAT32)


@njit(**EXACT)
def sketch(
    tasks, groups, members, begins, lengths, places, buckets, blocks, seeds,
    tensors, numels, first_block, end_block, addresses, codes, scale,
    rows, previous, store, out, sums, bad, past_sums,
):  # fmt: skip
    """Sketches of these tasks, their moments, and their dots with past sketches.

    Bytes: every element once, and the snapshot read and written where there is one; each row once, and what is stored.

    Args:
        tasks: indices into the arrays that follow, and into the results.
        groups, ..., places: those of `SketchTasks`.
        buckets, ..., end_block: those of `SketchPlan`, which calls the first ``sizes``.
        addresses, codes: (1, tensor) of the gradient, or (3, tensor) and (2, tensor) of gradient, parameter and
            snapshot. Address 0 reads as zeros.
        scale: what the gradient is multiplied by when read.
        rows: (row, 1) addresses of past sketches, float32.
        previous, store, out: addresses of sketches, or 0: what the sketch is subtracted from, and where it goes. The
            padding of exact groups is not written.
        sums, bad: (task, 3) float64 and (task, 1) int64, added to: sum g^2, max |g|, count of what is not finite;
            or sum x^2, sum u^2, sum g u.
        past_sums: (task, row + 3) float64, added to: the dots, then SUM_SQ, DIFF, SUM of the sketch.
    """
    buffer, x32, x64 = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float64)
    for task in tasks:
        g, member, begin, length, place = groups[task], members[task], begins[task], lengths[task], places[task]
        if blocks[g] > 0:
            tile = buffer[:length]
            tile[:] = 0
            _hash_tile(
                begin, length, buckets[g], blocks[g], seeds[g], member, tensors, numels, first_block, end_block,
                addresses, codes, scale, x32, x64, tile, sums[task], bad[task],
            )  # fmt: skip
            _compare(tile, place, rows, previous, store, out, past_sums[task])
            continue
        for start in range(0, length, TILE):
            x = buffer[: min(TILE, length - start)]
            if addresses[-1, tensors[member]] == 0:
                x[:] = 0
            else:
                x = _run(
                    tensors[member], begin + start, x.size, addresses, codes, scale, x32, x64, sums[task], bad[task]
                )
            _compare(x, place + start, rows, previous, store, out, past_sums[task])

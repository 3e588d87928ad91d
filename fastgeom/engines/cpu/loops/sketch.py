"""The inner loops of count sketches on the CPU: one read of the gradient; its sketch, moments and dots out.

The task that owns a tile of buckets reads all elements that go there, so that threads share nothing and no sum depends
on how many they are. Tiles are small enough to stay in the first cache, next to the elements that are added to them.
The blocks of one q are added up where they lie, eight neighbours at a time in one vector, and q is applied to their
sum. A complete tile meets the same buckets of past sketches at once, and may then overwrite the oldest: no sketch is
ever in memory but those that are remembered.

`fastgeom.layout.count_sketch` defines buckets and signs; the sums are those of ``shared``, the conversions
those of ``memory``.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastgeom.engines.cpu.loops.jit import exact, fast
from fastgeom.engines.cpu.loops.memory import at, widen
from fastgeom.engines.cpu.loops.shared import (
    DIFF_SQ,
    GRAD_SQ,
    SUM_SQ,
    add_row_dots,
    diff_and_sum_sq,
    gradient_block,
    largest_and_nonfinite,
    sum_squares,
    write,
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


@exact
def _mix32(x):
    """`fastgeom.layout.count_sketch.mix32`."""
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@exact
def _draw_signs(words, first, seed):
    for u in range(words.size):
        words[u] = _mix32(np.uint32(np.uint32(first + u) ^ seed))


@exact
def _add_elements(tile, x, mask, words, shift, tail):
    """Add elements to a tile, position p of them to bucket p XOR 8 ``mask``."""
    n_whole = x.size >> 3
    for v in range(n_whole):
        u = v ^ mask
        _add_signed(tile, u << 3, x, v << 3, np.uint32(words[u] << shift))
    rest = x.size & 7
    if rest:
        tail[:] = 0
        for p in range(rest):
            tail[p] = x[(n_whole << 3) + p]
        u = n_whole ^ mask
        _add_signed(tile, u << 3, tail, 0, np.uint32(words[u] << shift))


@exact
def _read_gradient(address, code, begin, size, scale, x32, x64, sums, nonfinite):
    """``size`` elements of a gradient as float32; their moments are added to ``sums`` (2,) and ``nonfinite`` (1,)."""
    if code == 1:
        wide = gradient_block(address + begin * 8, _FLOAT64, size, scale, x64)
        sums[0] += sum_squares(wide)
        largest, count = largest_and_nonfinite(wide)
        x = x32[:size]
        for i in range(size):
            x[i] = np.float32(wide[i])
    else:
        factor = np.float32(scale)
        if code == 0:
            x = gradient_block(address + begin * 4, _FLOAT32, size, factor, x32)
        elif code == 2:
            x = gradient_block(address + begin * 2, _BFLOAT16, size, factor, x32)
        else:
            x = gradient_block(address + begin * 2, _FLOAT16, size, factor, x32)
        sums[0] += sum_squares(x)
        largest, count = largest_and_nonfinite(x)
    sums[1] = max(sums[1], largest)
    nonfinite[0] += count
    return x


@fast
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


@exact
def _read_wide(address, code, begin, size, scale, x64):
    """``size`` elements of a gradient as float64."""
    if address == 0:
        x = x64[:size]
        x[:] = 0
        return x
    if code == 0:
        return gradient_block(address + begin * 4, _FLOAT32, size, scale, x64)
    if code == 1:
        return gradient_block(address + begin * 8, _FLOAT64, size, scale, x64)
    if code == 2:
        return gradient_block(address + begin * 2, _BFLOAT16, size, scale, x64)
    return gradient_block(address + begin * 2, _FLOAT16, size, scale, x64)


@exact
def _read_update(address, old, code, begin, size, g, x32, sums):
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


@exact
def _read(tensor, begin, size, source, buffers, sums, nonfinite):
    """Elements of the gradient, or of the update where ``source`` has addresses of parameters and snapshots."""
    addresses, codes, scale = source
    x32, x64 = buffers
    if addresses.shape[0] == 1:
        return _read_gradient(addresses[0, tensor], codes[0, tensor], begin, size, scale, x32, x64, sums, nonfinite)
    g = _read_wide(addresses[0, tensor], codes[0, tensor], begin, size, scale, x64)
    return _read_update(addresses[1, tensor], addresses[2, tensor], codes[1, tensor], begin, size, g, x32, sums)


@exact
def _hash_tile(bucket, width, group, first, plan, source, buffers, out, sums, nonfinite):
    """The buckets ``out`` of one tile: for every q, the elements of all its blocks, four of them to a word of signs."""
    all_buckets, all_blocks, seeds, tensors, numels, first_block, end_block = plan
    buckets, blocks, seed, addresses = all_buckets[group], all_blocks[group], seeds[group], source[0]
    tile, words, tail = np.empty(width, np.float32), np.empty(width >> 3, np.uint32), np.empty(8, np.float32)
    for q in range(8):
        member, empty = first, True
        for j in range((blocks + 31) >> 5):
            drawn = False
            order = _mix32(np.uint32(np.uint32(j) ^ seed ^ _ORDER))
            for t in range(4):
                b = (j << 5) + (t << 3) + (q ^ np.int64((order >> np.uint32(3 * t)) & np.uint32(7)))
                if b >= blocks:
                    break
                while b >= end_block[member]:
                    member += 1
                flip = np.int64(_mix32(np.uint32(np.uint32(b) ^ seed ^ _FLIP))) & (buckets - 8)
                begin = (b - first_block[member]) * buckets + (bucket ^ (flip & -width))
                size = min(width, numels[tensors[member]] - begin)
                if size <= 0 or addresses[-1, tensors[member]] == 0:
                    continue
                x = _read(tensors[member], begin, size, source, buffers, sums, nonfinite)
                if empty:
                    tile[:] = 0
                    empty = False
                if not drawn:
                    _draw_signs(words, np.uint32(j * buckets + q * (buckets >> 3) + (bucket >> 3)), seed)
                    drawn = True
                _add_elements(tile, x, (flip & (width - 1)) >> 3, words, np.uint32(12 - 4 * t), tail)
        if not empty:
            for k in range(width):
                out[k] += tile[k ^ q]


@exact
def _compare(x, target, past, out, sums):
    """Compare complete buckets of a sketch, from ``target`` on, with those of past ones; then write them.

    The row to write over may be one of those compared with, or the previous one: it has been read.
    """
    rows, previous, store = past
    count, offset = rows.shape[0], target * 4
    for first in range(0, count, 4):
        add_row_dots(x, rows, first, 0, offset, _FLOAT32, sums)
    sums[count + GRAD_SQ] += sum_squares(x)
    if previous != 0:
        diff_sq, sum_sq = diff_and_sum_sq(x, at(previous + offset, _FLOAT32, x.size))
        sums[count + DIFF_SQ] += diff_sq
        sums[count + SUM_SQ] += sum_sq
    write(x, store, target, _FLOAT32)
    write(x, out, target, _FLOAT32)


@exact
def sketch(tasks, work, plan, source, past, out, sums, nonfinite, past_sums):
    """Sketches of these tasks, their moments, and their dots with past sketches.

    Bytes: every element once, and the snapshot read and written where there is one; each row once, and what is stored.

    Args:
        tasks: indices into the arrays of ``work``, and into the results.
        work: ``group, member, begin, length, target`` of `SketchTasks`.
        plan: ``sizes, blocks, seeds, tensors, numels, first_block, end_block`` of `SketchPlan`.
        source: addresses, (1, tensor) of the gradient, or (3, tensor) of gradient, parameter and snapshot, 0 reads as
            zeros; dtype codes, (1, tensor) of the gradient, or (2, tensor) of gradient and parameter; and what the
            gradient is multiplied by when read.
        past: (row, 1) addresses of past sketches, float32; the address of the previous one, or 0; and that of the one
            to write over, or 0. The padding of exact groups is not written.
        out: address to write the sketch to as well, or 0.
        sums: (task, 3) float64, added to: sum g^2, max |g|; or sum x^2, sum u^2, sum g u.
        nonfinite: (task, 1) int64, added to: the count of what is not finite in g.
        past_sums: (task, row + 3) float64, added to: the dots, then GRAD_SQ, DIFF_SQ, SUM_SQ of the sketch.
    """
    groups, members, begins, lengths, targets = work
    blocks, tensors, addresses = plan[1], plan[3], source[0]
    buffer, buffers = np.empty(TILE, np.float32), (np.empty(TILE, np.float32), np.empty(TILE, np.float64))
    for task in tasks:
        g, member, begin, length, target = groups[task], members[task], begins[task], lengths[task], targets[task]
        if blocks[g] > 0:
            tile = buffer[:length]
            tile[:] = 0
            _hash_tile(begin, length, g, member, plan, source, buffers, tile, sums[task], nonfinite[task])
            _compare(tile, target, past, out, past_sums[task])
            continue
        for start in range(0, length, TILE):
            x = buffer[: min(TILE, length - start)]
            if addresses[-1, tensors[member]] == 0:
                x[:] = 0
            else:
                x = _read(tensors[member], begin + start, x.size, source, buffers, sums[task], nonfinite[task])
            _compare(x, target + start, past, out, past_sums[task])

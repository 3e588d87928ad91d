"""The count sketch of groups of tensors, or of their updates, and exact moments from the same read.

    sketch_k  =  sum over the elements of bucket k of  sign × x         which and with what sign: ``fastgeom.sketching``
    moments   =  sum x^2,  max |x| over what is not NaN,  number of inf and NaN

and of an update u = x - snapshot: the sketch of u;  sum x^2,  sum u^2,  sum g u;  then snapshot <- x.

A *program* owns a tile of buckets of one group and a run of *quads*: the four blocks b that share q and i >> 2, and so
one word of signs for each eight buckets. Quads are numbered q × rounds + (i >> 2). Its sums stay in registers, so there
are no atomics and one order of adding. Where several programs share a tile, each leaves its sums in ``scratch``, and a
second launch adds them up (`sketch_parts`).

Element p of a block goes to bucket p XOR H XOR q. Above the low three bits, H says which piece of the block belongs to
the tile, and permutes its groups of eight: both are done in the address. q permutes the eight: sums are kept as if it
were 0, and change places between registers whenever it changes.

Scratch: at most 4 bytes × 1024 × `SKETCH_PROGRAMS` = 4.3 MB with the runs of ``fastgeom.sketching.sketch_programs``,
whatever the model and the size of the sketch; none from 2^20 buckets on.
"""

import triton
import triton.language as tl

from fastgeom.kernels.loads import (
    BFLOAT16,
    DTYPE_NAMES,
    FLOAT16,
    FLOAT32,
    SHORT,
    compute_type,
    item_bytes,
    nvidia_options,
    unpack,
)
from fastgeom.kernels.sketch_parts import (
    SKETCH_COPY,
    SKETCH_SUM,
    TENSOR_COLUMNS,
    launch_copies,
    launch_sums,
    scaled,
    store_moments,
)
from fastgeom.kernels.sketch_pieces import load_words, read_piece, write_piece

__all__ = [
    "SKETCH_COPY",
    "SKETCH_PROGRAMS",
    "SKETCH_SUM",
    "SKETCH_TILES",
    "launch_sketch",
    "sketch_bytes",
    "sketch_update_bytes",
    "sketch_variants",
]

SKETCH_TILES = (1024, 256, 128)
"""Buckets of a tile: the largest that fits into a group's."""
SKETCH_PROGRAMS = 1056
"""Among how many programs work is shared: 8 for each of 132 multiprocessors, all of which run at once."""

_WARPS = {1024: 2, 256: 1, 128: 1}
_ORDER_STREAM, _FLIP_STREAM = tl.constexpr(0x85EBCA6B), tl.constexpr(0x9E3779B9)
_SIGN, _BOTH_SIGNS = tl.constexpr(-(1 << 31)), tl.constexpr(-0x7FFF8000)
_ALL_FLOAT32, _ALL_BFLOAT16, _ALL_FLOAT16, _NOTHING = (tl.constexpr(kinds) for kinds in (1, 4, 8, 15))
"""As what dtypes the blocks of a quad may be read: bit 1 << code. A block without elements for the tile as any."""


def _max_registers(update, wide):
    """Left alone, the compiler spills to reach 80, 96 or 128."""
    return 255 if update and wide else 168 if update or wide else 128


def sketch_bytes(n_elements, gradient_bytes=4):
    """Bytes read: every element once."""
    return n_elements * gradient_bytes


def sketch_update_bytes(n_elements, gradient_bytes=4, parameter_bytes=4):
    """Bytes moved: gradient, parameter and snapshot read, the snapshot written."""
    return n_elements * (gradient_bytes + 3 * parameter_bytes)


@triton.jit(do_not_specialize=["n_programs"])
def _sketch_kernel(
    program_ptr, tensor_ptr, scale_ptr, out_ptr, scratch_ptr, partials_ptr, n_programs,
    TILE: tl.constexpr, CODE: tl.constexpr, WIDE: tl.constexpr, UPDATE: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    stride = tl.cast(n_programs, tl.int64)
    column_ptr = program_ptr + program
    bucket, buckets = tl.load(column_ptr).to(tl.int32), tl.load(column_ptr + stride).to(tl.int32)
    blocks, seed = tl.load(column_ptr + 2 * stride).to(tl.int32), tl.load(column_ptr + 3 * stride).to(tl.uint32)
    first_quad, end_quad = tl.load(column_ptr + 4 * stride).to(tl.int32), tl.load(column_ptr + 5 * stride).to(tl.int32)
    start, first_place = tl.load(column_ptr + 6 * stride).to(tl.int32), tl.load(column_ptr + 7 * stride).to(tl.int32)
    target = tl.load(column_ptr + 8 * stride)
    tile = (bucket, buckets, blocks, seed)

    GROUPS: tl.constexpr = TILE // 8
    group = tl.arange(0, GROUPS)
    low, high = tl.zeros([GROUPS, 4], tl.float32), tl.zeros([GROUPS, 4], tl.float32)
    none = tl.zeros([GROUPS], tl.float64)
    moments = (none, none, none, tl.zeros([GROUPS, 4], compute_type(WIDE)))
    rounds = (blocks + 31) // 32
    place = start
    for q in range(first_quad // rounds, (end_quad + rounds - 1) // rounds):
        tensor = _tensor(place, tensor_ptr)
        first_round = tl.maximum(first_quad - q * rounds, 0)
        for j in range(first_round, tl.minimum(end_quad - q * rounds, rounds)):
            round_ = tl.cast(j, tl.uint32)
            order = _mix32(round_ ^ seed ^ _ORDER_STREAM)
            word = round_ * buckets.to(tl.uint32) + (q * (buckets >> 3) + (bucket >> 3)).to(tl.uint32)
            signs = _mix32((word + group.to(tl.uint32)) ^ seed)
            if UPDATE or WIDE:
                low, high, moments, tensor = _add_any(
                    low, high, moments, tensor, tensor_ptr, tile, j, q, order, signs, WIDE, UPDATE
                )
            else:
                low, high, moments, tensor = _add_quad(
                    low, high, moments, tensor, tensor_ptr, tile, j, q, order, signs, CODE
                )
        low, high = _exchange(low, high, tl.cast(q ^ (q + 1), tl.int32))
        place = first_place
    low, high = _exchange(low, high, (end_quad + rounds - 1) // rounds)

    total, largest = tl.sum(moments[0]), tl.max(moments[3]).to(tl.float64)
    scale = tl.full((), 1, tl.float64)
    if SCALED:
        scale = tl.load(scale_ptr)
    if UPDATE:
        store_moments(partials_ptr + 3 * program, total, tl.sum(moments[1]), scaled(tl.sum(moments[2]), scale, SCALED))
    else:
        low, high = scaled(low, scale, SCALED), scaled(high, scale, SCALED)
        bad = 0
        if not total < float("inf"):
            bad = _count_nonfinite(tensor_ptr, tile, first_quad, end_quad, start, first_place, GROUPS, WIDE, CODE)
        store_moments(
            partials_ptr + 3 * program, scaled(scaled(total, scale, SCALED), scale, SCALED),
            scaled(largest, tl.abs(scale), SCALED), bad.to(tl.float64),
        )  # fmt: skip
    address = tl.where(target >= 0, out_ptr.to(tl.int64) + 4 * target, scratch_ptr.to(tl.int64) - 4 * (target + 1))
    sketch_ptr = tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 16)
    pairs = tl.join(low, high).reshape([GROUPS, 8])
    tl.store(sketch_ptr + group[:, None] * 8 + tl.arange(0, 8)[None, :], pairs)


@triton.jit
def _mix32(x):
    """A random word for each uint32."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _exchange(low, high, mask):
    """Sums whose elements k = 2 × word + half become those of elements k XOR mask."""
    GROUPS: tl.constexpr = low.shape[0]
    half, near, far = (mask & 1) != 0, (mask & 2) != 0, (mask & 4) != 0
    low, high = tl.where(half, high, low), tl.where(half, low, high)
    return _exchange_words(low, near, far, GROUPS), _exchange_words(high, near, far, GROUPS)


@triton.jit
def _exchange_words(x, near, far, GROUPS: tl.constexpr):
    first, second = tl.split(x.reshape([GROUPS, 2, 2]))
    x = tl.join(tl.where(near, second, first), tl.where(near, first, second))
    first, second = tl.split(x.permute(0, 2, 1))
    x = tl.join(tl.where(far, second, first), tl.where(far, first, second))
    return x.permute(0, 2, 1).reshape([GROUPS, 4])


@triton.jit
def _tensor(place, tensor_ptr):
    """What is kept of a tensor: place, end and first of its blocks, elements of the last one, address and code."""
    row_ptr = tensor_ptr + TENSOR_COLUMNS * place.to(tl.int64)
    end, first, tail = (
        tl.load(row_ptr).to(tl.int32),
        tl.load(row_ptr + 1).to(tl.int32),
        tl.load(row_ptr + 2).to(tl.int32),
    )
    return place, end, first, tail, tl.load(row_ptr + 3), tl.load(row_ptr + 4).to(tl.int32)


@triton.jit
def _advance(b, tensor, tensor_ptr):
    """The tensor that block b lies in; it is ``tensor`` or a later one."""
    if b >= tensor[1]:
        place = tensor[0]
        while b >= tl.load(tensor_ptr + TENSOR_COLUMNS * place.to(tl.int64)):
            place += 1
        tensor = _tensor(place, tensor_ptr)
    return tensor


@triton.jit
def _block(j, t, q, order):
    """The number of the block of a quad whose i is 4 j + t."""
    return 32 * j + 8 * t + (q ^ (order >> (3 * t)).to(tl.int32) & 7)


@triton.jit
def _piece(b, tensor, tile, TILE: tl.constexpr):
    """The piece of block b that belongs to a tile.

    Returns:
        The block's first element in its tensor; the positions in the block at which the piece's groups of eight begin;
        elements of the block; and how many of them there are from the first position of the piece on.
    """
    bucket, buckets, _, seed = tile
    flip = _mix32(b.to(tl.uint32) ^ seed ^ _FLIP_STREAM).to(tl.int32) & (buckets - 8)
    length = tl.where(b == tensor[1] - 1, tensor[3], buckets)
    positions = (bucket + tl.arange(0, TILE // 8) * 8) ^ flip
    begin = (b - tensor[2]).to(tl.uint32).to(tl.uint64) * buckets.to(tl.uint32)
    return begin.to(tl.int64), positions, length, length - (bucket ^ (flip & -TILE))


@triton.jit
def _add_quad(low, high, moments, tensor, tensor_ptr, tile, j, q, order, signs, CODE: tl.constexpr):
    """Add the four blocks of a quad: all at once where they are whole, aligned and of one dtype."""
    TILE: tl.constexpr = 8 * low.shape[0]
    start = tensor
    kinds = _NOTHING
    addresses, begins, positions, there = (), (), (), ()
    for t in tl.static_range(4):
        b = _block(j, t, q, order)
        known = b < tile[2]
        if known & (b >= tensor[1]):  # one step at most: a loop here would be in the way of the loads
            tensor = _tensor(tensor[0] + 1, tensor_ptr)
        begin, within, _, left = _piece(b, tensor, tile, TILE)
        present = known & (left > 0)
        whole = (left >= TILE) & (tensor[5] < SHORT)
        kind = tl.where(present, tl.where(whole, 1 << tensor[5], 0), _NOTHING)
        kinds = kinds & tl.where(known & (b >= tensor[1]), 0, kind)
        addresses += (tensor[4],)
        begins += (begin,)
        positions += (within,)
        there += (present,)
    if CODE >= 0:
        low, high, moments = _add_whole(low, high, moments, addresses, begins, positions, there, signs, CODE)
    elif kinds == _ALL_BFLOAT16:
        low, high, moments = _add_whole(low, high, moments, addresses, begins, positions, there, signs, BFLOAT16)
    elif kinds == _ALL_FLOAT16:
        low, high, moments = _add_whole(low, high, moments, addresses, begins, positions, there, signs, FLOAT16)
    elif kinds == _ALL_FLOAT32:
        low, high, moments = _add_whole(low, high, moments, addresses, begins, positions, there, signs, FLOAT32)
    elif kinds == 0:
        low, high, moments, tensor = _add_any(
            low, high, moments, start, tensor_ptr, tile, j, q, order, signs, False, False
        )
    return low, high, moments, tensor


@triton.jit
def _add_whole(low, high, moments, addresses, begins, positions, there, signs, CODE: tl.constexpr):
    """Add four pieces, each whole and aligned or not there at all."""
    GROUPS: tl.constexpr = low.shape[0]
    words = ()
    for t in tl.static_range(4):
        words += (load_words(addresses[t], begins[t], positions[t], there[t], CODE),)
    squares = tl.zeros([GROUPS, 4], tl.float32)
    largest = moments[3]
    for t in tl.static_range(4):
        sign = _sign_bits(signs, 4 * t)
        if item_bytes(CODE) == 2:
            x_low, x_high = unpack(words[t] ^ (sign & _BOTH_SIGNS), CODE, False)
            low, high = low + x_low, high + x_high
        else:
            x_low, x_high = words[t]
            low, high = low + _negate(x_low, sign << 16), high + _negate(x_high, sign)
        squares = tl.fma(x_high, x_high, tl.fma(x_low, x_low, squares))
        largest = tl.maximum(tl.maximum(largest, tl.abs(x_low)), tl.abs(x_high))
    return low, high, (moments[0] + tl.sum(squares, axis=1).to(tl.float64), moments[1], moments[2], largest)


@triton.jit
def _sign_bits(signs, first):
    """[GROUPS, 4] int32: the signs of the words of a block, in bit 31 for the upper halves and 15 for the lower."""
    return (signs[:, None] << (15 - first - tl.arange(0, 4))[None, :].to(tl.uint32)).to(tl.int32, bitcast=True)


@triton.jit
def _negate(x, sign):
    """``x`` with bit 31 of ``sign`` upon its own."""
    return (x.to(tl.int32, bitcast=True) ^ (sign & _SIGN)).to(tl.float32, bitcast=True)


@triton.jit
def _add_any(
    low, high, moments, tensor, tensor_ptr, tile, j, q, order, signs, WIDE: tl.constexpr, UPDATE: tl.constexpr
):  # fmt: skip
    """Add the four blocks of a quad one after the other, of any dtypes and however many elements they have."""
    TILE: tl.constexpr = 8 * low.shape[0]
    for t in range(4):
        b = _block(j, t, q, order)
        if b < tile[2]:
            tensor = _advance(b, tensor, tensor_ptr)
            begin, positions, length, left = _piece(b, tensor, tile, TILE)
            if left > 0:
                piece = (begin, positions, length, left < TILE)
                x_low, x_high = read_piece(tensor[4], tensor[5], piece, WIDE)
                if UPDATE:
                    x_low, x_high, moments = _update(x_low, x_high, moments, tensor, tensor_ptr, piece, WIDE)
                else:
                    squares = tl.sum(x_low * x_low + x_high * x_high, axis=1).to(tl.float64)
                    largest = tl.maximum(tl.maximum(moments[3], tl.abs(x_low)), tl.abs(x_high))
                    moments = (moments[0] + squares, moments[1], moments[2], largest)
                sign = _sign_bits(signs, 4 * t)
                low += _negate(x_low.to(tl.float32), sign << 16)
                high += _negate(x_high.to(tl.float32), sign)
    return low, high, moments, tensor


@triton.jit
def _update(x_low, x_high, moments, tensor, tensor_ptr, piece, WIDE: tl.constexpr):
    """The update of a piece of a parameter, whose snapshot is renewed, and its moments added to the others."""
    row_ptr = tensor_ptr + TENSOR_COLUMNS * tensor[0].to(tl.int64)
    snapshot, gradient, gradient_code = tl.load(row_ptr + 5), tl.load(row_ptr + 6), tl.load(row_ptr + 7).to(tl.int32)
    old_low, old_high = read_piece(snapshot, tensor[5], piece, WIDE)
    g_low, g_high = read_piece(gradient, gradient_code, piece, WIDE)
    u_low, u_high = x_low - old_low, x_high - old_high
    tl.debug_barrier()  # whoever writes an element may not be the one who reads it
    write_piece(snapshot, tensor[5], piece, x_low, x_high, WIDE)
    x_sq = tl.sum(x_low * x_low + x_high * x_high, axis=1).to(tl.float64)
    u_sq = tl.sum(u_low * u_low + u_high * u_high, axis=1).to(tl.float64)
    g_dot_u = tl.sum(g_low * u_low + g_high * u_high, axis=1).to(tl.float64)
    return u_low, u_high, (moments[0] + x_sq, moments[1] + u_sq, moments[2] + g_dot_u, moments[3])


@triton.jit
def _count_nonfinite(
    tensor_ptr, tile, first_quad, end_quad, place, first_place,
    GROUPS: tl.constexpr, WIDE: tl.constexpr, CODE: tl.constexpr,
):  # fmt: skip
    """Number of inf and NaN in a run of quads, all of which are read again."""
    TILE: tl.constexpr = 8 * GROUPS
    found = tl.zeros([GROUPS, 4], tl.int32)
    rounds = (tile[2] + 31) // 32
    tensor = _tensor(place, tensor_ptr)
    for quad in range(first_quad, end_quad):
        q, j = quad // rounds, quad % rounds
        order = _mix32(tl.cast(j, tl.uint32) ^ tile[3] ^ _ORDER_STREAM)
        if j == 0:
            tensor = _tensor(first_place, tensor_ptr)
        for t in range(4):
            b = _block(j, t, q, order)
            if b < tile[2]:
                tensor = _advance(b, tensor, tensor_ptr)
                begin, positions, length, left = _piece(b, tensor, tile, TILE)
                low, high = read_piece(tensor[4], tensor[5], (begin, positions, length, left < TILE), WIDE, CODE)
                found += (tl.abs(low) < float("inf")).to(tl.int32) ^ 1
                found += (tl.abs(high) < float("inf")).to(tl.int32) ^ 1
    return tl.sum(found)


def launch_sketch(programs, copies, sums, tensors, out, scratch, partials, *, update=False, wide=False, scale=None):
    """Sketch every group, and measure what is read.

    Args:
        programs: for each of `SKETCH_TILES`, int64 (9, n): of each program the first bucket of its tile, the buckets
            and blocks of the group, the group's seed, first quad, end, the tensor in which the first quad's round
            begins, the group's first tensor, and where its sums go: an index into ``out``, or -1 - index into
            ``scratch``.
        copies: int64 (4, n), the exact groups: tensor (-1 for zeros), first element, length, index into ``out``.
        sums: int64 (4, n), what is added up afterwards: index into ``out``, index into ``scratch`` of the first run,
            number of runs, distance from one to the next.
        tensors: int64 (tensor, 8), the tensors by group: end and first of their blocks, elements of the last one;
            address and code; and for updates, where the tensors are parameters, address of the snapshots, address and
            code of the gradients. Codes are those of `loads` but for the length: 0..3 where the tensor, and its
            snapshot, begin at a multiple of 16 bytes.
        out: float32 (plan.total,), at a multiple of 16 bytes; all of it is written.
        scratch: float32, of the length that goes with the tables.
        partials: float64 (rows, 3): a row for each program, one table after the other, then for each copy: sum x^2,
            max |x|, number of inf and NaN; or sum x^2, sum u^2, sum g u.
        update: sketch the update, and renew the snapshot.
        wide: read float64 too, and compute moments in float64.
        scale: float64 (), what the gradient is multiplied by.
    """
    row = 0
    options = {"WIDE": wide, "UPDATE": update, "SCALED": scale is not None}
    registers = nvidia_options(maxnreg=_max_registers(update, wide))
    for tile, table in zip(SKETCH_TILES, programs, strict=True):
        n_programs = table.shape[1]
        if n_programs > 0:
            _sketch_kernel[(n_programs,)](
                table, tensors, scale, out, scratch, partials[row:], n_programs,
                TILE=tile, CODE=-1, **options, num_warps=_WARPS[tile], **registers,
            )  # fmt: skip
        row += n_programs
    launch_copies(copies, tensors, scale, out, partials[row:], update=update, wide=wide)
    launch_sums(sums, scratch, out)


def sketch_variants():
    """What is compiled ahead of time: the kernels that run, and for each dtype the path of whole quads alone."""
    signature = {
        "program_ptr": "*i64", "tensor_ptr": "*i64", "scale_ptr": "*fp64", "out_ptr": "*fp32", "scratch_ptr": "*fp32",
        "partials_ptr": "*fp64", "n_programs": "i32",
    }  # fmt: skip
    common = {"divisible_by_16": ["out_ptr", "scratch_ptr"], "options": {}, "elements": 1, "min_vector_bytes": 0,
              "max_instructions_per_element": None, "loop": False}  # fmt: skip
    counted = [
        common | {
            "name": f"sketch-{DTYPE_NAMES[code]}", "kernel": _sketch_kernel, "signature": signature, "num_warps": 2,
            "constexprs": {"TILE": 1024, "CODE": code, "WIDE": False, "UPDATE": False, "SCALED": False},
            "options": {"maxnreg": _max_registers(False, False)}, "elements": 4 * 1024, "loop": True,
            "min_vector_bytes": 16,
            "max_instructions_per_element": 9 if code == 2 else None,
        }
        for code in (0, 2, 3)
    ]  # fmt: skip
    run = [
        common | {
            "name": f"sketch-{tile}{'-update' * update}{'-wide' * wide}", "kernel": _sketch_kernel,
            "signature": signature, "num_warps": _WARPS[tile],
            "options": {"maxnreg": _max_registers(update, wide)},
            "constexprs": {"TILE": tile, "CODE": -1, "WIDE": wide, "UPDATE": update, "SCALED": True},
        }
        for tile in SKETCH_TILES
        for update, wide in ((False, False), (True, False), (False, True), (True, True))
    ]  # fmt: skip
    return [*counted, *run]

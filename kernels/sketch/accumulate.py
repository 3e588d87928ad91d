"""Adding up the quads of a tile: which blocks a quad has, what of each belongs to the tile, and with what signs.

Sums and elements are held as ``low`` and ``high``, [GROUPS, 4] each: the even and the odd of every eight. Moments of
what is read are a tuple: three sums [GROUPS], float64, and the largest magnitudes [GROUPS, 4]. A ``tile`` is its first
bucket, and the buckets, blocks and seed of its group; a ``tensor``, what `find_tensor` returns. Terms are those of
`sketch`.
"""

import triton
import triton.language as tl

from fastgeom.kernels.loads import ABSENT, BFLOAT16, FLOAT16, FLOAT32, SHORT, item_bytes, unpack
from fastgeom.kernels.sketch.block_io import load_words, read_piece, write_piece

TENSOR_COLUMNS = tl.constexpr(8)
"""Of the table of tensors: see `launch_sketch`."""
ORDER_STREAM = tl.constexpr(0x85EBCA6B)

_FLIP_STREAM = tl.constexpr(0x9E3779B9)
_SIGN, _BOTH_SIGNS = tl.constexpr(-(1 << 31)), tl.constexpr(-0x7FFF8000)
_ALL_FLOAT32, _ALL_BFLOAT16, _ALL_FLOAT16, _NOTHING = (tl.constexpr(kinds) for kinds in (1, 4, 8, 15))
"""As what dtypes the blocks of a quad may be read: bit 1 << code. A block without elements for the tile as any."""


@triton.jit
def mix32(x):
    """A random word for each uint32."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def exchange(low, high, mask):
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
def find_tensor(place, tensor_ptr):
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
        tensor = find_tensor(place, tensor_ptr)
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
    flip = mix32(b.to(tl.uint32) ^ seed ^ _FLIP_STREAM).to(tl.int32) & (buckets - 8)
    length = tl.where(b == tensor[1] - 1, tensor[3], buckets)
    positions = (bucket + tl.arange(0, TILE // 8) * 8) ^ flip
    begin = (b - tensor[2]).to(tl.uint32).to(tl.uint64) * buckets.to(tl.uint32)
    return begin.to(tl.int64), positions, length, length - (bucket ^ (flip & -TILE))


@triton.jit
def add_quad(low, high, moments, tensor, tensor_ptr, tile, j, q, order, signs, CODE: tl.constexpr):
    """Add the four blocks of a quad: all at once where they lie inside of one aligned tensor, as most do.

    With a CODE, which is for counting instructions alone, nothing but such quads of that dtype is added.
    """
    if 32 * j >= tensor[1]:  # one step at most: a loop here would be in the way of the loads
        tensor = find_tensor(tensor[0] + 1, tensor_ptr)
    code = tl.where(32 * j + 32 < tensor[1], tensor[5], ABSENT)  # none of them is the tensor's last either
    if CODE >= 0:
        if code == CODE:
            low, high, moments = _add_inside(low, high, moments, tensor, tile, j, q, order, signs, CODE)
    elif code == BFLOAT16:
        low, high, moments = _add_inside(low, high, moments, tensor, tile, j, q, order, signs, BFLOAT16)
    elif code == FLOAT16:
        low, high, moments = _add_inside(low, high, moments, tensor, tile, j, q, order, signs, FLOAT16)
    elif code == FLOAT32:
        low, high, moments = _add_inside(low, high, moments, tensor, tile, j, q, order, signs, FLOAT32)
    else:
        low, high, moments, tensor = _add_mixed(low, high, moments, tensor, tensor_ptr, tile, j, q, order, signs)
    return low, high, moments, tensor


@triton.jit
def _add_inside(low, high, moments, tensor, tile, j, q, order, signs, CODE: tl.constexpr):
    """Add four blocks inside of one aligned tensor."""
    words = ()
    for t in tl.static_range(4):
        begin, positions, _, _ = _piece(_block(j, t, q, order), tensor, tile, 8 * low.shape[0])
        words += (load_words(tensor[4], begin, positions, None, CODE),)
    return _add_words(low, high, moments, words, signs, CODE)


@triton.jit
def _add_mixed(low, high, moments, tensor, tensor_ptr, tile, j, q, order, signs):
    """Add four blocks of several tensors: all at once where they are whole, aligned and of one dtype."""
    TILE: tl.constexpr = 8 * low.shape[0]
    start = tensor
    kinds = _NOTHING
    addresses, begins, positions, there = (), (), (), ()
    for t in tl.static_range(4):
        b = _block(j, t, q, order)
        known = b < tile[2]
        if known & (b >= tensor[1]):  # one step at most, as above
            tensor = find_tensor(tensor[0] + 1, tensor_ptr)
        begin, within, _, left = _piece(b, tensor, tile, TILE)
        present = known & (left > 0)
        whole = (left >= TILE) & (tensor[5] < SHORT)
        kind = tl.where(present, tl.where(whole, 1 << tensor[5], 0), _NOTHING)
        kinds = kinds & tl.where(known & (b >= tensor[1]), 0, kind)
        addresses += (tensor[4],)
        begins += (begin,)
        positions += (within,)
        there += (present,)
    if kinds == _ALL_BFLOAT16:
        low, high, moments = _add_whole(low, high, moments, addresses, begins, positions, there, signs, BFLOAT16)
    elif kinds == _ALL_FLOAT16:
        low, high, moments = _add_whole(low, high, moments, addresses, begins, positions, there, signs, FLOAT16)
    elif kinds == _ALL_FLOAT32:
        low, high, moments = _add_whole(low, high, moments, addresses, begins, positions, there, signs, FLOAT32)
    elif kinds == 0:
        low, high, moments, tensor = add_any(
            low, high, moments, start, tensor_ptr, tile, j, q, order, signs, False, False
        )
    return low, high, moments, tensor


@triton.jit
def _add_whole(low, high, moments, addresses, begins, positions, there, signs, CODE: tl.constexpr):
    """Add four pieces, each whole and aligned or not there at all."""
    words = ()
    for t in tl.static_range(4):
        words += (load_words(addresses[t], begins[t], positions[t], there[t], CODE),)
    return _add_words(low, high, moments, words, signs, CODE)


@triton.jit
def _add_words(low, high, moments, words, signs, CODE: tl.constexpr):
    """Add the pieces of a quad, and take their moments."""
    squares = tl.zeros([low.shape[0], 4], tl.float32)
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
def add_any(
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
def count_nonfinite(
    tensor_ptr, tile, first_quad, end_quad, place, first_place,
    GROUPS: tl.constexpr, WIDE: tl.constexpr, CODE: tl.constexpr,
):  # fmt: skip
    """Number of inf and NaN in a run of quads, all of which are read again."""
    TILE: tl.constexpr = 8 * GROUPS
    found = tl.zeros([GROUPS, 4], tl.int32)
    rounds = (tile[2] + 31) // 32
    tensor = find_tensor(place, tensor_ptr)
    for quad in range(first_quad, end_quad):
        q, j = quad // rounds, quad % rounds
        order = mix32(tl.cast(j, tl.uint32) ^ tile[3] ^ ORDER_STREAM)
        if j == 0:
            tensor = find_tensor(first_place, tensor_ptr)
        for t in range(4):
            b = _block(j, t, q, order)
            if b < tile[2]:
                tensor = _advance(b, tensor, tensor_ptr)
                begin, positions, length, left = _piece(b, tensor, tile, TILE)
                low, high = read_piece(tensor[4], tensor[5], (begin, positions, length, left < TILE), WIDE, CODE)
                found += (tl.abs(low) < float("inf")).to(tl.int32) ^ 1
                found += (tl.abs(high) < float("inf")).to(tl.int32) ^ 1
    return tl.sum(found)

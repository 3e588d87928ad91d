"""Adding batches of four blocks to the sums of a tile: which blocks, which of their elements, and with what signs.

Sums and elements are held as ``low`` and ``high``, [OCTETS, 4] each: the even and the odd of every octet. Moments of
what is read are a tuple: three sums [OCTETS], float64, and the largest magnitudes [OCTETS, 4]. A ``tile`` is its first
bucket, and the buckets, blocks and seed of its group; a ``tensor``, what `load_tensor` returns. Terms are those of
`sketch`.
"""

import triton
import triton.language as tl

from fastgeom.kernels.loads import ABSENT, BFLOAT16, FLOAT16, FLOAT32, SHORT, item_bytes, unpack
from fastgeom.kernels.sketch.block_io import load_words, read_block, write_block
from fastgeom.kernels.sketch.shared import ORDER_STREAM, TENSOR_COLUMNS, mix32

_FLIP_STREAM = tl.constexpr(0x9E3779B9)
_SIGN, _BOTH_SIGNS = tl.constexpr(-(1 << 31)), tl.constexpr(-0x7FFF8000)
_ALL_FLOAT32, _ALL_BFLOAT16, _ALL_FLOAT16, _ANY_DTYPE = (tl.constexpr(dtypes) for dtypes in (1, 4, 8, 15))
"""The dtypes as which blocks may be read, bit 1 << code: any where a block has no elements for the tile."""


@triton.jit
def exchange(low, high, mask):
    """Sums whose elements k = 2 × word + half become those of elements k XOR mask."""
    OCTETS: tl.constexpr = low.shape[0]
    half, near, far = (mask & 1) != 0, (mask & 2) != 0, (mask & 4) != 0
    low, high = tl.where(half, high, low), tl.where(half, low, high)
    return _exchange_words(low, near, far, OCTETS), _exchange_words(high, near, far, OCTETS)


@triton.jit
def _exchange_words(x, near, far, OCTETS: tl.constexpr):
    first, second = tl.split(x.reshape([OCTETS, 2, 2]))
    x = tl.join(tl.where(near, second, first), tl.where(near, first, second))
    first, second = tl.split(x.permute(0, 2, 1))
    x = tl.join(tl.where(far, second, first), tl.where(far, first, second))
    return x.permute(0, 2, 1).reshape([OCTETS, 4])


@triton.jit
def load_tensor(index, tensor_ptr):
    """A tensor of the table: index, end and first of its blocks, elements of the last one, address and code."""
    row_ptr = tensor_ptr + TENSOR_COLUMNS * index.to(tl.int64)
    end, first = tl.load(row_ptr).to(tl.int32), tl.load(row_ptr + 1).to(tl.int32)
    tail = tl.load(row_ptr + 2).to(tl.int32)
    return index, end, first, tail, tl.load(row_ptr + 3), tl.load(row_ptr + 4).to(tl.int32)


@triton.jit
def _find_tensor(b, tensor, tensor_ptr):
    """The tensor that block b lies in, which is ``tensor`` or a later one."""
    if b >= tensor[1]:
        index = tensor[0]
        while b >= tl.load(tensor_ptr + TENSOR_COLUMNS * index.to(tl.int64)):
            index += 1
        tensor = load_tensor(index, tensor_ptr)
    return tensor


@triton.jit
def _block_number(j, t, q, order):
    """The number of the block of a batch whose i is 4 j + t."""
    return 32 * j + 8 * t + (q ^ (order >> (3 * t)).to(tl.int32) & 7)


@triton.jit
def _block_elements(b, tensor, tile, TILE: tl.constexpr):
    """The elements of block b that belong to a tile.

    Returns:
        The block's first element in its tensor; the positions in the block at which the tile's octets begin; number of
        elements of the block; and how many of them there are from the tile's first position on.
    """
    bucket, buckets, _, seed = tile
    flip = mix32(b.to(tl.uint32) ^ seed ^ _FLIP_STREAM).to(tl.int32) & (buckets - 8)
    length = tl.where(b == tensor[1] - 1, tensor[3], buckets)
    positions = (bucket + tl.arange(0, TILE // 8) * 8) ^ flip
    begin = (b - tensor[2]).to(tl.uint32).to(tl.uint64) * buckets.to(tl.uint32)
    return begin.to(tl.int64), positions, length, length - (bucket ^ (flip & -TILE))


@triton.jit
def add_batch(low, high, moments, tensor, tensor_ptr, tile, j, q, order, signs, CODE: tl.constexpr):
    """Add the four blocks of a batch: all at once where they lie inside of one aligned tensor, as most do.

    With a CODE, which is for counting instructions alone, nothing but such batches of that dtype is added.
    """
    if 32 * j >= tensor[1]:  # one step at most: a loop here would be in the way of the loads
        tensor = load_tensor(tensor[0] + 1, tensor_ptr)
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
        begin, positions, _, _ = _block_elements(_block_number(j, t, q, order), tensor, tile, 8 * low.shape[0])
        words += (load_words(tensor[4], begin, positions, None, CODE),)
    return _add_words(low, high, moments, words, signs, CODE)


@triton.jit
def _add_mixed(low, high, moments, tensor, tensor_ptr, tile, j, q, order, signs):
    """Add four blocks of several tensors: all at once where they are full, aligned and of one dtype."""
    TILE: tl.constexpr = 8 * low.shape[0]
    start = tensor
    dtypes = _ANY_DTYPE
    addresses, begins, positions, masks = (), (), (), ()
    for t in tl.static_range(4):
        b = _block_number(j, t, q, order)
        exists = b < tile[2]
        if exists & (b >= tensor[1]):  # one step at most, as above
            tensor = load_tensor(tensor[0] + 1, tensor_ptr)
        begin, within, _, remaining = _block_elements(b, tensor, tile, TILE)
        present = exists & (remaining > 0)
        full = (remaining >= TILE) & (tensor[5] < SHORT)
        dtype = tl.where(present, tl.where(full, 1 << tensor[5], 0), _ANY_DTYPE)
        dtypes = dtypes & tl.where(exists & (b >= tensor[1]), 0, dtype)
        addresses += (tensor[4],)
        begins += (begin,)
        positions += (within,)
        masks += (present,)
    if dtypes == _ALL_BFLOAT16:
        low, high, moments = _add_full(low, high, moments, addresses, begins, positions, masks, signs, BFLOAT16)
    elif dtypes == _ALL_FLOAT16:
        low, high, moments = _add_full(low, high, moments, addresses, begins, positions, masks, signs, FLOAT16)
    elif dtypes == _ALL_FLOAT32:
        low, high, moments = _add_full(low, high, moments, addresses, begins, positions, masks, signs, FLOAT32)
    elif dtypes == 0:
        low, high, moments, tensor = add_any(
            low, high, moments, start, tensor_ptr, tile, j, q, order, signs, False, False
        )
    return low, high, moments, tensor


@triton.jit
def _add_full(low, high, moments, addresses, begins, positions, masks, signs, CODE: tl.constexpr):
    """Add four blocks, each full and aligned or without elements for the tile."""
    words = ()
    for t in tl.static_range(4):
        words += (load_words(addresses[t], begins[t], positions[t], masks[t], CODE),)
    return _add_words(low, high, moments, words, signs, CODE)


@triton.jit
def _add_words(low, high, moments, words, signs, CODE: tl.constexpr):
    """Add the words of a batch, and take their moments."""
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
    """[OCTETS, 4] int32: the signs of the words of a block, in bit 31 for the upper halves and 15 for the lower."""
    return (signs[:, None] << (15 - first - tl.arange(0, 4))[None, :].to(tl.uint32)).to(tl.int32, bitcast=True)


@triton.jit
def _negate(x, sign):
    """``x``, negated where bit 31 of ``sign`` is set."""
    return (x.to(tl.int32, bitcast=True) ^ (sign & _SIGN)).to(tl.float32, bitcast=True)


@triton.jit
def add_any(low, high, moments, tensor, tensor_ptr, tile, j, q, order, signs, WIDE: tl.constexpr, UPDATE: tl.constexpr):
    """Add the four blocks of a batch one after the other, of any dtypes and numbers of elements."""
    TILE: tl.constexpr = 8 * low.shape[0]
    for t in range(4):
        b = _block_number(j, t, q, order)
        if b < tile[2]:
            tensor = _find_tensor(b, tensor, tensor_ptr)
            begin, positions, length, remaining = _block_elements(b, tensor, tile, TILE)
            if remaining > 0:
                block = (begin, positions, length, remaining < TILE)
                x_low, x_high = read_block(tensor[4], tensor[5], block, WIDE)
                if UPDATE:
                    x_low, x_high, moments = _update(x_low, x_high, moments, tensor, tensor_ptr, block, WIDE)
                else:
                    squares = tl.sum(x_low * x_low + x_high * x_high, axis=1).to(tl.float64)
                    largest = tl.maximum(tl.maximum(moments[3], tl.abs(x_low)), tl.abs(x_high))
                    moments = (moments[0] + squares, moments[1], moments[2], largest)
                sign = _sign_bits(signs, 4 * t)
                low += _negate(x_low.to(tl.float32), sign << 16)
                high += _negate(x_high.to(tl.float32), sign)
    return low, high, moments, tensor


@triton.jit
def _update(x_low, x_high, moments, tensor, tensor_ptr, block, WIDE: tl.constexpr):
    """The update of a block of a parameter, and its moments added to the others; the snapshot is renewed."""
    row_ptr = tensor_ptr + TENSOR_COLUMNS * tensor[0].to(tl.int64)
    snapshot, gradient, gradient_code = tl.load(row_ptr + 5), tl.load(row_ptr + 6), tl.load(row_ptr + 7).to(tl.int32)
    old_low, old_high = read_block(snapshot, tensor[5], block, WIDE)
    g_low, g_high = read_block(gradient, gradient_code, block, WIDE)
    u_low, u_high = x_low - old_low, x_high - old_high
    tl.debug_barrier()  # the thread that writes an element may not be the one that reads it
    write_block(snapshot, tensor[5], block, x_low, x_high, WIDE)
    x_sq = tl.sum(x_low * x_low + x_high * x_high, axis=1).to(tl.float64)
    u_sq = tl.sum(u_low * u_low + u_high * u_high, axis=1).to(tl.float64)
    g_dot_u = tl.sum(g_low * u_low + g_high * u_high, axis=1).to(tl.float64)
    return u_low, u_high, (moments[0] + x_sq, moments[1] + u_sq, moments[2] + g_dot_u, moments[3])


@triton.jit
def count_nonfinite(
    tensor_ptr,
    tile,
    first_batch,
    end_batch,
    index,
    first_tensor,
    OCTETS: tl.constexpr,
    WIDE: tl.constexpr,
    CODE: tl.constexpr,
):
    """Number of inf and NaN in the batches from ``first_batch`` to before ``end_batch``, which are read again."""
    TILE: tl.constexpr = 8 * OCTETS
    count = tl.zeros([OCTETS, 4], tl.int32)
    rounds = (tile[2] + 31) // 32
    tensor = load_tensor(index, tensor_ptr)
    for batch in range(first_batch, end_batch):
        q, j = batch // rounds, batch % rounds
        order = mix32(tl.cast(j, tl.uint32) ^ tile[3] ^ ORDER_STREAM)
        if j == 0:
            tensor = load_tensor(first_tensor, tensor_ptr)
        for t in range(4):
            b = _block_number(j, t, q, order)
            if b < tile[2]:
                tensor = _find_tensor(b, tensor, tensor_ptr)
                begin, positions, length, remaining = _block_elements(b, tensor, tile, TILE)
                low, high = read_block(tensor[4], tensor[5], (begin, positions, length, remaining < TILE), WIDE, CODE)
                count += (tl.abs(low) < float("inf")).to(tl.int32) ^ 1
                count += (tl.abs(high) < float("inf")).to(tl.int32) ^ 1
    return tl.sum(count)

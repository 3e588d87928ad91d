"""Reading and writing tiles of the ring, and a gradient's elements in the order in which a tile holds them.

A *word* of the ring is one element, or two of bfloat16 in one int32: one in its *low* half and one in its *high* half.
A *tile* is [WARPS, WORDS] words, one after another, of which every lane holds 16 bytes. A unit is TILES of them: a
tuple of one tensor a tile, or of two where a word is two elements, the elements 2w in the low halves of the words w and
then the elements 2w + 1 in the high ones. In this arrangement a gradient of another dtype is read, and written, too, so
that its elements meet those of the ring in the same lanes.
"""

import triton
import triton.language as tl

from fastgeom.kernels.loads import (
    ABSENT,
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    SHORT,
    aligned_pointer,
    compute_type,
    element_type,
    item_bytes,
    load_tile,
    store_tile,
    unpack,
    word_pointer,
)


@triton.constexpr_function
def halves(ring):
    """Elements in a word of the ring: two of bfloat16, which are cheapest to take apart by hand, or one."""
    return 2 if ring == BFLOAT16 else 1


@triton.constexpr_function
def _stores(ring, wide, code):
    """Whether a ring of dtype ``ring`` may store gradients of dtype ``code``: it has no more bits than they."""
    stored = {0: (0, 1), 1: (1,), 2: (0, 1, 2, 3), 3: (3,)}[ring]
    return code in stored and (wide or code != 1)


@triton.jit
def read_gradient(address, code, length, word, RING: tl.constexpr, WIDE: tl.constexpr, TILES: tl.constexpr):
    """The elements of a unit, wherever they lie, as `read` returns them."""
    if _stores(RING, WIDE, FLOAT32) and code == FLOAT32:
        values = read(address, length, word, FLOAT32, RING, WIDE, TILES)
    elif _stores(RING, WIDE, FLOAT64) and code == FLOAT64:
        values = read(address, length, word, FLOAT64, RING, WIDE, TILES)
    elif _stores(RING, WIDE, BFLOAT16) and code == BFLOAT16:
        values = read(address, length, word, BFLOAT16, RING, WIDE, TILES)
    elif _stores(RING, WIDE, FLOAT16) and code == FLOAT16:
        values = read(address, length, word, FLOAT16, RING, WIDE, TILES)
    elif _stores(RING, WIDE, FLOAT32) and code == FLOAT32 + SHORT:
        values = read(address, length, word, FLOAT32 + SHORT, RING, WIDE, TILES)
    elif _stores(RING, WIDE, FLOAT64) and code == FLOAT64 + SHORT:
        values = read(address, length, word, FLOAT64 + SHORT, RING, WIDE, TILES)
    elif _stores(RING, WIDE, BFLOAT16) and code == BFLOAT16 + SHORT:
        values = read(address, length, word, BFLOAT16 + SHORT, RING, WIDE, TILES)
    elif _stores(RING, WIDE, FLOAT16) and code == FLOAT16 + SHORT:
        values = read(address, length, word, FLOAT16 + SHORT, RING, WIDE, TILES)
    else:
        values = read(address, length, word, ABSENT, RING, WIDE, TILES)
    return values


@triton.jit
def write_gradient(address, code, values, word, RING: tl.constexpr, WIDE: tl.constexpr, TILES: tl.constexpr):
    """Write a full aligned unit of the dtype ``code``."""
    if _stores(RING, WIDE, FLOAT32) and code == FLOAT32:
        write(address, values, word, FLOAT32, RING, WIDE, TILES)
    elif _stores(RING, WIDE, FLOAT64) and code == FLOAT64:
        write(address, values, word, FLOAT64, RING, WIDE, TILES)
    elif _stores(RING, WIDE, FLOAT16) and code == FLOAT16:
        write(address, values, word, FLOAT16, RING, WIDE, TILES)


@triton.jit
def read(
    address,
    length,
    word,
    CODE: tl.constexpr,
    RING: tl.constexpr,
    WIDE: tl.constexpr,
    TILES: tl.constexpr,
    EVICT_FIRST: tl.constexpr = False,
):
    """A unit's elements as a tuple of [WARPS, WORDS], arranged as in the words of the ring.

    One tensor a tile, or two where a word is two elements: first those in the lower halves, then the others.
    """
    HALVES: tl.constexpr = halves(RING)
    WORDS: tl.constexpr = word.shape[0] * word.shape[1]
    policy: tl.constexpr = "evict_first" if EVICT_FIRST else ""
    values = ()
    if HALVES == 2 and CODE < SHORT and item_bytes(CODE) == 2:
        pointers = word_pointer(address, CODE) + word
        for tile in tl.static_range(TILES):
            values += unpack(tl.load(pointers + tile * WORDS, eviction_policy=policy), CODE, WIDE)
    elif HALVES == 2 and CODE == FLOAT32:
        for tile in tl.static_range(TILES):
            low, high = _load_halves(word_pointer(address, CODE) + tile * 2 * WORDS, word)
            values += (low.to(compute_type(WIDE)), high.to(compute_type(WIDE)))
    elif HALVES == 1 and CODE < SHORT:
        pointers = aligned_pointer(address, 0, CODE) + word
        for tile in tl.static_range(TILES):
            values += (tl.load(pointers + tile * WORDS, eviction_policy=policy).to(compute_type(WIDE)),)
    else:
        for i in tl.static_range(TILES * HALVES):
            elements = (i // HALVES * WORDS + word) * HALVES + i % HALVES
            values += (load_tile(address, CODE, 0, elements, length, CODE, WIDE),)
    return values


@triton.jit
def write(address, values, word, CODE: tl.constexpr, RING: tl.constexpr, WIDE: tl.constexpr, TILES: tl.constexpr):
    """Write a full aligned unit of the dtype CODE, as `read` returns it, rounded."""
    HALVES: tl.constexpr = halves(RING)
    WORDS: tl.constexpr = word.shape[0] * word.shape[1]
    if HALVES == 2 and item_bytes(CODE) == 2:
        for tile in tl.static_range(TILES):
            words = _pack(values[2 * tile], values[2 * tile + 1], CODE)
            tl.store(word_pointer(address, CODE) + tile * WORDS + word, words)
    elif HALVES == 2 and CODE == FLOAT32:
        for tile in tl.static_range(TILES):
            low, high = values[2 * tile].to(tl.float32), values[2 * tile + 1].to(tl.float32)
            _store_halves(word_pointer(address, CODE) + tile * 2 * WORDS, low, high, word)
    else:
        for i in tl.static_range(TILES * HALVES):
            elements = (i // HALVES * WORDS + word) * HALVES + i % HALVES
            store_tile(address, CODE, 0, elements, 0, values[i], CODE, WIDE)


@triton.jit
def _pack(low, high, CODE: tl.constexpr):
    """The inverse of `unpack`: rounds to nearest even, by way of float32 as torch does."""
    low_bits = low.to(tl.float32).to(element_type(CODE)).to(tl.int16, bitcast=True)
    high_bits = high.to(tl.float32).to(element_type(CODE)).to(tl.int16, bitcast=True)
    return (low_bits.to(tl.int32) & 0xFFFF) | (high_bits.to(tl.int32) << 16)


@triton.jit
def _float_offsets(word):
    """[WARPS x WORDS / 4, 4]: offsets of the first four float32 of each four words of a tile; four more follow them.

    Four a lane: of three axes the compiler might take the warps for the one along which lanes go.
    """
    return tl.arange(0, word.shape[0] * word.shape[1] // 4)[:, None] * 8 + tl.arange(0, 4)[None, :]


@triton.jit
def _load_halves(pointer, word):
    """The float32 elements 2w, and 2w + 1, of the words w of a tile, in loads of 16 bytes."""
    offsets = _float_offsets(word)
    SHAPE: tl.constexpr = [offsets.shape[0], 2, 2]
    low_0, high_0 = tl.split(tl.load(pointer + offsets).reshape(SHAPE))
    low_1, high_1 = tl.split(tl.load(pointer + offsets + 4).reshape(SHAPE))
    low = tl.join(low_0, low_1).permute(0, 2, 1).reshape(word.shape)
    high = tl.join(high_0, high_1).permute(0, 2, 1).reshape(word.shape)
    return low, high


@triton.jit
def _store_halves(pointer, low, high, word):
    """The inverse of `_load_halves`."""
    offsets = _float_offsets(word)
    SHAPE: tl.constexpr = [offsets.shape[0], 2, 2]
    low_0, low_1 = tl.split(low.reshape(SHAPE).permute(0, 2, 1))
    high_0, high_1 = tl.split(high.reshape(SHAPE).permute(0, 2, 1))
    tl.store(pointer + offsets, tl.join(low_0, high_0).reshape(offsets.shape))
    tl.store(pointer + offsets + 4, tl.join(low_1, high_1).reshape(offsets.shape))

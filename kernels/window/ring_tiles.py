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
def _holds(ring, wide, code):
    """Whether a ring of this dtype may hold gradients of that: it has no more bits than they."""
    held = {0: (0, 1), 1: (1,), 2: (0, 1, 2, 3), 3: (3,)}[ring]
    return code in held and (wide or code != 1)


@triton.jit
def read_gradient(address, code, length, place, RING: tl.constexpr, WIDE: tl.constexpr, TILES: tl.constexpr):
    """The elements of a unit, wherever they lie, as `read` returns them."""
    if _holds(RING, WIDE, FLOAT32) and code == FLOAT32:
        parts = read(address, length, place, FLOAT32, RING, WIDE, TILES)
    elif _holds(RING, WIDE, FLOAT64) and code == FLOAT64:
        parts = read(address, length, place, FLOAT64, RING, WIDE, TILES)
    elif _holds(RING, WIDE, BFLOAT16) and code == BFLOAT16:
        parts = read(address, length, place, BFLOAT16, RING, WIDE, TILES)
    elif _holds(RING, WIDE, FLOAT16) and code == FLOAT16:
        parts = read(address, length, place, FLOAT16, RING, WIDE, TILES)
    elif _holds(RING, WIDE, FLOAT32) and code == FLOAT32 + SHORT:
        parts = read(address, length, place, FLOAT32 + SHORT, RING, WIDE, TILES)
    elif _holds(RING, WIDE, FLOAT64) and code == FLOAT64 + SHORT:
        parts = read(address, length, place, FLOAT64 + SHORT, RING, WIDE, TILES)
    elif _holds(RING, WIDE, BFLOAT16) and code == BFLOAT16 + SHORT:
        parts = read(address, length, place, BFLOAT16 + SHORT, RING, WIDE, TILES)
    elif _holds(RING, WIDE, FLOAT16) and code == FLOAT16 + SHORT:
        parts = read(address, length, place, FLOAT16 + SHORT, RING, WIDE, TILES)
    else:
        parts = read(address, length, place, ABSENT, RING, WIDE, TILES)
    return parts


@triton.jit
def write_gradient(address, code, parts, place, RING: tl.constexpr, WIDE: tl.constexpr, TILES: tl.constexpr):
    """Write a whole aligned unit of the dtype ``code``."""
    if _holds(RING, WIDE, FLOAT32) and code == FLOAT32:
        write(address, parts, place, FLOAT32, RING, WIDE, TILES)
    elif _holds(RING, WIDE, FLOAT64) and code == FLOAT64:
        write(address, parts, place, FLOAT64, RING, WIDE, TILES)
    elif _holds(RING, WIDE, FLOAT16) and code == FLOAT16:
        write(address, parts, place, FLOAT16, RING, WIDE, TILES)


@triton.jit
def read(
    address, length, place, CODE: tl.constexpr, RING: tl.constexpr, WIDE: tl.constexpr, TILES: tl.constexpr,
    EVICT_FIRST: tl.constexpr = False,
):  # fmt: skip
    """A unit's elements as a tuple of [WARPS, WORDS], arranged as in the words of the ring.

    One tensor a tile, or two where a word is two elements: first those in the lower halves, then the others.
    """
    HALVES: tl.constexpr = halves(RING)
    WORDS: tl.constexpr = place.shape[0] * place.shape[1]
    policy: tl.constexpr = "evict_first" if EVICT_FIRST else ""
    parts = ()
    if HALVES == 2 and CODE < SHORT and item_bytes(CODE) == 2:
        pointers = word_pointer(address, CODE) + place
        for tile in tl.static_range(TILES):
            parts += unpack(tl.load(pointers + tile * WORDS, eviction_policy=policy), CODE, WIDE)
    elif HALVES == 2 and CODE == FLOAT32:
        for tile in tl.static_range(TILES):
            low, high = _load_halves(word_pointer(address, CODE) + tile * 2 * WORDS, place)
            parts += (low.to(compute_type(WIDE)), high.to(compute_type(WIDE)))
    elif HALVES == 1 and CODE < SHORT:
        pointers = aligned_pointer(address, 0, CODE) + place
        for tile in tl.static_range(TILES):
            parts += (tl.load(pointers + tile * WORDS, eviction_policy=policy).to(compute_type(WIDE)),)
    else:
        for part in tl.static_range(TILES * HALVES):
            elements = (part // HALVES * WORDS + place) * HALVES + part % HALVES
            parts += (load_tile(address, CODE, 0, elements, length, CODE, WIDE),)
    return parts


@triton.jit
def write(address, parts, place, CODE: tl.constexpr, RING: tl.constexpr, WIDE: tl.constexpr, TILES: tl.constexpr):
    """Write a whole aligned unit of the dtype CODE from what `read` returned, rounded."""
    HALVES: tl.constexpr = halves(RING)
    WORDS: tl.constexpr = place.shape[0] * place.shape[1]
    if HALVES == 2 and item_bytes(CODE) == 2:
        for tile in tl.static_range(TILES):
            words = _pack(parts[2 * tile], parts[2 * tile + 1], CODE)
            tl.store(word_pointer(address, CODE) + tile * WORDS + place, words)
    elif HALVES == 2 and CODE == FLOAT32:
        for tile in tl.static_range(TILES):
            low, high = parts[2 * tile].to(tl.float32), parts[2 * tile + 1].to(tl.float32)
            _store_halves(word_pointer(address, CODE) + tile * 2 * WORDS, low, high, place)
    else:
        for part in tl.static_range(TILES * HALVES):
            elements = (part // HALVES * WORDS + place) * HALVES + part % HALVES
            store_tile(address, CODE, 0, elements, 0, parts[part], CODE, WIDE)


@triton.jit
def _pack(low, high, CODE: tl.constexpr):
    """The inverse of `unpack`: rounds to nearest even, by way of float32 as torch does."""
    low_bits = low.to(tl.float32).to(element_type(CODE)).to(tl.int16, bitcast=True)
    high_bits = high.to(tl.float32).to(element_type(CODE)).to(tl.int16, bitcast=True)
    return (low_bits.to(tl.int32) & 0xFFFF) | (high_bits.to(tl.int32) << 16)


@triton.jit
def _quads(place):
    """[WARPS x WORDS / 4, 4]: where the first four float32 of each four words of a tile lie; four more follow them.

    A quad a lane: of three axes the compiler might take the warps for the one along which lanes go.
    """
    return tl.arange(0, place.shape[0] * place.shape[1] // 4)[:, None] * 8 + tl.arange(0, 4)[None, :]


@triton.jit
def _load_halves(pointer, place):
    """The float32 elements 2w, and 2w + 1, of the words w of a tile, in loads of 16 bytes."""
    quads = _quads(place)
    SHAPE: tl.constexpr = [quads.shape[0], 2, 2]
    low_0, high_0 = tl.split(tl.load(pointer + quads).reshape(SHAPE))
    low_1, high_1 = tl.split(tl.load(pointer + quads + 4).reshape(SHAPE))
    low = tl.join(low_0, low_1).permute(0, 2, 1).reshape(place.shape)
    high = tl.join(high_0, high_1).permute(0, 2, 1).reshape(place.shape)
    return low, high


@triton.jit
def _store_halves(pointer, low, high, place):
    """The inverse of `_load_halves`."""
    quads = _quads(place)
    SHAPE: tl.constexpr = [quads.shape[0], 2, 2]
    low_0, low_1 = tl.split(low.reshape(SHAPE).permute(0, 2, 1))
    high_0, high_1 = tl.split(high.reshape(SHAPE).permute(0, 2, 1))
    tl.store(pointer + quads, tl.join(low_0, high_0).reshape(quads.shape))
    tl.store(pointer + quads + 4, tl.join(low_1, high_1).reshape(quads.shape))

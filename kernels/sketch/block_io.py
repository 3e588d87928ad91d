"""Reading and writing the elements of a block that belong to one tile of buckets, of any dtype and alignment.

They come in octets, eight neighbours each, and are held as the even and the odd ones, [OCTETS, 4] each.
A ``block`` is given as a tuple

    begin       the block's first element in its tensor
    positions   where in the block the tile's octets begin: in order, but for an XOR with a multiple of eight
    length      number of elements of the block
    short       whether the block has fewer elements for the tile than the tile has buckets

Codes of dtypes are those of `loads`, and as there full aligned tiles are read 16 bytes at a time.
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
    compute_type,
    element_type,
    item_bytes,
    unpack,
)


@triton.jit
def load_words(address, begin, positions, mask, CODE: tl.constexpr):
    """The words of a full aligned tile: [OCTETS, 4] int32, or the even and the odd elements, float32."""
    OCTETS: tl.constexpr = positions.shape[0]
    if item_bytes(CODE) == 2:
        words = _load(_vectors(address, begin, positions, 0, CODE), mask)
    else:
        first = _load(_vectors(address, begin, positions, 0, CODE), mask)
        second = _load(_vectors(address, begin, positions, 4, CODE), mask)
        low_0, high_0 = tl.split(first.to(tl.float32, bitcast=True).reshape([OCTETS, 2, 2]))
        low_1, high_1 = tl.split(second.to(tl.float32, bitcast=True).reshape([OCTETS, 2, 2]))
        words = (
            tl.join(low_0, low_1).permute(0, 2, 1).reshape([OCTETS, 4]),
            tl.join(high_0, high_1).permute(0, 2, 1).reshape([OCTETS, 4]),
        )
    return words


@triton.jit
def _load(pointers, mask):
    return tl.load(pointers) if mask is None else tl.load(pointers, mask=mask, other=0)


@triton.jit
def _vectors(address, begin, positions, FIRST: tl.constexpr, CODE: tl.constexpr):
    """Pointers to four words, 16 bytes, of each octet, from its word FIRST on."""
    octets = address + begin * item_bytes(CODE) + positions.to(tl.int64) * item_bytes(CODE)
    pointers = octets.to(tl.pointer_type(tl.int32))[:, None] + (FIRST + tl.arange(0, 4))[None, :]
    return tl.multiple_of(tl.max_contiguous(pointers, [1, 4]), [16, 16])


@triton.jit
def read_block(address, code, block, WIDE: tl.constexpr, CODE: tl.constexpr = -1):
    """The tile's elements of a block, the even and the odd ones, [OCTETS, 4] each; zero where there are none."""
    code = tl.where(block[3] & (code < SHORT), code + SHORT, code)
    if CODE >= 0:
        low, high = _read_as(address, block, CODE, WIDE)
    elif code == FLOAT32:
        low, high = _read_as(address, block, FLOAT32, WIDE)
    elif code == BFLOAT16:
        low, high = _read_as(address, block, BFLOAT16, WIDE)
    elif code == FLOAT16:
        low, high = _read_as(address, block, FLOAT16, WIDE)
    elif code == FLOAT32 + SHORT:
        low, high = _read_as(address, block, FLOAT32 + SHORT, WIDE)
    elif code == BFLOAT16 + SHORT:
        low, high = _read_as(address, block, BFLOAT16 + SHORT, WIDE)
    elif code == FLOAT16 + SHORT:
        low, high = _read_as(address, block, FLOAT16 + SHORT, WIDE)
    elif WIDE and code % 4 == FLOAT64 and code < ABSENT:
        low, high = _read_as(address, block, FLOAT64 + SHORT, WIDE)
    else:
        low = tl.zeros([block[1].shape[0], 4], compute_type(WIDE))
        high = low
    return low, high


@triton.jit
def _read_as(address, block, CODE: tl.constexpr, WIDE: tl.constexpr):
    begin, positions, length, _ = block
    if CODE >= SHORT:
        pointer = address.to(tl.pointer_type(element_type(CODE))) + begin
        element = positions[:, None] + 2 * tl.arange(0, 4)[None, :]
        low = tl.load(pointer + element, mask=element < length, other=0.0).to(compute_type(WIDE))
        high = tl.load(pointer + element + 1, mask=element + 1 < length, other=0.0).to(compute_type(WIDE))
    elif item_bytes(CODE) == 2:
        low, high = unpack(load_words(address, begin, positions, None, CODE), CODE, WIDE)
    else:
        low, high = load_words(address, begin, positions, None, CODE)
        low, high = low.to(compute_type(WIDE)), high.to(compute_type(WIDE))
    return low, high


@triton.jit
def write_block(address, code, block, low, high, WIDE: tl.constexpr):
    """Write values where `read_block` reads, to a tensor of the same dtype."""
    code = tl.where(block[3] & (code < SHORT), code + SHORT, code)
    if code == FLOAT32:
        _write_as(address, block, low, high, FLOAT32)
    elif code == BFLOAT16:
        _write_as(address, block, low, high, BFLOAT16)
    elif code == FLOAT16:
        _write_as(address, block, low, high, FLOAT16)
    elif code == FLOAT32 + SHORT:
        _write_as(address, block, low, high, FLOAT32 + SHORT)
    elif code == BFLOAT16 + SHORT:
        _write_as(address, block, low, high, BFLOAT16 + SHORT)
    elif code == FLOAT16 + SHORT:
        _write_as(address, block, low, high, FLOAT16 + SHORT)
    elif WIDE and code % 4 == FLOAT64 and code < ABSENT:
        _write_as(address, block, low, high, FLOAT64 + SHORT)


@triton.jit
def _write_as(address, block, low, high, CODE: tl.constexpr):
    begin, positions, length, _ = block
    OCTETS: tl.constexpr = positions.shape[0]
    if CODE >= SHORT:
        pointer = address.to(tl.pointer_type(element_type(CODE))) + begin
        element = positions[:, None] + 2 * tl.arange(0, 4)[None, :]
        tl.store(pointer + element, low.to(element_type(CODE)), mask=element < length)
        tl.store(pointer + element + 1, high.to(element_type(CODE)), mask=element + 1 < length)
    elif item_bytes(CODE) == 2:
        low_bits = low.to(element_type(CODE)).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        high_bits = high.to(element_type(CODE)).to(tl.int16, bitcast=True).to(tl.int32) << 16
        tl.store(_vectors(address, begin, positions, 0, CODE), low_bits | high_bits)
    else:
        low_0, low_1 = tl.split(_bits(low).reshape([OCTETS, 2, 2]).permute(0, 2, 1))
        high_0, high_1 = tl.split(_bits(high).reshape([OCTETS, 2, 2]).permute(0, 2, 1))
        tl.store(_vectors(address, begin, positions, 0, CODE), tl.join(low_0, high_0).reshape([OCTETS, 4]))
        tl.store(_vectors(address, begin, positions, 4, CODE), tl.join(low_1, high_1).reshape([OCTETS, 4]))


@triton.jit
def _bits(x):
    return x.to(tl.float32).to(tl.int32, bitcast=True)

"""Reading and writing pieces of tensors for the sketch, whatever their dtype and wherever they lie.

A *piece* is what a block of a tensor has for one tile of buckets: groups of eight elements, held as the even ones and
the odd ones, both [GROUPS, 4]. It is given as a tuple

    begin       the block's first element in its tensor
    positions   where in the block the groups begin: in order, but for an XOR with a multiple of eight
    length      elements of the block
    short       whether the piece has fewer elements than the tile has buckets

Codes of dtypes are those of `loads`, and as there whole aligned pieces are read 16 bytes at a time.
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
def load_words(address, begin, positions, there, CODE: tl.constexpr):
    """The words of a whole aligned piece: [GROUPS, 4] int32, or the even and the odd elements, float32."""
    GROUPS: tl.constexpr = positions.shape[0]
    if item_bytes(CODE) == 2:
        words = _load(_vectors(address, begin, positions, 0, CODE), there)
    else:
        first = _load(_vectors(address, begin, positions, 0, CODE), there)
        second = _load(_vectors(address, begin, positions, 4, CODE), there)
        low_0, high_0 = tl.split(first.to(tl.float32, bitcast=True).reshape([GROUPS, 2, 2]))
        low_1, high_1 = tl.split(second.to(tl.float32, bitcast=True).reshape([GROUPS, 2, 2]))
        words = (
            tl.join(low_0, low_1).permute(0, 2, 1).reshape([GROUPS, 4]),
            tl.join(high_0, high_1).permute(0, 2, 1).reshape([GROUPS, 4]),
        )
    return words


@triton.jit
def _load(pointers, there):
    return tl.load(pointers) if there is None else tl.load(pointers, mask=there, other=0)


@triton.jit
def _vectors(address, begin, positions, FIRST: tl.constexpr, CODE: tl.constexpr):
    """Pointers to four words, 16 bytes, of each group of eight elements, from its word FIRST on."""
    groups = address + begin * item_bytes(CODE) + positions.to(tl.int64) * item_bytes(CODE)
    pointers = groups.to(tl.pointer_type(tl.int32))[:, None] + (FIRST + tl.arange(0, 4))[None, :]
    return tl.multiple_of(tl.max_contiguous(pointers, [1, 4]), [16, 16])


@triton.jit
def read_piece(address, code, piece, WIDE: tl.constexpr, CODE: tl.constexpr = -1):
    """A piece of any tensor, [GROUPS, 4] its even and its odd elements; zero where there is none."""
    code = tl.where(piece[3] & (code < SHORT), code + SHORT, code)
    if CODE >= 0:
        low, high = _read_as(address, piece, CODE, WIDE)
    elif code == FLOAT32:
        low, high = _read_as(address, piece, FLOAT32, WIDE)
    elif code == BFLOAT16:
        low, high = _read_as(address, piece, BFLOAT16, WIDE)
    elif code == FLOAT16:
        low, high = _read_as(address, piece, FLOAT16, WIDE)
    elif code == FLOAT32 + SHORT:
        low, high = _read_as(address, piece, FLOAT32 + SHORT, WIDE)
    elif code == BFLOAT16 + SHORT:
        low, high = _read_as(address, piece, BFLOAT16 + SHORT, WIDE)
    elif code == FLOAT16 + SHORT:
        low, high = _read_as(address, piece, FLOAT16 + SHORT, WIDE)
    elif WIDE and code % 4 == FLOAT64 and code < ABSENT:
        low, high = _read_as(address, piece, FLOAT64 + SHORT, WIDE)
    else:
        low = tl.zeros([piece[1].shape[0], 4], compute_type(WIDE))
        high = low
    return low, high


@triton.jit
def _read_as(address, piece, CODE: tl.constexpr, WIDE: tl.constexpr):
    begin, positions, length, _ = piece
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
def write_piece(address, code, piece, low, high, WIDE: tl.constexpr):
    """Write back what `read_piece` has returned for this piece of a tensor of the same dtype."""
    code = tl.where(piece[3] & (code < SHORT), code + SHORT, code)
    if code == FLOAT32:
        _write_as(address, piece, low, high, FLOAT32)
    elif code == BFLOAT16:
        _write_as(address, piece, low, high, BFLOAT16)
    elif code == FLOAT16:
        _write_as(address, piece, low, high, FLOAT16)
    elif code == FLOAT32 + SHORT:
        _write_as(address, piece, low, high, FLOAT32 + SHORT)
    elif code == BFLOAT16 + SHORT:
        _write_as(address, piece, low, high, BFLOAT16 + SHORT)
    elif code == FLOAT16 + SHORT:
        _write_as(address, piece, low, high, FLOAT16 + SHORT)
    elif WIDE and code % 4 == FLOAT64 and code < ABSENT:
        _write_as(address, piece, low, high, FLOAT64 + SHORT)


@triton.jit
def _write_as(address, piece, low, high, CODE: tl.constexpr):
    begin, positions, length, _ = piece
    GROUPS: tl.constexpr = positions.shape[0]
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
        low_0, low_1 = tl.split(_bits(low).reshape([GROUPS, 2, 2]).permute(0, 2, 1))
        high_0, high_1 = tl.split(_bits(high).reshape([GROUPS, 2, 2]).permute(0, 2, 1))
        tl.store(_vectors(address, begin, positions, 0, CODE), tl.join(low_0, high_0).reshape([GROUPS, 4]))
        tl.store(_vectors(address, begin, positions, 4, CODE), tl.join(low_1, high_1).reshape([GROUPS, 4]))


@triton.jit
def _bits(x):
    return x.to(tl.float32).to(tl.int32, bitcast=True)

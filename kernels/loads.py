"""Reading and writing the elements of a unit, whatever their dtype and wherever they lie.

A *unit* is the elements of one tensor that one program handles. A table has for each unit the byte ``address`` of its
first element, a ``code`` and its ``length`` in elements. The code is

    0..3   float32, float64, bfloat16, float16, where the unit is full and begins at a multiple of 16 bytes
    4..7   the same dtypes, where it is shorter or begins elsewhere
    8      where there is no tensor: it reads as zeros

Full aligned units are read 16 bytes at a time. That takes two things: the hint of the alignment has to stand on the
typed pointer (on the integer it is lost in the cast), and there must be no mask, whose unknown length would make every
load as narrow as one element.
"""

import triton
import triton.language as tl

FLOAT32, FLOAT64, BFLOAT16, FLOAT16 = (tl.constexpr(code) for code in range(4))
SHORT = tl.constexpr(4)
"""Added to a dtype's code where the unit is short or not aligned."""
ABSENT = tl.constexpr(8)

DTYPE_NAMES = ("float32", "float64", "bfloat16", "float16")
ITEM_BYTES = (4, 8, 2, 2)


@triton.constexpr_function
def element_type(code):
    """The element type that a code stands for."""
    return (tl.float32, tl.float64, tl.bfloat16, tl.float16)[code % 4]


@triton.constexpr_function
def item_bytes(code):
    """Bytes of an element of the type that a code stands for."""
    return ITEM_BYTES[code % 4]


@triton.constexpr_function
def compute_type(wide):
    """The type that sums and products are computed in."""
    return tl.float64 if wide else tl.float32


@triton.jit
def load_tile(
    address, code, start, offsets, length, CODE: tl.constexpr, WIDE: tl.constexpr, EVICT_FIRST: tl.constexpr = False
):
    """Elements ``start + offsets`` of a unit as float32, or float64 if WIDE; zero from ``length`` on.

    Args:
        address: byte address of the unit.
        code: code of the unit.
        start: where the tile begins in the unit, in elements; a multiple of 16 bytes.
        offsets: int32 of any shape, contiguous along the last axis.
        length: number of elements of the unit; not used where the unit is full.
        CODE: the unit's code if it is a constant, else -1: any but float64, or any if WIDE.
        WIDE: compute in float64.
        EVICT_FIRST: these elements are not read again soon.
    """
    if CODE >= 0:
        values = _load(address, start, offsets, length, CODE, WIDE, EVICT_FIRST)
    elif code == FLOAT32:
        values = _load(address, start, offsets, length, FLOAT32, WIDE, EVICT_FIRST)
    elif code == BFLOAT16:
        values = _load(address, start, offsets, length, BFLOAT16, WIDE, EVICT_FIRST)
    elif code == FLOAT16:
        values = _load(address, start, offsets, length, FLOAT16, WIDE, EVICT_FIRST)
    elif WIDE and code == FLOAT64:
        values = _load(address, start, offsets, length, FLOAT64, WIDE, EVICT_FIRST)
    elif code == FLOAT32 + SHORT:
        values = _load(address, start, offsets, length, FLOAT32 + SHORT, WIDE, EVICT_FIRST)
    elif code == BFLOAT16 + SHORT:
        values = _load(address, start, offsets, length, BFLOAT16 + SHORT, WIDE, EVICT_FIRST)
    elif code == FLOAT16 + SHORT:
        values = _load(address, start, offsets, length, FLOAT16 + SHORT, WIDE, EVICT_FIRST)
    elif WIDE and code == FLOAT64 + SHORT:
        values = _load(address, start, offsets, length, FLOAT64 + SHORT, WIDE, EVICT_FIRST)
    else:
        values = _load(address, start, offsets, length, ABSENT, WIDE, EVICT_FIRST)
    return values


@triton.jit
def store_tile(address, code, start, offsets, length, values, CODE: tl.constexpr, WIDE: tl.constexpr):
    """Round ``values`` to the unit's dtype and write them where `load_tile` reads; nothing from ``length`` on."""
    if CODE >= 0:
        _store(address, start, offsets, length, values, CODE)
    elif code == FLOAT32:
        _store(address, start, offsets, length, values, FLOAT32)
    elif code == BFLOAT16:
        _store(address, start, offsets, length, values, BFLOAT16)
    elif code == FLOAT16:
        _store(address, start, offsets, length, values, FLOAT16)
    elif WIDE and code == FLOAT64:
        _store(address, start, offsets, length, values, FLOAT64)
    elif code == FLOAT32 + SHORT:
        _store(address, start, offsets, length, values, FLOAT32 + SHORT)
    elif code == BFLOAT16 + SHORT:
        _store(address, start, offsets, length, values, BFLOAT16 + SHORT)
    elif code == FLOAT16 + SHORT:
        _store(address, start, offsets, length, values, FLOAT16 + SHORT)
    elif WIDE and code == FLOAT64 + SHORT:
        _store(address, start, offsets, length, values, FLOAT64 + SHORT)


@triton.jit
def aligned_pointer(address, start, CODE: tl.constexpr):
    """Pointer to element ``start``, which like the address itself lies at a multiple of 16 bytes.

    The hint stands on the address alone as well, because a constant that is added to an integer address is moved behind
    the cast, and the hint with it is gone.
    """
    pointer = tl.multiple_of(address.to(tl.pointer_type(element_type(CODE))), 16)
    return tl.multiple_of(pointer + start, 16)


@triton.jit
def rounded(values, CODE: tl.constexpr):
    """Values in the type of a code; those of 16 bits by way of float32, as torch does."""
    if item_bytes(CODE) == 2:
        values = values.to(tl.float32)
    return values.to(element_type(CODE))


@triton.jit
def _load(address, start, offsets, length, CODE: tl.constexpr, WIDE: tl.constexpr, EVICT_FIRST: tl.constexpr):
    policy: tl.constexpr = "evict_first" if EVICT_FIRST else ""
    if CODE == ABSENT:
        values = tl.zeros(offsets.shape, compute_type(WIDE))
    elif CODE < SHORT:
        pointers = aligned_pointer(address, start, CODE) + offsets
        values = tl.load(pointers, eviction_policy=policy).to(compute_type(WIDE))
    else:
        elements = start + offsets
        pointers = address.to(tl.pointer_type(element_type(CODE))) + elements
        inside = elements < tl.cast(length, tl.int32)
        values = tl.load(pointers, mask=inside, other=0.0, eviction_policy=policy).to(compute_type(WIDE))
    return values


@triton.jit
def _store(address, start, offsets, length, values, CODE: tl.constexpr):
    if CODE < SHORT:
        tl.store(aligned_pointer(address, start, CODE) + offsets, rounded(values, CODE))
    elif CODE < ABSENT:
        elements = start + offsets
        pointers = address.to(tl.pointer_type(element_type(CODE))) + elements
        tl.store(pointers, rounded(values, CODE), mask=elements < tl.cast(length, tl.int32))


@triton.constexpr_function
def words_in_vector(code):
    """Words in 16 bytes: a word is an element, or two elements of 16 bits in one int32."""
    return 2 if code % 4 == FLOAT64 else 4


@triton.jit
def word_pointer(address, CODE: tl.constexpr):
    """Pointer to the words at an address that is a multiple of 16 bytes."""
    WORD: tl.constexpr = tl.int32 if item_bytes(CODE) == 2 else element_type(CODE)
    return tl.multiple_of(address.to(tl.pointer_type(WORD)), 16)


@triton.jit
def unpack(words, CODE: tl.constexpr, WIDE: tl.constexpr):
    """The elements of words of 16-bit types: those in the lower halves, and those in the upper halves.

    One instruction an element; a conversion of bfloat16 itself takes two for every second element.
    """
    if CODE % 4 == BFLOAT16:
        low = (words << 16).to(tl.float32, bitcast=True)
        high = (words & -65536).to(tl.float32, bitcast=True)
    else:
        low = words.to(tl.int16).to(tl.float16, bitcast=True)
        high = (words >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return low.to(compute_type(WIDE)), high.to(compute_type(WIDE))


@triton.jit
def misaligned_elements(address, length, CODE: tl.constexpr):
    """Elements of a unit before the first multiple of 16 bytes."""
    return tl.minimum((-address & 15).to(tl.int32) // item_bytes(CODE), length)


@triton.jit
def edge_elements(lane, head, tail, length, CODE: tl.constexpr):
    """Which of the first ``head`` elements of a unit and of those from ``tail`` on each lane reads, and whether any.

    Both are fewer than 16 bytes; there must be twice as many offsets as elements in 16 bytes.
    """
    VECTOR: tl.constexpr = 16 // item_bytes(CODE)
    element = tl.where(lane < VECTOR, lane, lane - VECTOR + tail)
    return element, tl.where(lane < VECTOR, lane < head, element < length)


@triton.jit
def count_nonfinite(values):
    """Number of elements that are inf or NaN, as int32."""
    return tl.sum((tl.abs(values) < float("inf")).to(tl.int32) ^ 1)


def nvidia_options(**options):
    """Launch options that only NVIDIA's compiler knows; empty on other targets."""
    if triton.knobs.runtime.interpret:
        return {}
    return options if triton.runtime.driver.active.get_current_target().backend == "cuda" else {}

"""sum x^2, max |x| over what is not NaN, and the number of inf and NaN of every unit of a list of tensors.

Every element is read once. A lane adds at most 64 squares in float32 before it adds them to its float64 sum; with
``wide`` everything is float64. Non-finite elements are counted, in a second read, only where the sum is not finite.

A unit that begins at no multiple of 16 bytes, or is short, is read in the same wide loads: the few elements before its
first multiple of 16 bytes and those after its last one are read on their own.
"""

import triton
import triton.language as tl

from fastgeom.kernels.loads import (
    ABSENT,
    BFLOAT16,
    DTYPE_NAMES,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    ITEM_BYTES,
    compute_type,
    count_nonfinite,
    edge_elements,
    element_type,
    item_bytes,
    load_tile,
    misaligned_elements,
    unpack,
    word_pointer,
    words_in_vector,
)

NORM_ELEMENTS = 16384
"""Elements of a unit."""

_WARPS = 4
_LANES = tl.constexpr(256)
_LOADS = tl.constexpr(4)
"""A tile is 4 loads of 256 times 16 bytes: 64 elements of 16 bits a lane where a warp has 32 of them, 32 where 64."""
_TILE_BYTES = tl.constexpr(_LOADS * _LANES * 16)
_COUNT_TILE = tl.constexpr(2048)


def norm_bytes(n_elements, gradient_bytes=4):
    """Bytes read: every element once."""
    return n_elements * gradient_bytes


@triton.jit(do_not_specialize=["n_units"])
def _norm_kernel(table_ptr, out_ptr, n_units, CODE: tl.constexpr, WIDE: tl.constexpr, MEASURE_MAX: tl.constexpr):
    unit = tl.program_id(0).to(tl.int64)
    address = tl.load(table_ptr + unit)
    code = tl.load(table_ptr + tl.cast(n_units, tl.int64) + unit)
    length = tl.load(table_ptr + 2 * tl.cast(n_units, tl.int64) + unit).to(tl.int32)
    dtype = tl.where(code < ABSENT, code % 4, ABSENT)
    if CODE >= 0:
        squares, largest = _lane_sums(address, length, CODE, True, WIDE, MEASURE_MAX)
    elif dtype == FLOAT32:
        squares, largest = _lane_sums(address, length, FLOAT32, False, WIDE, MEASURE_MAX)
    elif dtype == BFLOAT16:
        squares, largest = _lane_sums(address, length, BFLOAT16, False, WIDE, MEASURE_MAX)
    elif dtype == FLOAT16:
        squares, largest = _lane_sums(address, length, FLOAT16, False, WIDE, MEASURE_MAX)
    elif WIDE and dtype == FLOAT64:
        squares, largest = _lane_sums(address, length, FLOAT64, False, WIDE, MEASURE_MAX)
    else:
        squares, largest = tl.zeros((_LANES,), tl.float64), tl.zeros((_LANES,), compute_type(WIDE))
    total = tl.sum(squares)
    if MEASURE_MAX:
        nonfinite = tl.full((), 0, tl.int32)
        if not (total < float("inf")):
            for start in range(0, length, _COUNT_TILE):
                offsets = tl.arange(0, _COUNT_TILE)
                nonfinite += count_nonfinite(load_tile(address, code, start, offsets, length, CODE, WIDE))
        tl.store(out_ptr + 3 * unit, total)
        tl.store(out_ptr + 3 * unit + 1, tl.max(largest).to(tl.float64))
        tl.store(out_ptr + 3 * unit + 2, nonfinite.to(tl.float64))
    else:
        tl.store(out_ptr + unit, total)


@triton.jit
def _lane_sums(address, length, CODE: tl.constexpr, FULL: tl.constexpr, WIDE: tl.constexpr, MEASURE_MAX: tl.constexpr):
    """Sum of squares (float64) and largest magnitude of the elements that each lane reads."""
    ITEM: tl.constexpr = item_bytes(CODE)
    VECTOR: tl.constexpr = 16 // ITEM
    TILE: tl.constexpr = _TILE_BYTES // ITEM
    squares = tl.zeros((_LANES,), tl.float64)
    high = tl.zeros((_LANES, words_in_vector(CODE)), compute_type(WIDE))
    head = 0 if FULL else misaligned_elements(address, length, CODE)
    body = address + head * ITEM
    n_tiles = (length - head) // TILE
    for _ in range(n_tiles):
        squares, high = _add_tile(squares, high, body, None, CODE, WIDE, MEASURE_MAX)
        body += _TILE_BYTES
    largest = tl.max(high, axis=1)
    if not FULL:
        remaining = length - head - n_tiles * TILE
        if head + remaining > 0:
            squares, high = _add_tile(squares, high, body, remaining // VECTOR, CODE, WIDE, MEASURE_MAX)
            element, inside = edge_elements(tl.arange(0, _LANES), head, length - remaining % VECTOR, length, CODE)
            pointers = address.to(tl.pointer_type(element_type(CODE))) + element
            values = tl.load(pointers, mask=inside, other=0.0).to(compute_type(WIDE))
            squares += (values * values).to(tl.float64)
            largest = tl.maximum(tl.max(high, axis=1), tl.abs(values))
    return squares, largest


@triton.jit
def _add_tile(squares, high, address, n_vectors, CODE: tl.constexpr, WIDE: tl.constexpr, MEASURE_MAX: tl.constexpr):
    """Add a tile to the sums and maxima of the lanes: its first ``n_vectors`` vectors, or all where that is None."""
    WORDS: tl.constexpr = words_in_vector(CODE)
    word = tl.arange(0, _LANES)[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    pointers = word_pointer(address, CODE) + word
    total = tl.zeros((_LANES, WORDS), compute_type(WIDE))
    for load in tl.static_range(_LOADS):
        first = load * _LANES * WORDS
        if n_vectors is None:
            words = tl.load(pointers + first)
        else:  # a mask that is a multiple of the vector leaves the load wide
            words = tl.load(pointers + first, mask=first + word < n_vectors * WORDS, other=0)
        if item_bytes(CODE) == 2:
            low, upper = unpack(words, CODE, WIDE)
            total, high = _add(total, high, low, MEASURE_MAX)
            total, high = _add(total, high, upper, MEASURE_MAX)
        else:
            total, high = _add(total, high, words.to(compute_type(WIDE)), MEASURE_MAX)
    return squares + tl.sum(total, axis=1).to(tl.float64), high


@triton.jit
def _add(total, high, values, MEASURE_MAX: tl.constexpr):
    return tl.fma(values, values, total), tl.maximum(high, tl.abs(values)) if MEASURE_MAX else high


def launch_norm(table, n_units, out, *, wide=False, measure_max=True):
    """Measure every unit of a table.

    Args:
        table: int64 (3 or more, n_units): address, code and length, with units of `NORM_ELEMENTS`.
        n_units: number of units.
        out: float64 (n_units, 3): sum x^2, max |x| over what is not NaN, number of inf and NaN; (n_units, 1), the first
            of them alone, without ``measure_max``.
        wide: compute in float64; without it no unit may be float64.
        measure_max: measure more than the sum.
    """
    if n_units > 0:
        _norm_kernel[(n_units,)](table, out, n_units, CODE=-1, WIDE=wide, MEASURE_MAX=measure_max, num_warps=_WARPS)


def norm_variants():
    """What is compiled ahead of time: the kernels that run, and for each dtype the path of full units alone."""
    goals = {
        True: {"float32": 3.6, "bfloat16": 3.6, "float16": 3.9},
        False: {"float32": 2.6, "bfloat16": 2.6, "float16": 3.0},
    }
    kinds = [("any", -1, False), ("any-wide", -1, True)]
    kinds += [(name, code, name == "float64") for code, name in enumerate(DTYPE_NAMES)]
    return [
        {
            "name": f"norm-{name}{'' if measure_max else '-sum'}",
            "kernel": _norm_kernel,
            "signature": {"table_ptr": "*i64", "out_ptr": "*fp64", "n_units": "i32"},
            "constexprs": {"CODE": code, "WIDE": wide, "MEASURE_MAX": measure_max},
            "divisible_by_16": ["table_ptr", "out_ptr"],
            "num_warps": _WARPS,
            "options": {},
            "elements": NORM_ELEMENTS if code < 0 else _TILE_BYTES.value // ITEM_BYTES[code],
            "min_vector_bytes": 16,
            "max_instructions_per_element": goals[measure_max].get(name),
            "loop": code >= 0,
        }
        for measure_max in (True, False)
        for name, code, wide in kinds
    ]

"""x <- factor x for every element of a list of tensors, in place, rounded to the element's dtype.

The factor is a number on the device. The product is taken in float32, or in float64 with ``wide``. Where the factor is
1, as it is for gradients that need no clipping, nothing is read or written.

As in the norm, the few elements of a unit that lie outside of its whole multiples of 16 bytes are handled on their own.
"""

import triton
import triton.language as tl

from fastgeom.kernels.lists.norm import NORM_ELEMENTS
from fastgeom.kernels.loads import (
    ABSENT,
    BFLOAT16,
    DTYPE_NAMES,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    ITEM_BYTES,
    aligned_pointer,
    compute_type,
    edge_elements,
    element_type,
    item_bytes,
    misaligned_elements,
    rounded,
)

SCALE_ELEMENTS = NORM_ELEMENTS
"""Elements of a unit: the norm's, so that clipping needs one table."""

_WARPS = 4
_LANES = tl.constexpr(256)
_TILE_BYTES = tl.constexpr(4 * 256 * 16)


def scale_bytes(n_elements, gradient_bytes=4):
    """Bytes moved: every element read once and written once."""
    return 2 * n_elements * gradient_bytes


@triton.jit(do_not_specialize=["n_units"])
def _scale_kernel(table_ptr, factor_ptr, n_units, CODE: tl.constexpr, WIDE: tl.constexpr):
    unit = tl.program_id(0).to(tl.int64)
    n_units = tl.cast(n_units, tl.int64)
    factor = tl.load(factor_ptr).to(compute_type(WIDE))
    address, code = tl.load(table_ptr + unit), tl.load(table_ptr + n_units + unit)
    length = tl.load(table_ptr + 2 * n_units + unit).to(tl.int32)
    dtype = tl.where((code < ABSENT) & (factor != 1.0), code % 4, ABSENT)
    if CODE >= 0:
        _scale_unit(address, length, factor, CODE, True, WIDE)
    elif dtype == FLOAT32:
        _scale_unit(address, length, factor, FLOAT32, False, WIDE)
    elif dtype == BFLOAT16:
        _scale_unit(address, length, factor, BFLOAT16, False, WIDE)
    elif dtype == FLOAT16:
        _scale_unit(address, length, factor, FLOAT16, False, WIDE)
    elif WIDE and dtype == FLOAT64:
        _scale_unit(address, length, factor, FLOAT64, False, WIDE)


@triton.jit
def _scale_unit(address, length, factor, CODE: tl.constexpr, FULL: tl.constexpr, WIDE: tl.constexpr):
    VECTOR: tl.constexpr = 16 // item_bytes(CODE)
    TILE: tl.constexpr = _TILE_BYTES // item_bytes(CODE)
    offsets = tl.arange(0, TILE)
    head = 0 if FULL else misaligned_elements(address, length, CODE)
    body = address + head * item_bytes(CODE)
    n_tiles = (length - head) // TILE
    for _ in range(n_tiles):
        _scale_elements(aligned_pointer(body, 0, CODE) + offsets, None, factor, CODE, WIDE)
        body += _TILE_BYTES
    if not FULL:
        remaining = length - head - n_tiles * TILE
        if head + remaining > 0:
            # A mask that is a multiple of the vector leaves the loads and stores wide.
            inside = offsets < remaining // VECTOR * VECTOR
            _scale_elements(aligned_pointer(body, 0, CODE) + offsets, inside, factor, CODE, WIDE)
            element, inside = edge_elements(tl.arange(0, _LANES), head, length - remaining % VECTOR, length, CODE)
            pointers = address.to(tl.pointer_type(element_type(CODE))) + element
            _scale_elements(pointers, inside, factor, CODE, WIDE)


@triton.jit
def _scale_elements(pointers, mask, factor, CODE: tl.constexpr, WIDE: tl.constexpr):
    values = tl.load(pointers, mask=mask).to(compute_type(WIDE))
    tl.store(pointers, rounded(values * factor, CODE), mask=mask)


def launch_scale(table, n_units, factor, *, wide=False):
    """Multiply every unit of a table in place.

    Args:
        table: int64 (3 or more, n_units): address, code and length, with units of `SCALE_ELEMENTS`.
        n_units: number of units.
        factor: float64, one element.
        wide: compute in float64; without it no unit may be float64.
    """
    if n_units > 0:
        _scale_kernel[(n_units,)](table, factor, n_units, CODE=-1, WIDE=wide, num_warps=_WARPS)


def scale_variants():
    """What is compiled ahead of time: the kernels that run, and for each dtype the path of full units alone."""
    kinds = [("any", -1, False), ("any-wide", -1, True)]
    kinds += [(name, code, name == "float64") for code, name in enumerate(DTYPE_NAMES)]
    return [
        {
            "name": f"scale-{name}",
            "kernel": _scale_kernel,
            "signature": {"table_ptr": "*i64", "factor_ptr": "*fp64", "n_units": "i32"},
            "constexprs": {"CODE": code, "WIDE": wide},
            "divisible_by_16": ["table_ptr"],
            "num_warps": _WARPS,
            "options": {},
            "elements": SCALE_ELEMENTS if code < 0 else _TILE_BYTES.value // ITEM_BYTES[code],
            "min_vector_bytes": 16,
            "max_instructions_per_element": {"float32": 2.6, "bfloat16": 3.6, "float16": 3.6}.get(name),
            "loop": code >= 0,
        }
        for name, code, wide in kinds
    ]

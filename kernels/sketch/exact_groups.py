"""Launches beside that of the sketch: copies of exact groups, and sums of partial sketches.

An exact group has no more elements than buckets: its elements, or those of its update, are its sketch, and their
moments are those of `sketch`. A unit is at most `SKETCH_COPY` elements of one tensor, or at most `SKETCH_SUM` buckets
of one group.
"""

import triton
import triton.language as tl

from fastgeom.kernels.loads import (
    ABSENT,
    FLOAT32,
    FLOAT64,
    SHORT,
    count_nonfinite,
    load_tile,
    nvidia_options,
    store_tile,
)
from fastgeom.kernels.sketch.compare_and_store import add_ring_arguments, compare_and_store
from fastgeom.kernels.sketch.shared import TENSOR_COLUMNS, scaled, store_moments

SKETCH_COPY = 1024
"""Elements of an exact group that one program copies, at most."""
SKETCH_SUM = 1024
"""Buckets that one program of the second launch adds up, or all of a group that has fewer."""

_WARPS = 4
_MAX_REGISTERS = 128
"""Registers of a thread of a copy: left alone, the compiler spills to reach 72."""


@triton.jit(do_not_specialize=["n_units", "total", "slots"])
def _copy_kernel(
    unit_ptr,
    tensor_ptr,
    scale_ptr,
    partials_ptr,
    out_ptr,
    ring_ptr,
    state_ptr,
    skip_ptr,
    sums_ptr,
    n_units,
    total,
    slots,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    UPDATE: tl.constexpr,
    SCALED: tl.constexpr,
    WARPS: tl.constexpr,
):
    unit = tl.program_id(0).to(tl.int64)
    stride = tl.cast(n_units, tl.int64)
    tensor, start = tl.load(unit_ptr + unit), tl.load(unit_ptr + stride + unit)
    length, target = tl.load(unit_ptr + 2 * stride + unit).to(tl.int32), tl.load(unit_ptr + 3 * stride + unit)
    offsets = tl.arange(0, UNIT)
    row_ptr = tensor_ptr + TENSOR_COLUMNS * tl.maximum(tensor, 0)
    scale = tl.full((), 1, tl.float64)
    if SCALED:
        scale = tl.load(scale_ptr)
    code = _unit_code(tensor, tl.load(row_ptr + 4), length, UNIT)
    x = load_tile(_element_address(tl.load(row_ptr + 3), start, code), code, 0, offsets, length, -1, WIDE)
    first = _sum(x * x)
    if UPDATE:
        gradient_code = _unit_code(tensor, tl.load(row_ptr + 7), length, UNIT)
        gradient = _element_address(tl.load(row_ptr + 6), start, gradient_code)
        snapshot = _element_address(tl.load(row_ptr + 5), start, code)
        update = x - load_tile(snapshot, code, 0, offsets, length, -1, WIDE)
        dot = _sum(load_tile(gradient, gradient_code, 0, offsets, length, -1, WIDE) * update)
        tl.debug_barrier()
        store_tile(snapshot, code, 0, offsets, length, x, -1, WIDE)
        store_moments(partials_ptr + 3 * unit, first, _sum(update * update), scaled(dot, scale, SCALED))
        x = update
    else:
        largest, nonfinite = tl.max(tl.maximum(tl.abs(x), 0)).to(tl.float64), count_nonfinite(x).to(tl.float64)
        first = scaled(scaled(first, scale, SCALED), scale, SCALED)
        store_moments(partials_ptr + 3 * unit, first, scaled(largest, tl.abs(scale), SCALED), nonfinite)
        x = scaled(x, scale, SCALED)
    STORE: tl.constexpr = not UPDATE
    x = x.to(tl.float32)
    compare_and_store(
        x, target, length, unit, out_ptr, ring_ptr, state_ptr, skip_ptr, sums_ptr, total, slots, False, STORE, WARPS
    )


@triton.jit
def _sum(x):
    return tl.sum(x.to(tl.float64))


@triton.jit
def _unit_code(tensor, code, length, UNIT: tl.constexpr):
    code = tl.where(tensor < 0, ABSENT, code.to(tl.int32))
    return tl.where((length < UNIT) & (code < SHORT), code + SHORT, code)


@triton.jit
def _element_address(address, start, code):
    """Byte address of element ``start`` of a tensor."""
    item = tl.where(code % 4 == FLOAT64, 8, tl.where(code % 4 == FLOAT32, 4, 2))
    return address + start * item


@triton.jit(do_not_specialize=["n_units", "total", "slots"])
def _sum_kernel(
    unit_ptr,
    scratch_ptr,
    out_ptr,
    ring_ptr,
    state_ptr,
    skip_ptr,
    sums_ptr,
    n_units,
    total,
    slots,
    UNIT: tl.constexpr,
    STORE: tl.constexpr,
    WARPS: tl.constexpr,
):
    unit = tl.program_id(0).to(tl.int64)
    stride = tl.cast(n_units, tl.int64)
    target, source = tl.load(unit_ptr + unit), tl.load(unit_ptr + stride + unit)
    n_partials, buckets = tl.load(unit_ptr + 2 * stride + unit).to(tl.int32), tl.load(unit_ptr + 3 * stride + unit)
    offsets = tl.arange(0, UNIT)
    x = tl.zeros([UNIT], tl.float32)
    pointer = tl.multiple_of(scratch_ptr + source, 16)
    for _ in tl.range(0, n_partials, loop_unroll_factor=4):
        x += tl.load(pointer + offsets, mask=offsets // 4 * 4 < buckets, other=0.0)
        pointer = tl.multiple_of(pointer + buckets, 16)
    compare_and_store(
        x, target, buckets, unit, out_ptr, ring_ptr, state_ptr, skip_ptr, sums_ptr, total, slots, True, STORE, WARPS
    )


def launch_copies(copies, tensors, scale, partials, out, ring, *, update, wide):
    """Copy the exact groups; arguments as for `launch_sketch`, with the rows of partial sums of the copies first."""
    if copies.shape[1] > 0:
        _copy_kernel[(copies.shape[1],)](
            copies,
            tensors,
            scale,
            partials,
            out,
            ring.memory,
            ring.state,
            ring.skip,
            ring.partials,
            copies.shape[1],
            *ring.shape,
            UNIT=SKETCH_COPY,
            WIDE=wide,
            UPDATE=update,
            SCALED=scale is not None,
            WARPS=_WARPS,
            num_warps=_WARPS,
            **nvidia_options(maxnreg=_MAX_REGISTERS),
        )


def launch_sums(sums, scratch, out, ring, *, store):
    """Add up the partial sketches in ``scratch``; arguments as for `launch_sketch`, with the units' partial sums."""
    if sums.shape[1] > 0:
        _sum_kernel[(sums.shape[1],)](
            sums,
            scratch,
            out,
            ring.memory,
            ring.state,
            ring.skip,
            ring.partials,
            sums.shape[1],
            *ring.shape,
            UNIT=SKETCH_SUM,
            STORE=store,
            WARPS=_WARPS,
            num_warps=_WARPS,
        )


_DEFAULTS = {"num_warps": _WARPS, "elements": 1, "max_instructions_per_element": None, "loop": False}


def exact_groups_variants():
    """What is compiled ahead of time: the kernels that run."""
    return [
        _copy_variant(update=False, wide=False, ring=False),
        _copy_variant(update=False, wide=False, ring=True),
        _copy_variant(update=True, wide=True, ring=True),
        _sum_variant(ring=False, store=True),
        _sum_variant(ring=True, store=True),
        _sum_variant(ring=True, store=False),
    ]


def _copy_variant(*, update, wide, ring):
    return add_ring_arguments(
        _DEFAULTS
        | {
            "name": f"sketch-copy{'-update' * update}{'-wide' * wide}{'-ring' * ring}",
            "kernel": _copy_kernel,
            "signature": {
                "unit_ptr": "*i64",
                "tensor_ptr": "*i64",
                "scale_ptr": "*fp64",
                "partials_ptr": "*fp64",
                "n_units": "i32",
            },
            "constexprs": {"UNIT": SKETCH_COPY, "WIDE": wide, "UPDATE": update, "SCALED": True, "WARPS": _WARPS},
            "options": {"maxnreg": _MAX_REGISTERS},
            "min_vector_bytes": 0,
        },
        ring=ring,
    )


def _sum_variant(*, ring, store):
    return add_ring_arguments(
        _DEFAULTS
        | {
            "name": f"sketch-sum{'-ring' * ring}{'-store' * (ring and store)}",
            "kernel": _sum_kernel,
            "signature": {"unit_ptr": "*i64", "scratch_ptr": "*fp32", "n_units": "i32"},
            "constexprs": {"UNIT": SKETCH_SUM, "STORE": store, "WARPS": _WARPS},
            "options": {},
            "min_vector_bytes": 16,
        },
        ring=ring,
    )

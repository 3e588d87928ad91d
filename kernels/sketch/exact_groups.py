"""What goes with the sketch in launches of its own: copies of exact groups, and the sum of partial sketches.

An exact group has no more elements than buckets: its elements, or those of its update, stand in the sketch as they are,
and their moments are those that `sketch` takes. A unit of either kernel is a run of at most `SKETCH_COPY` elements of
one tensor, or `SKETCH_SUM` buckets of one group. `scaled` and `store_moments` serve all kernels of the sketch.
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
from fastgeom.kernels.sketch.accumulate import TENSOR_COLUMNS
from fastgeom.kernels.sketch.compare_and_store import deliver, delivered

SKETCH_COPY = 1024
"""Elements of an exact group that one program copies."""
SKETCH_SUM = 1024
"""Buckets that one program of the second launch adds up, or all of a group that has fewer."""

_WARPS = 4
_MAX_REGISTERS = 128
"""Of a copy: left alone, the compiler spills to reach 72."""


@triton.jit(do_not_specialize=["n_units", "total", "slots"])
def _copy_kernel(
    unit_ptr, tensor_ptr, scale_ptr, partials_ptr, out_ptr, ring_ptr, state_ptr, skip_ptr, sums_ptr,
    n_units, total, slots,
    UNIT: tl.constexpr, WIDE: tl.constexpr, UPDATE: tl.constexpr, SCALED: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    unit = tl.program_id(0).to(tl.int64)
    stride = tl.cast(n_units, tl.int64)
    place, start = tl.load(unit_ptr + unit), tl.load(unit_ptr + stride + unit)
    length, target = tl.load(unit_ptr + 2 * stride + unit).to(tl.int32), tl.load(unit_ptr + 3 * stride + unit)
    lanes = tl.arange(0, UNIT)
    row_ptr = tensor_ptr + TENSOR_COLUMNS * tl.maximum(place, 0)
    scale = tl.full((), 1, tl.float64)
    if SCALED:
        scale = tl.load(scale_ptr)
    code = _unit_code(place, tl.load(row_ptr + 4), length, UNIT)
    x = load_tile(_at(tl.load(row_ptr + 3), start, code), code, 0, lanes, length, -1, WIDE)
    first = _sum(x * x)
    if UPDATE:
        gradient_code = _unit_code(place, tl.load(row_ptr + 7), length, UNIT)
        gradient = _at(tl.load(row_ptr + 6), start, gradient_code)
        snapshot = _at(tl.load(row_ptr + 5), start, code)
        update = x - load_tile(snapshot, code, 0, lanes, length, -1, WIDE)
        dot = _sum(load_tile(gradient, gradient_code, 0, lanes, length, -1, WIDE) * update)
        tl.debug_barrier()
        store_tile(snapshot, code, 0, lanes, length, x, -1, WIDE)
        store_moments(partials_ptr + 3 * unit, first, _sum(update * update), scaled(dot, scale, SCALED))
        x = update
    else:
        largest, bad = tl.max(tl.maximum(tl.abs(x), 0)).to(tl.float64), count_nonfinite(x).to(tl.float64)
        first = scaled(scaled(first, scale, SCALED), scale, SCALED)
        store_moments(partials_ptr + 3 * unit, first, scaled(largest, tl.abs(scale), SCALED), bad)
        x = scaled(x, scale, SCALED)
    STORE: tl.constexpr = not UPDATE
    x = x.to(tl.float32)
    deliver(
        x, target, length, unit, out_ptr, ring_ptr, state_ptr, skip_ptr, sums_ptr, total, slots, False, STORE, WARPS
    )


@triton.jit
def _sum(x):
    return tl.sum(x.to(tl.float64))


@triton.jit
def _unit_code(place, code, length, UNIT: tl.constexpr):
    code = tl.where(place < 0, ABSENT, code.to(tl.int32))
    return tl.where((length < UNIT) & (code < SHORT), code + SHORT, code)


@triton.jit
def _at(address, start, code):
    """Byte address of element ``start`` of a tensor."""
    item = tl.where(code % 4 == FLOAT64, 8, tl.where(code % 4 == FLOAT32, 4, 2))
    return address + start * item


@triton.jit(do_not_specialize=["n_units", "total", "slots"])
def _sum_kernel(
    unit_ptr, scratch_ptr, out_ptr, ring_ptr, state_ptr, skip_ptr, sums_ptr, n_units, total, slots,
    UNIT: tl.constexpr, STORE: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    unit = tl.program_id(0).to(tl.int64)
    stride = tl.cast(n_units, tl.int64)
    target, source = tl.load(unit_ptr + unit), tl.load(unit_ptr + stride + unit)
    runs, buckets = tl.load(unit_ptr + 2 * stride + unit).to(tl.int32), tl.load(unit_ptr + 3 * stride + unit)
    lanes = tl.arange(0, UNIT)
    x = tl.zeros([UNIT], tl.float32)
    pointer = tl.multiple_of(scratch_ptr + source, 16)
    for _ in tl.range(0, runs, loop_unroll_factor=4):
        x += tl.load(pointer + lanes, mask=lanes // 4 * 4 < buckets, other=0.0)
        pointer = tl.multiple_of(pointer + buckets, 16)
    deliver(
        x, target, buckets, unit, out_ptr, ring_ptr, state_ptr, skip_ptr, sums_ptr, total, slots, True, STORE, WARPS
    )


@triton.jit
def scaled(x, scale, SCALED: tl.constexpr):
    """``x`` times the scale, but zero where it is zero, even if the scale is not finite."""
    if SCALED:
        x = tl.where(x == 0, x, x * scale.to(x.dtype))
    return x


@triton.jit
def store_moments(pointer, first, second, third):
    """Write a row of ``partials``."""
    tl.store(pointer, first)
    tl.store(pointer + 1, second)
    tl.store(pointer + 2, third)


def launch_copies(copies, tensors, scale, partials, out, ring, *, update, wide):
    """Copy the exact groups; the arguments are those of `launch_sketch`, partial sums from the first row on."""
    if copies.shape[1] > 0:
        _copy_kernel[(copies.shape[1],)](
            copies, tensors, scale, partials, out, ring.memory, ring.state, ring.skip, ring.partials, copies.shape[1],
            *ring.shape, UNIT=SKETCH_COPY, WIDE=wide, UPDATE=update, SCALED=scale is not None, WARPS=_WARPS,
            num_warps=_WARPS, **nvidia_options(maxnreg=_MAX_REGISTERS),
        )  # fmt: skip


def launch_sums(sums, scratch, out, ring, *, store):
    """Add up the runs in ``scratch``; the arguments are those of `launch_sketch`, partial sums those of the units."""
    if sums.shape[1] > 0:
        _sum_kernel[(sums.shape[1],)](
            sums, scratch, out, ring.memory, ring.state, ring.skip, ring.partials, sums.shape[1], *ring.shape,
            UNIT=SKETCH_SUM, STORE=store, WARPS=_WARPS, num_warps=_WARPS,
        )  # fmt: skip


_COMMON = {"num_warps": _WARPS, "elements": 1, "max_instructions_per_element": None, "loop": False}


def sketch_parts_variants():
    """What is compiled ahead of time: the kernels that run."""
    copies = [_copy_variant(update, wide, ring) for update, wide, ring in (
        (False, False, False), (False, False, True), (True, True, True),
    )]  # fmt: skip
    return [*copies, *(_sum_variant(ring, store) for ring, store in ((False, True), (True, True), (True, False)))]


def _copy_variant(update, wide, ring):
    return delivered(_COMMON | {
        "name": f"sketch-copy{'-update' * update}{'-wide' * wide}{'-ring' * ring}",
        "kernel": _copy_kernel,
        "signature": {"unit_ptr": "*i64", "tensor_ptr": "*i64", "scale_ptr": "*fp64", "partials_ptr": "*fp64",
                      "n_units": "i32"},
        "constexprs": {"UNIT": SKETCH_COPY, "WIDE": wide, "UPDATE": update, "SCALED": True, "WARPS": _WARPS},
        "options": {"maxnreg": _MAX_REGISTERS},
        "min_vector_bytes": 0,
    }, ring=ring)  # fmt: skip


def _sum_variant(ring, store):
    return delivered(_COMMON | {
        "name": f"sketch-sum{'-ring' * ring}{'-store' * (ring and store)}",
        "kernel": _sum_kernel,
        "signature": {"unit_ptr": "*i64", "scratch_ptr": "*fp32", "n_units": "i32"},
        "constexprs": {"UNIT": SKETCH_SUM, "STORE": store, "WARPS": _WARPS},
        "options": {},
        "min_vector_bytes": 16,
    }, ring=ring)  # fmt: skip

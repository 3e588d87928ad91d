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
    store_tile,
)

SKETCH_COPY = 1024
"""Elements of an exact group that one program copies."""
SKETCH_SUM = 128
"""Buckets that one program of the second launch adds up."""
TENSOR_COLUMNS = tl.constexpr(8)
"""Of the table of tensors: see `launch_sketch`."""


@triton.jit(do_not_specialize=["n_units"])
def _copy_kernel(
    unit_ptr, tensor_ptr, scale_ptr, out_ptr, partials_ptr, n_units,
    UNIT: tl.constexpr, WIDE: tl.constexpr, UPDATE: tl.constexpr, SCALED: tl.constexpr,
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
    tl.store(out_ptr + target + lanes, x.to(tl.float32), mask=lanes < length)


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


@triton.jit(do_not_specialize=["n_units"])
def _sum_kernel(unit_ptr, scratch_ptr, out_ptr, n_units, UNIT: tl.constexpr):
    unit = tl.program_id(0).to(tl.int64)
    stride = tl.cast(n_units, tl.int64)
    target, source = tl.load(unit_ptr + unit), tl.load(unit_ptr + stride + unit)
    runs, buckets = tl.load(unit_ptr + 2 * stride + unit).to(tl.int32), tl.load(unit_ptr + 3 * stride + unit)
    lanes = tl.arange(0, UNIT)
    total = tl.zeros([UNIT], tl.float32)
    pointer = tl.multiple_of(scratch_ptr + source, 16)
    for _ in range(runs):
        total += tl.load(pointer + lanes)
        pointer = tl.multiple_of(pointer + buckets, 16)
    tl.store(tl.multiple_of(out_ptr + target, 16) + lanes, total)


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


def launch_copies(copies, tensors, scale, out, partials, *, update, wide):
    """Copy the exact groups; the arguments are those of `launch_sketch`, ``partials`` from the first copy's row on."""
    if copies.shape[1] > 0:
        _copy_kernel[(copies.shape[1],)](
            copies, tensors, scale, out, partials, copies.shape[1],
            UNIT=SKETCH_COPY, WIDE=wide, UPDATE=update, SCALED=scale is not None, num_warps=4,
        )  # fmt: skip


def launch_sums(sums, scratch, out):
    """Add up the runs in ``scratch``; the arguments are those of `launch_sketch`."""
    if sums.shape[1] > 0:
        _sum_kernel[(sums.shape[1],)](sums, scratch, out, sums.shape[1], UNIT=SKETCH_SUM, num_warps=1)


def sketch_parts_variants():
    """What is compiled ahead of time: the kernels that run."""
    common = {"options": {}, "elements": 1, "min_vector_bytes": 0, "max_instructions_per_element": None,
              "loop": False}  # fmt: skip
    copies = [
        common | {
            "name": f"sketch-copy{'-update' * update}{'-wide' * wide}", "kernel": _copy_kernel, "num_warps": 4,
            "signature": {
                "unit_ptr": "*i64", "tensor_ptr": "*i64", "scale_ptr": "*fp64", "out_ptr": "*fp32",
                "partials_ptr": "*fp64", "n_units": "i32",
            },
            "divisible_by_16": ["out_ptr"],
            "constexprs": {"UNIT": SKETCH_COPY, "WIDE": wide, "UPDATE": update, "SCALED": True},
        }
        for update, wide in ((False, False), (True, True))
    ]  # fmt: skip
    add = common | {
        "name": "sketch-sum", "kernel": _sum_kernel, "num_warps": 1, "constexprs": {"UNIT": SKETCH_SUM},
        "signature": {"unit_ptr": "*i64", "scratch_ptr": "*fp32", "out_ptr": "*fp32", "n_units": "i32"},
        "divisible_by_16": ["out_ptr", "scratch_ptr"],
    }  # fmt: skip
    return [*copies, add]

"""Sums over the update from x_old to x_new and the gradients at both ends, in one pass that renews the snapshot.

With u = x_new - x_old, taken before anything is rounded, g_new the gradient at x_new and g_prev the one at x_old:

    param_sq = sum x_new^2          grad_dot_update      = sum g_prev u
    update_sq = sum u^2             next_grad_dot_update = sum g_new u
    snapshot  <-  x_new

g_prev is the newest row of the ring, or *keep* where the ring has fewer bits than the gradient: this pass comes before
the one that stores g_new. A *unit* is what one program handles, as in the window's pass: 16 KB of a tensor's chunk of
the ring, or 1 KB of what then remains. Snapshot and keep have room for all of it; past the tensor's end they are zero.

A thread adds at most 32 products of one kind in float32 (float64: ``wide``), then its warp does, and each warp leaves a
row of partial sums: no barrier between the loads.
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
    SHORT,
    compute_type,
    item_bytes,
    load_tile,
    nvidia_options,
    store_tile,
)

UPDATE_BIG = 16384
UPDATE_SMALL = 1024
"""Bytes of ring of a unit."""

PARAM_SQ, UPDATE_SQ, GRAD_DOT_UPDATE, NEXT_GRAD_DOT_UPDATE = range(4)
UPDATE_COLUMNS = 4
"""Columns of partial sums."""

_BIG_WARPS = 8
_SMALL_WARPS = 1
_COLUMNS = tl.constexpr(UPDATE_COLUMNS)
_MAX_REGISTERS = 128
"""Left alone, the compiler spills to reach 80."""


def update_bytes(n_elements: int, gradient_bytes: int = 4, history_bytes: int = 4, parameter_bytes: int = 4) -> int:
    """Gradient, previous gradient, parameter and snapshot read, the snapshot written: g + h + 3 x an element."""
    return n_elements * (gradient_bytes + history_bytes + 3 * parameter_bytes)


def update_rows(n_units: int, small: bool) -> int:
    """Rows of partial sums that so many units leave: one a warp."""
    return n_units * (_SMALL_WARPS if small else _BIG_WARPS)


@triton.jit(do_not_specialize=["n_units"])
def _update_kernel(
    table_ptr,
    ring_ptr,
    state_ptr,
    scale_ptr,
    partials_ptr,
    n_units,
    row_elements,
    RING: tl.constexpr,
    CODE: tl.constexpr,
    WIDE: tl.constexpr,
    KEEP: tl.constexpr,
    SCALED: tl.constexpr,
    UNIT: tl.constexpr,
    WARPS: tl.constexpr,
):
    unit = tl.program_id(0).to(tl.int64)
    n_units = tl.cast(n_units, tl.int64)
    column_ptr = table_ptr + unit
    gradient, code = tl.load(column_ptr), tl.load(column_ptr + n_units)
    length, offset = tl.load(column_ptr + 2 * n_units), tl.load(column_ptr + 3 * n_units)
    parameter, parameter_code = tl.load(column_ptr + 5 * n_units), tl.load(column_ptr + 6 * n_units)
    snapshot = tl.load(column_ptr + 7 * n_units)

    previous = ring_ptr.to(tl.int64) + (tl.load(state_ptr) * row_elements + offset) * item_bytes(RING)
    previous_code = tl.full((), RING, tl.int64)
    if KEEP:
        keep = tl.load(column_ptr + 4 * n_units)
        previous = tl.where(keep != 0, keep, previous)
        previous_code = tl.where(keep != 0, code % SHORT, previous_code)
    scale = tl.full((), 1, compute_type(WIDE))
    if SCALED:  # where there is no gradient its zeros stay zero even if the scale is not finite
        scale = tl.where(code < ABSENT, tl.load(scale_ptr).to(compute_type(WIDE)), 0)

    # On the mixed paths as many elements a thread as leave every dtype its layout: none moves between threads.
    MIXED: tl.constexpr = 2 if WIDE else 4
    PURE: tl.constexpr = WIDE == (RING == FLOAT64)
    unit_tensors = (gradient, code, previous, previous_code, parameter, parameter_code, snapshot)
    if CODE >= 0 or (PURE and ((code == RING) & (parameter_code == RING) & (previous_code == RING))):
        pure = (gradient, RING, previous, RING, parameter, RING, snapshot)
        sums = _moments(pure, length, scale, RING, RING, WIDE, SCALED, UNIT, WARPS, 16 // item_bytes(RING))
    elif parameter_code % SHORT == FLOAT32:
        sums = _moments(unit_tensors, length, scale, FLOAT32, -1, WIDE, SCALED, UNIT, WARPS, MIXED)
    elif parameter_code % SHORT == BFLOAT16:
        sums = _moments(unit_tensors, length, scale, BFLOAT16, -1, WIDE, SCALED, UNIT, WARPS, MIXED)
    elif WIDE and parameter_code % SHORT == FLOAT64:
        sums = _moments(unit_tensors, length, scale, FLOAT64, -1, WIDE, SCALED, UNIT, WARPS, MIXED)
    else:
        sums = _moments(unit_tensors, length, scale, FLOAT16, -1, WIDE, SCALED, UNIT, WARPS, MIXED)
    lane = tl.arange(0, 32)[None, :]
    row = unit * WARPS + tl.arange(0, WARPS)[:, None]
    tl.store(partials_ptr + row * _COLUMNS + lane, sums, mask=lane < _COLUMNS)


@triton.jit
def _moments(
    tensors,
    length,
    scale,
    PARAMETER: tl.constexpr,
    CODE: tl.constexpr,
    WIDE: tl.constexpr,
    SCALED: tl.constexpr,
    UNIT: tl.constexpr,
    WARPS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """The sums of a unit, [WARPS, 32] with a column each and then zeros; the snapshot is renewed.

    ``tensors`` are gradient, its code, previous gradient, its code, parameter, its code, and snapshot.
    """
    gradient, gradient_code, previous, previous_code, parameter, parameter_code, snapshot = tensors
    offsets = tl.arange(0, WARPS)[:, None] * (32 * VECTOR) + tl.arange(0, 32 * VECTOR)[None, :]
    zeros = tl.zeros([WARPS, 32 * VECTOR], compute_type(WIDE))
    param_sq, update_sq, before, after = zeros, zeros, zeros, zeros
    for start in range(0, UNIT, WARPS * 32 * VECTOR):
        if CODE >= 0 or parameter_code < SHORT:
            new = load_tile(parameter, parameter_code, start, offsets, length, PARAMETER, WIDE)
        else:
            new = load_tile(parameter, parameter_code, start, offsets, length, PARAMETER + SHORT, WIDE)
        old = load_tile(snapshot, PARAMETER, start, offsets, length, PARAMETER, WIDE)
        g_prev = load_tile(previous, previous_code, start, offsets, length, CODE, WIDE)
        g_new = load_tile(gradient, gradient_code, start, offsets, length, CODE, WIDE)
        store_tile(snapshot, PARAMETER, start, offsets, length, new, PARAMETER, WIDE)
        if SCALED and WARPS == 1:
            g_new *= tl.where(start + offsets < length, scale, 0)
        elif SCALED:
            g_new *= scale
        update = new - old
        param_sq = tl.fma(new, new, param_sq)
        update_sq = tl.fma(update, update, update_sq)
        before = tl.fma(g_prev, update, before)
        after = tl.fma(g_new, update, after)
    column = tl.arange(0, 32)[None, :]
    sums = tl.where(column == 0, tl.sum(param_sq, axis=1)[:, None], 0)
    sums = tl.where(column == 1, tl.sum(update_sq, axis=1)[:, None], sums)
    sums = tl.where(column == 2, tl.sum(before, axis=1)[:, None], sums)
    return tl.where(column == 3, tl.sum(after, axis=1)[:, None], sums)


def launch_update(table, n_units, ring, state, partials, *, small, wide=False, keep=False, scale=None):
    """Fill ``partials`` with the sums of every unit and write the parameters over their snapshot.

    Args:
        table: int64 (8, n_units): address and code of the gradient, length, offset in a row of the ring (a multiple of
            1 KB), address of the previous gradient in *keep* (a multiple of 16; 0: it is in the ring), address and code
            of the parameter, address of its snapshot (a multiple of 16). Keep is of the gradient's dtype, the snapshot
            of the parameter's. Where there is no gradient but a *keep*, the code is 8 + its dtype.
        n_units: number of units; none is launched if 0.
        ring: (slots, elements), contiguous, 16-byte aligned; a row is a multiple of 1 KB.
        state: int64; its first element is the slot of the previous gradient.
        partials: (`update_rows`, `UPDATE_COLUMNS`), float64 if ``wide``, else float32. Columns: sum x_new^2, sum u^2,
            sum g_prev u, sum g_new u.
        small: units of `UPDATE_SMALL` bytes and one warp instead of `UPDATE_BIG` and eight, which must be full.
        wide: compute in float64; without it nothing may be float64.
        keep: whether some unit has a *keep*.
        scale: float64 (), what g_new is multiplied by as it is read, rounded to float32 first unless ``wide``.
    """
    if n_units:
        code = DTYPE_NAMES.index(str(ring.dtype).removeprefix("torch."))
        _update_kernel[(n_units,)](
            table,
            ring,
            state,
            scale,
            partials,
            n_units,
            ring.stride(0),
            CODE=-1,
            KEEP=keep,
            SCALED=scale is not None,
            **_configuration(code, small, wide),
            **nvidia_options(maxnreg=_MAX_REGISTERS),
        )


def _configuration(code, small, wide):
    return {
        "RING": code,
        "WIDE": wide,
        "UNIT": (UPDATE_SMALL if small else UPDATE_BIG) // ITEM_BYTES[code],
        "WARPS": _SMALL_WARPS if small else _BIG_WARPS,
        "num_warps": _SMALL_WARPS if small else _BIG_WARPS,
    }


def update_variants():
    """What is compiled ahead of time: the kernels that run, and for each dtype the path on which all are of it."""
    return [
        _variant(name, code, path, small, wide)
        for code, name in enumerate(DTYPE_NAMES)
        for small in (False, True)
        for wide in (False, True)
        for path in (-1, code)
        if wide or name != "float64"
        if path < 0 or wide is (name == "float64")
    ]


def _variant(name, code, path, small, wide):
    configuration = _configuration(code, small, wide)
    fixed = path >= 0
    types = {
        "table_ptr": "*i64",
        "ring_ptr": "*" + ("fp32", "fp64", "bf16", "fp16")[code],
        "state_ptr": "*i64",
        "scale_ptr": "*fp64",
        "partials_ptr": "*fp64" if wide else "*fp32",
        "n_units": "i32",
        "row_elements": "i64",
    }
    return {
        "name": f"update-{name}" + "-small" * small + "-wide" * wide + ("" if fixed else "-any"),
        "kernel": _update_kernel,
        "signature": types,
        "num_warps": configuration.pop("num_warps"),
        "constexprs": configuration | {"CODE": path, "KEEP": not fixed, "SCALED": not fixed},
        "divisible_by_16": [*(argument for argument in types if argument.endswith("_ptr")), "row_elements"],
        "options": {"maxnreg": _MAX_REGISTERS},
        "elements": configuration["UNIT"],
        "min_vector_bytes": 16 if fixed else 4,
        "max_instructions_per_element": None,
        "loop": False,
    }

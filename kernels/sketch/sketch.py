"""The count sketch of groups of tensors, or of their updates, and exact moments from the same read.

    sketch_k  =  sum over the elements of bucket k of  sign × x   which and what sign: ``fastgeom.layout.count_sketch``
    moments   =  sum x^2,  max |x| over what is not NaN,  number of inf and NaN

and of an update u = x - snapshot: the sketch of u;  sum x^2,  sum u^2,  sum g u;  then snapshot <- x.

A *program* owns a tile of buckets of one group and a run of *quads*: the four blocks b that share q and i >> 2, and so
one word of signs for each eight buckets. Quads are numbered q × rounds + (i >> 2). Its sums stay in registers, so there
are no atomics and one order of adding. Where several programs share a tile, each leaves its sums in ``scratch``, and a
second launch adds them up (`sketch_parts`).

Element p of a block goes to bucket p XOR H XOR q. Above the low three bits, H says which piece of the block belongs to
the tile, and permutes its groups of eight: both are done in the address. q permutes the eight: sums are kept as if it
were 0, and change places between registers whenever it changes.

Scratch: at most 4 bytes × 1024 × `SKETCH_PROGRAMS` = 4.3 MB with the runs of ``fastgeom.engines.triton.sketch_tables``,
whatever the model and the size of the sketch; none from 2^20 buckets on.
"""

import triton
import triton.language as tl

from fastgeom.kernels.loads import DTYPE_NAMES, compute_type, nvidia_options
from fastgeom.kernels.sketch.accumulate import (
    ORDER_STREAM,
    add_any,
    add_quad,
    count_nonfinite,
    exchange,
    find_tensor,
    mix32,
)
from fastgeom.kernels.sketch.compare_and_store import NO_RING, deliver, delivered
from fastgeom.kernels.sketch.exact_groups import (
    SKETCH_COPY,
    SKETCH_SUM,
    launch_copies,
    launch_sums,
    scaled,
    store_moments,
)

__all__ = [
    "SKETCH_COPY",
    "SKETCH_PROGRAMS",
    "SKETCH_SUM",
    "SKETCH_TILES",
    "launch_sketch",
    "sketch_bytes",
    "sketch_update_bytes",
    "sketch_variants",
]

SKETCH_TILES = (1024, 256, 128)
"""Buckets of a tile: the largest that fits into a group's."""
SKETCH_PROGRAMS = 1056
"""Among how many programs work is shared: 8 for each of 132 multiprocessors, all of which run at once."""

_WARPS = {1024: 2, 256: 1, 128: 1}


def _max_registers(update, wide):
    """Left alone, the compiler spills to reach 80, 96 or 128."""
    return 255 if update and wide else 168 if update or wide else 128


def sketch_bytes(n_elements, gradient_bytes=4):
    """Bytes read: every element once."""
    return n_elements * gradient_bytes


def sketch_update_bytes(n_elements, gradient_bytes=4, parameter_bytes=4):
    """Bytes moved: gradient, parameter and snapshot read, the snapshot written."""
    return n_elements * (gradient_bytes + 3 * parameter_bytes)


@triton.jit(do_not_specialize=["n_programs", "total", "slots"])
def _sketch_kernel(
    program_ptr, tensor_ptr, scale_ptr, scratch_ptr, partials_ptr, out_ptr, ring_ptr, state_ptr, skip_ptr, sums_ptr,
    n_programs, total, slots,
    TILE: tl.constexpr, CODE: tl.constexpr, WIDE: tl.constexpr, UPDATE: tl.constexpr, SCALED: tl.constexpr,
    WARPS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    stride = tl.cast(n_programs, tl.int64)
    column_ptr = program_ptr + program
    bucket, buckets, blocks = tl.load(column_ptr), tl.load(column_ptr + stride), tl.load(column_ptr + 2 * stride)
    seed = tl.load(column_ptr + 3 * stride).to(tl.uint32, bitcast=True)
    first_quad, end_quad = tl.load(column_ptr + 4 * stride), tl.load(column_ptr + 5 * stride)
    start, first_place = tl.load(column_ptr + 6 * stride), tl.load(column_ptr + 7 * stride)
    tile = (bucket, buckets, blocks, seed)

    GROUPS: tl.constexpr = TILE // 8
    group = tl.arange(0, GROUPS)
    low, high = tl.zeros([GROUPS, 4], tl.float32), tl.zeros([GROUPS, 4], tl.float32)
    none = tl.zeros([GROUPS], tl.float64)
    moments = (none, none, none, tl.zeros([GROUPS, 4], compute_type(WIDE)))
    rounds = (blocks + 31) // 32
    place = start
    for q in range(first_quad // rounds, (end_quad + rounds - 1) // rounds):
        tensor = find_tensor(place, tensor_ptr)
        first_round = tl.maximum(first_quad - q * rounds, 0)
        for j in range(first_round, tl.minimum(end_quad - q * rounds, rounds)):
            round_ = tl.cast(j, tl.uint32)
            order = mix32(round_ ^ seed ^ ORDER_STREAM)
            word = round_ * buckets.to(tl.uint32) + (q * (buckets >> 3) + (bucket >> 3)).to(tl.uint32)
            signs = mix32((word + group.to(tl.uint32)) ^ seed)
            if UPDATE or WIDE:
                low, high, moments, tensor = add_any(
                    low, high, moments, tensor, tensor_ptr, tile, j, q, order, signs, WIDE, UPDATE
                )
            else:
                low, high, moments, tensor = add_quad(
                    low, high, moments, tensor, tensor_ptr, tile, j, q, order, signs, CODE
                )
        low, high = exchange(low, high, tl.cast(q ^ (q + 1), tl.int32))
        place = first_place
    low, high = exchange(low, high, (end_quad + rounds - 1) // rounds)

    squares, largest = tl.sum(moments[0]), tl.max(moments[3]).to(tl.float64)
    scale = tl.full((), 1, tl.float64)
    if SCALED:
        scale = tl.load(scale_ptr)
    if UPDATE:
        dot = scaled(tl.sum(moments[2]), scale, SCALED)
        store_moments(partials_ptr + 3 * program, squares, tl.sum(moments[1]), dot)
    else:
        low, high = scaled(low, scale, SCALED), scaled(high, scale, SCALED)
        bad = 0
        if not squares < float("inf"):
            bad = count_nonfinite(tensor_ptr, tile, first_quad, end_quad, start, first_place, GROUPS, WIDE, CODE)
        store_moments(
            partials_ptr + 3 * program, scaled(scaled(squares, scale, SCALED), scale, SCALED),
            scaled(largest, tl.abs(scale), SCALED), bad.to(tl.float64),
        )  # fmt: skip
    # Read only now, because registers are what the loop is short of.
    column_ptr = program_ptr + tl.program_id(0).to(tl.int64)
    target, row = tl.load(column_ptr + 8 * stride), tl.load(column_ptr + 9 * stride).to(tl.int64)
    STORE: tl.constexpr = not UPDATE
    x = tl.join(low, high).reshape([TILE])
    if target < 0:
        tl.store(tl.multiple_of(scratch_ptr - 1 - target, 16) + tl.arange(0, TILE), x)
    else:
        deliver(
            x, target, TILE, row, out_ptr, ring_ptr, state_ptr, skip_ptr, sums_ptr, total, slots, True, STORE, WARPS
        )


def launch_sketch(
    programs, copies, sums, tensors, scratch, partials, *, out=None, ring=NO_RING, update=False, wide=False, scale=None
):
    """Sketch every group, and measure what is read.

    Args:
        programs: for each of `SKETCH_TILES`, int32 (10, n): of each program the first bucket of its tile, the buckets
            and blocks of the group, the group's seed, first quad, end, the tensor in which the first quad's round
            begins, the group's first tensor, where its sums go: a place in the sketch, or -1 - index into ``scratch``;
            and in the first case its row of ``ring.partials``.
        copies: int64 (4, n), the exact groups: tensor (-1 for zeros), first element, length, place in the sketch.
        sums: int64 (4, n), what is added up afterwards, `SKETCH_SUM` buckets or the whole group: place in the sketch,
            index into ``scratch`` of the first run, number of runs, distance from one to the next, which is the
            group's buckets.
        tensors: int64 (tensor, 8), the tensors by group: end and first of their blocks, elements of the last one;
            address and code; and for updates, where the tensors are parameters, address of the snapshots, address and
            code of the gradients. Codes are those of `loads` but for the length: 0..3 where the tensor, and its
            snapshot, begin at a multiple of 16 bytes.
        scratch: float32, of the length that goes with the tables.
        partials: float64 (rows, 3): a row for each program, one table after the other, then for each copy: sum x^2,
            max |x|, number of inf and NaN; or sum x^2, sum u^2, sum g u.
        out: float32 (plan.total,), at a multiple of 16 bytes; all of it is written.
        ring: what the sketch is compared with, and stored in unless it is that of an update; see ``SketchRing``.
        update: sketch the update, and renew the snapshot.
        wide: read float64 too, and compute moments in float64.
        scale: float64 (), what the gradient is multiplied by.
    """
    options = {"WIDE": wide, "UPDATE": update, "SCALED": scale is not None}
    registers = nvidia_options(maxnreg=_max_registers(update, wide))
    row = 0
    for tile, table in zip(SKETCH_TILES, programs, strict=True):
        n_programs = table.shape[1]
        if n_programs > 0:
            _sketch_kernel[(n_programs,)](
                table, tensors, scale, scratch, partials[row:], out, ring.memory, ring.state, ring.skip, ring.partials,
                n_programs, *ring.shape, TILE=tile, CODE=-1, **options, WARPS=_WARPS[tile], num_warps=_WARPS[tile],
                **registers,
            )  # fmt: skip
        row += n_programs
    copied, added = copies.shape[1], sums.shape[1]
    launch_copies(copies, tensors, scale, partials[row:], out, ring.last(copied + added), update=update, wide=wide)
    launch_sums(sums, scratch, out, ring.last(added), store=not update)


def sketch_variants():
    """What is compiled ahead of time: what is launched, and for each dtype the path of quads inside of a tensor.

    The hot loop of sketch-bfloat16-ring is that over slots, four of which are one pass of it.
    """
    fast = [_variant(f"sketch-{DTYPE_NAMES[code]}", code=code, width=16, goal=9 if code == 2 else None)
            for code in (0, 2, 3)]  # fmt: skip
    launched = [
        _variant(f"sketch-{tile}{'-update' * update}{'-wide' * wide}{'-ring' * ring}", tile, update, wide, ring=ring)
        for tile in SKETCH_TILES
        for update, wide in ((False, False), (True, False), (False, True), (True, True))
        for ring in (False, True)
        if ring or not update
    ]
    ring = _variant("sketch-bfloat16-ring", code=2, ring=True, width=16, goal=1)
    return [*fast, ring, *launched, _variant("sketch-1024-ring-out", ring=True, out=True)]


def _variant(name, tile=1024, update=False, wide=False, *, code=-1, ring=False, out=False, width=0, goal=None):
    pointers = {"program_ptr": "*i32", "tensor_ptr": "*i64", "scale_ptr": "*fp64", "scratch_ptr": "*fp32",
                "partials_ptr": "*fp64"}  # fmt: skip
    return delivered({
        "name": name,
        "kernel": _sketch_kernel,
        "signature": pointers | {"n_programs": "i32"},
        "constexprs": {"TILE": tile, "CODE": code, "WIDE": wide, "UPDATE": update, "SCALED": code < 0,
                       "WARPS": _WARPS[tile]},
        "num_warps": _WARPS[tile],
        "options": {"maxnreg": _max_registers(update, wide)},
        "elements": 4 * tile if code >= 0 else 1,
        "min_vector_bytes": width,
        "max_instructions_per_element": goal,
        "loop": code >= 0,
    }, ring=ring, out=out)  # fmt: skip

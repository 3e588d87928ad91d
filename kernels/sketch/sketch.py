"""The count sketch of groups of tensors, or of their updates, and exact moments from the same read.

    sketch_k  =  sum over the elements of bucket k of  sign × x   which and what sign: ``fastgeom.layout.count_sketch``
    moments   =  sum x^2,  max |x| over what is not NaN,  number of inf and NaN

and of an update u = x - snapshot: the sketch of u;  sum x^2,  sum u^2,  sum g u;  then snapshot <- x.

Blocks are added in *batches* of four: the blocks b that share q and i >> 2, and so one word of signs for each octet of
buckets. Batches are numbered q × rounds + (i >> 2). A *unit*, what one program handles, is a tile of buckets of one
group and a range of batches. Its sums stay in registers, so there are no atomics and one order of adding. Where several
programs share a tile, each writes its sums to ``scratch``, and a second launch adds them up (`exact_groups`).

Element p of a block goes to bucket p XOR H XOR q. Above the low three bits, H says which elements of the block belong
to the tile, and permutes their octets: both are done in the address. q permutes each octet: sums are stored as if it
were 0, and are exchanged between registers whenever it changes.

Scratch: at most 4 bytes × 1024 × `SKETCH_PROGRAMS` = 4.3 MB with the tables of
``fastgeom.engines.triton.sketch_tables``, whatever the model and the size of the sketch; none from 2^20 buckets on.
"""

import triton
import triton.language as tl

from fastgeom.kernels.loads import DTYPE_NAMES, compute_type, nvidia_options
from fastgeom.kernels.sketch.accumulate import add_any, add_batch, count_nonfinite, exchange, load_tensor
from fastgeom.kernels.sketch.compare_and_store import NO_RING, add_ring_arguments, compare_and_store
from fastgeom.kernels.sketch.exact_groups import SKETCH_COPY, SKETCH_SUM, launch_copies, launch_sums
from fastgeom.kernels.sketch.shared import ORDER_STREAM, mix32, scaled, store_moments

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
"""Buckets of a tile: the largest of these that a group has."""
SKETCH_PROGRAMS = 1056
"""Number of programs that share the work: 8 for each of 132 multiprocessors, all of which run at once."""

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
    program_ptr,
    tensor_ptr,
    scale_ptr,
    scratch_ptr,
    partials_ptr,
    out_ptr,
    ring_ptr,
    state_ptr,
    skip_ptr,
    sums_ptr,
    n_programs,
    total,
    slots,
    TILE: tl.constexpr,
    CODE: tl.constexpr,
    WIDE: tl.constexpr,
    UPDATE: tl.constexpr,
    SCALED: tl.constexpr,
    WARPS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    stride = tl.cast(n_programs, tl.int64)
    column_ptr = program_ptr + program
    bucket, buckets, blocks = tl.load(column_ptr), tl.load(column_ptr + stride), tl.load(column_ptr + 2 * stride)
    seed = tl.load(column_ptr + 3 * stride).to(tl.uint32, bitcast=True)
    first_batch, end_batch = tl.load(column_ptr + 4 * stride), tl.load(column_ptr + 5 * stride)
    start, first_tensor = tl.load(column_ptr + 6 * stride), tl.load(column_ptr + 7 * stride)
    tile = (bucket, buckets, blocks, seed)

    OCTETS: tl.constexpr = TILE // 8
    octet = tl.arange(0, OCTETS)
    low, high = tl.zeros([OCTETS, 4], tl.float32), tl.zeros([OCTETS, 4], tl.float32)
    zeros = tl.zeros([OCTETS], tl.float64)
    moments = (zeros, zeros, zeros, tl.zeros([OCTETS, 4], compute_type(WIDE)))
    rounds = (blocks + 31) // 32
    index = start
    for q in range(first_batch // rounds, (end_batch + rounds - 1) // rounds):
        tensor = load_tensor(index, tensor_ptr)
        first_round = tl.maximum(first_batch - q * rounds, 0)
        for j in range(first_round, tl.minimum(end_batch - q * rounds, rounds)):
            round_ = tl.cast(j, tl.uint32)
            order = mix32(round_ ^ seed ^ ORDER_STREAM)
            word = round_ * buckets.to(tl.uint32) + (q * (buckets >> 3) + (bucket >> 3)).to(tl.uint32)
            signs = mix32((word + octet.to(tl.uint32)) ^ seed)
            if UPDATE or WIDE:
                low, high, moments, tensor = add_any(
                    low, high, moments, tensor, tensor_ptr, tile, j, q, order, signs, WIDE, UPDATE
                )
            else:
                low, high, moments, tensor = add_batch(
                    low, high, moments, tensor, tensor_ptr, tile, j, q, order, signs, CODE
                )
        low, high = exchange(low, high, tl.cast(q ^ (q + 1), tl.int32))
        index = first_tensor
    low, high = exchange(low, high, (end_batch + rounds - 1) // rounds)

    squares, largest = tl.sum(moments[0]), tl.max(moments[3]).to(tl.float64)
    scale = tl.full((), 1, tl.float64)
    if SCALED:
        scale = tl.load(scale_ptr)
    if UPDATE:
        dot = scaled(tl.sum(moments[2]), scale, SCALED)
        store_moments(partials_ptr + 3 * program, squares, tl.sum(moments[1]), dot)
    else:
        low, high = scaled(low, scale, SCALED), scaled(high, scale, SCALED)
        nonfinite = 0
        if not squares < float("inf"):
            nonfinite = count_nonfinite(
                tensor_ptr, tile, first_batch, end_batch, start, first_tensor, OCTETS, WIDE, CODE
            )
        moments_ptr = partials_ptr + 3 * program
        squares = scaled(scaled(squares, scale, SCALED), scale, SCALED)
        largest = scaled(largest, tl.abs(scale), SCALED)
        store_moments(moments_ptr, squares, largest, nonfinite.to(tl.float64))
    # Read only now, because registers are what the loop is short of.
    column_ptr = program_ptr + tl.program_id(0).to(tl.int64)
    target, row = tl.load(column_ptr + 8 * stride), tl.load(column_ptr + 9 * stride).to(tl.int64)
    STORE: tl.constexpr = not UPDATE
    x = tl.join(low, high).reshape([TILE])
    if target < 0:
        tl.store(tl.multiple_of(scratch_ptr - 1 - target, 16) + tl.arange(0, TILE), x)
    else:
        compare_and_store(
            x, target, TILE, row, out_ptr, ring_ptr, state_ptr, skip_ptr, sums_ptr, total, slots, True, STORE, WARPS
        )


def launch_sketch(
    programs, copies, sums, tensors, scratch, partials, *, out=None, ring=NO_RING, update=False, wide=False, scale=None
):
    """Sketch every group, and measure what is read.

    Args:
        programs: for each of `SKETCH_TILES`, int32 (10, n), one column a program: first bucket of its tile; buckets,
            blocks and seed of the group; first batch and end; the tensor in which the first batch's round begins, the
            group's first tensor; where its sums go, an index into the sketch or -1 - index into ``scratch``; and in the
            first case its row of ``ring.partials``.
        copies: int64 (4, n), the exact groups: tensor (-1 for zeros), first element, length, index into the sketch.
        sums: int64 (4, n), what is added up afterwards, `SKETCH_SUM` buckets or the whole group: index into the sketch,
            index into ``scratch`` of the first partial sketch, number of these, distance from one to the next, which is
            the group's buckets.
        tensors: int64 (tensor, 8), the tensors by group: end and first of their blocks, elements of the last one;
            address and code; and for updates, where the tensors are parameters, address of the snapshots, address and
            code of the gradients. Codes are those of `loads` but for the length: 0..3 where the tensor, and its
            snapshot, begin at a multiple of 16 bytes.
        scratch: float32, of the length that the tables need.
        partials: float64 (rows, 3): a row for each program, one table after the other, then for each copy: sum x^2,
            max |x|, number of inf and NaN; or sum x^2, sum u^2, sum g u.
        out: float32 (plan.total,), at a multiple of 16 bytes, all of it written; or ``None``.
        ring: the ring that the sketch is compared with, and stored in unless it is that of an update.
        update: sketch the update, and renew the snapshot.
        wide: read float64 too, and compute moments in float64.
        scale: float64 (), factor of the gradient; or ``None``.
    """
    options = {"WIDE": wide, "UPDATE": update, "SCALED": scale is not None}
    registers = nvidia_options(maxnreg=_max_registers(update, wide))
    row = 0
    for tile, table in zip(SKETCH_TILES, programs, strict=True):
        n_programs = table.shape[1]
        if n_programs > 0:
            _sketch_kernel[(n_programs,)](
                table,
                tensors,
                scale,
                scratch,
                partials[row:],
                out,
                ring.memory,
                ring.state,
                ring.skip,
                ring.partials,
                n_programs,
                *ring.shape,
                TILE=tile,
                CODE=-1,
                **options,
                WARPS=_WARPS[tile],
                num_warps=_WARPS[tile],
                **registers,
            )
        row += n_programs
    copied, added = copies.shape[1], sums.shape[1]
    launch_copies(copies, tensors, scale, partials[row:], out, ring.last(copied + added), update=update, wide=wide)
    launch_sums(sums, scratch, out, ring.last(added), store=not update)


def sketch_variants():
    """What is compiled ahead of time: what is launched, and for each dtype the path of batches inside of a tensor.

    The hot loop of sketch-bfloat16-ring is that over slots, unrolled by four.
    """
    fast = [
        _variant(f"sketch-{DTYPE_NAMES[code]}", code=code, width=16, goal=9 if code == 2 else None)
        for code in (0, 2, 3)
    ]
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
    pointers = {
        "program_ptr": "*i32",
        "tensor_ptr": "*i64",
        "scale_ptr": "*fp64",
        "scratch_ptr": "*fp32",
        "partials_ptr": "*fp64",
    }
    return add_ring_arguments(
        {
            "name": name,
            "kernel": _sketch_kernel,
            "signature": pointers | {"n_programs": "i32"},
            "constexprs": {
                "TILE": tile,
                "CODE": code,
                "WIDE": wide,
                "UPDATE": update,
                "SCALED": code < 0,
                "WARPS": _WARPS[tile],
            },
            "num_warps": _WARPS[tile],
            "options": {"maxnreg": _max_registers(update, wide)},
            "elements": 4 * tile if code >= 0 else 1,
            "min_vector_bytes": width,
            "max_instructions_per_element": goal,
            "loop": code >= 0,
        },
        ring=ring,
        out=out,
    )

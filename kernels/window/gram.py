"""Dots of B new gradients with the window before them, and sums over their differences, in one pass over the ring.

The ring holds ``slots`` = W + B rows, of which the B newest came since the last pass. With the newest in slot ``head``,
the row of age i in slot (head - i) mod slots, and every sum over the elements of one unit:

    dot[i, s]   = sum row_i ring_s                    for the new rows i < B and all physical slots s
    diff_sq[i]  = sum (row_i - row_{i+1})^2           directly from the elements, never from the dots
    sum_sq[i]   = sum (row_i + row_{i+1})^2

A *unit* is at most `GRAM_ELEMENTS` elements of one layer, a multiple of 1 KB (zeros pad them). For each tile of it the
ring's rows are multiplied by the new ones in one matrix product, [slots, TILE] x [TILE, B], whose float32 sums are
added to float64 ones at once. Products of 16-bit numbers are exact there; float32 is multiplied as float32 up to B = 16
and beyond that by the tensor cores in three tf32 products, which is about as accurate. A NaN in a row affects the
entries of that row only.

For the differences, the new rows and those before them are loaded again beside the ring: these loads follow the others
at once and find the data in the L1 cache. They are not prefetched through shared memory, which would bypass that cache;
the number of programs on a processor is what hides the latency of memory.
"""

import triton
import triton.language as tl
from triton.language.target_info import current_target

GRAM_ELEMENTS = 1 << 15
"""The most elements of a unit: large enough that its results weigh nothing beside what it reads."""

MAX_SLOTS = 128
_MAX_IEEE_BLOCK = 16
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def max_block(history_bytes: int) -> int:
    """The most steps that one pass takes: 64 of 16 bits, 32 of float32; beyond that the sums outgrow the registers."""
    return 128 // history_bytes


def gram_bytes(n_elements: int, window: int, block: int, history_bytes: int = 4) -> int:
    """One pass, every ``block`` steps: each row once, (W + B) h.

    With the store of each gradient that is g + h + h (W + B) / B a step, where the window's dots at every step take
    g + h (W + 1).
    """
    return n_elements * (window + block) * history_bytes


@triton.jit
def _rows(unit_ptr, slot, row_elements, TILE: tl.constexpr):
    """Pointers to the first tile of these slots' rows."""
    return unit_ptr + (slot.to(tl.int64) * row_elements)[:, None] + tl.arange(0, TILE)[None, :]


@triton.jit
def _folded_squares(x, VECTOR: tl.constexpr):
    """x^2 summed over each thread's VECTOR neighbours, in float64."""
    squares = tl.reshape(x * x, [x.shape[0], x.shape[1] // VECTOR, VECTOR])
    return tl.sum(squares, axis=2).to(tl.float64)


@triton.jit
def _dots(ring, new, PRECISION: tl.constexpr):
    """Products of all rows with the new ones, in float64 after the tile's own sum."""
    if _INTERPRETED:  # it would multiply bfloat16 as the integers that it keeps it in
        ring, new = ring.to(tl.float32), new.to(tl.float32)
    return tl.dot(ring, tl.trans(new), input_precision=PRECISION).to(tl.float64)


@triton.jit(do_not_specialize=["n_units", "slots", "block"])
def _gram_kernel(
    table_ptr,
    ring_ptr,
    state_ptr,
    out_ptr,
    n_units,
    row_elements,
    slots,
    block,
    ROWS: tl.constexpr,
    NEW: tl.constexpr,
    TILE: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    unit = tl.program_id(0).to(tl.int64)
    unit_ptr = ring_ptr + tl.multiple_of(tl.load(table_ptr + unit), 128)
    length = tl.load(table_ptr + n_units + unit).to(tl.int32)
    head = tl.load(state_ptr).to(tl.int32)

    # Powers of two of rows are loaded: beyond the last, the last once more.
    row = tl.arange(0, ROWS)
    age = tl.arange(0, NEW)
    new_slot = (head - tl.minimum(age, block - 1) + slots) % slots
    ring_ptrs = _rows(unit_ptr, tl.minimum(row, slots - 1), row_elements, TILE)
    new_ptrs = _rows(unit_ptr, new_slot, row_elements, TILE)
    before_ptrs = _rows(unit_ptr, (new_slot + slots - 1) % slots, row_elements, TILE)

    dots = tl.zeros([ROWS, NEW], tl.float64)
    diff_sq = tl.zeros([NEW, TILE // VECTOR], tl.float64)
    sum_sq = tl.zeros([NEW, TILE // VECTOR], tl.float64)
    for start in tl.range(0, length, TILE, num_stages=1):
        # The hint belongs on the pointer that is loaded from.
        ring = tl.load(tl.multiple_of(ring_ptrs + start, [1, 16]))
        new = tl.load(tl.multiple_of(new_ptrs + start, [1, 16]))
        before = tl.load(tl.multiple_of(before_ptrs + start, [1, 16])).to(tl.float32)
        diff_sq += _folded_squares(new.to(tl.float32) - before, VECTOR)
        sum_sq += _folded_squares(new.to(tl.float32) + before, VECTOR)
        dots += _dots(ring, new, PRECISION)

    out = out_ptr + unit * block * (slots + 2)
    valid = age < block
    dot_ptrs = out + age[None, :] * (slots + 2) + row[:, None]
    tl.store(dot_ptrs, dots, mask=valid[None, :] & (row < slots)[:, None])
    sums = out + age * (slots + 2) + slots
    tl.store(sums, tl.sum(diff_sq, axis=1), mask=valid)
    tl.store(sums + 1, tl.sum(sum_sq, axis=1), mask=valid)


def launch_gram(table, n_units, ring, slots, block, state, out):
    """Dots of the ``block`` newest rows with all rows, and sums over each with the row before it.

    Slots that were never written must hold zeros: their dots are 0, and a difference from one is the row itself.

    Args:
        table: int64 (2, n_units): offset of each unit in a row, in elements, and its number of elements; both multiples
            of 1 KB of ring.
        n_units: number of units; none is launched if 0.
        ring: (slots, row_elements), 16-byte aligned, of bfloat16, float16 or float32.
        slots: W + B, at most `MAX_SLOTS`.
        block: B, less than ``slots``.
        state: int64; its first element is the newest row's slot.
        out: float64 (n_units, block, slots + 2), all of it written: by age, the dots by physical slot, then diff_sq
            and sum_sq.

    Raises:
        ValueError: a float64 ring, whose dots are taken at every step, or too many rows.
    """
    history_bytes = ring.element_size()
    if history_bytes == 8:
        raise ValueError("deferred dots: expected a ring of 16 or 32 bits, got float64")
    if not (0 < block < slots <= MAX_SLOTS and block <= max_block(history_bytes)):
        raise ValueError(
            f"deferred dots: expected 0 < block <= {max_block(history_bytes)} and block < slots <= {MAX_SLOTS}, "
            f"got block={block}, slots={slots}"
        )
    if n_units:
        target = current_target()
        amd = target is not None and target.backend == "hip"
        constexprs, options = _configuration(slots, block, history_bytes, amd)
        _gram_kernel[(n_units,)](
            table, ring, state, out, n_units, ring.stride(0), slots, block, **constexprs, **options
        )


def _configuration(slots, block, history_bytes, amd):
    """The shape of a tile, how it is multiplied, and the options of the compiler.

    Matrix cores of NVIDIA take 8 new rows at a time, those of AMD 16; the latter multiply float32 as it is. Left alone,
    ptxas may spill registers for the sake of more programs.
    """
    rows = max(16, triton.next_power_of_2(slots))
    new = max(16 if amd else 8, triton.next_power_of_2(block))
    tensor_cores = history_bytes == 4 and block > _MAX_IEEE_BLOCK and not amd
    tile = 128 if history_bytes == 2 else 32 if tensor_cores else 64
    constexprs = {
        "ROWS": rows,
        "NEW": new,
        "TILE": tile,
        "VECTOR": 16 // history_bytes,
        "PRECISION": "tf32x3" if tensor_cores else "ieee",
    }
    options = {"num_warps": max(2, triton.next_power_of_2(triton.cdiv(rows + 2 * new, 32)))}
    return constexprs, options if amd else options | {"maxnreg": 255}


def gram_variants():
    """What the checks of generated code compile: windows from 8 to 64, blocks from 8 to 64, every dtype of a ring."""
    types = {
        "table_ptr": "*i64",
        "state_ptr": "*i64",
        "out_ptr": "*fp64",
        "n_units": "i32",
        "row_elements": "i64",
        "slots": "i32",
        "block": "i32",
    }
    limits = {  # instructions per element of the ring: 16 bits, float32
        (8, 8): (6.2, 16.0),
        (16, 8): (4.4, 18.0),
        (16, 16): (5.9, 25.0),
        (32, 32): (5.8, 23.0),
        (64, 32): (5.0, 27.0),
        (64, 64): (6.5, None),
    }
    return [
        _variant(name, types | {"ring_ptr": pointer}, window, block, history_bytes, limit[history_bytes // 4], amd)
        for name, pointer, history_bytes in (("bfloat16", "*bf16", 2), ("float16", "*fp16", 2), ("float32", "*fp32", 4))
        for (window, block), limit in limits.items()
        if block <= max_block(history_bytes)
        for amd in (False, True)
    ]


def _variant(name, signature, window, block, history_bytes, limit, amd):
    constexprs, options = _configuration(window + block, block, history_bytes, amd)
    return {
        "name": f"gram-{name}-{window}-{block}" + "-amd" * amd,
        "kernel": _gram_kernel,
        "backends": ("hip",) if amd else ("cuda",),
        "signature": signature,
        "constexprs": constexprs,
        "divisible_by_16": ["table_ptr", "ring_ptr", "state_ptr", "out_ptr", "row_elements"],
        "num_warps": options.pop("num_warps"),
        "options": options,
        "elements": (window + block) * constexprs["TILE"],
        "min_vector_bytes": 16,
        "max_instructions_per_element": limit,
        "loop": True,
    }

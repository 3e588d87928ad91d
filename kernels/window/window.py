"""A step's gradient g against the last gradients h_0 .. h_{W-1}: one read of g and of each h, one write of g.

    dots          sum g h_s                        for every slot s of the window
    statistics    sum g^2,  sum (g - p)^2,  sum (g + p)^2,  max |g| over what is not NaN,  count of inf and NaN
    store         the slot after the newest  <-  g

p is the newest gradient before g. The sums with p are of differences, not of differences of dots, which would cancel.

The *ring* is a matrix: row s, the slot s, is one gradient; each tensor is a chunk of it, padded with zeros to a
multiple of 1 KB. A *unit* is what one program handles: 16 KB of a tensor's chunk, or 1 KB of what then remains. Where
the ring has fewer bits than the gradient, *keep* is one more row, of the gradient's own dtype, which is read as p.

A program holds g in registers, as float32 (or float64: ``wide``), and reads row after row: no barrier in the loop, 16
bytes a load, and a lane adds at most 64 products before the sum over its warp leaves the kernel. The slot that g will
overwrite is read before it is.
"""

import triton
import triton.language as tl

from fastgeom.kernels.loads import ABSENT, DTYPE_NAMES, FLOAT16, ITEM_BYTES, compute_type, item_bytes
from fastgeom.kernels.window.ring_tiles import halves, read, read_gradient, write, write_gradient

WINDOW_BIG = 16384
WINDOW_SMALL = 1024
"""Bytes of ring of a unit."""

BIG_WARPS = 8
SMALL_WARPS = 1
"""Warps of a program, which leave a row of partial sums each."""

WINDOW_STATISTICS = 8
"""Columns of partial sums after those of the dots; the last three are zero."""

_DOT_COLUMNS = tl.constexpr(32)
_STATISTICS = tl.constexpr(WINDOW_STATISTICS)


def _max_registers(code, wide):
    """Left alone, the compiler spills to reach 64 or 80; float64 copies of a unit of 16 bits need more than 128."""
    return 255 if wide and ITEM_BYTES[code] == 2 else 128


def window_bytes(n_elements, window, gradient_bytes=4, history_bytes=4):
    """Bytes moved: g and ``window`` rows read, p being one of them, and g stored: g + (window + 1) h an element."""
    return n_elements * (gradient_bytes + (window + 1) * history_bytes)


def window_columns(window):
    """Columns of partial sums: the dots, padded with zeros to a multiple of 32, and the statistics."""
    return triton.cdiv(window, _DOT_COLUMNS.value) * _DOT_COLUMNS.value + WINDOW_STATISTICS


def absmax_column(window):
    """Index of the column of max |g| among the partial sums."""
    return window_columns(window) - WINDOW_STATISTICS + 3


@triton.constexpr_function
def _rows_at_once(ring):
    """Rows that one pass of the loop reads: as many as there are registers for."""
    return 2 if ring == FLOAT16 else 4


@triton.jit(do_not_specialize=["n_units", "window", "slots", "columns"])
def _window_kernel(
    table_ptr,
    ring_ptr,
    state_ptr,
    scale_ptr,
    skip_ptr,
    partials_ptr,
    n_units,
    row_stride,
    window,
    slots,
    columns,
    RING: tl.constexpr,
    CODE: tl.constexpr,
    WIDE: tl.constexpr,
    KEEP: tl.constexpr,
    PREVIOUS: tl.constexpr,
    SCALED: tl.constexpr,
    SKIPPABLE: tl.constexpr,
    WARPS: tl.constexpr,
    WORDS: tl.constexpr,
    TILES: tl.constexpr,
):
    unit = tl.program_id(0).to(tl.int64)
    column_ptr = table_ptr + unit
    n_units = tl.cast(n_units, tl.int64)
    address, code = tl.load(column_ptr), tl.load(column_ptr + n_units)
    length, offset = tl.load(column_ptr + 2 * n_units), tl.load(column_ptr + 3 * n_units)
    code = CODE if CODE >= 0 else code
    keep = tl.load(column_ptr + 4 * n_units) if KEEP else 0

    warp, lane = tl.arange(0, WARPS)[:, None], tl.arange(0, WORDS)[None, :]
    word = warp * WORDS + lane
    gradient = read_gradient(address, code, length, word, RING, WIDE, TILES)
    if SCALED:
        gradient = _scaled(gradient, tl.load(scale_ptr).to(compute_type(WIDE)), code, length, word, RING, TILES)

    row_bytes = tl.cast(row_stride, tl.int64) * item_bytes(RING)
    ring = ring_ptr.to(tl.int64) + offset * item_bytes(RING)
    head = tl.load(state_ptr)
    previous = gradient
    if PREVIOUS:
        if KEEP and keep != 0:
            previous = read_gradient(keep, code % 4, 0, word, RING, WIDE, TILES)
        else:
            previous = read(ring + head * row_bytes, 0, word, RING, RING, WIDE, TILES)

    out_ptr = partials_ptr + (unit * WARPS + warp) * tl.multiple_of(tl.cast(columns, tl.int64), 8)
    n_columns = tl.cdiv(window, _DOT_COLUMNS) * _DOT_COLUMNS
    squares, statistics = _statistics(gradient, previous, lane, PREVIOUS)
    tl.store(out_ptr + n_columns + lane, statistics, mask=lane < _STATISTICS)

    row = ring
    for first in range(0, window, WORDS):
        dots = tl.zeros([WARPS, WORDS], compute_type(WIDE))
        for slot in tl.range(0, min(window - first, WORDS), loop_unroll_factor=_rows_at_once(RING)):
            past = read(row, 0, word, RING, RING, WIDE, TILES, EVICT_FIRST=True)
            products = tl.zeros([WARPS, WORDS], compute_type(WIDE))
            for i in tl.static_range(TILES * halves(RING)):
                products = tl.fma(gradient[i], past[i], products)
            dots = tl.where(lane == slot, tl.sum(products, axis=1)[:, None], dots)
            row += row_bytes
        tl.store(out_ptr + first + lane, dots, mask=first + lane < n_columns)

    tl.debug_barrier()
    if not tl.sum(squares) < float("inf"):
        tl.store(out_ptr + n_columns + 4, _nonfinite(gradient)[:, None])
    if not SKIPPABLE or tl.load(skip_ptr) == 0:
        # Read once more, because registers are what the loop is short of.
        head = tl.load(state_ptr)
        keep = tl.load(column_ptr + 4 * n_units) if KEEP else 0
        slot = tl.where(head + 1 < slots, head + 1, 0)
        write(ring + slot * row_bytes, gradient, word, RING, RING, WIDE, TILES)
        if KEEP and keep != 0:
            write_gradient(keep, code % 4, gradient, word, RING, WIDE, TILES)


@triton.jit
def _scaled(values, scale, code, length, word, RING: tl.constexpr, TILES: tl.constexpr):
    """``values`` times ``scale``; padding and absent gradients stay zero even where the scale is not finite."""
    HALVES: tl.constexpr = halves(RING)
    WORDS: tl.constexpr = word.shape[0] * word.shape[1]
    scale = tl.where(code < ABSENT, scale, 0.0)
    scaled = ()
    for i in tl.static_range(TILES * HALVES):
        product = values[i] * scale
        if word.shape[0] == 1:
            element = (i // HALVES * WORDS + word) * HALVES + i % HALVES
            product = tl.where(element < length, product, 0.0)
        scaled += (product,)
    return scaled


@triton.jit
def _statistics(gradient, previous, lane, PREVIOUS: tl.constexpr):
    """[WARPS, WORDS]: the sums of each warp in the first columns, then zeros."""
    zeros = tl.zeros_like(gradient[0])
    squares, differences, sums, largest = zeros, zeros, zeros, zeros
    for i in tl.static_range(len(gradient)):
        squares = tl.fma(gradient[i], gradient[i], squares)
        largest = tl.maximum(largest, tl.abs(gradient[i]))
        if PREVIOUS:
            difference, total = gradient[i] - previous[i], gradient[i] + previous[i]
            differences = tl.fma(difference, difference, differences)
            sums = tl.fma(total, total, sums)
    warp_squares = tl.sum(squares, axis=1)
    out = tl.where(lane == 0, warp_squares[:, None], zeros)
    if PREVIOUS:
        out = tl.where(lane == 1, tl.sum(differences, axis=1)[:, None], out)
        out = tl.where(lane == 2, tl.sum(sums, axis=1)[:, None], out)
    out = tl.where(lane == 3, tl.max(largest, axis=1)[:, None], out)
    return warp_squares, out


@triton.jit
def _nonfinite(gradient):
    """[WARPS]: how many elements are inf or NaN."""
    count = tl.zeros_like(gradient[0])
    for i in tl.static_range(len(gradient)):
        count += tl.where(tl.abs(gradient[i]) < float("inf"), 0.0, 1.0)
    return tl.sum(count, axis=1)


def launch_window(
    table,
    n_units,
    ring,
    window,
    slots,
    state,
    partials,
    *,
    small,
    wide=False,
    keep=False,
    previous=True,
    scale=None,
    skip=None,
):
    """Fill ``partials`` with the sums of every unit against every slot of the window, and store the gradient.

    Args:
        table: int64 (8, n_units), contiguous. Rows: address and code of the gradient (see `loads`), length, offset in a
            row of the ring (a multiple of 1 KB), address of the unit in *keep* (a multiple of 16; 0 for none); the
            others are not used. Where there is no gradient but a *keep*, the code is 8 + its dtype.
        n_units: number of units; none is launched if 0.
        ring: (slots, elements), contiguous, zero where nothing was stored yet; a row is a multiple of 1 KB.
        window: take the dots with slots 0 to ``window`` - 1; with 0, and without ``previous``, only g is read.
        slots: g goes to slot (head + 1) mod ``slots``.
        state: int64; ``state[0]`` is the head, the slot of the newest gradient: 0 <= head < ``slots``.
        partials: (n_units x warps, `window_columns`), float64 if ``wide``, else float32. Columns: dots, sum g^2,
            sum (g - p)^2, sum (g + p)^2, max |g|, count of inf and NaN, 0, 0, 0.
        small: units of `WINDOW_SMALL` bytes and one warp instead of `WINDOW_BIG` and eight, which must be full.
        wide: compute in float64, which float64 gradients need.
        keep: whether some unit has a *keep*.
        previous: whether to take the sums with p, which are 0 otherwise.
        scale: float64 (), g is multiplied by it as it is read, rounded to float32 first unless ``wide``.
        skip: float32 (), nothing is stored where it is not 0.
    """
    if n_units:
        code = DTYPE_NAMES.index(str(ring.dtype).removeprefix("torch."))
        lanes, options = _machine(_max_registers(code, wide))
        _window_kernel[(n_units,)](
            table,
            ring,
            state,
            scale,
            skip,
            partials,
            n_units,
            ring.stride(0),
            window,
            slots,
            partials.stride(0),
            RING=code,
            CODE=-1,
            WIDE=wide,
            KEEP=keep,
            PREVIOUS=previous,
            SCALED=scale is not None,
            SKIPPABLE=skip is not None,
            **_shape(code, small, lanes),
            num_warps=SMALL_WARPS if small else BIG_WARPS,
            num_stages=1,
            **options,
        )


def _machine(max_registers):
    """Lanes of a warp, and options of the target's own compiler."""
    if triton.knobs.runtime.interpret:
        return 32, {}
    target = triton.runtime.driver.active.get_current_target()
    return target.warp_size, {"maxnreg": max_registers} if target.backend == "cuda" else {}


def _shape(code, small, lanes):
    """Shape of a unit: tiles of which every lane reads 16 bytes of the ring."""
    warps, unit = (SMALL_WARPS, WINDOW_SMALL) if small else (BIG_WARPS, WINDOW_BIG)
    words = 16 // (ITEM_BYTES[code] * halves(code))
    return {"WARPS": warps, "WORDS": lanes * words, "TILES": unit // (warps * lanes * 16)}


def window_variants():
    """What is compiled ahead of time: what is launched, and the fast path of each dtype on its own.

    Each for a warp of 32 lanes and, for AMD, of 64.
    """
    launched = [
        _variant("bfloat16", 2),
        _variant("bfloat16-keep", 2, keep=True),
        _variant("bfloat16-scaled-skippable", 2, keep=True, scaled=True, skippable=True),
        _variant("bfloat16-stored", 2, previous=False),
        _variant("float32", 0),
        _variant("float32-scaled-skippable", 0, scaled=True, skippable=True),
        _variant("float16", 3),
        _variant("float64", 1, wide=True),
        _variant("float32-wide-keep", 0, wide=True, keep=True, width=8),
        _variant("bfloat16-wide-keep", 2, wide=True, keep=True, width=8),
    ]
    fast = [
        _variant("bfloat16-fast", 2, code=2, goal=3.2),
        _variant("float32-fast", 0, code=0, goal=3.2),
        _variant("float16-fast", 3, code=3, goal=3.2),
        _variant("float64-fast", 1, code=1, wide=True),
        _variant("float32-in-bfloat16-fast", 2, code=0, goal=3.2),
        _variant("float32-in-bfloat16-keep-fast", 2, code=0, keep=True, goal=3.2),
        _variant("float16-in-bfloat16-fast", 2, code=3, goal=3.2),
    ]
    return [make(small, amd) for make in launched + fast for small in (False, True) for amd in (False, True)]


def _variant(
    name, ring, *, code=-1, wide=False, keep=False, previous=True, scaled=False, skippable=False, width=16, goal=None
):
    def make(small, amd):
        pointers = {
            "table_ptr": "*i64",
            "ring_ptr": ("*fp32", "*fp64", "*bf16", "*fp16")[ring],
            "state_ptr": "*i64",
            "scale_ptr": "*fp64" if scaled else None,
            "skip_ptr": "*fp32" if skippable else None,
            "partials_ptr": "*fp64" if wide else "*fp32",
        }
        present = {pointer: kind for pointer, kind in pointers.items() if kind}
        counts = {"n_units": "i32", "row_stride": "i64", "window": "i32", "slots": "i32", "columns": "i32"}
        options = {"RING": ring, "CODE": code, "WIDE": wide, "KEEP": keep, "PREVIOUS": previous}
        options |= {"SCALED": scaled, "SKIPPABLE": skippable} | {p: None for p in pointers if p not in present}
        return {
            "name": name + "-small" * small + "-amd" * amd,
            "kernel": _window_kernel,
            "backends": ("hip",) if amd else ("cuda",),
            "signature": present | counts,
            "constexprs": options | _shape(ring, small, lanes=64 if amd else 32),
            "divisible_by_16": [*present, "row_stride"],
            "num_warps": SMALL_WARPS if small else BIG_WARPS,
            "options": {"num_stages": 1} | ({} if amd else {"maxnreg": _max_registers(ring, wide)}),
            "elements": (WINDOW_SMALL if small else WINDOW_BIG) // ITEM_BYTES[ring],
            "min_vector_bytes": width,
            "max_instructions_per_element": None if small else goal,
            "loop": True,
        }

    return make

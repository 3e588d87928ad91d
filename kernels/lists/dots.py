"""sum g h_k for every list h_k of a history, and sum g^2, unit by unit.

A program holds one unit of g in registers while it loops over up to 32 lists of the history, so that g is read once for
32 lists and each h_k once. A lane adds 64 products in float32, in chains of 8; a warp then adds up its lanes in
float64. The sums of the lists are gathered, one a lane, before the warps meet to add and to store them: the loop over
the history holds no barrier. With ``wide`` everything is float64, and g is held a quarter of a unit at a time.

A short unit that is aligned is read in the same wide loads, but for its last elements. Where g or h_k begins at no
multiple of 16 bytes both are read element by element.
"""

import triton
import triton.language as tl

from fastgeom.kernels.loads import (
    ABSENT,
    BFLOAT16,
    DTYPE_NAMES,
    FLOAT16,
    FLOAT32,
    SHORT,
    item_bytes,
    load_tile,
    nvidia_options,
    unpack,
    word_pointer,
)

DOT_ELEMENTS = 8192
"""Elements of a unit."""

_WARPS = 4
_MAX_REGISTERS = 128
"""Left to itself the compiler spills to reach 64."""
_TILES = tl.constexpr(4)
_TILE = tl.constexpr(DOT_ELEMENTS // 4)
_VECTORS = tl.constexpr(256)
"""A tile is 256 vectors of 8 elements: in registers 256 x 4 even elements, and as many odd ones."""
_GATHERED = tl.constexpr(32)
_SCATTERED = tl.constexpr(9)
"""Code of a unit that is not aligned."""


def dot_bytes(n_elements, gradient_bytes=4):
    """Bytes read for one dot: both lists once."""
    return 2 * n_elements * gradient_bytes


@triton.jit(do_not_specialize=["n_units", "n_rows"])
def _dots_kernel(table_ptr, rows_ptr, out_ptr, n_units, n_rows, CODE: tl.constexpr):
    unit, first, last = _unit_and_rows(n_rows)
    n_units = tl.cast(n_units, tl.int64)
    address, code = tl.load(table_ptr + unit), tl.load(table_ptr + n_units + unit)
    length = tl.load(table_ptr + 2 * n_units + unit).to(tl.int32)
    column = first + tl.arange(0, _GATHERED)
    g = _read_unit(address, _aligned_code(code, address), length, CODE)
    gathered = tl.zeros((8, _GATHERED), tl.float64)
    for row in range(first, tl.minimum(last, n_rows)):
        row_ptr = rows_ptr + 2 * n_units * row + unit
        row_address, row_code = tl.load(row_ptr), tl.load(row_ptr + n_units)
        products = _row_products(g, row_address, _aligned_code(row_code, row_address), length, CODE)
        if CODE < 0:
            products += _scattered_products(address, code, row_address, row_code, length)
        gathered = tl.where(column[None, :] == row, _warp_sums(products)[:, None], gathered)
    # Last: before the loop some compilers pair up g in registers for it, and keep the pairs beside g through the loop.
    squares = _unit_products(g, g)
    if CODE < 0:
        squares += _scattered_products(address, code, address, code, length)
    gathered = tl.where(column[None, :] == n_rows, _warp_sums(squares)[:, None], gathered)
    tl.store(out_ptr + unit * (n_rows + 1) + column, tl.sum(gathered, axis=0), mask=column < last)


@triton.jit(do_not_specialize=["n_units", "n_rows"])
def _wide_dots_kernel(table_ptr, rows_ptr, out_ptr, n_units, n_rows, CODE: tl.constexpr):
    unit, first, last = _unit_and_rows(n_rows)
    n_units = tl.cast(n_units, tl.int64)
    address, code = tl.load(table_ptr + unit), tl.load(table_ptr + n_units + unit)
    length = tl.load(table_ptr + 2 * n_units + unit).to(tl.int32)
    column = first + tl.arange(0, _GATHERED)
    offsets = tl.arange(0, _TILE // 2)[:, None] * 2 + tl.arange(0, 2)[None, :]  # 16 bytes of float64 a lane
    gathered = tl.zeros((8, _GATHERED), tl.float64)
    for start in range(0, length, _TILE):
        g = load_tile(address, code, start, offsets, length, CODE, True)
        gathered += tl.where(column[None, :] == n_rows, _warp_sums(g * g)[:, None], 0.0)
        for row in range(first, tl.minimum(last, n_rows)):
            row_ptr = rows_ptr + 2 * n_units * row + unit
            h = load_tile(tl.load(row_ptr), tl.load(row_ptr + n_units), start, offsets, length, CODE, True)
            gathered += tl.where(column[None, :] == row, _warp_sums(g * h)[:, None], 0.0)
    tl.store(out_ptr + unit * (n_rows + 1) + column, tl.sum(gathered, axis=0), mask=column < last)


@triton.jit
def _unit_and_rows(n_rows):
    """The unit of a program, and its columns of ``out``: the first, and the end."""
    n_blocks = n_rows // _GATHERED + 1
    program = tl.program_id(0)
    first = program % n_blocks * _GATHERED
    return (program // n_blocks).to(tl.int64), first, tl.minimum(first + _GATHERED, n_rows + 1)


@triton.jit
def _warp_sums(products):
    """Sums over 8 groups of lanes, each within one warp, of products (n x 256, words)."""
    lanes = tl.sum(products, axis=1).to(tl.float64)
    return tl.sum(tl.sum(lanes.reshape(lanes.numel // 256, 8, 32), axis=0), axis=1)


@triton.jit
def _aligned_code(code, address):
    return tl.where((address & 15) == 0, code, _SCATTERED)


@triton.jit
def _read_unit(address, code, length, CODE: tl.constexpr):
    """A unit in registers: its full vectors if it is aligned, zeros elsewhere."""
    if CODE >= 0:
        unit = _read_tiles(address, length, CODE)
    elif code == FLOAT32:
        unit = _read_tiles(address, length, FLOAT32)
    elif code == BFLOAT16:
        unit = _read_tiles(address, length, BFLOAT16)
    elif code == FLOAT16:
        unit = _read_tiles(address, length, FLOAT16)
    elif code == FLOAT32 + SHORT:
        unit = _read_tiles(address, length, FLOAT32 + SHORT)
    elif code == BFLOAT16 + SHORT:
        unit = _read_tiles(address, length, BFLOAT16 + SHORT)
    elif code == FLOAT16 + SHORT:
        unit = _read_tiles(address, length, FLOAT16 + SHORT)
    else:
        unit = _read_tiles(address, length, ABSENT)
    return unit


@triton.jit
def _row_products(g, address, code, length, CODE: tl.constexpr):
    """Products with g of a row, in chains; of its full vectors if it is aligned, zeros elsewhere."""
    if CODE >= 0:
        products = _unit_products(g, _read_tiles(address, length, CODE))
    elif code == FLOAT32:
        products = _unit_products(g, _read_tiles(address, length, FLOAT32))
    elif code == BFLOAT16:
        products = _unit_products(g, _read_tiles(address, length, BFLOAT16))
    elif code == FLOAT16:
        products = _unit_products(g, _read_tiles(address, length, FLOAT16))
    elif code == FLOAT32 + SHORT:
        products = _unit_products(g, _read_tiles(address, length, FLOAT32 + SHORT))
    elif code == BFLOAT16 + SHORT:
        products = _unit_products(g, _read_tiles(address, length, BFLOAT16 + SHORT))
    elif code == FLOAT16 + SHORT:
        products = _unit_products(g, _read_tiles(address, length, FLOAT16 + SHORT))
    else:
        products = tl.zeros((_VECTORS, 4), tl.float32)
    return products


@triton.jit
def _unit_products(g, h):
    chains = tl.zeros((_VECTORS, 4), tl.float32)
    for i in tl.static_range(2 * _TILES):
        chains = tl.fma(g[i], h[i], chains)
    return chains


@triton.jit
def _read_tiles(address, length, CODE: tl.constexpr):
    even0, odd0 = _read_tile(address, 0, length, CODE)
    even1, odd1 = _read_tile(address, 1, length, CODE)
    even2, odd2 = _read_tile(address, 2, length, CODE)
    even3, odd3 = _read_tile(address, 3, length, CODE)
    return even0, odd0, even1, odd1, even2, odd2, even3, odd3


@triton.constexpr_function
def _words(code, elements):
    return elements * item_bytes(code) // 4


@triton.jit
def _read_tile(address, tile: tl.constexpr, length, CODE: tl.constexpr):
    """The even and the odd elements of a tile."""
    word = tl.arange(0, _VECTORS)[:, None] * _words(CODE, 8) + tl.arange(0, 4)[None, :]
    first = tile * _words(CODE, _TILE)
    pointers = word_pointer(address, CODE) + first + word
    # A mask that is a multiple of the vector leaves the load wide.
    mask = None if CODE < SHORT else first + word < length // 8 * _words(CODE, 8)
    other = None if CODE < SHORT else 0
    if CODE == ABSENT:
        even, odd = tl.zeros((_VECTORS, 4), tl.float32), tl.zeros((_VECTORS, 4), tl.float32)
    elif item_bytes(CODE) == 2:
        even, odd = unpack(tl.load(pointers, mask=mask, other=other), CODE, False)
    else:
        # The halves of every vector, put in the order of the 16-bit types without leaving the registers.
        halves = tl.join(tl.load(pointers, mask=mask, other=other), tl.load(pointers + 4, mask=mask, other=other))
        even, odd = tl.split(halves.permute(0, 2, 1).reshape(_VECTORS, 4, 2))
    return even, odd


@triton.jit
def _scattered_products(address, code, row_address, row_code, length):
    """Products, in chains, of the elements that `_read_unit` does not read: none, the last ones, or all."""
    element = tl.arange(0, _VECTORS)[:, None] * 4 + tl.arange(0, 4)[None, :]
    chains = tl.zeros((_VECTORS, 4), tl.float32)
    aligned = ((address | row_address) & 15) == 0
    if (code != ABSENT) & (row_code != ABSENT) & ((row_code >= SHORT) | (not aligned)):
        for start in range(tl.where(aligned, length // 8 * 8, 0), length, 4 * _VECTORS):
            g = _load_scattered(address, code, start, element, length)
            h = _load_scattered(row_address, row_code, start, element, length)
            chains = tl.fma(g, h, chains)
    return chains


@triton.jit
def _load_scattered(address, code, start, offsets, length):
    if code % 4 == FLOAT32:
        values = load_tile(address, code, start, offsets, length, FLOAT32 + SHORT, False)
    elif code % 4 == BFLOAT16:
        values = load_tile(address, code, start, offsets, length, BFLOAT16 + SHORT, False)
    else:
        values = load_tile(address, code, start, offsets, length, FLOAT16 + SHORT, False)
    return values


def launch_dots(table, rows, n_units, n_rows, out, *, wide=False):
    """Dots of a list with every list of a history.

    Args:
        table: int64 (3 or more, n_units) of the list g: address, code and length, with units of `DOT_ELEMENTS`.
        rows: int64 (n_rows, 2, n_units): address and code of the same units of each h_k.
        n_units: number of units.
        n_rows: number of lists h_k.
        out: float64 (n_units, n_rows + 1): sum g h_k of each list, and last sum g^2.
        wide: compute in float64; without it no unit may be float64.
    """
    if n_units > 0:
        kernel = _wide_dots_kernel if wide else _dots_kernel
        options = nvidia_options(maxnreg=_MAX_REGISTERS)
        kernel[(n_units * (n_rows // _GATHERED.value + 1),)](
            table, rows, out, n_units, n_rows, CODE=-1, num_warps=_WARPS, **options
        )


def dots_variants():
    """What is compiled ahead of time: the kernels that run, and for each dtype the path of full units alone."""
    kinds = [("any", -1, False), ("any-wide", -1, True)]
    kinds += [(name, code, name == "float64") for code, name in enumerate(DTYPE_NAMES)]
    return [
        {
            "name": f"dots-{name}",
            "kernel": _wide_dots_kernel if wide else _dots_kernel,
            "signature": {"table_ptr": "*i64", "rows_ptr": "*i64", "out_ptr": "*fp64"}
            | {"n_units": "i32", "n_rows": "i32"},
            "constexprs": {"CODE": code},
            "divisible_by_16": ["table_ptr", "rows_ptr", "out_ptr"],
            "num_warps": _WARPS,
            "options": {"maxnreg": _MAX_REGISTERS},
            "elements": DOT_ELEMENTS // (4 if wide else 1),
            "min_vector_bytes": 4 if wide and code < 0 else 16,
            "max_instructions_per_element": {"float32": 3.2, "bfloat16": 3.2, "float16": 3.7}.get(name),
            "loop": code >= 0,
        }
        for name, code, wide in kinds
    ]

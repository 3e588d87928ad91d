"""Partial sums added up: in float64, in a fixed order, on the device.

The streaming kernels write one row of partial sums a unit (or a warp of one). They are added up in two launches:

    segment s  = sum of at most `SEGMENT_ROWS` partial rows of one layer
    layer l    = sum of its segments;  all = sum of all segments

One column, that of the largest magnitude, is maximised instead of summed. Nothing is atomic, so the same input gives
the same bits.
"""

import triton
import triton.language as tl

SEGMENT_ROWS = 512
"""Partial rows of a segment, at most."""

_ROWS = tl.constexpr(32)
_COLUMNS = tl.constexpr(32)


def reduce_bytes(n_rows: int, n_columns: int, n_out: int, partial_bytes: int = 4) -> int:
    """Bytes moved: every partial sum read once, every result written once."""
    return n_columns * (n_rows * partial_bytes + n_out * 8)


@triton.jit(do_not_specialize=["n_columns", "n_segments", "max_column"])
def _reduce_kernel(partial_ptr, segment_ptr, out_ptr, n_columns, n_segments, max_column):
    segment = tl.program_id(0)
    begin, end = tl.load(segment_ptr + segment), tl.load(segment_ptr + n_segments + segment)
    target = tl.load(segment_ptr + 2 * n_segments + segment)
    columns = tl.program_id(1) * _COLUMNS + tl.arange(0, _COLUMNS)
    total = tl.zeros([_ROWS, _COLUMNS], tl.float64)
    largest = tl.zeros([_ROWS, _COLUMNS], tl.float64)
    for first in range(begin, end, _ROWS):
        rows = first + tl.arange(0, _ROWS)
        inside = (rows < end)[:, None] & (columns < n_columns)[None, :]
        values = tl.load(partial_ptr + rows[:, None] * n_columns + columns[None, :], mask=inside, other=0.0)
        values = values.to(tl.float64)
        total += values
        largest = tl.maximum(largest, values)
    result = tl.where(columns == max_column, tl.max(largest, axis=0), tl.sum(total, axis=0))
    tl.store(out_ptr + target * n_columns + columns, result, mask=columns < n_columns)


def launch_reduce(partials, segments, out, *, max_column=-1):
    """Sum the partial rows of each segment into a row of ``out``.

    Args:
        partials: float32 or float64 (rows, columns), contiguous.
        segments: int64 (3, n): of each the first of its rows, the end, and its row of ``out``.
        out: float64 (…, columns), written at those rows.
        max_column: the column to maximise (of values that are not negative) instead; -1 for none.
    """
    n_segments, n_columns = segments.shape[1], partials.shape[1]
    if n_segments:
        grid = (n_segments, triton.cdiv(n_columns, _COLUMNS.value))
        _reduce_kernel[grid](partials, segments, out, n_columns, n_segments, max_column, num_warps=4)


def reduce_variants():
    """What is compiled ahead of time: the kernel for either type of partial sums."""
    signature = {
        "segment_ptr": "*i64",
        "out_ptr": "*fp64",
        "n_columns": "i32",
        "n_segments": "i32",
        "max_column": "i32",
    }
    return [
        {
            "name": f"reduce-{kind}",
            "kernel": _reduce_kernel,
            "num_warps": 4,
            "constexprs": {},
            "signature": {"partial_ptr": pointer} | signature,
            "divisible_by_16": [],
            "options": {},
            "elements": 1,
            "min_vector_bytes": 0,
            "max_instructions_per_element": None,
            "loop": False,
        }
        for kind, pointer in (("float32", "*fp32"), ("float64", "*fp64"))
    ]

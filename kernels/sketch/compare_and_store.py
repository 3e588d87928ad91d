"""Buckets s of a new sketch against the same buckets of the last ones, h_0 .. h_{W-1}; then s is the newest.

    dots          sum s h_j                                      for every slot j
    statistics    sum s^2,  sum (s - p)^2,  sum (s + p)^2        p is the newest before s
    store         the slot after the newest  <-  s

and of an update the dot with p alone, the others being 0; it is not stored.

This is done where the buckets are complete, in registers: in the program that computes a tile alone, in the second
launch that adds up partial sketches, and in the copies of exact groups. So the ring needs no row for the sketch that is
being made. The slot that s will overwrite, the oldest, is read before it is overwritten.

A row of partial sums has a column for each slot, then the eight that ``fastgeom.kernels.finalize`` expects. A lane adds
at most 16 products, in float32, before the sum over its warp and then over the others.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

_STATISTICS = tl.constexpr(8)
_SLOTS = tl.constexpr(32)


class SketchRing(NamedTuple):
    """The sketches of the last gradients, and where sums against them go.

    Attributes:
        memory: float32 (slots, total), contiguous, each row at a multiple of 16 bytes.
        state: int64; ``state[0]`` is the head, the slot of the newest sketch.
        partials: float32 (rows, `ring_columns`): a row for each program that computes its tile alone, in the order of
            the tables, then for each unit of copies, then for each of sums.
        skip: float32 (), nothing is stored where it is not 0; or ``None``.
    """

    memory: Any
    state: Any
    partials: Any
    skip: Any = None

    @property
    def shape(self):
        """Length of a row, and slots."""
        return (0, 0) if self.memory is None else (self.memory.shape[1], self.memory.shape[0])

    def last(self, rows):
        """The ring with the last ``rows`` rows of partial sums only."""
        return self if self.memory is None else self._replace(partials=self.partials[len(self.partials) - rows :])


NO_RING = SketchRing(None, None, None)


def ring_columns(slots):
    """Columns of partial sums: the dots, then sum s^2, sum (s - p)^2, sum (s + p)^2 and five zeros."""
    return slots + _STATISTICS.value


def ring_bytes(n_buckets, slots):
    """Bytes moved: every slot read, the oldest written."""
    return 4 * n_buckets * (slots + 1)


@triton.jit
def compare_and_store(
    x,
    begin,
    length,
    row,
    out_ptr,
    ring_ptr,
    state_ptr,
    skip_ptr,
    sums_ptr,
    total,
    slots,
    ALIGNED: tl.constexpr,
    STORE: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Write complete buckets to ``out``, compare them with those of the ring, and store them there.

    Args:
        x: [N] float32.
        begin: index of the first bucket in the sketch.
        length: number of buckets, at most N.
        row: row of partial sums.
        out_ptr: the sketch; or ``None``.
        ring_ptr: `SketchRing.memory`; or ``None``.
        state_ptr: `SketchRing.state`.
        skip_ptr: `SketchRing.skip`; or ``None``.
        sums_ptr: `SketchRing.partials`.
        total: length of a row of the ring.
        slots: rows of the ring.
        ALIGNED: ``begin`` and ``length`` are multiples of 4.
        STORE: store the buckets as the newest; else they are those of an update.
        WARPS: warps of the program. One load of a warp of 32 lanes is WIDTH buckets, so that no dot waits for another
            warp.
    """
    WIDTH: tl.constexpr = 128 if ALIGNED else 32
    LOADS: tl.constexpr = x.shape[0] // WIDTH
    buckets = tl.arange(0, LOADS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    x = x.reshape([LOADS, WIDTH])
    if out_ptr is not None:
        _store(out_ptr, begin, buckets, length, x, ALIGNED)
    if ring_ptr is not None:
        stride, head = tl.cast(total, tl.int64), tl.load(state_ptr)
        row_ptr = sums_ptr + row * (slots + _STATISTICS)
        previous = _load(ring_ptr + head * stride, begin, buckets, length, ALIGNED)
        difference, sum_ = x - previous, x + previous
        column = tl.arange(0, _STATISTICS)
        statistics = tl.where(column == 0, tl.sum(x * x), 0.0)
        statistics = tl.where(column == 1, tl.sum(difference * difference), statistics)
        statistics = tl.where(column == 2, tl.sum(sum_ * sum_), statistics)
        tl.store(row_ptr + slots + column, statistics)

        # An update is compared with the last gradient alone.
        first_slot, end_slot = (0, slots) if STORE else (head, head + 1)
        column = tl.arange(0, _SLOTS)
        for first in range(0, slots, _SLOTS):
            dots = tl.zeros([WARPS, _SLOTS], tl.float32)
            end = tl.minimum(end_slot - first, _SLOTS)
            for slot in tl.range(tl.maximum(first_slot - first, 0), end, loop_unroll_factor=4):
                past = _load(ring_ptr + (first + slot) * stride, begin, buckets, length, ALIGNED)
                dot = tl.sum(tl.sum((x * past).reshape([LOADS // WARPS, WARPS, WIDTH]), axis=0), axis=1)
                dots = tl.where(column[None, :] == slot, dot[:, None], dots)
            tl.store(row_ptr + first + column, tl.sum(dots, axis=0), mask=first + column < slots)

        if STORE:
            tl.debug_barrier()  # the thread that writes a bucket may not be the one that reads it
            if _stored(skip_ptr):
                target = tl.where(head + 1 < slots, head + 1, 0)
                _store(ring_ptr + target * stride, begin, buckets, length, x, ALIGNED)


@triton.jit
def _stored(skip_ptr):
    stored = True
    if skip_ptr is not None:
        stored = tl.load(skip_ptr) == 0
    return stored


@triton.jit
def _load(pointer, begin, buckets, length, ALIGNED: tl.constexpr):
    pointers, inside = _bucket_pointers(pointer, begin, buckets, length, ALIGNED)
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def _store(pointer, begin, buckets, length, x, ALIGNED: tl.constexpr):
    pointers, inside = _bucket_pointers(pointer, begin, buckets, length, ALIGNED)
    tl.store(pointers, x, mask=inside)


@triton.jit
def _bucket_pointers(pointer, begin, buckets, length, ALIGNED: tl.constexpr):
    pointer += begin
    inside = buckets < length
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
        inside = buckets // 4 * 4 < length  # the same for all four of a load
    return pointer + buckets, inside


def add_ring_arguments(variant, *, ring, out=False):
    """Add the arguments of `compare_and_store` to a variant of a kernel that ends in it.

    Args:
        variant: what is compiled ahead of time.
        ring: whether there is a ring, whose steps may be skipped.
        out: whether there is an ``out`` beside a ring; without a ring there is one.
    """
    kinds = {"out_ptr": "*fp32", "ring_ptr": "*fp32", "state_ptr": "*i64", "skip_ptr": "*fp32", "sums_ptr": "*fp32"}
    absent = [name for name in kinds if not (out or not ring if name == "out_ptr" else ring)]
    present = {name: kind for name, kind in kinds.items() if name not in absent}
    signature = variant["signature"]
    return variant | {
        "signature": signature | present | {"total": "i32", "slots": "i32"},
        "constexprs": variant["constexprs"] | dict.fromkeys(absent),
        "divisible_by_16": [name for name, kind in (signature | present).items() if kind.startswith("*")],
    }

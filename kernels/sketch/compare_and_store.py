"""Buckets s of a new sketch against the same buckets of the last ones, h_0 .. h_{W-1}; then s is the newest.

    dots          sum s h_j                                      for every slot j
    statistics    sum s^2,  sum (s - p)^2,  sum (s + p)^2        p is the newest before s
    store         the slot after the newest  <-  s

and of an update the dot with p alone, the others being 0; it is not stored.

This is done where the buckets are complete, in registers: by a program that has a tile to itself, by the second launch
that adds up runs, by the copies of exact groups. So the ring needs no row for the sketch that is being made. The slot
that s will overwrite, the oldest, is read before it is.

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
        partials: float32 (rows, `ring_columns`): a row for each program that has its tile to itself, in the order of
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
        """The ring with only so many rows of partial sums, the last."""
        return self if self.memory is None else self._replace(partials=self.partials[len(self.partials) - rows :])


NO_RING = SketchRing(None, None, None)


def ring_columns(slots):
    """Columns of partial sums: the dots, then sum s^2, sum (s - p)^2, sum (s + p)^2 and five zeros."""
    return slots + _STATISTICS.value


def ring_bytes(n_buckets, slots):
    """Bytes moved: every slot read, the oldest written."""
    return 4 * n_buckets * (slots + 1)


@triton.jit
def deliver(
    x, begin, length, row, out_ptr, ring_ptr, state_ptr, skip_ptr, sums_ptr, total, slots,
    ALIGNED: tl.constexpr, STORE: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """Write finished buckets to ``out``, and do with the ring what this file says; either may be ``None``.

    Args:
        x: [N] float32.
        begin: the bucket that the first of them is.
        length: how many there are.
        row: of partial sums.
        total: length of a row of the ring.
        ALIGNED: ``begin`` and ``length`` are multiples of 4.
        STORE: whether they become the newest; else they are those of an update.
        WARPS: of the program. Each has runs of buckets, a load of each lane: where a warp has 32 lanes, no dot waits
            for another warp.
    """
    RUN: tl.constexpr = 128 if ALIGNED else 32
    RUNS: tl.constexpr = x.shape[0] // RUN
    lanes = tl.arange(0, RUNS)[:, None] * RUN + tl.arange(0, RUN)[None, :]
    x = x.reshape([RUNS, RUN])
    if out_ptr is not None:
        _store(out_ptr, begin, lanes, length, x, ALIGNED)
    if ring_ptr is not None:
        stride, head = tl.cast(total, tl.int64), tl.load(state_ptr)
        row_ptr = sums_ptr + row * (slots + _STATISTICS)
        previous = _load(ring_ptr + head * stride, begin, lanes, length, ALIGNED)
        difference, sum_ = x - previous, x + previous
        column = tl.arange(0, _STATISTICS)
        statistics = tl.where(column == 0, tl.sum(x * x), 0.0)
        statistics = tl.where(column == 1, tl.sum(difference * difference), statistics)
        statistics = tl.where(column == 2, tl.sum(sum_ * sum_), statistics)
        tl.store(row_ptr + slots + column, statistics)

        # Nobody asks how an update lies to older gradients than the last.
        first_slot, end_slot = (0, slots) if STORE else (head, head + 1)
        column = tl.arange(0, _SLOTS)
        for first in range(0, slots, _SLOTS):
            dots = tl.zeros([WARPS, _SLOTS], tl.float32)
            end = tl.minimum(end_slot - first, _SLOTS)
            for slot in tl.range(tl.maximum(first_slot - first, 0), end, loop_unroll_factor=4):
                past = _load(ring_ptr + (first + slot) * stride, begin, lanes, length, ALIGNED)
                dot = tl.sum(tl.sum((x * past).reshape([RUNS // WARPS, WARPS, RUN]), axis=0), axis=1)
                dots = tl.where(column[None, :] == slot, dot[:, None], dots)
            tl.store(row_ptr + first + column, tl.sum(dots, axis=0), mask=first + column < slots)

        if STORE:
            tl.debug_barrier()  # whoever writes a bucket may not be the one who reads it
            if _stored(skip_ptr):
                target = tl.where(head + 1 < slots, head + 1, 0)
                _store(ring_ptr + target * stride, begin, lanes, length, x, ALIGNED)


@triton.jit
def _stored(skip_ptr):
    stored = True
    if skip_ptr is not None:
        stored = tl.load(skip_ptr) == 0
    return stored


@triton.jit
def _load(pointer, begin, lanes, length, ALIGNED: tl.constexpr):
    pointers, inside = _places(pointer, begin, lanes, length, ALIGNED)
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def _store(pointer, begin, lanes, length, x, ALIGNED: tl.constexpr):
    pointers, inside = _places(pointer, begin, lanes, length, ALIGNED)
    tl.store(pointers, x, mask=inside)


@triton.jit
def _places(pointer, begin, lanes, length, ALIGNED: tl.constexpr):
    pointer += begin
    inside = lanes < length
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
        inside = lanes // 4 * 4 < length  # the same for each four, and so for each load
    return pointer + lanes, inside


def delivered(variant, *, ring, out=False):
    """A variant to compile of a kernel that ends in `deliver`: to a ring whose steps may be skipped, or to ``out``."""
    kinds = {"out_ptr": "*fp32", "ring_ptr": "*fp32", "state_ptr": "*i64", "skip_ptr": "*fp32", "sums_ptr": "*fp32"}
    absent = [name for name in kinds if not (out or not ring if name == "out_ptr" else ring)]
    present = {name: kind for name, kind in kinds.items() if name not in absent}
    signature = variant["signature"]
    return variant | {
        "signature": signature | present | {"total": "i32", "slots": "i32"},
        "constexprs": variant["constexprs"] | dict.fromkeys(absent),
        "divisible_by_16": [name for name, kind in (signature | present).items() if kind.startswith("*")],
    }

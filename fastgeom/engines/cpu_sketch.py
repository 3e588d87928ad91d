"""Count sketches on the CPU: one read of the gradient, its sketches and its moments out.

Whoever owns a tile of buckets reads all elements that go there, so that threads share nothing, no sum depends on how
many they are, and no memory is needed beyond the sketch itself. Tiles are small enough to stay in the first cache, next
to the run of elements that is added to them. The blocks of one q are added up where they lie, eight neighbours at a
time in one vector, and q is applied to their sum.

`fastgeom.sketching` defines buckets and signs; the conversions and sums of ``cpu_loops`` do the rest. numba looks for
changes in this file alone: after a change in ``cpu_loops``, touch it or remove ``__pycache__``.
"""

# ruff: noqa: PLR0917 - compiled functions take their arguments by position
# mypy: allow-untyped-defs, allow-untyped-calls, disable-error-code="call-arg"

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from fastgeom.engines.cpu_loops import _EXACT, _FAST, _absmax_and_nonfinite, _at, _block, _sum_sq, _widen
from fastgeom.sketching import FLIP_STREAM, ORDER_STREAM, SketchPlan, Tiles
from fastgeom.tables import AddressTable, Ints, Segments, segments

TILE = 2048
_WIDTHS = (TILE, 1024, 512, 256, 128)

_FLOAT32, _FLOAT64 = np.empty(0, np.float32), np.empty(0, np.float64)
_BFLOAT16, _FLOAT16 = np.empty(0, np.uint16), np.empty(0, np.int16)
_ORDER, _FLIP = np.uint32(ORDER_STREAM), np.uint32(FLIP_STREAM)

Deal = Callable[..., None]


@intrinsic
def _add_signed(typing_context, target, at, source, start, word):
    """``target[at + p] += s_p source[start + p]`` for p < 8, one vector; see ``_SIGN_SHIFTS`` for the signs s_p."""
    signature = types.void(target, types.int64, source, types.int64, types.uint32)
    floats, words = ir.VectorType(ir.FloatType(), 8), ir.VectorType(cgutils.int32_t, 8)

    def vector_at(context, builder, array_type, array, index):
        data = context.make_array(array_type)(context, builder, array).data
        return builder.bitcast(builder.gep(data, [index]), floats.as_pointer())

    def codegen(context, builder, signature, arguments):
        target, at, source, start, word = arguments
        total = vector_at(context, builder, signature.args[0], target, at)
        added = builder.load(vector_at(context, builder, signature.args[2], source, start), align=4)
        lanes = builder.insert_element(ir.Constant(words, ir.Undefined), word, cgutils.int32_t(0))
        lanes = builder.shuffle_vector(lanes, ir.Constant(words, ir.Undefined), ir.Constant(words, [0] * 8))
        signs = builder.and_(builder.shl(lanes, words(_SIGN_SHIFTS)), words([1 << 31] * 8))
        added = builder.bitcast(builder.xor(builder.bitcast(added, words), signs), floats)
        builder.store(builder.fadd(builder.load(total, align=4), added), total, align=4)
        return context.get_dummy_value()

    return signature, codegen


_SIGN_SHIFTS = [19 - (p >> 1) - 16 * (p & 1) for p in range(8)]
"""How far left the sign of position p is from the top of a word already shifted left by 12 - 4 (i & 3)."""


@njit(**_EXACT)
def _mix32(x):
    """`fastgeom.sketching.mix32`."""
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@njit(**_EXACT)
def _draw_signs(words, first, seed):
    for u in range(words.size):
        words[u] = _mix32(np.uint32(np.uint32(first + u) ^ seed))


@njit(**_EXACT)
def _add_run(tile, x, mask, words, shift, tail):
    """Add a run of elements, position p of it to bucket p XOR 8 ``mask``."""
    whole = x.size >> 3
    for v in range(whole):
        u = v ^ mask
        _add_signed(tile, u << 3, x, v << 3, np.uint32(words[u] << shift))
    rest = x.size & 7
    if rest:
        tail[:] = 0
        for p in range(rest):
            tail[p] = x[(whole << 3) + p]
        u = whole ^ mask
        _add_signed(tile, u << 3, tail, 0, np.uint32(words[u] << shift))


@njit(**_EXACT)
def _gradient_run(address, code, begin, size, scale, x32, x64, sums, bad):
    """``size`` elements of a gradient as float32; their moments are added to ``sums`` (2,) and ``bad`` (1,)."""
    if code == 1:
        wide = _block(address + begin * 8, _FLOAT64, size, scale, x64)
        sums[0] += _sum_sq(wide)
        largest, count = _absmax_and_nonfinite(wide)
        x = x32[:size]
        for i in range(size):
            x[i] = np.float32(wide[i])
    else:
        factor = np.float32(scale)
        if code == 0:
            x = _block(address + begin * 4, _FLOAT32, size, factor, x32)
        elif code == 2:
            x = _block(address + begin * 2, _BFLOAT16, size, factor, x32)
        else:
            x = _block(address + begin * 2, _FLOAT16, size, factor, x32)
        sums[0] += _sum_sq(x)
        largest, count = _absmax_and_nonfinite(x)
    sums[1] = max(sums[1], largest)
    bad[0] += count
    return x


@njit(**_FAST)
def _update_sums(x, old, g, u, sums):
    """The update x - old as float32 in ``u``; sum x^2, sum u^2 and sum g u are added to ``sums``; old is renewed."""
    x_sq, u_sq, g_dot_u = 0.0, 0.0, 0.0
    for i in range(g.size):
        value = np.float64(_widen(x[i]))
        update = value - np.float64(_widen(old[i]))
        x_sq += value * value
        u_sq += update * update
        g_dot_u += g[i] * update
        u[i] = np.float32(update)
        old[i] = x[i]
    sums[0] += x_sq
    sums[1] += u_sq
    sums[2] += g_dot_u


@njit(**_EXACT)
def _wide_run(address, code, begin, size, scale, x64):
    """``size`` elements of a gradient as float64."""
    if address == 0:
        x = x64[:size]
        x[:] = 0
        return x
    if code == 0:
        return _block(address + begin * 4, _FLOAT32, size, scale, x64)
    if code == 1:
        return _block(address + begin * 8, _FLOAT64, size, scale, x64)
    if code == 2:
        return _block(address + begin * 2, _BFLOAT16, size, scale, x64)
    return _block(address + begin * 2, _FLOAT16, size, scale, x64)


@njit(**_EXACT)
def _update_run(address, old, code, begin, size, g, x32, sums):
    """``size`` elements of the update x - old as float32; its moments are added to ``sums`` (3,)."""
    u = x32[:size]
    if code == 0:
        x, before = _at(address + begin * 4, _FLOAT32, size), _at(old + begin * 4, _FLOAT32, size)
        _update_sums(x, before, g, u, sums)
    elif code == 1:
        x, before = _at(address + begin * 8, _FLOAT64, size), _at(old + begin * 8, _FLOAT64, size)
        _update_sums(x, before, g, u, sums)
    elif code == 2:
        x, before = _at(address + begin * 2, _BFLOAT16, size), _at(old + begin * 2, _BFLOAT16, size)
        _update_sums(x, before, g, u, sums)
    else:
        x, before = _at(address + begin * 2, _FLOAT16, size), _at(old + begin * 2, _FLOAT16, size)
        _update_sums(x, before, g, u, sums)
    return u


@njit(**_EXACT)
def _run(tensor, begin, size, addresses, codes, scale, x32, x64, sums, bad):
    """A run of the gradient, or of the update where ``addresses`` has rows for parameters and snapshots."""
    if addresses.shape[0] == 1:
        return _gradient_run(addresses[0, tensor], codes[0, tensor], begin, size, scale, x32, x64, sums, bad)
    g = _wide_run(addresses[0, tensor], codes[0, tensor], begin, size, scale, x64)
    return _update_run(addresses[1, tensor], addresses[2, tensor], codes[1, tensor], begin, size, g, x32, sums)


@njit(**_EXACT)
def _copy_group(first, end, tensors, numels, places, addresses, codes, scale, x32, x64, out, sums, bad):
    """An exact group: its elements, where its tensors stand in the sketch."""
    for k in range(first, end):
        tensor = tensors[k]
        if addresses[-1, tensor] == 0:
            continue
        for begin in range(0, numels[tensor], TILE):
            size = min(TILE, numels[tensor] - begin)
            x = _run(tensor, begin, size, addresses, codes, scale, x32, x64, sums, bad)
            for i in range(size):
                out[places[k] + begin + i] = x[i]


@njit(**_EXACT)
def _hash_tile(
    bucket, width, buckets, blocks, seed, first,
    tensors, numels, first_block, end_block, addresses, codes, scale, x32, x64, out, sums, bad,
):  # fmt: skip
    """The buckets ``out`` of one tile: for every q, the runs of all its blocks, four of them to a word of signs."""
    tile, words, tail = np.empty(width, np.float32), np.empty(width >> 3, np.uint32), np.empty(8, np.float32)
    for q in range(8):
        place, empty = first, True
        for j in range((blocks + 31) >> 5):
            drawn = False
            order = _mix32(np.uint32(np.uint32(j) ^ seed ^ _ORDER))
            for t in range(4):
                b = (j << 5) + (t << 3) + (q ^ np.int64((order >> np.uint32(3 * t)) & np.uint32(7)))
                if b >= blocks:
                    break
                while b >= end_block[place]:
                    place += 1
                flip = np.int64(_mix32(np.uint32(np.uint32(b) ^ seed ^ _FLIP))) & (buckets - 8)
                begin = (b - first_block[place]) * buckets + (bucket ^ (flip & -width))
                size = min(width, numels[tensors[place]] - begin)
                if size <= 0 or addresses[-1, tensors[place]] == 0:
                    continue
                x = _run(tensors[place], begin, size, addresses, codes, scale, x32, x64, sums, bad)
                if empty:
                    tile[:] = 0
                    empty = False
                if not drawn:
                    _draw_signs(words, np.uint32(j * buckets + q * (buckets >> 3) + (bucket >> 3)), seed)
                    drawn = True
                _add_run(tile, x, (flip & (width - 1)) >> 3, words, np.uint32(12 - 4 * t), tail)
        if not empty:
            for k in range(width):
                out[k] += tile[k ^ q]


@njit(**_EXACT)
def sketch(
    tasks, group_of, bucket_of, width_of, sizes, offsets, blocks, seeds, first_tensor,
    tensors, numels, first_block, end_block, places, addresses, codes, scale, out, sums, bad,
):  # fmt: skip
    """Sketches and moments of these tasks.

    Bytes: every element once; the snapshot read and written where there is one.

    Args:
        tasks: indices into the arrays that follow, and into the results.
        group_of, bucket_of, width_of: the tile of each task; width 0 stands for an exact group.
        sizes, ..., places: those of `SketchPlan`.
        addresses, codes: (1, tensor) of the gradient, or (3, tensor) and (2, tensor) of gradient, parameter and
            snapshot. Address 0 reads as zeros.
        scale: what the gradient is multiplied by when read.
        out: (total,) float32, all of it written.
        sums, bad: (task, 2 or 3) float64 and (task, 1) int64, added to: sum g^2, max |g|, count of what is not finite;
            or sum x^2, sum u^2, sum g u.
    """
    x32, x64 = np.empty(TILE, np.float32), np.empty(TILE, np.float64)
    for task in tasks:
        g = group_of[task]
        if width_of[task] == 0:
            out[offsets[g] : offsets[g] + sizes[g]] = 0
            _copy_group(
                first_tensor[g], first_tensor[g + 1], tensors, numels, places,
                addresses, codes, scale, x32, x64, out, sums[task], bad[task],
            )  # fmt: skip
        else:
            begin = offsets[g] + bucket_of[task]
            tile = out[begin : begin + width_of[task]]
            tile[:] = 0
            _hash_tile(
                bucket_of[task], width_of[task], sizes[g], blocks[g], seeds[g], first_tensor[g],
                tensors, numels, first_block, end_block, addresses, codes, scale, x32, x64, tile, sums[task], bad[task],
            )  # fmt: skip


def _in_turn(loop: Callable[..., None], tasks: Ints, cost: Ints, *arguments: object) -> None:
    """All of it on the calling thread."""
    loop(tasks, *arguments)


@lru_cache(maxsize=8)
def sketch_tasks(plan: SketchPlan) -> tuple[Tiles, Ints, Segments]:
    """Who computes what: tiles (of width 0 for whole exact groups), elements to read for each, tasks by layer."""
    hashed = plan.tiles(*_WIDTHS)
    exact = np.flatnonzero(plan.exact)
    nothing = np.zeros(len(exact), np.int64)
    tiles = Tiles(*(np.concatenate(parts) for parts in (
        (hashed.group, exact), (hashed.bucket, nothing), (hashed.width, nothing),
    )))  # fmt: skip
    share = np.where(tiles.width == 0, 1.0, tiles.width / plan.sizes[tiles.group])
    elements = np.bincount(np.asarray(plan.groups), np.asarray(plan.numels), plan.n_groups)[tiles.group]
    return tiles, (elements * share).astype(np.int64), segments(tiles.group, plan.n_groups)


def sketch_moments(
    plan: SketchPlan, gradient: AddressTable, out: Tensor, *, scale: float = 1.0, deal: Deal = _in_turn
) -> tuple[NDArray[np.float64], NDArray[np.float64], Ints]:
    """One read of a gradient: the sketch of every group, and the moments that every step has.

    Args:
        plan: which elements go where.
        gradient: the tensors; address 0 reads as zeros.
        out: (plan.total,) float32, contiguous, in CPU memory; overwritten.
        scale: what the gradient is multiplied by when read.
        deal: called as ``deal(loop, tasks, cost, *arguments)``; runs ``loop(some_tasks, *arguments)`` until every task
            is done, on any number of threads.

    Returns:
        (task, 1) sum g^2, (task,) max |g|, (task,) int64 count of what is not finite. ``sketch_tasks(plan)`` has the
        segments that gather tasks by group.

    Cost: n_elements × itemsize bytes.
    """
    sums, bad = _sketch(plan, [gradient], out, scale, deal)
    return sums[:, :1], sums[:, 1], bad


def update_sketch(
    plan: SketchPlan,
    parameter: AddressTable,
    snapshot: AddressTable,
    out: Tensor,
    *,
    gradient: AddressTable | None = None,
    scale: float = 1.0,
    deal: Deal = _in_turn,
) -> NDArray[np.float64]:
    """One read of the parameters against their snapshot: the sketch of u = x - snapshot; then the snapshot is x.

    Args:
        plan, out, deal: as in `sketch_moments`.
        parameter, snapshot: of one dtype; a parameter at address 0 is left out.
        gradient: for sum g u; where there is none that sum is 0.
        scale: what the gradient is multiplied by when read.

    Returns:
        (task, 3) sum x^2, sum u^2, sum g u.

    Cost: gradient, parameter and snapshot read, the snapshot written.
    """
    nowhere = AddressTable(np.zeros_like(parameter.address), parameter.code)
    return _sketch(plan, [gradient or nowhere, parameter, snapshot], out, scale, deal)[0]


def _sketch(
    plan: SketchPlan, tables: list[AddressTable], out: Tensor, scale: float, deal: Deal
) -> tuple[NDArray[np.float64], Ints]:
    if out.dtype is not torch.float32 or out.shape != (plan.total,) or not out.is_contiguous():
        raise ValueError(f"out: expected {plan.total} contiguous float32, got {tuple(out.shape)} {out.dtype}")
    tiles, cost, _ = sketch_tasks(plan)
    sums, bad = np.zeros((len(cost), 3)), np.zeros((len(cost), 1), np.int64)
    deal(
        sketch, np.arange(len(cost)), cost,
        tiles.group, tiles.bucket, tiles.width, plan.sizes, plan.offsets, plan.blocks, plan.seeds, plan.first_tensor,
        plan.tensors, np.asarray(plan.numels, np.int64), plan.first_block, plan.end_block, plan.places,
        np.stack([table.address for table in tables]), np.stack([table.code for table in tables[:2]]),
        float(scale), out.numpy(), sums, bad,
    )  # fmt: skip
    return sums, bad[:, 0]

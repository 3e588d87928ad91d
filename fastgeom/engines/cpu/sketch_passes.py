"""Count sketches on the CPU: one read of the gradient, its sketch and its moments out, and its dots with past ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastgeom.engines.cpu import threads
from fastgeom.engines.cpu.loops.sketch import TILE, sketch
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.chunks import Ints, Segments, chunk_table, segments
from fastgeom.layout.count_sketch import SketchPlan
from fastgeom.validation import check_sketch_output

__all__ = ["TILE", "PastSketches", "SketchTasks", "past_sketches", "sketch_moments", "sketch_tasks", "update_sketch"]

_WIDTHS = (TILE, 1024, 512, 256, 128)


@dataclass(frozen=True)
class SketchTasks:
    """The work of a sketch: tiles of buckets, and chunks of the tensors of exact groups; arrays of shape (task,).

    Attributes:
        group: of each task.
        member: the tensor, as its index in ``plan.tensors``; for a tile the group's first.
        begin: the first bucket of the tile, counted from the group's first, or the first element of the chunk.
        length: number of buckets or elements.
        target: the first bucket of a sketch that they go to.
        elements: how many are read.
        segments: the tasks gathered by group.
    """

    group: Ints
    member: Ints
    begin: Ints
    length: Ints
    target: Ints
    elements: Ints
    segments: Segments

    def __len__(self) -> int:
        return len(self.group)


@dataclass(frozen=True)
class PastSketches:
    """Sketches of (plan.total,) float32 each, named by address, and the sums against them; see `past_sketches`.

    Attributes:
        rows: (row,) those to take dots with.
        previous: the one that is subtracted, or 0; may be one of ``rows``.
        store: the one to write over when it has been read, or 0. Where groups are exact its padding stays as it is.
        sums: (task, row + 3) float64, added to: sum s p for each row p; then sum s^2, and sum (s - p)^2 and
            sum (s + p)^2 for the previous one, for the sketch s itself.
    """

    rows: Ints
    previous: int
    store: int
    sums: NDArray[np.float64]


def past_sketches(plan: SketchPlan, rows: Sequence[int] = (), *, previous: int = 0, store: int = 0) -> PastSketches:
    """What one sketch is compared with, given by addresses as in `PastSketches`; all sums are 0."""
    sums = np.zeros((len(sketch_tasks(plan)), len(rows) + 3))
    return PastSketches(np.array(rows, np.int64), previous, store, sums)


_tasks: WeakKeyDictionary[SketchPlan, SketchTasks] = WeakKeyDictionary()


def sketch_tasks(plan: SketchPlan) -> SketchTasks:
    """The tasks of a plan, made once: tiles of all groups that are not exact, then chunks of the others' tensors."""
    if plan not in _tasks:
        _tasks[plan] = _make_tasks(plan)
    return _tasks[plan]


def _make_tasks(plan: SketchPlan) -> SketchTasks:
    tiles, numels = plan.tiles(*_WIDTHS), np.asarray(plan.numels, np.int64)
    per_bucket = np.bincount(np.asarray(plan.groups), numels, plan.n_groups) / plan.sizes
    owner = np.repeat(np.arange(plan.n_groups), np.diff(plan.first_tensor))
    chunks = chunk_table(np.where(plan.exact[owner], numels[plan.tensors], 0))
    group = np.concatenate([tiles.group, owner[chunks.tensor]])
    return SketchTasks(
        group,
        np.concatenate([plan.first_tensor[tiles.group], chunks.tensor]),
        np.concatenate([tiles.bucket, chunks.start]),
        np.concatenate([tiles.width, chunks.length]),
        np.concatenate([plan.offsets[tiles.group] + tiles.bucket, plan.exact_offsets[chunks.tensor] + chunks.start]),
        np.concatenate([(tiles.width * per_bucket[tiles.group]).astype(np.int64), chunks.length]),
        segments(group, plan.n_groups),
    )


def sketch_moments(
    plan: SketchPlan,
    gradient: AddressTable,
    out: Tensor | None = None,
    *,
    past: PastSketches | None = None,
    scale: float = 1.0,
) -> tuple[NDArray[np.float64], NDArray[np.float64], Ints]:
    """One read of a gradient: the sketch of every group, and the moments that every step has.

    Args:
        plan: which elements go where.
        gradient: the tensors; address 0 reads as zeros.
        out: (plan.total,) float32, contiguous, in CPU memory; overwritten. ``None`` keeps no sketch but a stored one.
        past: what the sketch is compared with, and where it is stored.
        scale: what the gradient is multiplied by when read.

    Returns:
        (task, 1) sum g^2, (task,) max |g|, (task,) int64 count of what is not finite. ``sketch_tasks(plan)`` has the
        segments that gather tasks by group.

    Cost: the gradient and the past sketches read; the sketch written.
    """
    sums, nonfinite = _sketch(plan, [gradient], out, past, scale=scale)
    return sums[:, :1], sums[:, 1], nonfinite


def update_sketch(
    plan: SketchPlan,
    parameter: AddressTable,
    snapshot: AddressTable,
    out: Tensor | None = None,
    *,
    past: PastSketches | None = None,
    gradient: AddressTable | None = None,
    scale: float = 1.0,
) -> NDArray[np.float64]:
    """One read of the parameters against their snapshot: the sketch of u = x - snapshot; then the snapshot is x.

    Args:
        plan: which elements go where.
        parameter: x; where it and the snapshot are at address 0, u is 0.
        snapshot: of the same dtype; overwritten by x.
        out: as in `sketch_moments`.
        past: as in `sketch_moments`.
        gradient: for sum g u; where there is none that sum is 0.
        scale: what the gradient is multiplied by when read.

    Returns:
        (task, 3) sum x^2, sum u^2, sum g u.

    Cost: gradient, parameter, snapshot and past sketches read; snapshot and sketch written.
    """
    nowhere = AddressTable(np.zeros_like(parameter.address), parameter.code)
    return _sketch(plan, [gradient or nowhere, parameter, snapshot], out, past, scale=scale)[0]


def _sketch(
    plan: SketchPlan,
    tables: list[AddressTable],
    out: Tensor | None,
    past: PastSketches | None,
    *,
    scale: float,
) -> tuple[NDArray[np.float64], Ints]:
    if out is not None:
        check_sketch_output(out, plan.total)
        out.numpy().fill(0)  # the padding of exact groups, which no task writes
    tasks, past = sketch_tasks(plan), past or past_sketches(plan)
    sums, nonfinite = np.zeros((len(tasks), 3)), np.zeros((len(tasks), 1), np.int64)
    numels = np.asarray(plan.numels, np.int64)
    threads.run_chunks(
        sketch,
        np.arange(len(tasks)),
        tasks.elements + tasks.length * len(past.rows),
        (tasks.group, tasks.member, tasks.begin, tasks.length, tasks.target),
        (plan.sizes, plan.blocks, plan.seeds, plan.tensors, numels, plan.first_block, plan.end_block),
        (np.stack([t.address for t in tables]), np.stack([t.code for t in tables[:2]]), float(scale)),
        (past.rows[:, None], past.previous, past.store),
        0 if out is None else out.data_ptr(),
        sums,
        nonfinite,
        past.sums,
    )
    return sums, nonfinite[:, 0]

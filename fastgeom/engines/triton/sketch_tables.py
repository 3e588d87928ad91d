"""Who computes which part of a sketch on a GPU: the tables of ``fastgeom.kernels.sketch`` that do not change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastgeom.layout.chunks import Ints
from fastgeom.layout.count_sketch import SketchPlan

_FEWEST_QUADS = 4
"""Fewer are not worth a program of their own."""


@dataclass(frozen=True)
class SketchPrograms:
    """The tables of ``fastgeom.kernels.sketch``, int64 but for the first, which do not change from step to step.

    Attributes:
        programs: for each width of tile (10, n) int32; seeds are its bits.
        copies: (4, n), of the exact groups.
        sums: (4, n), what is added up afterwards.
        tensors: (tensor, 3), in the order of ``plan.tensors``.
        groups: for each of ``programs`` and then for ``copies``, (n,) the group that each measures; not falling.
        owners: (n,) the group whose buckets each completes, not falling: for each of ``programs`` those that have their
            tiles to themselves, then for ``copies`` and for ``sums``.
        scratch: float32 numbers of memory that they need.
    """

    programs: tuple[NDArray[np.int32], ...]
    copies: Ints
    sums: Ints
    tensors: Ints
    groups: tuple[Ints, ...]
    owners: tuple[Ints, ...]
    scratch: int


def sketch_programs(plan: SketchPlan, widths: Sequence[int], n_programs: int, copy: int, add: int) -> SketchPrograms:
    """Deal the quads of every tile to programs, and cut exact groups into units.

    Args:
        plan: what is computed.
        widths: of tiles, in falling order.
        n_programs: about how many to make, unless there are more tiles than that, or less work.
        copy: elements of a unit of an exact group.
        add: buckets of a unit that is added up, or all of a group that has fewer.
    """
    tiles = plan.tiles(*widths)
    rounds = -(-plan.blocks // 32)
    quads = 8 * rounds[tiles.group]
    share = max(_FEWEST_QUADS, int(quads.sum()) / n_programs)
    group_runs = np.maximum(1, 8 * rounds // share).astype(np.int64)
    scratch_sizes = np.where((group_runs > 1) & ~plan.exact, group_runs * plan.sizes, 0)
    scratch = np.cumsum(scratch_sizes) - scratch_sizes

    runs = group_runs[tiles.group]
    tile = np.repeat(np.arange(len(runs)), runs)
    run = np.arange(len(tile)) - np.repeat(np.cumsum(runs) - runs, runs)
    g, bucket, width = tiles.group[tile], tiles.bucket[tile], tiles.width[tile]
    first_quad, end_quad = run * quads[tile] // runs[tile], (run + 1) * quads[tile] // runs[tile]
    first_block = 32 * (first_quad % np.maximum(rounds[g], 1))
    alone = runs[tile] == 1
    target = np.where(alone, plan.offsets[g] + bucket, -1 - (scratch[g] + run * plan.sizes[g] + bucket))
    begins = [
        plan.first_tensor[k]
        + np.searchsorted(plan.end_block[plan.first_tensor[k] : plan.first_tensor[k + 1]], b, "right")
        for k, b in zip(g, first_block, strict=True)
    ]
    by_width = np.argsort(-width, kind="stable")
    row = np.empty_like(tile)
    row[by_width] = np.cumsum(alone[by_width]) - 1
    table = np.stack([
        bucket, plan.sizes[g], plan.blocks[g], plan.seeds[g].astype(np.int64), first_quad, end_quad,
        np.array(begins, np.int64), plan.first_tensor[g], target, row,
    ])  # fmt: skip
    copies, copied = _copies(plan, copy)
    shared = np.flatnonzero(scratch_sizes)
    unit_group = np.repeat(shared, -(-plan.sizes[shared] // add))
    unit = np.concatenate([np.zeros(0, np.int64), *(np.arange(0, plan.sizes[k], add) for k in shared)])
    sums = np.stack([
        plan.offsets[unit_group] + unit, scratch[unit_group] + unit, group_runs[unit_group], plan.sizes[unit_group],
    ])  # fmt: skip
    owner = np.repeat(np.arange(plan.n_groups), np.diff(plan.first_tensor))
    whole = np.maximum(plan.end_block - plan.first_block - 1, 0) * plan.sizes[owner]
    tail = np.asarray(plan.numels, np.int64)[plan.tensors] - whole
    return SketchPrograms(
        tuple(table[:, width == w].astype(np.int32) for w in widths),
        copies,
        sums,
        np.stack([plan.end_block, plan.first_block, tail], axis=1),
        (*(g[width == w] for w in widths), copied),
        (*(g[alone & (width == w)] for w in widths), copied, unit_group),
        int(scratch_sizes.sum()),
    )


def _copies(plan: SketchPlan, copy: int) -> tuple[Ints, Ints]:
    """Units of exact groups: (4, n) place, first element, length and target; and the group of each."""
    rows, groups = [np.zeros((4, 0), np.int64)], []
    numels = np.asarray(plan.numels, np.int64)[plan.tensors]
    for g in np.flatnonzero(plan.exact):
        members = np.arange(plan.first_tensor[g], plan.first_tensor[g + 1])
        end = plan.offsets[g] + plan.sizes[g]
        padding = end - numels[members].sum() - plan.offsets[g]
        places, lengths = np.append(members, -1), np.append(numels[members], padding)
        targets = np.append(plan.exact_offsets[members], end - padding)
        for place, length, target in zip(places, lengths, targets, strict=True):
            start = np.arange(0, length, copy)
            rows.append(np.stack([np.full_like(start, place), start, np.minimum(copy, length - start), target + start]))
            groups += [g] * len(start)
    return np.concatenate(rows, axis=1), np.array(groups, np.int64)

"""Static work partition of the sketch kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastgeom.layout.chunks import Ints
from fastgeom.layout.count_sketch import SketchPlan

_MIN_BATCHES = 4
"""Fewest batches of a program that shares its tile."""


@dataclass(frozen=True)
class SketchPrograms:
    """The tables of ``launch_sketch`` that are the same in every step, int64 but for the first.

    Attributes:
        programs: for each width of tile (10, n) int32, the seeds as uint32.
        copies: (4, n), units of the exact groups.
        sums: (4, n), units of the sums of partial sketches.
        tensors: (tensor, 3), in the order of ``plan.tensors``.
        groups: for each of ``programs`` and then for ``copies``, (n,) the group that each measures; not falling.
        owners: (n,) the group whose buckets each completes, not falling: for each of ``programs`` those that compute
            their tiles alone, then for ``copies`` and for ``sums``.
        scratch: length of the float32 scratch memory.
    """

    programs: tuple[NDArray[np.int32], ...]
    copies: Ints
    sums: Ints
    tensors: Ints
    groups: tuple[Ints, ...]
    owners: tuple[Ints, ...]
    scratch: int


def sketch_programs(plan: SketchPlan, widths: Sequence[int], n_programs: int, copy: int, add: int) -> SketchPrograms:
    """Divide the batches of every tile among programs, and exact groups into units.

    Args:
        plan: the sketch.
        widths: widths of tiles, in falling order.
        n_programs: number of programs, about; more where there are more tiles, fewer where there is less work.
        copy: elements of a unit of an exact group.
        add: buckets of a unit of partial sketches, or all of a group that has fewer.
    """
    tiles = plan.tiles(*widths)
    rounds = -(-plan.blocks // 32)
    batches = 8 * rounds[tiles.group]
    batches_per_program = max(_MIN_BATCHES, int(batches.sum()) / n_programs)
    group_sharers = np.maximum(1, 8 * rounds // batches_per_program).astype(np.int64)  # programs that share a tile
    scratch_sizes = np.where((group_sharers > 1) & ~plan.exact, group_sharers * plan.sizes, 0)
    scratch = np.cumsum(scratch_sizes) - scratch_sizes

    sharers = group_sharers[tiles.group]
    tile = np.repeat(np.arange(len(sharers)), sharers)
    sharer = np.arange(len(tile)) - np.repeat(np.cumsum(sharers) - sharers, sharers)
    g, bucket, width = tiles.group[tile], tiles.bucket[tile], tiles.width[tile]
    first_batch = sharer * batches[tile] // sharers[tile]
    end_batch = (sharer + 1) * batches[tile] // sharers[tile]
    first_block = 32 * (first_batch % np.maximum(rounds[g], 1))
    alone = sharers[tile] == 1
    target = np.where(alone, plan.offsets[g] + bucket, -1 - (scratch[g] + sharer * plan.sizes[g] + bucket))
    first_tensors = [
        plan.first_tensor[k]
        + np.searchsorted(plan.end_block[plan.first_tensor[k] : plan.first_tensor[k + 1]], b, "right")
        for k, b in zip(g, first_block, strict=True)
    ]
    by_width = np.argsort(-width, kind="stable")
    row = np.empty_like(tile)
    row[by_width] = np.cumsum(alone[by_width]) - 1
    table = np.stack(
        [
            bucket,
            plan.sizes[g],
            plan.blocks[g],
            plan.seeds[g].astype(np.int64),
            first_batch,
            end_batch,
            np.array(first_tensors, np.int64),
            plan.first_tensor[g],
            target,
            row,
        ]
    )
    copies, copied_group = _copies(plan, copy)
    shared = np.flatnonzero(scratch_sizes)
    summed_group = np.repeat(shared, -(-plan.sizes[shared] // add))
    first = np.concatenate([np.zeros(0, np.int64), *(np.arange(0, plan.sizes[k], add) for k in shared)])
    target, source = plan.offsets[summed_group] + first, scratch[summed_group] + first
    sums = np.stack([target, source, group_sharers[summed_group], plan.sizes[summed_group]])
    return SketchPrograms(
        tuple(table[:, width == w].astype(np.int32) for w in widths),
        copies,
        sums,
        np.stack([plan.end_block, plan.first_block, _last_block_elements(plan)], axis=1),
        (*(g[width == w] for w in widths), copied_group),
        (*(g[alone & (width == w)] for w in widths), copied_group, summed_group),
        int(scratch_sizes.sum()),
    )


def _last_block_elements(plan: SketchPlan) -> Ints:
    """(tensor,) elements of the last block of each tensor, in the order of ``plan.tensors``."""
    group = np.repeat(np.arange(plan.n_groups), np.diff(plan.first_tensor))
    before_last = np.maximum(plan.end_block - plan.first_block - 1, 0) * plan.sizes[group]
    elements: Ints = np.asarray(plan.numels, np.int64)[plan.tensors] - before_last
    return elements


def _copies(plan: SketchPlan, copy: int) -> tuple[Ints, Ints]:
    """Units of exact groups: (4, n) tensor, first element, length and index into the sketch; and the group of each."""
    rows, groups = [np.zeros((4, 0), np.int64)], []
    numels = np.asarray(plan.numels, np.int64)[plan.tensors]
    for g in np.flatnonzero(plan.exact):
        members = np.arange(plan.first_tensor[g], plan.first_tensor[g + 1])
        end = plan.offsets[g] + plan.sizes[g]
        padding = end - numels[members].sum() - plan.offsets[g]
        tensors, lengths = np.append(members, -1), np.append(numels[members], padding)
        targets = np.append(plan.exact_offsets[members], end - padding)
        for tensor, length, target in zip(tensors, lengths, targets, strict=True):
            start = np.arange(0, length, copy)
            rows.append(
                np.stack([np.full_like(start, tensor), start, np.minimum(copy, length - start), target + start])
            )
            groups += [g] * len(start)
    return np.concatenate(rows, axis=1), np.array(groups, np.int64)

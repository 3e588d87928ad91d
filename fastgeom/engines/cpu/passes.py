"""The CPU engine's passes over lists of tensors: each reads them once, on as many threads as torch uses.

A pass is a few calls of one compiled function, each over some chunks; the threads meet Python only between them.
The partial sums of every chunk have a row of their own and are added in a fixed order, so the bits of a result depend
neither on the number of threads nor on which was faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastgeom.engines.cpu import sketch_passes, threads
from fastgeom.engines.cpu.loops import gram, window
from fastgeom.engines.cpu.reduce import reduce_by_layer
from fastgeom.engines.cpu.sketch_passes import PastSketches
from fastgeom.engines.results import NormMoments, UpdateMoments
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.chunks import ChunkTable, Ints, Segments
from fastgeom.layout.count_sketch import SketchPlan
from fastgeom.validation import DTYPES

_MEMORY_TYPE = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.bfloat16: np.uint16,
    torch.float16: np.int16,
}


@dataclass(frozen=True)
class WindowMoments:
    """Sums over each layer and, in the last row, over all of them. Tensors on the engine's device.

    Attributes:
        dots: (layer + 1, row) float64, sum g row.
        grad_sq: (layer + 1,) float64, sum g^2.
        grad_norm: (layer + 1,) float64, its root.
        diff_sq: (layer + 1,) float64, sum (g - previous)^2; 0 where no previous row was given.
        sum_sq: (layer + 1,) float64, sum (g + previous)^2; 0 where no previous row was given.
        grad_absmax: (layer + 1,) float64.
        nonfinite: (layer + 1,) int64.
    """

    dots: Tensor
    grad_sq: Tensor
    grad_norm: Tensor
    diff_sq: Tensor
    sum_sq: Tensor
    grad_absmax: Tensor
    nonfinite: Tensor


def zeros(rows: int, n_elements: int, dtype: torch.dtype) -> Tensor:
    """Memory of shape (rows, n_elements), zeroed; in huge pages where the system has them.

    numpy asks the system for huge pages and torch does not; without them many rows read side by side cost a miss
    of the translation buffer every 4 KiB.
    """
    if n_elements == 0:
        return torch.zeros(rows, 0, dtype=dtype, device="cpu")
    memory = np.zeros(rows * n_elements * dtype.itemsize, np.uint8)
    return torch.from_numpy(memory).view(dtype).view(rows, n_elements)


def window_moments(
    chunks: ChunkTable,
    layers: Segments,
    gradient: AddressTable,
    *,
    rows: Sequence[AddressTable] = (),
    previous: AddressTable | None = None,
    store: AddressTable | None = None,
    keep: AddressTable | None = None,
    scale: float = 1.0,
    streamed: bool = False,
) -> WindowMoments:
    """One read of a gradient against rows of history; then the gradient is written into the history.

    Args:
        chunks: the tensors, cut.
        layers: the chunks of each layer.
        gradient: the tensors; address 0 reads as zeros.
        rows: what to take dots with. For one tensor all rows are of one dtype, that of ``store``.
        previous: the gradient of the step before, for the sums of differences.
        store: where the gradient goes, in its history's dtype; may be one of ``rows``.
        keep: where it goes in the dtype of ``previous``; may be ``previous`` itself.
        scale: what the gradient is multiplied by when read.
        streamed: whether the stored gradient is not wanted again soon, and should leave the caches to others.
    """
    nowhere = np.zeros(len(gradient.address), np.int64)
    row_address = np.stack([row.address for row in rows]) if rows else np.zeros((0, len(nowhere)), np.int64)
    row_like = rows[0] if rows else store or gradient
    previous_like = previous or keep or row_like
    sums = np.zeros((len(chunks), len(rows) + 3))
    grad_absmax, nonfinite = np.zeros(len(chunks)), np.zeros(len(chunks), np.int64)
    for some, kinds in _by_dtypes(chunks, gradient, row_like, previous_like):
        compute = _compute_type(kinds)
        threads.run_chunks(
            window.window_moments,
            some,
            chunks.length[some] * (len(rows) + 2),
            chunks.tensor,
            chunks.start,
            chunks.length,
            gradient.address,
            row_address,
            previous.address if previous else nowhere,
            store.address if store else nowhere,
            keep.address if keep else nowhere,
            *kinds,
            np.empty(0, compute),
            compute(scale),
            sums,
            grad_absmax,
            nonfinite,
            streamed and store is not None,
        )
    totals = reduce_by_layer(np.add, sums, layers)
    grad_sq, diff_sq, sum_sq = torch.from_numpy(totals)[:, len(rows) :].unbind(1)
    grad_norm = torch.from_numpy(np.sqrt(totals[:, len(rows)]))
    return WindowMoments(
        dots=torch.from_numpy(totals)[:, : len(rows)],
        grad_sq=grad_sq,
        grad_norm=grad_norm,
        diff_sq=diff_sq,
        sum_sq=sum_sq,
        grad_absmax=torch.from_numpy(reduce_by_layer(np.maximum, grad_absmax, layers)),
        nonfinite=torch.from_numpy(reduce_by_layer(np.add, nonfinite, layers)),
    )


def update_moments(
    chunks: ChunkTable,
    layers: Segments,
    parameter: AddressTable,
    snapshot: AddressTable,
    *,
    gradient: AddressTable | None = None,
    previous: AddressTable | None = None,
    scale: float = 1.0,
) -> UpdateMoments:
    """One read of the parameters against their snapshot; then the snapshot is overwritten with them.

    Args:
        chunks: as in `window_moments`.
        layers: as in `window_moments`.
        parameter: x_{t+1}.
        snapshot: x_t, which is overwritten; of the same dtype.
        gradient: g_{t+1}; without it only sum x^2 is taken.
        previous: g_t; without it only sum x^2 is taken.
        scale: what the gradient is multiplied by when read.
    """
    adjacent = gradient is not None and previous is not None
    gradient, previous = gradient or parameter, previous or parameter
    sums = np.zeros((len(chunks), 4))
    for some, kinds in _by_dtypes(chunks, gradient, previous, parameter):
        compute = _compute_type(kinds)
        threads.run_chunks(
            window.update_moments,
            some,
            chunks.length[some] * (5 if adjacent else 3),
            chunks.tensor,
            chunks.start,
            chunks.length,
            gradient.address,
            previous.address,
            parameter.address,
            snapshot.address,
            *kinds,
            np.empty(0, compute),
            compute(scale),
            adjacent,
            sums,
        )
    return UpdateMoments(*torch.from_numpy(reduce_by_layer(np.add, sums, layers)).unbind(1))


def gram_moments(
    chunks: ChunkTable,
    layers: Segments,
    rows: Sequence[AddressTable],
    *,
    new: Sequence[int],
    before: Sequence[int],
    window: int,
) -> tuple[Tensor, Tensor]:
    """Dots of new rows of a ring with the rows before them, in one read of all.

    Args:
        chunks: as in `window_moments`.
        layers: as in `window_moments`.
        rows: the ring, of one dtype for each tensor.
        new: indices of the new rows.
        before: index of the row before each.
        window: rows further apart than this, along the ring, are not compared.

    Returns:
        (layer + 1, new, row) dots, NaN where none was taken; (layer + 1, new, 2): sum (row - before)^2 and
        sum (row + before)^2.
    """
    addresses = np.stack([row.address for row in rows])
    sums = np.zeros((len(chunks), len(new), len(rows) + 2))
    for some, kinds in _by_dtypes(chunks, rows[0]):
        threads.run_chunks(
            gram.gram,
            some,
            chunks.length[some] * len(rows),
            chunks.tensor,
            chunks.start,
            chunks.length,
            addresses,
            np.array(new, np.int64),
            np.array(before, np.int64),
            *kinds,
            sums,
            window,
        )
    totals = torch.from_numpy(reduce_by_layer(np.add, sums, layers))
    return totals[..., : len(rows)], totals[..., len(rows) :]


def sketch_moments(
    plan: SketchPlan,
    gradient: AddressTable,
    out: Tensor | None = None,
    *,
    past: PastSketches | None = None,
    scale: float = 1.0,
) -> NormMoments:
    """One read of a gradient: its sketch, and its exact moments by layer; see `sketch_passes.sketch_moments`."""
    sums, grad_absmax, nonfinite = sketch_passes.sketch_moments(plan, gradient, out, past=past, scale=scale)
    layers = sketch_passes.sketch_tasks(plan).segments
    grad_sq = reduce_by_layer(np.add, sums, layers)[:, 0]
    return NormMoments(
        torch.from_numpy(grad_sq),
        torch.from_numpy(np.sqrt(grad_sq)),
        torch.from_numpy(reduce_by_layer(np.maximum, grad_absmax, layers)),
        torch.from_numpy(reduce_by_layer(np.add, nonfinite, layers)),
    )


def update_sketch(
    plan: SketchPlan,
    parameter: AddressTable,
    snapshot: AddressTable,
    *,
    gradient: AddressTable,
    past: PastSketches,
    scale: float = 1.0,
) -> UpdateMoments:
    """One read of the parameters: the sketch of the update, and its exact sums; see `sketch_passes.update_sketch`."""
    sums = sketch_passes.update_sketch(plan, parameter, snapshot, gradient=gradient, past=past, scale=scale)
    totals = torch.from_numpy(reduce_by_layer(np.add, sums, sketch_passes.sketch_tasks(plan).segments))
    param_sq, update_sq, next_dot = totals.unbind(1)
    return UpdateMoments(param_sq, update_sq, torch.full_like(param_sq, torch.nan), next_dot)


def past_moments(plan: SketchPlan, past: PastSketches) -> Tensor:
    """The sums of `PastSketches`, (layer + 1, row + 3), once a sketch has been compared."""
    return torch.from_numpy(reduce_by_layer(np.add, past.sums, sketch_passes.sketch_tasks(plan).segments))


def _by_dtypes(chunks: ChunkTable, *tables: AddressTable) -> Iterator[tuple[Ints, tuple[NDArray[np.generic], ...]]]:
    """Yield the chunks by the dtypes of their tensors in each table, with one empty array of each dtype."""
    key = sum(table.code.astype(np.int64) * len(DTYPES) ** position for position, table in enumerate(tables))
    for combination in sorted(set(key.tolist())):
        some = np.flatnonzero(key[chunks.tensor] == combination)
        if len(some):
            codes = [combination // len(DTYPES) ** position % len(DTYPES) for position in range(len(tables))]
            yield some, tuple(np.empty(0, _MEMORY_TYPE[DTYPES[code]]) for code in codes)


def _compute_type(kinds: Sequence[NDArray[np.generic]]) -> type[np.float32] | type[np.float64]:
    return np.float64 if any(kind.dtype == np.float64 for kind in kinds) else np.float32

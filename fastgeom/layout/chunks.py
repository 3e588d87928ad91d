"""Lists of tensors cut into chunks, and the chunks gathered by layer for sums in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHUNK_ELEMENTS = 1 << 16

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ChunkTable:
    """A list of tensors cut into chunks.

    Attributes:
        tensor: (chunk,) index of the tensor.
        start: (chunk,) first element, in the tensor's memory order.
        length: (chunk,) number of elements.
    """

    tensor: Ints
    start: Ints
    length: Ints

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, chunks: Ints) -> ChunkTable:
        return ChunkTable(self.tensor[chunks], self.start[chunks], self.length[chunks])


def chunk_table(numels: Sequence[int] | Ints, elements: int = CHUNK_ELEMENTS) -> ChunkTable:
    """Cut tensors of ``numels`` elements into chunks of at most ``elements``, in order; an empty tensor has none."""
    sizes = np.asarray(numels, np.int64)
    counts = -(-sizes // elements)
    tensor = np.repeat(np.arange(len(sizes)), counts)
    first = np.cumsum(counts) - counts
    start = (np.arange(len(tensor)) - first[tensor]) * elements
    return ChunkTable(tensor, start, np.minimum(elements, sizes[tensor] - start))


@dataclass(frozen=True)
class Segments:
    """The chunks of a table gathered by layer, for sums in a fixed order.

    Attributes:
        layers: number of layers.
        order: (chunk,) chunk indices, those of one layer side by side.
        first: (segment,) where in ``order`` each layer that has chunks begins.
        nonempty: (segment,) indices of the layers that have chunks.
    """

    layers: int
    order: Ints
    first: Ints
    nonempty: Ints


def segments(chunk_layers: Ints, layers: int) -> Segments:
    """Gather chunks by layer.

    Args:
        chunk_layers: (chunk,) layer of each.
        layers: number of layers.
    """
    order = np.argsort(chunk_layers, kind="stable")
    nonempty, first = np.unique(chunk_layers[order], return_index=True)
    return Segments(layers, order, first, nonempty)


def one_segment(chunks: int) -> Segments:
    """All ``chunks`` chunks as one layer."""
    zero = np.zeros(min(chunks, 1), np.int64)
    return Segments(1, np.arange(chunks), zero, zero)

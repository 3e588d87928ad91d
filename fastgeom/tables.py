"""Where the elements of lists of tensors lie: dtypes, memory order, addresses, and their cut into chunks.

The *memory order* of a tensor is the order in which its elements are paired with those of earlier steps. Where a
gradient's strides are those of its parameter (the normal case) reading it in memory order is reading it from front to
back, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""What can be measured; the place in this tuple is the dtype's code in an `AddressTable`."""

CHUNK_ELEMENTS = 1 << 16

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ChunkTable:
    """A list of tensors cut into chunks; arrays of shape (chunk,)."""

    tensor: Ints
    start: Ints
    length: Ints

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, chunks: Ints) -> ChunkTable:
        return ChunkTable(self.tensor[chunks], self.start[chunks], self.length[chunks])


def chunk_table(numels: Sequence[int] | Ints, elements: int = CHUNK_ELEMENTS) -> ChunkTable:
    """Cut tensors of these sizes into chunks of at most ``elements``, in order; an empty tensor gets none."""
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
        order: chunk indices, those of one layer side by side.
        first: where in ``order`` each layer that has chunks begins.
        present: which layers those are.
    """

    layers: int
    order: Ints
    first: Ints
    present: Ints


def segments(chunk_layers: Ints, layers: int) -> Segments:
    """Gather chunks, given the layer of each."""
    order = np.argsort(chunk_layers, kind="stable")
    present, first = np.unique(chunk_layers[order], return_index=True)
    return Segments(layers, order, first, present)


def one_segment(chunks: int) -> Segments:
    """All of so many chunks as one layer."""
    nothing = np.zeros(min(chunks, 1), np.int64)
    return Segments(1, np.arange(chunks), nothing, nothing)


@dataclass(frozen=True)
class AddressTable:
    """Where a list of tensors lies: shape (tensor,) each.

    Attributes:
        address: of the first element; 0 where there is no tensor.
        code: the dtype's place in `DTYPES`.
        owners: keeps the memory alive for as long as the table is.
    """

    address: Ints
    code: NDArray[np.int8]
    owners: tuple[object, ...] = ()


def dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's own strides if its elements fill memory without gaps or overlaps, else those of a contiguous one."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return torch.empty(tensor.shape, device="meta").stride()
            expected *= size
    return tensor.stride()


def same_order(tensor: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether the memory order of ``tensor`` is that of ``strides``; dimensions of size 1 do not matter."""
    return all(s == t or n == 1 for s, t, n in zip(tensor.stride(), strides, tensor.shape, strict=True))


def in_order_of(tensor: Tensor, partner: Tensor) -> Tensor:
    """``tensor`` itself where its memory order is that of ``partner``, else a copy for which it is."""
    if tensor.is_contiguous() and partner.is_contiguous() and not tensor.is_neg():
        return tensor
    return in_memory_order(tensor, dense_strides(partner))


def in_memory_order(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """``tensor`` itself where its memory order is that of ``strides``, else a copy for which it is."""
    if not tensor.is_neg() and (tensor.numel() == 0 or same_order(tensor, strides)):
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def check_measurable(tensor: Tensor, what: str) -> None:
    """Raise unless ``tensor`` is a dense float tensor of a measurable dtype.

    Raises:
        TypeError: it is no tensor, sharded, sparse, complex, integer or of an unsupported float type; names ``what``.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{what}: expected a tensor, got {type(tensor).__name__}")
    if hasattr(tensor, "placements"):
        raise TypeError(f"{what}: expected a plain tensor, got a DTensor; sharded parameters are not measured yet")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{what}: expected a dense tensor, got layout {tensor.layout}")
    if tensor.dtype not in DTYPES:
        expected = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise TypeError(f"{what}: expected dtype {expected}, got {str(tensor.dtype).removeprefix('torch.')}")


def is_plain(tensor: object) -> bool:
    """Whether it is one of the tensors that `check_measurable` lets pass, and which it need not look at; soon said."""
    return type(tensor) is Tensor and tensor.dtype in DTYPES and tensor.layout is torch.strided


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the current stream: Python runs now, and not when it is replayed."""
    return can_capture(device) and torch.cuda.is_current_stream_capturing()


def can_capture(device: torch.device) -> bool:
    """Whether work on this device can be captured in a CUDA graph."""
    return device.type == "cuda"

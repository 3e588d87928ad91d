"""Addresses, dtypes and memory order of lists of tensors.

The *memory order* of a tensor is the order in which its elements are paired with those of earlier steps. Where a
gradient's strides are those of its parameter (the normal case) reading it in memory order is reading it from front to
back, and nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastgeom.layout.chunks import Ints


@dataclass(frozen=True)
class AddressTable:
    """Addresses and dtypes of a list of tensors.

    Attributes:
        address: (tensor,) address of the first element; 0 where there is no tensor.
        code: (tensor,) index of the dtype in `DTYPES`.
        owners: what keeps the memory alive for as long as the table exists.
    """

    address: Ints
    code: NDArray[np.int8]
    owners: tuple[object, ...] = ()


def dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides of the tensor if its elements fill memory without gaps or overlaps, else those of a contiguous one."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return torch.empty(tensor.shape, device="meta").stride()
            expected *= size
    return tensor.stride()


def same_order(tensor: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether ``strides`` give the memory order of ``tensor``; dimensions of size 1 do not matter."""
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

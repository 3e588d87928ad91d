"""The calls on lists of tensors as operators of torch, which run eagerly and compile with ``fullgraph=True``.

Each selects the engine of the tensors' device.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines.select import select_engine
from fastgeom.layout.addresses import AddressTable, dense_strides, in_order_of
from fastgeom.layout.count_sketch import SketchPlan
from fastgeom.validation import DTYPES

NORM, ABSMAX, NONFINITE = range(3)
"""Indices into the result of `list_norms`."""


@torch.library.custom_op("fastgeom::list_norms", mutates_args=())
def list_norms(tensors: Sequence[Tensor]) -> Tensor:
    """(3,) float64: the norm of all elements, max |x| over what is not NaN, the count of inf and NaN."""
    moments = select_engine(None, tensors[0].device).list_moments(_numels(tensors), _locate(tensors, tensors))
    assert moments.grad_absmax is not None and moments.nonfinite is not None
    return torch.stack([moments.grad_norm, moments.grad_absmax, moments.nonfinite.double()])


@list_norms.register_fake
def _(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].new_empty(3, dtype=torch.float64)


@torch.library.custom_op("fastgeom::list_dots", mutates_args=())
def list_dots(tensors: Sequence[Tensor], history: Sequence[Tensor]) -> Tensor:
    """(row + 1,) float64: the dots with each row of the history, which is given as one list, then the norm."""
    n = len(tensors)
    rows = [history[first : first + n] for first in range(0, len(history), n)]
    engine = select_engine(None, tensors[0].device)
    numels, located = _numels(tensors), _locate(tensors, tensors)
    result = torch.empty(len(rows) + 1, dtype=torch.float64, device=tensors[0].device)
    alike: dict[tuple[torch.dtype, ...], list[int]] = {}
    for k, row in enumerate(rows):
        alike.setdefault(tuple(t.dtype for t in row) if engine.rows_alike else (), []).append(k)
    for members in alike.values():
        moments = engine.list_moments(numels, located, [_locate(rows[k], tensors) for k in members])
        for k, dot in zip(members, moments.dots.unbind(), strict=True):
            result[k] = dot
        result[-1] = moments.grad_norm
    return result


@list_dots.register_fake
def _(tensors: Sequence[Tensor], history: Sequence[Tensor]) -> Tensor:
    return tensors[0].new_empty(len(history) // len(tensors) + 1, dtype=torch.float64)


@torch.library.custom_op("fastgeom::list_sketch", mutates_args=())
def list_sketch(tensors: Sequence[Tensor], size: int, seed: int) -> Tensor:
    """(size,) float32: the count sketch of all elements as one group."""
    numels = _numels(tensors)
    plan = SketchPlan(numels, np.zeros_like(numels), 1, size, seed)
    out = tensors[0].new_zeros(size, dtype=torch.float32)
    sketcher = select_engine(None, tensors[0].device).sketcher(plan)
    located = _locate(tensors, tensors)
    sketcher.prepare(located)
    sketcher.sketch(located, out[: plan.total])
    return out


@list_sketch.register_fake
def _(tensors: Sequence[Tensor], size: int, seed: int) -> Tensor:
    return tensors[0].new_empty(size, dtype=torch.float32)


@torch.library.custom_op("fastgeom::list_scale_", mutates_args=("tensors",))
def list_scale_(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply tensors in place by a 0-d tensor, which stays on the device."""
    dense = [t for t in tensors if t.stride() == dense_strides(t)]
    select_engine(None, tensors[0].device).scale(dense, factor)
    for tensor in tensors:
        if tensor.stride() != dense_strides(tensor):
            tensor.mul_(factor)


def _numels(tensors: Sequence[Tensor]) -> np.ndarray:
    return np.array([t.numel() for t in tensors], np.int64)


def _locate(tensors: Sequence[Tensor], like: Sequence[Tensor]) -> AddressTable:
    """Addresses of tensors in the memory order of their partners ``like``; one in another order is copied first."""
    owners = tuple(in_order_of(t, p) for t, p in zip(tensors, like, strict=True))
    return AddressTable(
        np.array([t.data_ptr() for t in owners], np.int64),
        np.array([DTYPES.index(t.dtype) for t in owners], np.int8),
        owners,
    )

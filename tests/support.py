"""Tensors, tables and the error bound shared by the tests of engines, layout and public calls."""

import gc
from collections.abc import Callable, Sequence
from types import FunctionType, ModuleType

import numpy as np
import torch
from torch import Tensor

from fastgeom.layout.addresses import AddressTable
from fastgeom.validation import DTYPES

FLOOR = 64 * 2.0**-53
"""Allowed error of a sum, relative to the sum of its terms' magnitudes, where torch's float64 happens to be exact.

Sums are float64 whatever the tensors are. Each term is rounded about twice (product, difference), the additions of a
chunk come to ten or so units more, and the reference rounds as often as we do. One case is worse: squares of float32
numbers of one binade. Their last bits are squares too, k^2 modulo a power of two, more often small than large, so that
rounding them off adds up instead of averaging out: to 50 units where a lane adds 512 of them. 64 units of 2^-53 in all.
"""


_GUARD = 64


def random_tensor(numel: int, dtype: torch.dtype, *, offset: int = 0) -> Tensor:
    """Standard normal numbers ``offset`` elements behind an aligned address; NaN stands before and after them."""
    storage = torch.full((_GUARD + offset + numel + _GUARD,), torch.nan, dtype=dtype)
    values = storage[_GUARD + offset : _GUARD + offset + numel]
    return values.copy_(torch.randn(numel, dtype=torch.float64))


def table(tensors: Sequence[Tensor | None], absent: torch.dtype = torch.float32) -> AddressTable:
    """Address table of contiguous tensors; ``None`` is address 0 and has the dtype ``absent``."""
    assert all(t is None or t.is_contiguous() for t in tensors)
    return AddressTable(
        np.array([0 if t is None else t.data_ptr() for t in tensors], np.int64),
        np.array([DTYPES.index(absent if t is None else t.dtype) for t in tensors], np.int8),
        tuple(tensors),
    )


def assert_accurate(ours: float, truth: float, terms: Callable[..., Tensor], *operands: Sequence[Tensor]) -> None:
    """Assert that a sum's error is at most twice that of torch's float64 sum of the same terms, plus the floor.

    Args:
        ours: the sum under test.
        truth: its value from ``fastgeom.reference``.
        terms: from the operands to the terms that are added.
        operands: lists of tensors, paired.
    """
    added = terms(*[_flat(o) for o in operands])
    bound = 2 * abs(float(added.sum()) - truth) + FLOOR * float(added.abs().sum())
    assert abs(ours - truth) <= bound, f"{ours!r} is off from {truth!r} by {abs(ours - truth):.3g}, allowed {bound:.3g}"


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1).double() for t in tensors] or [torch.zeros(0, dtype=torch.float64)])


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Assert equal dtypes, shapes and bits; all NaN count as equal."""
    assert actual.dtype is expected.dtype and actual.shape == expected.shape
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
    same = (actual.contiguous().view(integers) == expected.contiguous().view(integers)) | (
        actual.isnan() & expected.isnan()
    )
    differing = (~same).reshape(-1).nonzero().reshape(-1)
    assert len(differing) == 0, (
        f"{len(differing)} of {same.numel()} elements differ, the first at {int(differing[0])}: "
        f"{actual.reshape(-1)[differing[0]]} for {expected.reshape(-1)[differing[0]]}"
    )


def memory_of(root: object, *excluded: object) -> dict[int, int]:
    """Address → bytes of all memory of tensors and arrays that an object refers to, directly or not."""
    memory: dict[int, int] = {}
    seen, queue = {id(each) for each in excluded}, [root]
    while queue:
        each = queue.pop()
        if id(each) in seen or isinstance(each, type | ModuleType | FunctionType):
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            storage = each.untyped_storage()
            memory[storage.data_ptr()] = max(memory.get(storage.data_ptr(), 0), storage.nbytes())
        elif isinstance(each, np.ndarray):
            while isinstance(each.base, np.ndarray):
                each = each.base
            memory[each.ctypes.data] = max(memory.get(each.ctypes.data, 0), each.nbytes)
        queue += gc.get_referents(each)
    return memory

"""Norms, dot products and clipping of lists of tensors, in one read and to float64 accuracy.

torch's own float32 norm of 1e8 elements on a CPU is wrong by 1 %; these fold short float32 sums into float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from fastgeom.engines import Engine, WindowMoments, select_engine
from fastgeom.tables import (
    DTYPES,
    AddressTable,
    check_measurable,
    chunk_table,
    dense_strides,
    in_memory_order,
    segments,
)


def norm(tensors: Iterable[Tensor]) -> Tensor:
    r"""Euclidean norm of all elements of a list of tensors.

    .. math:: \sqrt{\textstyle\sum_i x_i^2}

    Args:
        tensors: dense float tensors on one device; dtypes may differ. An empty list has norm 0.

    Returns:
        0-d float64 on the tensors' device.

    Raises:
        TypeError, ValueError: a tensor that cannot be measured (sparse, complex, integer, sharded), or two devices.

    Cost: one read of the tensors, n_elements × itemsize bytes. Source: ``fastgeom.reference.norm``.

    >>> norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    tensor(5., dtype=torch.float64)
    """
    return _moments(_as_list(tensors, "tensors")).grad_norm[-1]


def dot(a: Iterable[Tensor], b: Iterable[Tensor]) -> Tensor:
    r"""Dot product of two lists of tensors, :math:`\sum_i a_i b_i`.

    Args:
        a, b: lists of the same length and shapes; dtypes may differ.

    Returns:
        0-d float64 on the tensors' device.

    Raises:
        TypeError, ValueError: as `norm`; or lengths or shapes that differ.

    Cost: one read of both, 2 × n_elements × itemsize bytes. Source: ``fastgeom.reference.dot``.

    A tensor of ``b`` in another memory order than its partner is copied first.

    >>> dot([torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 4.0])])
    tensor(11., dtype=torch.float64)
    """
    return window_dots(_as_list(a, "a"), [_as_list(b, "b")])[0]


def cosine(a: Iterable[Tensor], b: Iterable[Tensor]) -> Tensor:
    r"""Cosine of the angle between two lists of tensors, :math:`\langle a, b\rangle / (\|a\|\,\|b\|)`.

    Arguments and errors are those of `dot`; the result is NaN where a norm is 0. Cost: one read of ``a``, two of ``b``,
    3 × n_elements × itemsize bytes. Source: ``fastgeom.reference.cosine``.

    >>> cosine([torch.tensor([1.0, 0.0])], [torch.tensor([-2.0, 0.0])])
    tensor(-1., dtype=torch.float64)
    """
    first, second = _as_list(a, "a"), _as_list(b, "b")
    _check_partner(first, second, "b")
    moments = _moments(first, [second])
    return moments.dots[-1, 0] / (moments.grad_norm[-1] * norm(second))


def window_dots(tensors: Iterable[Tensor], history: Sequence[Iterable[Tensor]]) -> Tensor:
    r"""Dot products of a list of tensors with each list of a history, :math:`\langle g, h_k\rangle`.

    Args:
        tensors: the list g.
        history: lists h_1, h_2, … of the same length and shapes.

    Returns:
        (len(history),) float64 on the tensors' device.

    Raises:
        TypeError, ValueError: as `dot`.

    Cost: one read of everything, (1 + len(history)) × n_elements × itemsize bytes, where all lists of the history have
    the same dtypes; else one read of g for each combination of dtypes. Source: ``fastgeom.reference.window_dots``.

    >>> window_dots([torch.tensor([1.0, 2.0])], [[torch.tensor([3.0, 4.0])], [torch.tensor([-2.0, 1.0])]])
    tensor([11.,  0.], dtype=torch.float64)
    """
    g = _as_list(tensors, "tensors")
    rows = [_as_list(row, f"history[{k}]") for k, row in enumerate(history)]
    for k, row in enumerate(rows):
        _check_partner(g, row, f"history[{k}]")
    result = torch.zeros(len(rows), dtype=torch.float64, device=g[0].device if g else None)
    alike: dict[tuple[torch.dtype, ...], list[int]] = {}
    for k, row in enumerate(rows):
        alike.setdefault(tuple(t.dtype for t in row), []).append(k)
    for members in alike.values():
        result[members] = _moments(g, [rows[k] for k in members]).dots[-1]
    return result


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    r"""Scale gradients in place to a norm of at most ``max_norm``; a drop-in for ``torch.nn.utils.clip_grad_norm_``.

    .. math:: g \leftarrow g \cdot \min\bigl(1,\; \texttt{max\_norm} / (\|g\| + 10^{-6})\bigr)

    Args:
        parameters: one tensor or an iterable; those without a gradient are left out.
        max_norm: the largest norm to leave.
        norm_type: 2 and inf are measured here, in one read; for any other, torch's own total norm is taken.
        error_if_nonfinite: raise where the norm is NaN or inf. The one option here that reads a value back to the host.
        foreach: accepted as torch's has it, and without effect: lists are always taken as one.

    Returns:
        The norm before clipping: 0-d float64 (torch's has the gradients' dtype).

    Raises:
        RuntimeError: the norm is not finite and ``error_if_nonfinite`` is set.
        TypeError, ValueError: as `norm`.

    Cost: one read, then one read and write: 3 × n_elements × itemsize bytes. Source: torch's function of this name.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> clip_grad_norm_(weight, max_norm=1.0)
    tensor(5., dtype=torch.float64)
    >>> weight.grad
    tensor([0.6000, 0.8000])
    """
    del foreach
    owners = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    gradients = [p.grad for p in owners if p.grad is not None]
    if not gradients:
        return torch.tensor(0.0, dtype=torch.float64)
    if norm_type == 2.0:  # noqa: PLR2004
        total = norm(gradients)
    elif norm_type == math.inf:
        moments = _moments(gradients)
        total = torch.where(moments.grad_sq[-1].isnan(), torch.nan, moments.absmax[-1])  # inf is a norm, NaN is none
    else:
        total = torch.nn.utils.get_total_norm(gradients, norm_type).double()
    if error_if_nonfinite and not bool(torch.isfinite(total)):
        raise RuntimeError(f"gradients: expected a finite norm of order {norm_type}, got {float(total)}")
    scale_(gradients, clip_coefficient(total, float(max_norm)))
    return total


def clip_coefficient(total_norm: Tensor, max_norm: float) -> Tensor:
    """min(1, max_norm / (norm + 1e-6)), as torch defines it; stays on the device."""
    return torch.clamp(max_norm / (total_norm + 1e-6), max=1.0)


def scale_(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply tensors in place by a 0-d tensor; autograd does not see it."""
    with torch.no_grad():
        torch._foreach_mul_(list(tensors), factor)


def _as_list(tensors: Iterable[Tensor], what: str) -> list[Tensor]:
    if isinstance(tensors, Tensor):
        raise TypeError(f"{what}: expected a list of tensors, got one tensor; write [tensor]")
    found = [t.detach() if isinstance(t, Tensor) else t for t in tensors]
    for place, tensor in enumerate(found):
        check_measurable(tensor, f"{what}[{place}]")
        if tensor.device != found[0].device:
            raise ValueError(f"{what}: expected all on one device, got {found[0].device} and {tensor.device}")
    return found


def _check_partner(a: Sequence[Tensor], b: Sequence[Tensor], what: str) -> None:
    if len(a) != len(b):
        raise ValueError(f"{what}: expected {len(a)} tensors to pair with, got {len(b)}")
    for place, (x, y) in enumerate(zip(a, b, strict=True)):
        if x.shape != y.shape:
            raise ValueError(f"{what}[{place}]: expected shape {tuple(x.shape)}, got {tuple(y.shape)}")
        if x.device != y.device:
            raise ValueError(f"{what}[{place}]: expected it on {x.device}, got {y.device}")


def _moments(tensors: Sequence[Tensor], rows: Sequence[Sequence[Tensor]] = ()) -> WindowMoments:
    strides = [dense_strides(t) for t in tensors]
    chunks = chunk_table([t.numel() for t in tensors])
    engine: Engine = select_engine(None, tensors[0].device if tensors else torch.device("cpu"))
    return engine.window_moments(
        chunks,
        segments(np.zeros(len(chunks), np.int64), 1),
        _locate(tensors, strides),
        rows=[_locate(row, strides) for row in rows],
    )


def _locate(tensors: Sequence[Tensor], strides: Sequence[tuple[int, ...]]) -> AddressTable:
    owners = tuple(in_memory_order(t, s) for t, s in zip(tensors, strides, strict=True))
    return AddressTable(
        np.array([t.data_ptr() for t in owners], np.int64),
        np.array([DTYPES.index(t.dtype) for t in owners], np.int8),
        owners,
    )

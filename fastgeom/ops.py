"""Norms, dot products and clipping of lists of tensors, in one read and to float64 accuracy.

torch's own float32 norm of 1e8 elements on a CPU is wrong by 1 %; these sum in float64, or fold short float32 sums into
it. Each is one operator of torch, and stays whole under ``torch.compile(fullgraph=True)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fastgeom.engines.torch_ops import ABSMAX, NORM, list_dots, list_norms, list_scale_, list_sketch
from fastgeom.layout.count_sketch import MIN_BUCKETS
from fastgeom.validation import check_device, check_measurable, is_plain


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
    return _norms(_as_list(tensors, "tensors"))[NORM]


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
    first, second = _as_list(a, "a"), _as_list(b, "b")
    _check_partner(first, second, "b")
    return _dots(first, [second])[0]


def cosine(a: Iterable[Tensor], b: Iterable[Tensor]) -> Tensor:
    r"""Cosine of the angle between two lists of tensors, :math:`\langle a, b\rangle / (\|a\|\,\|b\|)`.

    Arguments and errors are those of `dot`; the result is NaN where a norm is 0. Cost: one read of ``a``, two of ``b``,
    3 × n_elements × itemsize bytes. Source: ``fastgeom.reference.cosine``.

    >>> cosine([torch.tensor([1.0, 0.0])], [torch.tensor([-2.0, 0.0])])
    tensor(-1., dtype=torch.float64)
    """
    first, second = _as_list(a, "a"), _as_list(b, "b")
    _check_partner(first, second, "b")
    if not first:
        return torch.tensor(math.nan, dtype=torch.float64)
    dot, first_norm = list_dots(first, second)
    found: Tensor = dot / (first_norm * _norms(second)[NORM])
    return found


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
    return _dots(g, rows)


def count_sketch(tensors: Iterable[Tensor], size: int = 2**18, seed: int = 0) -> Tensor:
    r"""A sketch of a list of tensors: ``size`` numbers whose dot products estimate those of the lists.

    .. math:: s_k = \sum_{a \to k} \sigma_a x_a, \qquad
        \langle s(x), s(y)\rangle \approx \langle x, y\rangle \pm
        \sqrt{(\|x\|^2\|y\|^2 + \langle x, y\rangle^2) / \texttt{size}}

    Every element goes to one bucket k with one sign, both chosen by ``seed`` and the sizes of the tensors alone: the
    map is linear, and unbiased over seeds. A list of no more elements than ``size`` is kept whole, and exact.

    Args:
        tensors: dense float tensors on one device; dtypes may differ. Each is read in its memory order.
        size: number of buckets, a power of two from 128 on.
        seed: sketches can be compared only where size, seed and the tensors' sizes are the same.

    Returns:
        (size,) float32 on the tensors' device.

    Raises:
        TypeError, ValueError: as `norm`; a size that is no such power of two, a seed that is no 32-bit number.

    Cost: one read of the tensors, n_elements × itemsize bytes. Source: ``fastgeom.reference.count_sketch``; Charikar,
    Chen, Farach-Colton, "Finding frequent items in data streams", 2002.

    >>> x = torch.randn(10_000)
    >>> torch.allclose(count_sketch([2 * x], size=256), 2 * count_sketch([x], size=256))
    True
    """
    found = _as_list(tensors, "tensors")
    if size < MIN_BUCKETS or size & (size - 1):
        raise ValueError(f"size: expected a power of two of at least {MIN_BUCKETS}, got {size}")
    if not found:
        return torch.zeros(size)
    sketch: Tensor = list_sketch(found, size, seed)
    return sketch


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
        norms = _norms(_as_list(gradients, "parameters"))
        total = torch.where(norms[NORM].isnan(), torch.nan, norms[ABSMAX])  # inf is a norm, NaN is none
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
    if tensors:
        list_scale_([t.detach() for t in tensors], factor)


def _as_list(tensors: Iterable[Tensor], what: str) -> list[Tensor]:
    if isinstance(tensors, Tensor):
        raise TypeError(f"{what}: expected a list of tensors, got one tensor; write [tensor]")
    found = list(tensors)
    for place, tensor in enumerate(found):
        if not is_plain(tensor):
            check_measurable(tensor, f"{what}[{place}]")
        if tensor.device != found[0].device:
            raise ValueError(f"{what}: expected all on one device, got {found[0].device} and {tensor.device}")
        if tensor.requires_grad:
            found[place] = tensor.detach()
    if found:
        check_device(what, found[0].device)
    return found


def _check_partner(a: Sequence[Tensor], b: Sequence[Tensor], what: str) -> None:
    if len(a) != len(b):
        raise ValueError(f"{what}: expected {len(a)} tensors to pair with, got {len(b)}")
    for place, (x, y) in enumerate(zip(a, b, strict=True)):
        if x.shape != y.shape:
            raise ValueError(f"{what}[{place}]: expected shape {tuple(x.shape)}, got {tuple(y.shape)}")
        if x.device != y.device:
            raise ValueError(f"{what}[{place}]: expected it on {x.device}, got {y.device}")


def _dots(g: Sequence[Tensor], rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Dots of lists that fit each other."""
    if not g or not rows:
        return torch.zeros(len(rows), dtype=torch.float64, device=g[0].device if g else None)
    dots: Tensor = list_dots(g, [t for row in rows for t in row])[:-1]
    return dots


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    return list_norms(tensors) if tensors else torch.zeros(3, dtype=torch.float64)

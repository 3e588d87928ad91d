"""Norms, dot products, sketches and clipping of lists of tensors, in one read and to float64 accuracy.

torch's own float32 norm of 1e8 elements on a CPU is wrong by 1 %; these accumulate in float64, or add short float32
sums in float64. Each is one operator of torch, and compiles under ``torch.compile(fullgraph=True)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fastgeom.engines.torch_ops import ABSMAX, NORM, list_dots, list_norms, list_scale_, list_sketch
from fastgeom.layout.count_sketch import MIN_BUCKETS
from fastgeom.validation import check_pairs, checked_bucket_count, checked_seed, checked_tensors


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
    return _norms(checked_tensors(tensors, "tensors"))[NORM]


def dot(a: Iterable[Tensor], b: Iterable[Tensor]) -> Tensor:
    r"""Dot product of two lists of tensors, :math:`\sum_i a_i b_i`.

    Args:
        a: dense float tensors on one device.
        b: as many tensors of the same shapes on that device; dtypes may differ.

    Returns:
        0-d float64 on the tensors' device.

    Raises:
        TypeError, ValueError: as `norm`; or lengths or shapes that differ.

    Cost: one read of both, 2 × n_elements × itemsize bytes. Source: ``fastgeom.reference.dot``.

    A tensor of ``b`` in another memory order than its partner is copied first.

    >>> dot([torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 4.0])])
    tensor(11., dtype=torch.float64)
    """
    first, second = checked_tensors(a, "a"), checked_tensors(b, "b")
    check_pairs(first, second, "b")
    return _dots(first, [second])[0]


def cosine(a: Iterable[Tensor], b: Iterable[Tensor]) -> Tensor:
    r"""Cosine of the angle between two lists of tensors, :math:`\langle a, b\rangle / (\|a\|\,\|b\|)`.

    Args:
        a: dense float tensors on one device.
        b: as many tensors of the same shapes on that device; dtypes may differ.

    Returns:
        0-d float64 on the tensors' device; NaN where a norm is 0.

    Raises:
        TypeError, ValueError: as `dot`.

    Cost: one read of ``a``, two of ``b``, 3 × n_elements × itemsize bytes. Source: ``fastgeom.reference.cosine``.

    >>> cosine([torch.tensor([1.0, 0.0])], [torch.tensor([-2.0, 0.0])])
    tensor(-1., dtype=torch.float64)
    """
    first, second = checked_tensors(a, "a"), checked_tensors(b, "b")
    check_pairs(first, second, "b")
    if not first:
        return torch.tensor(math.nan, dtype=torch.float64)
    dot, first_norm = list_dots(first, second)
    result: Tensor = dot / (first_norm * _norms(second)[NORM])
    return result


def window_dots(tensors: Iterable[Tensor], history: Sequence[Iterable[Tensor]]) -> Tensor:
    r"""Dot products of a list of tensors with each list of a history, :math:`\langle g, h_k\rangle`.

    Args:
        tensors: g, dense float tensors on one device.
        history: lists h_1, h_2, … of as many tensors of the same shapes on that device; dtypes may differ.

    Returns:
        (len(history),) float64 on the tensors' device.

    Raises:
        TypeError, ValueError: as `dot`.

    Cost: one read of everything, (1 + len(history)) × n_elements × itemsize bytes, where all lists of the history have
    the same dtypes; else one read of g for each combination of dtypes. Source: ``fastgeom.reference.window_dots``.

    >>> window_dots([torch.tensor([1.0, 2.0])], [[torch.tensor([3.0, 4.0])], [torch.tensor([-2.0, 1.0])]])
    tensor([11.,  0.], dtype=torch.float64)
    """
    g = checked_tensors(tensors, "tensors")
    rows = [checked_tensors(row, f"history[{k}]") for k, row in enumerate(history)]
    for k, row in enumerate(rows):
        check_pairs(g, row, f"history[{k}]")
    return _dots(g, rows)


def count_sketch(tensors: Iterable[Tensor], size: int = 2**18, seed: int = 0) -> Tensor:
    r"""Count sketch of a list of tensors: ``size`` numbers whose dot products estimate those of the lists.

    .. math:: s_k = \sum_{a \to k} \sigma_a x_a, \qquad
        \langle s(x), s(y)\rangle \approx \langle x, y\rangle \pm
        \sqrt{(\|x\|^2\|y\|^2 + \langle x, y\rangle^2) / \texttt{size}}

    Every element goes to one bucket k with one sign, both chosen by ``seed`` and the sizes of the tensors alone: the
    map is linear, and unbiased over seeds. The sketch of a list of no more elements than ``size`` is its elements, and
    exact.

    Args:
        tensors: dense float tensors on one device; dtypes may differ. Each is read in its memory order.
        size: number of buckets, a power of two of at least 128.
        seed: chooses buckets and signs, from 0 to 2^32 - 1. Sketches can be compared only where size, seed and the
            tensors' sizes are the same.

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
    checked = checked_tensors(tensors, "tensors")
    size, seed = checked_bucket_count(size, MIN_BUCKETS), checked_seed(seed)
    if not checked:
        return torch.zeros(size)
    sketch: Tensor = list_sketch(checked, size, seed)
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
        parameters: one tensor or an iterable; those without a gradient are skipped.
        max_norm: largest norm after clipping.
        norm_type: order of the norm; 2 and inf take one read here, any other is computed by torch.
        error_if_nonfinite: raise where the norm is NaN or inf. The only option that reads a value back to the host.
        foreach: accepted for compatibility, without effect.

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
    if norm_type == 2.0:
        total = norm(gradients)
    elif norm_type == math.inf:
        norms = _norms(checked_tensors(gradients, "parameters"))
        total = torch.where(norms[NORM].isnan(), torch.nan, norms[ABSMAX])  # inf is a norm, NaN is none
    else:
        total = torch.nn.utils.get_total_norm(gradients, norm_type).double()
    if error_if_nonfinite and not bool(torch.isfinite(total)):
        raise RuntimeError(f"gradients: expected a finite norm of order {norm_type}, got {float(total)}")
    scale_(gradients, clip_coefficient(total, float(max_norm)))
    return total


def clip_coefficient(total_norm: Tensor, max_norm: float) -> Tensor:
    """``min(1, max_norm / (norm + 1e-6))``, as torch defines it; stays on the device."""
    return torch.clamp(max_norm / (total_norm + 1e-6), max=1.0)


def scale_(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply tensors in place by a 0-d tensor, outside of autograd."""
    if tensors:
        list_scale_([t.detach() for t in tensors], factor)


def _dots(g: Sequence[Tensor], rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """(row,) dots of a list with lists that pair with it."""
    if not g or not rows:
        return torch.zeros(len(rows), dtype=torch.float64, device=g[0].device if g else None)
    dots: Tensor = list_dots(g, [t for row in rows for t in row])[:-1]
    return dots


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    return list_norms(tensors) if tensors else torch.zeros(3, dtype=torch.float64)

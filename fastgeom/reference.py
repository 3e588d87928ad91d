"""The textbook float64 definition of every statistic: the truth for tests and benches, with no care for speed.

All take lists of tensors and return Python numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = Sequence[Tensor]


def flat(tensors: Tensors) -> Tensor:
    """All elements as one float64 vector, each tensor in the order of its indices."""
    return torch.cat([t.detach().double().reshape(-1) for t in tensors] or [torch.zeros(0, dtype=torch.float64)])


def dot(a: Tensors, b: Tensors) -> float:
    """sum a b."""
    return float(flat(a) @ flat(b))


def norm(tensors: Tensors) -> float:
    """sqrt(sum x^2)."""
    return math.sqrt(dot(tensors, tensors))


def cosine(a: Tensors, b: Tensors) -> float:
    """sum a b / (|a| |b|)."""
    return dot(a, b) / (norm(a) * norm(b))


def window_dots(tensors: Tensors, history: Sequence[Tensors]) -> list[float]:
    """[sum g h for each h of the history]."""
    return [dot(tensors, row) for row in history]


def difference_sq(a: Tensors, b: Tensors) -> float:
    """sum (a - b)^2."""
    return float((flat(a) - flat(b)).square().sum())


def sum_sq(a: Tensors, b: Tensors) -> float:
    """sum (a + b)^2."""
    return float((flat(a) + flat(b)).square().sum())


def absmax(tensors: Tensors) -> float:
    """max |x| over what is not NaN; 0 where there is nothing."""
    values = flat(tensors).abs()
    return float(torch.cat([values[~values.isnan()], values.new_zeros(1)]).max())


def nonfinite(tensors: Tensors) -> int:
    """Count of inf and NaN."""
    return int((~flat(tensors).isfinite()).sum())


def clip_coefficient(total_norm: float, max_norm: float) -> float:
    """min(1, max_norm / (norm + 1e-6))."""
    return min(1.0, max_norm / (total_norm + 1e-6))


def update_moments(before: Tensors, after: Tensors, gradient: Tensors, next_gradient: Tensors) -> dict[str, float]:
    """Sums over the update u = after - before, as the fields of a trace name them."""
    update = [flat(after) - flat(before)]
    return {
        "update_sq": dot(update, update),
        "grad_dot_update": dot(gradient, update),
        "next_grad_dot_update": dot(next_gradient, update),
    }

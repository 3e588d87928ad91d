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


def diff_sq(a: Tensors, b: Tensors) -> float:
    """sum (a - b)^2."""
    return float((flat(a) - flat(b)).square().sum())


def sum_sq(a: Tensors, b: Tensors) -> float:
    """sum (a + b)^2."""
    return float((flat(a) + flat(b)).square().sum())


def directional_curvature(before: Tensors, after: Tensors, update: Tensors) -> float:
    """sum (g_after - g_before) u / sum u^2."""
    return float((flat(after) - flat(before)) @ flat(update)) / dot(update, update)


def grad_absmax(tensors: Tensors) -> float:
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


def count_sketch(tensors: Tensors, buckets: int, seed: int) -> Tensor:
    """Sum of sign × element in each bucket, (buckets,) float64.

    `fastgeom.layout.count_sketch` defines both, for one group.
    """
    numels = [t.numel() for t in tensors]
    if sum(numels) <= buckets:
        return torch.cat([flat(tensors), torch.zeros(buckets - sum(numels), dtype=torch.float64)])

    def random_words(counters: Tensor) -> Tensor:
        words = (counters ^ seed) & 0xFFFFFFFF
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            words = ((words ^ (words >> shift)) * factor) & 0xFFFFFFFF
        return words ^ (words >> 16)

    position = torch.cat([torch.arange(n) % buckets for n in numels])
    begins = torch.cat([torch.arange(n) % buckets == 0 for n in numels])
    block = begins.cumsum(0) - 1
    i, c = block // 8, block % 8
    q = c ^ (random_words((i // 4) ^ 0x85EBCA6B) >> (3 * (i % 4))) & 7
    high = random_words(block ^ 0x9E3779B9) % buckets // 8
    bucket = position ^ (8 * high + q)
    word = random_words(i // 4 * buckets + q * (buckets // 8) + bucket // 8)
    negative = (word >> (4 * (i % 4) + position % 8 // 2 + 16 * (position % 2))) & 1
    sketch = torch.zeros(buckets, dtype=torch.float64)
    return sketch.index_add_(0, bucket, flat(tensors) * (1 - 2 * negative))

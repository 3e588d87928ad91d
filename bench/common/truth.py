"""Sums in float64 on the device, a few elements at a time: the reference of benches and checks."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CHUNK = 1 << 20
"""Elements at a time: in float64 they stay in a processor's cache."""


def summed(terms: Callable[..., Tensor], *operands: Sequence[Tensor], chunk: int = CHUNK) -> float:
    """Sum of ``terms`` of float64 chunks of lists of flat tensors."""
    total = torch.zeros((), dtype=torch.float64, device=operands[0][0].device)
    for tensors in zip(*operands, strict=True):
        for chunks in zip(*(t.split(chunk) for t in tensors), strict=True):
            total += terms(*(p.double() for p in chunks)).sum()
    return float(total)


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """sum a b."""
    return summed(torch.mul, a, b)


def square(*tensors: Tensor) -> float:
    """sum a^2 of all of them."""
    return summed(torch.square, tensors)


def diff_sq(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """sum (a - b)^2."""
    return summed(lambda x, y: (x - y).square(), a, b)


def count_sketch(tensors: Sequence[Tensor], buckets: int, seed: int, *, chunk: int = CHUNK) -> Tensor:
    """As ``fastgeom.reference.count_sketch`` of flat tensors, on their device, in chunks of whole blocks."""
    if (n := sum(map(len, tensors))) <= buckets:
        padding = torch.zeros(buckets - n, dtype=torch.float64, device=tensors[0].device)
        return torch.cat([*(t.double() for t in tensors), padding])

    def random_bits(counters: Tensor) -> Tensor:
        bits = (counters ^ seed) & 0xFFFFFFFF
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            bits = ((bits ^ (bits >> shift)) * factor) & 0xFFFFFFFF
        return bits ^ (bits >> 16)

    chunk = max(1, chunk // buckets) * buckets
    device, first_block = tensors[0].device, 0
    sketch = torch.zeros(buckets, dtype=torch.float64, device=device)
    for tensor in tensors:
        for first, values in zip(range(0, len(tensor), chunk), tensor.split(chunk), strict=True):
            element = torch.arange(first, first + len(values), device=device)
            position, block = element % buckets, first_block + element // buckets
            i, c = block // 8, block % 8
            q = c ^ (random_bits((i // 4) ^ 0x85EBCA6B) >> (3 * (i % 4))) & 7
            bucket = position ^ (8 * (random_bits(block ^ 0x9E3779B9) % buckets // 8) + q)
            sign_bits = random_bits(i // 4 * buckets + q * (buckets // 8) + bucket // 8)
            negative = (sign_bits >> (4 * (i % 4) + position % 8 // 2 + 16 * (position % 2))) & 1
            sketch.index_add_(0, bucket, values.double() * (1 - 2 * negative))
        first_block += -(-len(tensor) // buckets)
    return sketch


def assert_near(value: float, exact: float, most: float, what: str, scale: float | None = None) -> float:
    """Raise where a number is off by more than ``most``, relative to the exact value or a scale; return by how much."""
    off = abs(value - exact) / abs(exact if scale is None else scale)
    if not off <= most:  # NaN included
        raise AssertionError(f"{what}: off by {off:.2g} relatively, allowed {most:.2g}: {value!r} for {exact!r}")
    return off

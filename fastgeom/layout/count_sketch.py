r"""The count sketch: which element goes to which bucket, with which sign, and how far estimates may be off.

A sketch maps the n elements of a group of tensors to m buckets, :math:`s_k = \sum_{a \to k} \sigma_a x_a` with signs
:math:`\sigma_a = \pm 1`. It is linear, and dot products of sketches estimate those of the gradients without bias.

**Buckets.** Every tensor is cut into blocks of m elements and begins a new block; the blocks of a group are counted
b = 0, 1, ... through its tensors in order. With b = 8 i + c, the element at position p of block b goes to bucket
p XOR H_b. H_b is random but for its low three bits, which are q_b = c XOR r_i with three random bits r_i: all eight
values of q occur once in each eight blocks. So a block never meets itself, eight neighbours stay neighbours, and eight
blocks in a row put no position twice into one bucket, whatever the width of the matrices.

**Signs.** One random word holds those of 8 buckets × 4 blocks: the blocks of one q for four consecutive i. Every
(bucket >> 3, i >> 2, q) has a word of its own. Bit 4 (i & 3) + (p >> 1 & 3) + 16 (p & 1) is the sign of position p:
shifted left it lies on both signs of a pair of packed 16-bit floats.

**Random** is `mix32` of a counter XOR the group's seed. Words of signs count (i >> 2) m + q m / 8 + (bucket >> 3), H_b
has b above its low three bits, and r_i is bits 3 (i & 3) to 3 (i & 3) + 2 of the word of i >> 2.

A group of no more elements than buckets is *exact*: its sketch is its elements, tensor after tensor, then zeros.

Source: Charikar, Chen, Farach-Colton, "Finding frequent items in data streams", 2002, with blocks for their elements.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastgeom.validation import check_plan_size, checked_seed

Ints = NDArray[np.int64]
Words = NDArray[np.uint32]

MIN_BUCKETS = 128
"""Fewest buckets of a group that is not exact."""
MIN_EXACT = 32
"""Fewest elements of an exact group, padding included: every group begins at a multiple of 128 bytes."""
MAX_SIZE = 1 << 30
"""Most buckets of all groups together."""

FLIP_STREAM, ORDER_STREAM = 0x9E3779B9, 0x85EBCA6B
"""XORed into the counters of H_b and of r_i, so that no two uses share a word; signs have 0."""


def mix32(words: Words | int) -> Words:
    """Hash 32-bit words to 32-bit words, one to one.

    Source: lowbias32 of C. Wellons's hash-prospector.

    >>> [hex(word) for word in mix32(np.arange(3, dtype=np.uint32))]
    ['0x0', '0x688990c0', '0xd1132181']
    """
    x = np.atleast_1d(np.asarray(words, np.uint32))  # an array wraps around in silence, a scalar warns
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


@dataclass(frozen=True, eq=False)
class SketchPlan:
    """Number and position of the buckets of each group; fixed by the sizes of the tensors.

    Every group gets a power of two of buckets. All start from few, and the group with the most elements a bucket has
    its buckets doubled for as long as ``size`` allows; a group that has a bucket for every element is exact and stops.

    Args:
        numels: (tensor,) number of elements.
        groups: (tensor,) index of each tensor's group.
        n_groups: number of groups.
        size: float32 numbers that all sketches may take together.
        seed: chooses the signs and buckets; sketches can be compared only where it is the same.

    Attributes:
        sizes: (group,) buckets m.
        exact: (group,) whether its sketch is its elements.
        offsets: (group,) where its buckets begin in a sketch.
        total: length of a sketch, at most ``size``.
        seeds: (group,) seed of each group.
        inverse_sizes: (group,) 1 / m, and 0 where exact: what variances are proportional to.
        blocks: (group,) number of blocks; 0 where exact.
        tensors: (tensor,) the tensors gathered by group; the attributes below are in this order.
        first_tensor: (group + 1,) where each group begins in ``tensors``.
        first_block: (tensor,) the first of its group's blocks that is of the tensor.
        end_block: (tensor,) the first block that is of the tensor no more.
        exact_offsets: (tensor,) where its elements begin in a sketch if its group is exact.

    Raises:
        ValueError: ``size`` is too small for this many groups, or too large; a seed that is no 32-bit number.

    >>> plan = SketchPlan([1000, 40, 3000], [0, 1, 0], n_groups=2, size=600)
    >>> plan.sizes, plan.exact, plan.total
    (array([512,  64]), array([False,  True]), 576)
    """

    numels: Sequence[int] | Ints
    groups: Sequence[int] | Ints
    n_groups: int
    size: int
    seed: int = 0
    sizes: Ints = field(init=False, repr=False)
    exact: NDArray[np.bool_] = field(init=False, repr=False)
    offsets: Ints = field(init=False, repr=False)
    total: int = field(init=False)
    seeds: Words = field(init=False, repr=False)
    inverse_sizes: NDArray[np.float64] = field(init=False, repr=False)
    blocks: Ints = field(init=False, repr=False)
    tensors: Ints = field(init=False, repr=False)
    first_tensor: Ints = field(init=False, repr=False)
    first_block: Ints = field(init=False, repr=False)
    end_block: Ints = field(init=False, repr=False)
    exact_offsets: Ints = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", checked_seed(self.seed))
        numels, groups = np.asarray(self.numels, np.int64), np.asarray(self.groups, np.int64)
        elements = np.bincount(groups, numels, self.n_groups).astype(np.int64)
        sizes = _share(elements, self.size)
        exact = elements <= sizes
        offsets = np.cumsum(sizes) - sizes
        tensors = np.argsort(groups, kind="stable")
        first_tensor = np.searchsorted(groups[tensors], np.arange(self.n_groups + 1))
        group = groups[tensors]
        counts = np.where(exact[group], 0, -(-numels[tensors] // sizes[group]))
        first_block = _sums_before(counts, group, first_tensor)
        derived = {
            "sizes": sizes,
            "exact": exact,
            "offsets": offsets,
            "total": int(sizes.sum()),
            "seeds": mix32(mix32(self.seed) ^ np.arange(self.n_groups, dtype=np.uint32)),
            "inverse_sizes": np.where(exact, 0.0, 1.0 / sizes),
            "blocks": np.bincount(group, counts, self.n_groups).astype(np.int64),
            "tensors": tensors,
            "first_tensor": first_tensor,
            "first_block": first_block,
            "end_block": first_block + counts,
            "exact_offsets": offsets[group] + _sums_before(numels[tensors], group, first_tensor),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def tiles(self, *widths: int) -> Tiles:
        """Cut the buckets of all groups that are not exact into tiles, of the largest of ``widths`` that fits.

        Args:
            *widths: powers of two in falling order; the last is at most `MIN_BUCKETS`.
        """
        hashed = np.flatnonzero(~self.exact)
        m = self.sizes[hashed]
        width = np.select([m >= w for w in widths], widths) if len(hashed) else m
        group = np.repeat(hashed, m // width)
        width = np.repeat(width, m // width)
        before = np.cumsum(self.sizes * ~self.exact) - self.sizes * ~self.exact
        return Tiles(group, np.cumsum(width) - width - before[group], width)


@dataclass(frozen=True)
class Tiles:
    """Runs of buckets of one group, each computed by one thread or GPU program.

    Attributes:
        group: (tile,) group of the buckets.
        bucket: (tile,) the first bucket, counted from the group's first.
        width: (tile,) number of buckets; ``bucket`` is a multiple of it.
    """

    group: Ints
    bucket: Ints
    width: Ints


def _sums_before(values: Ints, group: Ints, first: Ints) -> Ints:
    """For each value, the sum of those of its group that come before it."""
    before: Ints = np.concatenate([[0], np.cumsum(values)])
    return before[:-1] - before[first[group]]


def _share(elements: Ints, size: int) -> Ints:
    """(group,) buckets of groups of so many ``elements``, at most ``size`` in all."""
    exact_sizes = [max(MIN_EXACT, 1 << int(n - 1).bit_length() if n else 1) for n in elements]
    shares = [min(MIN_BUCKETS, n) for n in exact_sizes]
    check_plan_size(size, sum(shares), MAX_SIZE, len(shares))
    left = size - sum(shares)
    crowded = [(-n / m, g) for g, (n, m) in enumerate(zip(map(int, elements), shares, strict=True)) if n > m]
    heapq.heapify(crowded)
    while crowded:
        load, g = heapq.heappop(crowded)
        if shares[g] <= left:
            left -= shares[g]
            shares[g] *= 2
            if elements[g] > shares[g]:
                heapq.heappush(crowded, (load / 2, g))
    return np.array(shares, np.int64)


def cosine_variance(cosine: Tensor, inverse_sizes: Tensor) -> Tensor:
    r"""Variance of the cosine of two sketches of a group, divided by the sketches' own norms.

    .. math:: (1 - \rho^2)^2 / m

    Normalised so, errors of dot product and norms cancel: vectors along one line have a cosine without error.

    Args:
        cosine: (..., group).
        inverse_sizes: (group,) of the plan, on the same device.
    """
    return (1 - cosine.square()).square() * inverse_sizes


def dot_variance(x_sq: Tensor, y_sq: Tensor, dot: Tensor, inverse_sizes: Tensor) -> Tensor:
    r"""Variance of the dot product of two sketches of a group.

    .. math:: (\|x\|^2 \|y\|^2 + \langle x, y\rangle^2) / m

    Args:
        x_sq: (..., group) squared norms of the first vector.
        y_sq: (..., group) squared norms of the second.
        dot: (..., group) their dot products.
        inverse_sizes: (group,) of the plan, on the same device.

    Groups are independent: the variance of a sum over groups is the sum of their variances.
    """
    return (x_sq * y_sq + dot.square()) * inverse_sizes


def relative_square_error(inverse_sizes: Tensor) -> Tensor:
    r"""Relative standard error of the squared norm of a sketch, and so of a difference of sketches.

    .. math:: \sqrt{2 / m}

    Args:
        inverse_sizes: (group,) of the plan.
    """
    return torch.sqrt(2 * inverse_sizes)

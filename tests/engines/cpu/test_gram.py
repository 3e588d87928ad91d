"""The CPU engine's deferred pass against float64: every dtype, size, block and window, and what must stay apart."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgeom.engines.cpu.loops.gram import _CACHED_ELEMENTS, _LARGEST_BLOCK, _NEW, _SMALLEST_BLOCK, gram
from fastgeom.layout.chunks import CHUNK_ELEMENTS, chunk_table
from tests.support import FLOOR, assert_same_bits, random_tensor, table

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
MEMORY = {F32: np.float32, F64: np.float64, BF16: np.uint16, F16: np.int16}
ALL = 1 << 30


def block_size(rows: int) -> int:
    return max(_SMALLEST_BLOCK, min(_LARGEST_BLOCK, _CACHED_ELEMENTS // (rows + _NEW - 1) // 8 * 8))


def random_ring(rows: int, sizes: tuple[int, ...], dtype: torch.dtype) -> list[list[Tensor]]:
    """Rows of tensors, each like the one before."""
    common = [random_tensor(n, F64) for n in sizes]
    return [[(c + 0.5 * random_tensor(len(c), F64)).to(dtype) for c in common] for _ in range(rows)]


def sums_of(ring: list[list[Tensor]], new: list[int], before: list[int], window: int = ALL) -> Tensor:
    """(tensor, new, row + 2): the sums of all chunks of each tensor."""
    chunks = chunk_table([t.numel() for t in ring[0]])
    addresses = np.stack([table(row).address for row in ring])
    sums = np.full((len(chunks), len(new), len(ring) + 2), np.nan)
    gram(
        np.arange(len(chunks)),
        chunks.tensor,
        chunks.start,
        chunks.length,
        addresses,
        np.array(new),
        np.array(before),
        np.empty(0, MEMORY[ring[0][0].dtype]),
        sums,
        window,
    )
    by_tensor = torch.zeros(len(ring[0]), *sums.shape[1:], dtype=F64)
    return by_tensor.index_add_(0, torch.from_numpy(chunks.tensor), torch.from_numpy(sums))


def assert_right(sums: Tensor, ring: list[list[Tensor]], new: list[int], before: list[int], taken=None) -> None:
    """All sums are as near to the truth as `tests.support.assert_accurate` demands."""
    for tensor, found in enumerate(sums):
        rows = torch.stack([row[tensor].double() for row in ring])
        x, p = rows[new], rows[before]
        terms = torch.cat([x[:, None] * rows, (x - p).square()[:, None], (x + p).square()[:, None]], dim=1)
        terms[torch.tensor(before) < 0, len(ring) :] = 0
        truth = torch.tensor([[math.fsum(row) for row in each] for each in terms.tolist()], dtype=F64)
        bound = 2 * (terms.sum(-1) - truth).abs() + FLOOR * terms.abs().sum(-1)
        wrong = (found - truth).abs() > bound
        right = ~wrong & ~found.isnan() if taken is None else torch.where(taken, ~wrong, found.isnan())
        assert bool(right.all()), f"tensor {tensor}: {found[~right]} for {truth[~right]}"


def ring_order(rows: int, head: int, count: int) -> tuple[list[int], list[int]]:
    """The newest rows of a ring, oldest first, and the row before each."""
    new = [(head - age) % rows for age in reversed(range(count))]
    return new, [(slot - 1) % rows for slot in new]


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
def test_all_sums_are_those_of_float64_at_every_size(dtype) -> None:
    size = block_size(13)
    sizes = (1, 63, 0, size - 1, size, size + 1, 3 * size + 5)
    ring = random_ring(13, sizes, dtype)
    new, before = ring_order(13, 4, 8)
    assert_right(sums_of(ring, new, before), ring, new, before)


def test_a_tensor_of_several_chunks_is_right_and_its_chunks_are_apart() -> None:
    ring = random_ring(4, (CHUNK_ELEMENTS + 1,), BF16)
    new, before = ring_order(4, 1, 2)
    assert_right(sums_of(ring, new, before), ring, new, before)


@pytest.mark.parametrize("window", [1, 5, 16])
@pytest.mark.parametrize("block", [1, 2, 8, 16])
def test_every_block_and_window_and_of_a_window_only_what_lies_in_it(block, window) -> None:
    rows = window + block
    ring = random_ring(rows, (200, 7), F32)
    for head in (0, block - 1, rows - 1):
        new, before = ring_order(rows, head, block)
        assert_right(sums_of(ring, new, before), ring, new, before)
        age = torch.tensor([(head - row) % rows for row in range(rows)])
        apart = (age[None, :] - age[new][:, None]).abs()
        taken = torch.cat([apart <= window, torch.ones(block, 2, dtype=torch.bool)], dim=1)
        sums = sums_of(ring, new, before, window)
        assert_right(sums, ring, new, before, taken)
        assert_same_bits(sums_of(ring, new[::-1], before[::-1], window), sums.flip(1))


def test_the_ring_may_wrap_around_anywhere() -> None:
    ring = random_ring(7, (70,), F32)
    for head in range(7):
        new, before = ring_order(7, head, 3)
        assert_right(sums_of(ring, new, before), ring, new, before)


@pytest.mark.parametrize("new", [[5, 4, 3], [4, 0, 6], [3, 4, 5], list(range(7)), [2]])
def test_new_rows_may_be_any_in_any_order(new) -> None:
    ring = random_ring(7, (70,), F32)
    before = [(row - 1) % 7 for row in new]
    assert_right(sums_of(ring, new, before), ring, new, before)


def test_a_row_with_none_before_it_has_no_differences() -> None:
    ring = random_ring(6, (100,), F32)
    sums = sums_of(ring, [0, 1, 2], [-1, 0, -1])
    assert_right(sums, ring, [0, 1, 2], [-1, 0, -1])
    assert sums[0, [0, 2], 6:].tolist() == [[0, 0], [0, 0]]


def test_the_default_takes_all_dots() -> None:
    ring = random_ring(5, (100,), F32)
    chunks = chunk_table([100])
    sums = np.full((1, 2, 7), np.nan)
    gram(
        np.arange(1),
        chunks.tensor,
        chunks.start,
        chunks.length,
        np.stack([table(row).address for row in ring]),
        np.array([3, 4]),
        np.array([2, 3]),
        np.empty(0, np.float32),
        sums,
    )
    assert_right(torch.from_numpy(sums), ring, [3, 4], [2, 3])


def test_differences_are_taken_from_the_elements_and_not_from_the_dots() -> None:
    ring = random_ring(3, (5000,), F64)
    ring[1] = [ring[0][0] * (1 + 1e-12)]
    ring[2] = [-ring[1][0] * (1 + 1e-12)]
    sums = sums_of(ring, [1, 2], [0, 1])
    assert_right(sums, ring, [1, 2], [0, 1])
    assert 0 < float(sums[0, 0, 3]) < 1e-23 * float(sums[0, 0, 1])
    assert 0 < float(sums[0, 1, 4]) < 1e-23 * float(sums[0, 0, 1])


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
def test_what_is_not_finite_stays_in_its_own_row_and_tensor(dtype) -> None:
    rows, block, head = 9, 5, 6
    ring = random_ring(rows, (300, 300), dtype)
    new, before = ring_order(rows, head, block)
    clean = sums_of(ring, new, before)
    bad = {5: math.nan, 1: math.inf, 8: -math.inf}
    for row, value in bad.items():
        ring[row][0][17 + row] = value
    sums = sums_of(ring, new, before)
    assert_same_bits(sums[1], clean[1])
    for i in range(block):
        for column in range(rows + 2):
            spoiled = new[i] in bad or (column if column < rows else before[i]) in bad
            if spoiled:
                assert not math.isfinite(sums[0, i, column]), (i, column)
            else:
                assert sums[0, i, column] == clean[0, i, column], (i, column)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_rows_may_lie_at_an_odd_byte_address(dtype) -> None:
    ring = random_ring(5, (block_size(5) + 63,), dtype)
    new, before = ring_order(5, 2, 2)

    def at_odd_address(content: Tensor) -> Tensor:
        memory = bytearray(content.numel() * dtype.itemsize + 1)
        return torch.frombuffer(memory, dtype=dtype, count=content.numel(), offset=1).copy_(content)

    odd = [[at_odd_address(t) for t in row] for row in ring]
    assert all(row[0].data_ptr() % 2 for row in odd)
    assert_same_bits(sums_of(odd, new, before), sums_of(ring, new, before))


def test_each_chunk_has_the_same_bits_whoever_takes_it_and_no_other_is_written() -> None:
    ring = random_ring(6, (1000, 70, CHUNK_ELEMENTS + 5), F32)
    chunks = chunk_table([t.numel() for t in ring[0]])
    addresses = np.stack([table(row).address for row in ring])
    new, before = (np.array(a) for a in ring_order(6, 3, 3))

    def taken(*parts: list[int]) -> Tensor:
        sums = np.full((len(chunks), 3, 8), np.nan)
        for part in parts:
            gram(
                np.array(part),
                chunks.tensor,
                chunks.start,
                chunks.length,
                addresses,
                new,
                before,
                np.empty(0, np.float32),
                sums,
                ALL,
            )
        return torch.from_numpy(sums)

    together = taken([0, 1, 2, 3])
    assert_same_bits(taken([3, 1], [2], [0, 2]), together)
    some = taken([2, 0])
    assert_same_bits(some[[0, 2]], together[[0, 2]])
    assert bool(some[[1, 3]].isnan().all())

"""The deferred pass over the ring against float64: every head, block, window and dtype, and what must stay apart."""

import math

import pytest
import torch
from torch import Tensor

from fastgeom.kernels.window.gram import GRAM_ELEMENTS, MAX_SLOTS, _configuration, gram_bytes, launch_gram, max_block
from tests.support import assert_same_bits, random_tensor

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
FLOOR = 16 * 2.0**-24
"""What a sum may be off by, relative to its terms' magnitudes, where torch's own float32 sum happens to be exact.

Between two additions in float64 lie at most 128 in float32, about eight roundings deep, or as many truncations of a
tensor core.
"""


def kilobyte(dtype: torch.dtype) -> int:
    return 1024 // dtype.itemsize


def unit_table(dtype: torch.dtype, *kilobytes: int, device: torch.device) -> Tensor:
    """A table of units of these sizes, side by side but for one kilobyte that belongs to none."""
    ends = [sum(kilobytes[: i + 1]) + i for i in range(len(kilobytes))]
    rows = [[end - size for end, size in zip(ends, kilobytes, strict=True)], list(kilobytes)]
    return torch.tensor(rows, dtype=torch.int64, device=device) * kilobyte(dtype)


def random_ring(slots: int, table: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of random numbers, each like the one before; NaN wherever no unit lies."""
    row = kilobyte(dtype) + int(table.sum(0).max())
    common = random_tensor(row, F64)
    ring = torch.stack([(common + 0.5 * random_tensor(row, F64)).to(dtype) for _ in range(slots)])
    mine = torch.zeros(row, dtype=torch.bool)
    for begin, length in zip(*table.tolist(), strict=True):
        mine[begin : begin + length] = True
    ring[:, ~mine] = math.nan
    return ring.to(table.device)


def gram(table: Tensor, ring: Tensor, block: int, head: int) -> Tensor:
    slots = len(ring)
    out = torch.full((table.shape[1], block, slots + 2), math.nan, dtype=F64, device=ring.device)
    state = torch.tensor([head, -1], dtype=torch.int64, device=ring.device)
    launch_gram(table, table.shape[1], ring, slots, block, state, out)
    return out.cpu()


def terms_of(rows: Tensor, new: Tensor, before: Tensor) -> Tensor:
    """(block, slots + 2, element): what is summed, in the dtype of the rows."""
    products = new[:, None, :] * rows[None, :, :]
    return torch.cat([products, (new - before).square()[:, None], (new + before).square()[:, None]], dim=1)


def assert_right(out: Tensor, table: Tensor, ring: Tensor, block: int, head: int) -> None:
    """All of ``out`` is off from float64 by at most twice what torch's float32 sums are, plus the floor."""
    slots = len(ring)
    new = [(head - age) % slots for age in range(block)]
    before = [(slot - 1) % slots for slot in new]
    for unit, (begin, length) in enumerate(zip(*table.tolist(), strict=True)):
        rows = ring[:, begin : begin + length].cpu()
        exact = terms_of(rows.double(), rows.double()[new], rows.double()[before])
        torchs = terms_of(rows.float(), rows.float()[new], rows.float()[before]).sum(-1).double()
        truth = exact.sum(-1)
        bound = 2 * (torchs - truth).abs() + FLOOR * exact.abs().sum(-1)
        error = (out[unit] - truth).abs()
        assert bool((error <= bound).all()), f"unit {unit}: off by up to {float((error / bound).max()):.3g} bounds"


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize(("window", "block"), [(1, 1), (16, 1), (5, 2), (16, 8), (5, 16), (1, 20)])
def test_all_sums_are_those_of_float64_at_every_window_and_block(dtype, window, block, device) -> None:
    slots = window + block
    table = unit_table(dtype, 1, 2, device=device)
    ring = random_ring(slots, table, dtype)
    for head in (block // 2, slots - 1):
        assert_right(gram(table, ring, block, head), table, ring, block, head)


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_the_ring_may_wrap_around_anywhere(dtype, device) -> None:
    table = unit_table(dtype, 1, device=device)
    ring = random_ring(9, table, dtype)
    for head in range(9):
        assert_right(gram(table, ring, 4, head), table, ring, 4, head)


@pytest.mark.parametrize(("dtype", "block"), [(BF16, 64), (F32, 32)], ids=str)
def test_the_largest_ring_and_block_are_taken(dtype, block, device) -> None:
    assert block == max_block(dtype.itemsize)
    table = unit_table(dtype, 1, device=device)
    ring = random_ring(MAX_SLOTS, table, dtype)
    assert_right(gram(table, ring, block, 40), table, ring, block, 40)


def test_a_whole_unit_and_one_that_ends_in_padding(device) -> None:
    table = unit_table(BF16, GRAM_ELEMENTS // kilobyte(BF16), 2, device=device)
    ring = random_ring(6, table, BF16)
    begin, length = table[:, 1].tolist()
    ring[:, begin + length - 300 : begin + length] = 0
    assert_right(gram(table, ring, 4, 2), table, ring, 4, 2)


def test_differences_are_taken_from_the_elements_and_not_from_the_dots(device) -> None:
    table = unit_table(F32, 4, device=device)
    ring = random_ring(4, table, F32)
    for slot in (1, 2, 3):
        ring[slot] = ring[slot - 1] * (1 + 1e-6) if slot < 3 else -ring[slot - 1] * (1 + 1e-6)
    out = gram(table, ring, 3, 3)
    assert_right(out, table, ring, 3, 3)
    assert float(out[0, 1, 4]) < 1e-11 * float(out[0, 1, 2]) and float(out[0, 0, 5]) < 1e-11 * float(out[0, 1, 2])


def test_rows_never_written_are_zero_and_give_zero(device) -> None:
    table = unit_table(BF16, 2, device=device)
    ring = random_ring(10, table, BF16)
    ring[3:] = 0
    out = gram(table, ring, 4, 2)
    assert_right(out, table, ring, 4, 2)
    assert bool((out[:, :, 3:10] == 0).all()) and bool((out[:, 3, :10] == 0).all())
    assert float(out[0, 2, 10]) == float(out[0, 2, 11])  # the first row of all: before it there is nothing


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy, inside the interpreter
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("block", [3, 20])
def test_what_is_not_finite_stays_in_its_own_row_and_unit(dtype, block, device) -> None:
    slots, head = block + 4, 5
    table = unit_table(dtype, 1, 1, device=device)
    ring = random_ring(slots, table, dtype)
    clean = gram(table, ring, block, head)
    bad = {4: math.nan, 6: math.inf, 0: -math.inf}
    for slot, value in bad.items():
        ring[slot, 17 + slot] = value
    out = gram(table, ring, block, head)
    assert_same_bits(out[1], clean[1])
    for age in range(block):
        new, before = (head - age) % slots, (head - age - 1) % slots
        for column in range(slots + 2):
            spoiled = new in bad or (column if column < slots else before) in bad
            if spoiled:
                assert not math.isfinite(out[0, age, column]), (age, column)
            else:
                assert out[0, age, column] == clean[0, age, column], (age, column)


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_the_same_rows_give_the_same_bits(dtype, device) -> None:
    table = unit_table(dtype, 3, 2, device=device)
    ring = random_ring(12, table, dtype)
    assert_same_bits(gram(table, ring, 4, 9), gram(table, ring, 4, 9))


def test_no_units_are_no_launch_and_a_ring_that_is_not_deferred_is_refused(device) -> None:
    empty = torch.zeros(2, 0, dtype=torch.int64, device=device)
    gram(empty, torch.zeros(4, 512, dtype=BF16, device=device), 2, 0)
    with pytest.raises(ValueError, match="^deferred dots: expected a ring of 16 or 32 bits, got float64$"):
        gram(empty, torch.zeros(4, 512, dtype=F64, device=device), 2, 0)
    for dtype, slots, block in ((BF16, 4, 4), (BF16, 4, 0), (BF16, 129, 8), (BF16, 100, 65), (F32, 64, 33)):
        with pytest.raises(ValueError, match=f"got block={block}, slots={slots}$"):
            gram(empty, torch.zeros(slots, 512, dtype=dtype, device=device), block, 0)


@pytest.mark.parametrize("history_bytes", [2, 4])
def test_every_window_and_block_has_a_tile_that_holds_it(history_bytes) -> None:
    for block in range(1, max_block(history_bytes) + 1):
        for slots in range(block + 1, MAX_SLOTS + 1):
            for amd in (False, True):
                shape, options = _configuration(slots, block, history_bytes, amd)
                assert shape["ROWS"] >= slots and shape["NEW"] >= max(block, 16 if amd else 8)
                assert kilobyte(F32 if history_bytes == 4 else BF16) % shape["TILE"] == 0
                assert options["num_warps"] <= 8 and ("maxnreg" in options) is not amd


def test_its_bytes_are_one_read_of_all_rows() -> None:
    assert gram_bytes(10**9, 16, 8, 2) == 48 * 10**9
    amortised = 2 + 2 + gram_bytes(1, 16, 8, 2) / 8
    assert amortised == 10

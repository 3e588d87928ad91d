"""The window kernel against the textbook sums, for every dtype, size and alignment, over steps that wrap the ring."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgeom import reference
from fastgeom.kernels.loads import ABSENT, SHORT
from fastgeom.kernels.window import window as window_module
from fastgeom.kernels.window.window import (
    BIG_WARPS,
    SMALL_WARPS,
    WINDOW_BIG,
    WINDOW_SMALL,
    launch_window,
    window_bytes,
    window_columns,
)
from fastgeom.validation import DTYPES
from tests.support import random_tensor

FLOAT32, FLOAT64, BFLOAT16, FLOAT16 = DTYPES
GUARD = 256
"""Elements before and after the ring (512 bytes and more), which nothing may touch."""

ROUNDINGS = 24
"""What a sum may be off by, in units of roundoff times the sum of its terms' magnitudes.

A lane adds at most 8 products to each of its chains, these and 64 lanes then make 9 levels of additions; a term is
rounded up to three times (difference, product without a fused multiply-add, scale). The rest is float64.
"""


class Ring:
    """A ring and its launches for tensors of some sizes, held by hand as the engine holds them."""

    def __init__(
        self,
        numels: Sequence[int],
        dtype: torch.dtype,
        slots: int,
        device: torch.device,
        *,
        wide: bool | None = None,
        keep: Sequence[torch.dtype | None] = (),
    ) -> None:
        self.numels, self.dtype, self.slots, self.device = list(numels), dtype, slots, device
        self.wide = dtype is FLOAT64 if wide is None else wide
        small = WINDOW_SMALL // dtype.itemsize
        self.padded = [-(-n // small) * small for n in numels]
        self.offsets = [sum(self.padded[:i]) for i in range(len(numels))]
        self.row = max(sum(self.padded), small)
        self.buffer = torch.full((slots * self.row + 2 * GUARD,), 7.0, dtype=dtype, device=device)
        self.ring = self.buffer[GUARD:-GUARD].view(slots, self.row).zero_()
        keep = keep or [None] * len(self.numels)
        self.keep = [d and torch.zeros(n, dtype=d, device=device) for n, d in zip(self.padded, keep, strict=True)]
        self.state = torch.zeros(1, dtype=torch.int64, device=device)
        self.partials: list[Tensor] = []

    def table(self, gradients: Sequence[Tensor | None], *, small: bool) -> Tensor:
        """One column a unit: the whole units of 16 KB, or what then remains in units of 1 KB."""
        unit = (WINDOW_SMALL if small else WINDOW_BIG) // self.dtype.itemsize
        big = WINDOW_BIG // self.dtype.itemsize
        columns = []
        for i, (g, n) in enumerate(zip(gradients, self.numels, strict=True)):
            kept = self.keep[i]
            whole = n // big * big
            for start in range(whole, n, unit) if small else range(0, whole, unit):
                length = min(unit, n - start)
                address = 0 if g is None else g.data_ptr() + start * g.element_size()
                absent = ABSENT.value + (0 if kept is None else DTYPES.index(kept.dtype))
                short = address % 16 != 0 or length < unit
                code = absent if g is None else DTYPES.index(g.dtype) + short * SHORT.value
                full = 0 if kept is None else kept.data_ptr() + start * kept.element_size()
                columns.append([address, code, length, self.offsets[i] + start, full, -1, -1, -1])
        return torch.from_numpy(np.array(columns, np.int64).reshape(-1, 8).T.copy()).to(self.device)

    def launch(self, gradients: Sequence[Tensor | None], *, window: int | None = None, **options: object) -> Tensor:
        """Both launches, into poisoned partial sums; returns the sums over all units, float64, max for the maximum."""
        window = self.slots if window is None else window
        self.partials = []
        for small in (False, True):
            table = self.table(gradients, small=small)
            rows = table.shape[1] * (SMALL_WARPS if small else BIG_WARPS)
            dtype = FLOAT64 if self.wide else FLOAT32
            out = torch.full((rows, window_columns(window)), math.nan, dtype=dtype, device=self.device)
            keep = any(k is not None for k in self.keep)
            with np.errstate(all="ignore"):  # the interpreter would warn of inf and NaN
                launch_window(
                    table,
                    table.shape[1],
                    self.ring,
                    window,
                    self.slots,
                    self.state,
                    out,
                    small=small,
                    wide=self.wide,
                    keep=keep,
                    **options,
                )
            self.partials.append(out)
        rows = torch.cat(self.partials).double()
        sums = rows.sum(0)
        sums[-5] = rows[:, -5].max() if len(rows) else 0.0
        return sums.cpu()

    def step(self, gradients: Sequence[Tensor | None], **options: object) -> Tensor:
        """Launch, check that only the next slot was written, and go on to it."""
        before, head = self.ring.clone(), int(self.state[0])
        sums = self.launch(gradients, **options)
        slot = (head + 1) % self.slots
        others = [s for s in range(self.slots) if s != slot]
        assert torch.equal(self.ring[others].nan_to_num(), before[others].nan_to_num()), "another slot was written"
        self.assert_borders()
        self.state.fill_(slot)
        return sums

    def assert_borders(self) -> None:
        """What lies between the tensors is zero, and what lies around the ring is as it was."""
        assert (self.buffer[:GUARD] == 7).all() and (self.buffer[-GUARD:] == 7).all(), "written outside of the ring"
        for offset, n, padded in zip(self.offsets, self.numels, self.padded, strict=True):
            assert not self.ring[:, offset + n : offset + padded].any(), "the padding is not zero"
        for n, kept in zip(self.numels, self.keep, strict=True):
            assert kept is None or not kept[n:].any(), "the padding of what is kept in full is not zero"

    def slot(self, s: int) -> list[Tensor]:
        """The tensors in a slot."""
        return [self.ring[s, o : o + n] for o, n in zip(self.offsets, self.numels, strict=True)]

    @property
    def newest(self) -> list[Tensor]:
        """The tensors in the newest slot, copied; from what is kept in full where something is."""
        stored = self.slot(int(self.state[0]))
        return [(s if k is None else k[: s.numel()]).clone() for s, k in zip(stored, self.keep, strict=True)]

    def fill(self) -> None:
        """Random gradients in every slot, and in what is kept in full."""
        for s in range(self.slots):
            for tensor in self.slot(s):
                tensor.copy_(torch.randn(tensor.shape))
        for n, kept in zip(self.numels, self.keep, strict=True):
            if kept is not None:
                kept[:n] = torch.randn(n)


def assert_sum(ours: float, a: Sequence[Tensor], b: Sequence[Tensor], truth: float, wide: bool) -> None:
    """``ours`` = sum a b, off by at most twice what torch's own expression is off by, plus the floor."""
    compute = FLOAT64 if wide else FLOAT32
    x, y = (torch.cat([t.reshape(-1).to(compute) for t in side] or [torch.zeros(0)]).cpu() for side in (a, b))
    floor = ROUNDINGS * torch.finfo(compute).eps / 2 * float((x.double() * y.double()).abs().sum())
    bound = 2 * abs(float((x * y).sum()) - truth) + floor
    assert abs(ours - truth) <= bound, f"{ours!r} is off from {truth!r} by {abs(ours - truth):.3g}, allowed {bound:.3g}"


def assert_statistics(sums: Tensor, gradients: Sequence[Tensor], previous: Sequence[Tensor], wide: bool) -> None:
    """The last eight columns."""
    square, difference, total, largest, nonfinite, *zeros = sums[-8:].tolist()
    compute = FLOAT64 if wide else FLOAT32
    minus = [g.to(compute) - p.to(compute) for g, p in zip(gradients, previous, strict=True)]
    plus = [g.to(compute) + p.to(compute) for g, p in zip(gradients, previous, strict=True)]
    assert_sum(square, gradients, gradients, reference.dot(gradients, gradients), wide)
    assert_sum(difference, minus, minus, reference.diff_sq(gradients, previous), wide)
    assert_sum(total, plus, plus, reference.sum_sq(gradients, previous), wide)
    assert largest == reference.grad_absmax(gradients)
    assert nonfinite == reference.nonfinite(gradients)
    assert zeros == [0.0, 0.0, 0.0]


def assert_step(ring: Ring, gradients: Sequence[Tensor], *, window: int | None = None, **options: object) -> Tensor:
    """One step, every sum of it, and what it stored; returns the sums."""
    window = ring.slots if window is None else window
    previous, rows = ring.newest, [[t.clone() for t in ring.slot(s)] for s in range(window)]
    sums = ring.step(gradients, window=window, **options)
    assert sums.shape == (window_columns(window),)
    for s, (row, truth) in enumerate(zip(rows, reference.window_dots(gradients, rows), strict=True)):
        assert_sum(float(sums[s]), gradients, row, truth, ring.wide)
    assert not sums[window:-8].any(), "columns past the window are not zero"
    assert_statistics(sums, gradients, previous, ring.wide)
    assert_stored(ring, gradients)
    return sums


def assert_stored(ring: Ring, gradients: Sequence[Tensor]) -> None:
    """The newest slot holds the gradients: exactly if in their own dtype, else rounded; in full what is kept in full.

    A GPU rounds to the nearest; the interpreter cuts off, which is twice as far.
    """
    for g, stored, kept in zip(gradients, ring.slot(int(ring.state[0])), ring.keep, strict=True):
        if g.dtype is ring.dtype:
            assert torch.equal(stored, g)
        elif ring.device.type == "cpu":
            assert ((stored.double() - g.double()).abs() <= torch.finfo(ring.dtype).eps * g.double().abs()).all()
        else:
            assert torch.equal(stored, g.to(ring.dtype))
        assert kept is None or torch.equal(kept[: g.numel()], g)


def sizes(dtype: torch.dtype) -> list[int]:
    """Nothing, one, few, around both units, and odd and large."""
    small, big = WINDOW_SMALL // dtype.itemsize, WINDOW_BIG // dtype.itemsize
    return [0, 1, 63, small - 1, small, small + 1, big, big + 1, 2 * big + 3 * small + 17]


def gradients_of(numels: Sequence[int], dtype: torch.dtype, device: torch.device, offset: int = 0) -> list[Tensor]:
    """Random gradients that begin at element ``offset`` of memory that is aligned."""
    return [random_tensor(n + offset, dtype).to(device)[offset:] for n in numels]


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_and_store_of_every_size(dtype, device):
    ring = Ring(sizes(dtype), dtype, 2, device)
    ring.fill()
    assert_step(ring, gradients_of(ring.numels, dtype, device))


def test_one_element_less_than_a_whole_unit(device):
    ring = Ring([8192 - 1], BFLOAT16, 1, device)
    ring.fill()
    assert_step(ring, gradients_of(ring.numels, BFLOAT16, device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1, 3])
def test_views_that_begin_anywhere(dtype, offset, device):
    big = WINDOW_BIG // dtype.itemsize
    ring = Ring([big + 100, 40], dtype, 2, device)
    ring.fill()
    assert_step(ring, gradients_of(ring.numels, dtype, device, offset))


@pytest.mark.parametrize("wide", [False, True])
def test_mixed_dtypes_in_one_bfloat16_ring(wide, device):
    numels = [8192 + 301] * (6 + 2 * wide)
    dtypes = [BFLOAT16, FLOAT32, FLOAT16, FLOAT64][: 3 + wide]
    gradients = [
        gradients_of([n], dtypes[i % len(dtypes)], device, offset=i // len(dtypes) % 2)[0] for i, n in enumerate(numels)
    ]
    ring = Ring(numels, BFLOAT16, 2, device, wide=wide)
    ring.fill()
    assert_step(ring, gradients)


def test_float64_gradients_in_a_float32_ring(device):
    numels = [255, 4097]
    ring = Ring(numels * 3, FLOAT32, 2, device, wide=True)
    ring.fill()
    gradients = [
        *gradients_of(numels, FLOAT64, device),
        *gradients_of(numels, FLOAT64, device, offset=1),
        *gradients_of(numels, FLOAT32, device, offset=1),
    ]
    assert_step(ring, gradients)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ring_goes_round(dtype, device):
    ring = Ring([WINDOW_SMALL // dtype.itemsize + 5], dtype, 3, device)
    for step in range(5):
        gradients = gradients_of(ring.numels, dtype, device)
        sums = assert_step(ring, gradients)
        assert int(ring.state[0]) == (step + 1) % 3
        assert int((sums[:3] != 0).sum()) == min(step, 3), "what was not stored yet is not zero"


@pytest.mark.parametrize("window", [1, 2, 31, 32, 33, 256])
def test_windows_of_every_length(window, device):
    ring = Ring([300], BFLOAT16, window, device)
    ring.fill()
    ring.state.fill_(window - 1)
    assert_step(ring, gradients_of(ring.numels, BFLOAT16, device))


def test_a_float64_window_of_more_rows_than_a_warp_has_columns(device):
    ring = Ring([100], FLOAT64, 67, device)
    ring.fill()
    assert_step(ring, gradients_of(ring.numels, FLOAT64, device))


@pytest.mark.parametrize("head", [0, 1, 3, 4])
def test_a_window_below_the_slots_takes_the_first_ones(head, device):
    ring = Ring([700], BFLOAT16, 5, device)
    ring.fill()
    ring.state.fill_(head)
    assert_step(ring, gradients_of(ring.numels, BFLOAT16, device), window=2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_store_pass_reads_the_gradient_only(dtype, device):
    ring = Ring([WINDOW_BIG // dtype.itemsize + 5, 3], dtype, 3, device)
    for tensor in (t for s in range(3) for t in ring.slot(s)):
        tensor.fill_(math.nan)
    gradients = gradients_of(ring.numels, dtype, device)
    sums = ring.step(gradients, window=0, previous=False)
    assert sums.shape == (8,)
    assert_sum(float(sums[0]), gradients, gradients, reference.dot(gradients, gradients), ring.wide)
    assert sums[1:].tolist() == [0, 0, reference.grad_absmax(gradients), 0, 0, 0, 0]
    assert_stored(ring, gradients)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nonfinite_elements_are_counted_and_stay_in_their_unit(dtype, device):
    small, big = WINDOW_SMALL // dtype.itemsize, WINDOW_BIG // dtype.itemsize
    ring = Ring([2 * big + 2 * small, big, small], dtype, 2, device)
    ring.fill()
    gradients = gradients_of(ring.numels, dtype, device)
    for place, value in ((3, math.nan), (big - 1, math.inf), (2 * big + small + 1, -math.inf)):
        gradients[0][place] = value
    gradients[2].fill_(math.nan)
    sums = ring.step(gradients)
    assert sums[-4] == 3 + small
    assert sums[-5] == math.inf
    rows = [p.view(-1, warps, p.shape[1]) for p, warps in zip(ring.partials, (BIG_WARPS, SMALL_WARPS), strict=True)]
    clean = [~r[:, :, -8].isfinite().all(1) for r in rows]
    assert [c.tolist() for c in clean] == [[True, False, False], [False, True, True]]
    assert sum(int(r[:, :, -4].sum()) for r in rows) == 3 + small
    assert rows[1][2, 0, -5] == 0, "the maximum of NaN alone is not zero"
    for r, bad in zip(rows, clean, strict=True):
        assert r[~bad].isfinite().all()


@pytest.mark.parametrize("value", [2e19, -3e38])
def test_a_sum_that_overflows_counts_nothing(value, device):
    ring = Ring([4096, 5], FLOAT32, 1, device)
    sums = ring.step([torch.full((n,), value, device=device) for n in ring.numels])
    assert sums[-8] == math.inf
    assert sums[-5] == np.float32(abs(value))
    assert sums[-4] == 0


def test_no_gradient_reads_and_stores_zeros(device):
    ring = Ring([8192, 700, 8192 + 30], BFLOAT16, 2, device)
    ring.fill()
    gradients = gradients_of(ring.numels, BFLOAT16, device)
    zeros = [torch.zeros(ring.numels[0], device=device), gradients[1], torch.zeros(ring.numels[2], device=device)]
    previous = ring.newest
    sums = ring.step([None, gradients[1], None])
    assert_statistics(sums, zeros, previous, ring.wide)
    for stored, expected in zip(ring.slot(1), zeros, strict=True):
        assert torch.equal(stored.float(), expected.float())


@pytest.mark.parametrize(
    ("dtype", "ring_dtype"), [*((d, d) for d in DTYPES), (FLOAT32, BFLOAT16), (FLOAT64, FLOAT32), (FLOAT64, BFLOAT16)]
)
def test_the_scale_comes_before_everything(dtype, ring_dtype, device):
    wide = dtype is FLOAT64
    compute = FLOAT64 if wide else FLOAT32
    ring = Ring([WINDOW_BIG // ring_dtype.itemsize + 70], ring_dtype, 2, device, wide=wide)
    ring.fill()
    gradients = gradients_of(ring.numels, dtype, device)
    scale = torch.tensor(1 / 3, dtype=FLOAT64, device=device)
    scaled = [g.to(compute) * scale.to(compute) for g in gradients]
    previous, rows = ring.newest, [[t.clone() for t in ring.slot(s)] for s in range(2)]
    sums = ring.step(gradients, scale=scale)
    for s, row in enumerate(rows):
        assert_sum(float(sums[s]), scaled, row, reference.dot(scaled, row), wide)
    assert_statistics(sums, scaled, previous, wide)
    for stored, expected in zip(ring.slot(1), scaled, strict=True):
        off = (stored.double() - expected.double()).abs()
        assert (off <= torch.finfo(ring_dtype).eps * expected.double().abs() + torch.finfo(ring_dtype).tiny).all()


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_a_scale_that_is_not_finite_leaves_padding_and_absent_tensors_zero(factor, device):
    ring = Ring([4096 + 9, 20, 4096], FLOAT32, 2, device)
    gradients = [torch.ones(4096 + 9, device=device), torch.ones(20, device=device), None]
    sums = ring.step(gradients, scale=torch.tensor(factor, dtype=FLOAT64, device=device))
    assert sums[-4] == 4096 + 9 + 20
    assert not ring.slot(1)[2].any()


@pytest.mark.parametrize("flag", [1.0, math.nan])
def test_skipping_stores_nothing_and_sums_the_same(flag, device):
    ring = Ring([8192, 70], BFLOAT16, 2, device, keep=[FLOAT32, FLOAT32])
    ring.fill()
    gradients = gradients_of(ring.numels, FLOAT32, device)
    before = [t.clone() for t in (ring.ring, *ring.keep)]
    skipped = ring.launch(gradients, skip=torch.tensor(flag, device=device))
    ring.assert_borders()
    assert all(torch.equal(a, b) for a, b in zip(before, (ring.ring, *ring.keep), strict=True))
    stored = assert_step(ring, gradients, skip=torch.zeros((), device=device))
    assert torch.equal(skipped, stored)


@pytest.mark.parametrize(
    ("dtype", "ring_dtype"), [(FLOAT32, BFLOAT16), (FLOAT16, BFLOAT16), (FLOAT64, BFLOAT16), (FLOAT64, FLOAT32)]
)
def test_differences_are_exact_where_the_ring_is_not(dtype, ring_dtype, device):
    numels = [WINDOW_BIG // ring_dtype.itemsize, WINDOW_SMALL // ring_dtype.itemsize + 7]
    ring = Ring(numels, ring_dtype, 3, device, wide=dtype is FLOAT64, keep=[dtype, dtype])
    first = gradients_of(numels, dtype, device)
    assert_step(ring, first)
    change = torch.finfo(ring_dtype).eps / 8
    sums = assert_step(ring, [g * (1 + change) for g in first])
    in_the_ring = [t.to(dtype) for t in ring.slot(1)]
    inexact = reference.diff_sq([g * (1 + change) for g in first], in_the_ring)
    assert inexact > 1.5 * float(sums[-7]), "the ring alone would have done"


def test_units_with_and_without_a_full_copy_in_one_launch(device):
    dtypes = [BFLOAT16, FLOAT32, FLOAT16, FLOAT32]
    numels = [3, 8192 + 70, 8192, 5]
    ring = Ring(numels, BFLOAT16, 2, device, keep=[None, FLOAT32, FLOAT16, FLOAT32])
    ring.fill()
    for offset in (0, 1):
        gradients = [gradients_of([n], d, device, offset)[0] for n, d in zip(numels, dtypes, strict=True)]
        assert_step(ring, gradients)


def test_no_gradient_zeroes_what_is_kept_in_full(device):
    numels = [8192, 8192 + 70, 3]
    ring = Ring(numels, BFLOAT16, 2, device, keep=[FLOAT16, FLOAT32, FLOAT16])
    ring.fill()
    previous = ring.newest
    zeros = [torch.zeros(n, device=device) for n in numels]
    sums = ring.step([None, None, None])
    assert_statistics(sums, zeros, previous, ring.wide)
    assert not any(bool(t.any()) for t in (*ring.slot(1), *ring.keep))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_second_run_gives_the_same_bits(dtype, device):
    ring = Ring([WINDOW_BIG // dtype.itemsize + 70], dtype, 3, device)
    ring.fill()
    before = ring.ring.clone()
    gradients = gradients_of(ring.numels, dtype, device, offset=1)
    results = []
    for _ in range(2):
        ring.ring.copy_(before)
        ring.launch(gradients)
        results.append([*ring.partials, ring.ring.clone()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("dtype", "gradient"), [*((d, d) for d in DTYPES), (BFLOAT16, FLOAT32), (BFLOAT16, FLOAT64)])
def test_warps_of_64_lanes_sum_and_store_the_same(dtype, gradient, device, monkeypatch):
    machine = window_module._machine
    monkeypatch.setattr(window_module, "_machine", lambda registers: (64, machine(registers)[1]))
    small, big = WINDOW_SMALL // dtype.itemsize, WINDOW_BIG // dtype.itemsize
    keep = [None if dtype is gradient else gradient] * 2
    ring = Ring([big, small + 7], dtype, 3, device, wide=gradient is FLOAT64, keep=keep)
    ring.fill()
    assert_step(ring, gradients_of(ring.numels, gradient, device))


def test_rows_of_partial_sums_may_lie_apart(device):
    ring = Ring([300], FLOAT32, 2, device)
    gradients = gradients_of(ring.numels, FLOAT32, device)
    ring.launch(gradients)
    expected = ring.partials[1]
    table = ring.table(gradients, small=True)
    wide = torch.full((table.shape[1], window_columns(2) + 40), 3.0, device=device)
    ring.ring.zero_()
    launch_window(table, table.shape[1], ring.ring, 2, 2, ring.state, wide[:, : window_columns(2)], small=True)
    assert torch.equal(wide[:, : window_columns(2)], expected)
    assert (wide[:, window_columns(2) :] == 3).all()


def test_no_units_launch_nothing(device):
    ring = Ring([0], FLOAT32, 2, device)
    assert not ring.step([torch.empty(0, device=device)]).any()


def test_columns_and_bytes():
    assert [window_columns(w) for w in (0, 1, 32, 33, 256)] == [8, 40, 40, 72, 264]
    assert window_bytes(10, 16, 4, 2) == 10 * (4 + 17 * 2)

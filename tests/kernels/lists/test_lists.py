"""Loads, norm, dots and scale of lists against float64: every dtype, size and alignment, mixed and absent tensors."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgeom import reference
from fastgeom.kernels.lists.dots import DOT_ELEMENTS, dot_bytes, launch_dots
from fastgeom.kernels.lists.norm import NORM_ELEMENTS, launch_norm, norm_bytes
from fastgeom.kernels.lists.scale import SCALE_ELEMENTS, launch_scale, scale_bytes
from fastgeom.kernels.loads import ABSENT, SHORT, load_tile, store_tile
from fastgeom.validation import DTYPES
from tests.support import assert_same_bits, random_tensor

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
NARROW = (F32, BF16, F16)
OFFSETS = (0, 1, 8)
"""In elements; the first and, for 16-bit types, the third keep the alignment to 16 bytes."""

FLOOR = {False: 4 * 2.0**-24, True: 32 * 2.0**-53}
"""By ``wide``: what a sum may be off by, relative to its terms' magnitudes, where torch's own sum happens to be exact.

Between two additions in float64 a lane makes at most 16 in float32 and the three of its chains: a few roundings, most
of which cancel. In float64 it is the bound of the CPU engine.
"""

Listed = Sequence[Tensor | None]


def units_of(tensors: Listed, elements: int, like: Sequence[Tensor] | None = None) -> np.ndarray:
    """(3, unit): address, code and length; an absent tensor has the length of that of ``like``."""
    columns = []
    for tensor, other in zip(tensors, like or tensors, strict=True):
        for start in range(0, other.numel(), elements):
            length = min(elements, other.numel() - start)
            if tensor is None:
                columns.append((0, ABSENT.value, length))
                continue
            assert tensor.is_contiguous() and tensor.numel() == other.numel()
            address = tensor.data_ptr() + start * tensor.itemsize
            whole = length == elements and address % 16 == 0
            columns.append((address, DTYPES.index(tensor.dtype) + (0 if whole else SHORT.value), length))
    return np.array(columns, np.int64).reshape(-1, 3).T


def on(device: torch.device, table: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(table)).to(device)


def tensor_on(device: torch.device, numel: int, dtype: torch.dtype, offset: int = 0) -> Tensor:
    return random_tensor(offset + numel, dtype).to(device)[offset:]


def poisoned(*shape: int, device: torch.device) -> Tensor:
    return torch.full(shape, math.nan, dtype=F64, device=device)


def norm_of(tensors: Listed, *, wide: bool = False, like: Sequence[Tensor] | None = None, **options: bool) -> Tensor:
    """(unit, 3), on the host."""
    device = next(t.device for t in [*tensors, *(like or [])] if t is not None)
    table = units_of(tensors, NORM_ELEMENTS, like)
    out = poisoned(table.shape[1], 3 if options.get("measure_max", True) else 1, device=device)
    launch_norm(on(device, table), table.shape[1], out, wide=wide, **options)
    return out.cpu()


def dots_of(g: Listed, rows: Sequence[Listed], *, wide: bool = False, like: Sequence[Tensor] | None = None) -> Tensor:
    """(unit, row + 1), on the host."""
    device = next(t.device for t in [*g, *(like or [])] if t is not None)
    table = units_of(g, DOT_ELEMENTS, like)
    n_units = table.shape[1]
    located = [units_of(row, DOT_ELEMENTS, like or g)[:2] for row in rows]
    history = on(device, np.array(located, np.int64).reshape(len(rows), 2, n_units))
    out = poisoned(n_units, len(rows) + 1, device=device)
    launch_dots(on(device, table), history, n_units, len(rows), out, wide=wide)
    return out.cpu()


def assert_accurate(ours: float, a: Sequence[Tensor], b: Sequence[Tensor], *, wide: bool) -> None:
    """sum a b is off by at most twice what torch's sum in the same precision is off by, plus the floor."""
    flat = [torch.cat([t.reshape(-1).to(F64 if wide else F32).cpu() for t in x]) for x in (a, b)]
    truth = reference.dot(a, b)
    terms = flat[0] * flat[1]
    bound = 2 * abs(float(terms.sum()) - truth) + FLOOR[wide] * float(terms.abs().sum(dtype=F64))
    assert abs(ours - truth) <= bound, f"{ours!r} is off from {truth!r} by {abs(ours - truth):.3g}, allowed {bound:.3g}"


def pieces(tensor: Tensor, elements: int) -> tuple[Tensor, ...]:
    return torch.split(tensor.reshape(-1), elements) if tensor.numel() else ()


@triton.jit
def _copy_kernel(source_ptr, target_ptr, n_units, start, CODE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    unit = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    values = load_tile(
        tl.load(source_ptr + unit),
        tl.load(source_ptr + n_units + unit),
        start,
        lanes,
        tl.load(source_ptr + 2 * n_units + unit),
        CODE,
        WIDE,
    )
    store_tile(
        tl.load(target_ptr + unit),
        tl.load(target_ptr + n_units + unit),
        start,
        lanes,
        tl.load(target_ptr + 2 * n_units + unit),
        values,
        CODE,
        WIDE,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("length", [1, 63, 64])
def test_tiles_are_copied_and_what_lies_outside_is_left_alone(device, dtype, offset, length):
    source = tensor_on(device, length, dtype, offset)
    storage = torch.full((offset + 70,), 7, dtype=dtype, device=device)
    target = storage[offset : offset + length]
    tables = [on(device, units_of([t], 64)) for t in (source, target)]
    for start in (0, 32):
        _copy_kernel[(1,)](*tables, 1, start, CODE=-1, WIDE=dtype is F64, BLOCK=32)
    assert_same_bits(target, source)
    assert bool((storage[:offset] == 7).all()) and bool((storage[offset + length :] == 7).all())


def test_an_absent_tensor_reads_as_zeros_and_takes_no_writes(device):
    target = torch.ones(64, dtype=F32, device=device)
    absent, present = (on(device, units_of([t], 64, [target])) for t in (None, target))
    _copy_kernel[(1,)](present, absent, 1, 0, CODE=-1, WIDE=False, BLOCK=64)
    assert bool((target == 1).all())
    load_and_store = on(device, np.stack([present.cpu().numpy()[:, 0]], axis=1))
    _copy_absent_kernel[(1,)](absent, load_and_store, BLOCK=64)
    assert bool((target == 0).all())


@triton.jit
def _copy_absent_kernel(source_ptr, target_ptr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    values = load_tile(tl.load(source_ptr), tl.load(source_ptr + 1), 0, lanes, BLOCK, -1, False)
    store_tile(tl.load(target_ptr), tl.load(target_ptr + 1), 0, lanes, BLOCK, values, -1, False)


NORM_SIZES = (1, 63, NORM_ELEMENTS - 1, NORM_ELEMENTS, NORM_ELEMENTS + 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", OFFSETS)
def test_norm_of_every_dtype_size_and_alignment(device, dtype, offset):
    wide = dtype is F64
    tensors = [tensor_on(device, n, dtype, offset) for n in NORM_SIZES]
    units = [unit for t in tensors for unit in pieces(t, NORM_ELEMENTS)]
    out = norm_of(tensors, wide=wide)
    assert len(out) == len(units)
    for (square, largest, nonfinite), unit in zip(out.tolist(), units, strict=True):
        assert_accurate(square, [unit], [unit], wide=wide)
        assert largest == reference.grad_absmax([unit])
        assert nonfinite == 0


def test_wide_norm_of_mixed_dtypes(device):
    tensors = [tensor_on(device, 1000 + i, dtype, i) for i, dtype in enumerate(DTYPES)]
    for (square, largest, nonfinite), tensor in zip(norm_of(tensors, wide=True).tolist(), tensors, strict=True):
        assert_accurate(square, [tensor], [tensor], wide=True)
        assert (largest, nonfinite) == (reference.grad_absmax([tensor]), 0)


def test_norm_of_mixed_dtypes_with_absent_tensors(device):
    like = [tensor_on(device, n, dtype) for n, dtype in zip((5, 20_000, 300, 70), (BF16, F32, F16, F32), strict=True)]
    tensors = [like[0], None, like[2], like[3]]
    out = norm_of(tensors, like=like)
    assert out[1:3].tolist() == [[0, 0, 0], [0, 0, 0]]
    for row, tensor in zip((0, 3, 4), (like[0], like[2], like[3]), strict=True):
        assert_accurate(float(out[row, 0]), [tensor], [tensor], wide=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", [100, NORM_ELEMENTS])
def test_nonfinite_elements_are_counted_and_nan_is_no_maximum(device, dtype, numel):
    wide = dtype is F64
    clean = tensor_on(device, numel, dtype)
    bad = clean.clone()
    bad[torch.tensor([0, 7, numel - 1])] = math.nan
    infinite = bad.clone()
    infinite[9] = -math.inf
    nothing = torch.full_like(clean, math.nan)
    out = norm_of([clean, bad, infinite, nothing], wide=wide)
    assert out[:, 2].tolist() == [0, 3, 4, numel]
    assert out[:, 1].tolist() == [reference.grad_absmax([clean]), reference.grad_absmax([bad]), math.inf, 0]
    assert math.isfinite(out[0, 0]) and out[1:, 0].isnan().all()


def test_an_infinite_element_makes_the_sum_infinite(device):
    tensor = tensor_on(device, 200, F32)
    tensor[3] = math.inf
    assert norm_of([tensor]).tolist() == [[math.inf, math.inf, 1]]


def test_squares_that_overflow_are_not_counted_as_nonfinite(device):
    tensor = torch.full((200,), 1e30, dtype=F32, device=device)
    ((square, largest, nonfinite),) = norm_of([tensor]).tolist()
    assert (square, nonfinite) == (math.inf, 0)
    assert largest == reference.grad_absmax([tensor])


def test_large_squares_are_no_problem_in_float64(device):
    tensor = torch.full((200,), 1e150, dtype=F64, device=device)
    assert_accurate(float(norm_of([tensor], wide=True)[0, 0]), [tensor], [tensor], wide=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_alone_is_the_same_sum(device, dtype):
    tensors = [tensor_on(device, n, dtype, 1) for n in (5, NORM_ELEMENTS)]
    tensors.append(tensor_on(device, NORM_ELEMENTS, dtype))
    wide = dtype is F64
    assert_same_bits(norm_of(tensors, wide=wide, measure_max=False)[:, 0], norm_of(tensors, wide=wide)[:, 0])


def test_norm_of_long_sums_keeps_eight_digits(device):
    tensors = [tensor_on(device, 5 * NORM_ELEMENTS + 77, F32) * 1e-3 + 1]
    total = float(norm_of(tensors)[:, 0].sum())
    assert total == pytest.approx(reference.dot(tensors, tensors), rel=1e-8)


DOT_SIZES = (1, 63, 2049, DOT_ELEMENTS - 1, DOT_ELEMENTS, DOT_ELEMENTS + 1)


def assert_right_dots(out: Tensor, g: Listed, rows: Sequence[Listed], *, wide: bool = False) -> None:
    """Every unit's sums are right; all tensors are there."""
    cut = [[unit for t in listed for unit in pieces(t, DOT_ELEMENTS)] for listed in [*rows, g]]
    assert out.shape == (len(cut[-1]), len(rows) + 1)
    for column, row in enumerate(cut):
        for unit, (a, b) in enumerate(zip(cut[-1], row, strict=True)):
            assert_accurate(float(out[unit, column]), [a], [b], wide=wide)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("other", NARROW)
def test_dots_of_every_pair_of_dtypes(device, dtype, other):
    g = [tensor_on(device, n, dtype) for n in DOT_SIZES]
    rows = [[tensor_on(device, n, other) for n in DOT_SIZES]]
    assert_right_dots(dots_of(g, rows), g, rows)


@pytest.mark.parametrize("offsets", [(0, 1), (1, 0), (1, 1), (8, 8)])
@pytest.mark.parametrize("dtype", NARROW)
def test_dots_of_every_alignment(device, dtype, offsets):
    sizes = (7, DOT_ELEMENTS, 2050)
    g = [tensor_on(device, n, dtype, offsets[0]) for n in sizes]
    rows = [[tensor_on(device, n, dtype, offsets[1]) for n in sizes]]
    assert_right_dots(dots_of(g, rows), g, rows)


@pytest.mark.parametrize(
    ("n_rows", "wide"),
    [(0, False), (1, False), (33, False), (0, True), (1, True), (31, True), (32, True), (33, True), (64, True)],
)
def test_dots_with_any_number_of_rows(device, n_rows, wide):
    dtype = F64 if wide else BF16
    g = [tensor_on(device, 100, dtype)]
    rows = [[tensor_on(device, 100, dtype)] for _ in range(n_rows)]
    assert_right_dots(dots_of(g, rows, wide=wide), g, rows, wide=wide)


@pytest.mark.parametrize("offset", [0, 1])
def test_wide_dots_of_every_dtype(device, offset):
    sizes = (1, 63, DOT_ELEMENTS - 1, DOT_ELEMENTS)
    g = [tensor_on(device, n, F64, offset) for n in sizes]
    rows = [[tensor_on(device, n, dtype) for n in sizes] for dtype in DTYPES]
    assert_right_dots(dots_of(g, rows, wide=True), g, rows, wide=True)


def test_dots_of_mixed_dtypes_and_alignments_in_one_list(device):
    kinds = [(F32, 0), (BF16, 1), (F16, 0), (F32, 1), (BF16, 0)]
    g = [tensor_on(device, 3000, dtype, offset) for dtype, offset in kinds]
    rows = [[tensor_on(device, 3000, *kinds[(i + shift) % 5]) for i in range(5)] for shift in (1, 3)]
    assert_right_dots(dots_of(g, rows), g, rows)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("numel", [50, DOT_ELEMENTS])
def test_absent_tensors_give_zeros(device, wide, offset, numel):
    dtype = F64 if wide else F32
    like = [tensor_on(device, numel, dtype, offset) for _ in range(3)]
    g = [like[0], None, like[2]]
    rows = [[None, like[1], like[2]], [like[0], None, None]]
    out = dots_of(g, rows, wide=wide, like=like)
    absent = torch.tensor([[True, False, False], [True, True, True], [False, True, False]])
    assert bool((out[absent] == 0).all())
    for unit, column in ((0, 1), (0, 2), (2, 0), (2, 2)):
        assert_accurate(float(out[unit, column]), [like[unit]], [like[unit]], wide=wide)


def test_nan_stays_in_its_own_sums(device):
    g = [tensor_on(device, 500, BF16), tensor_on(device, DOT_ELEMENTS, BF16)]
    rows = [[t.clone() for t in g] for _ in range(3)]
    rows[1][0][499] = math.nan
    rows[2][1][0] = math.inf
    out = dots_of(g, rows)
    assert out.isnan().tolist() == [[False, True, False, False], [False, False, False, False]]
    assert out.isinf().tolist() == [[False, False, False, False], [False, False, True, False]]


SCALE_SIZES = (1, 7, 63, 1000, SCALE_ELEMENTS, SCALE_ELEMENTS + 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", OFFSETS)
def test_scale_multiplies_in_place_and_nothing_else(device, dtype, offset):
    wide = dtype is F64
    storages = [random_tensor(offset + n + 9, dtype).to(device) for n in SCALE_SIZES]
    tensors = [s[offset : offset + n] for s, n in zip(storages, SCALE_SIZES, strict=True)]
    before = [s.clone() for s in storages]
    table = units_of(tensors, SCALE_ELEMENTS)
    factor = torch.tensor(0.3, dtype=F64, device=device)
    launch_scale(on(device, table), table.shape[1], factor, wide=wide)
    for storage, old, n in zip(storages, before, SCALE_SIZES, strict=True):
        inside = slice(offset, offset + n)
        expected = old.clone()
        expected[inside] = rounded_product(old[inside], 0.3, wide, storage[inside])
        assert_same_bits(storage, expected)


def rounded_product(old: Tensor, factor: float, wide: bool, ours: Tensor) -> Tensor:
    """The product rounded to nearest even; on a CPU the interpreter rounds to bfloat16 towards zero, which it may."""
    compute = F64 if wide else F32
    product = old.to(compute) * torch.tensor(factor, dtype=compute, device=old.device)
    expected = product.to(old.dtype)
    if old.dtype is BF16 and old.device.type == "cpu":
        truncated = (product.view(torch.int32) & -65536).view(F32).to(BF16)
        return torch.where(ours == truncated, truncated, expected)
    return expected


def test_scale_of_mixed_dtypes_leaves_absent_tensors_alone(device):
    tensors = [tensor_on(device, 100, dtype, i) for i, dtype in enumerate((F32, F16, F32))]
    before = [t.clone() for t in tensors]
    table = units_of([tensors[0], tensors[1], None], SCALE_ELEMENTS, tensors)
    launch_scale(on(device, table), 3, torch.tensor(0.5, dtype=F64, device=device))
    assert_same_bits(tensors[0], before[0] * 0.5)
    assert_same_bits(tensors[1], before[1] * 0.5)
    assert_same_bits(tensors[2], before[2])


def test_wide_scale_of_every_dtype(device):
    tensors = [tensor_on(device, 1000, dtype, i) for i, dtype in enumerate(DTYPES)]
    before = [t.clone() for t in tensors]
    table = units_of(tensors, SCALE_ELEMENTS)
    launch_scale(on(device, table), 4, torch.tensor(0.5, dtype=F64, device=device), wide=True)
    for tensor, old in zip(tensors, before, strict=True):
        assert_same_bits(tensor, old * 0.5)


@pytest.mark.parametrize("factor", [1.0, math.nan, math.inf, 0.0])
def test_scale_by_special_factors(device, factor):
    tensor = tensor_on(device, 333, F32)
    tensor[5], tensor[6] = math.nan, math.inf
    expected = tensor * factor
    table = units_of([tensor], SCALE_ELEMENTS)
    launch_scale(on(device, table), 1, torch.tensor(factor, dtype=F64, device=device))
    assert_same_bits(tensor, expected)


@pytest.mark.parametrize("wide", [False, True])
def test_the_same_input_gives_the_same_bits(device, wide):
    dtype = F64 if wide else BF16
    tensors = [tensor_on(device, n, dtype, 1) for n in (9, 5000)] + [tensor_on(device, DOT_ELEMENTS, dtype)]
    rows = [[t.clone() for t in tensors] for _ in range(3)]
    assert_same_bits(norm_of(tensors, wide=wide), norm_of(tensors, wide=wide))
    assert_same_bits(dots_of(tensors, rows, wide=wide), dots_of(tensors, rows, wide=wide))


def test_an_empty_list_launches_nothing(device):
    empty = tensor_on(device, 0, F32)
    assert norm_of([empty]).shape == (0, 3)
    assert dots_of([empty], [[empty], [empty]]).shape == (0, 3)
    launch_scale(on(device, units_of([empty], SCALE_ELEMENTS)), 0, torch.tensor(0.5, dtype=F64, device=device))


def test_bytes_are_those_of_one_read_of_each_list_and_one_write():
    assert norm_bytes(10, 2) == 20
    assert dot_bytes(10, 2) == 40
    assert scale_bytes(10, 2) == 40

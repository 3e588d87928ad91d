"""The CPU engine against `fastgeom.reference`: every dtype and size, what it writes, and what it must leave alone."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor

from fastgeom import reference
from fastgeom.engines.cpu import passes
from fastgeom.engines.cpu.engine import CpuEngine
from fastgeom.engines.cpu.loops import window as loops
from fastgeom.engines.cpu.loops.memory import narrow, widen
from fastgeom.engines.cpu.loops.shared import BLOCK, CACHED_ELEMENTS
from fastgeom.engines.cpu.passes import WindowMoments
from fastgeom.engines.cpu.threads import SERIAL_ELEMENTS
from fastgeom.engines.cpu.window import CpuWindow, ParameterSnapshot
from fastgeom.engines.results import UpdateMoments
from fastgeom.layout.chunks import CHUNK_ELEMENTS, chunk_table, segments
from fastgeom.layout.layout import Layout
from fastgeom.layout.reader import TensorReader
from tests.support import assert_accurate, assert_same_bits, random_tensor, table

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
SAME = [(F32, F32, F32), (F64, F64, F64), (BF16, BF16, BF16), (F16, F16, F16)]
# gradient, ring, previous. The previous row is the ring's where the ring loses nothing, else kept in full.
DIFFERENT = [
    (F32, BF16, F32),
    (F64, F32, F64),
    (F64, BF16, F64),
    (F16, BF16, F16),
    (BF16, F32, F32),
    (F32, F64, F64),
]
LOSSY = [dtypes for dtypes in DIFFERENT if dtypes[0] is dtypes[2]]
SIZES = (
    0,
    1,
    63,
    CACHED_ELEMENTS + 17,
    BLOCK - 1,
    BLOCK,
    BLOCK + 1,
    CHUNK_ELEMENTS - 1,
    CHUNK_ELEMENTS,
    CHUNK_ELEMENTS + 1,
    100_003,
)
SMALL_SIZES = (1, 63, 0, BLOCK + 1)
OVERWRITTEN_SIZES = (1, 0, BLOCK + 1, CHUNK_ELEMENTS + 1)
ROWS = (0, 1, 3, 4, 5, 16)
GUARD = 7

ENGINE = CpuEngine()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of torch that wait for a busy core take four times as long; the tests of threads set their own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def called(dtypes: tuple[torch.dtype, ...]) -> str:
    return "-".join(str(d).removeprefix("torch.") for d in dtypes)


def window_moments(
    gradient: list[Tensor | None],
    layer: list[int] | None = None,
    *,
    absent: torch.dtype = F32,
    rows: list[list[Tensor]] | None = None,
    **options: list[Tensor] | float | None,
) -> WindowMoments:
    """`passes.window_moments` on lists of contiguous tensors; each tensor is its own layer unless told otherwise."""
    like = next(o for o in (options.get("store"), options.get("previous"), gradient) if o is not None)
    chunks, layers = cut(like, layer)
    located = {name: table(o) if isinstance(o, list) else o for name, o in options.items()}
    history = [table(row) for row in rows or []]
    return passes.window_moments(chunks, layers, table(gradient, absent), rows=history, **located)


def cut(like: list[Tensor], layer: list[int] | None = None):
    chunks = chunk_table([t.numel() for t in like])
    layer = list(range(len(like))) if layer is None else layer
    return chunks, segments(np.array(layer, np.int64)[chunks.tensor], max(layer) + 1)


def assert_same_moments(actual: WindowMoments | UpdateMoments, expected: WindowMoments | UpdateMoments) -> None:
    for field in dataclasses.fields(actual):
        ours, right = getattr(actual, field.name), getattr(expected, field.name)
        assert (ours is None) == (right is None)
        if ours is not None:
            assert_same_bits(ours, right)


def assert_right(moments: WindowMoments, at: int, gradient, rows, previous) -> None:
    """The moments at this layer are those of these lists."""
    assert moments.dots.shape[1] == len(rows)
    for k, row in enumerate(rows):
        assert_accurate(float(moments.dots[at, k]), reference.dot(gradient, row), torch.mul, gradient, row)
    grad_sq = reference.dot(gradient, gradient)
    assert_accurate(float(moments.grad_sq[at]), grad_sq, torch.square, gradient)
    for ours, truth, sign in (
        (moments.diff_sq, reference.diff_sq(gradient, previous), -1),
        (moments.sum_sq, reference.sum_sq(gradient, previous), 1),
    ):
        assert_accurate(float(ours[at]), truth, lambda g, p, s=sign: (g + s * p).square(), gradient, previous)
    assert float(moments.grad_absmax[at]) == reference.grad_absmax(gradient)
    assert int(moments.nonfinite[at]) == reference.nonfinite(gradient)


def poisoned(numels: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Stores full of NaN, and the blocks of memory they are the middle of."""
    blocks = [torch.full((numel + 2 * GUARD,), math.nan, dtype=dtype) for numel in numels]
    return [block[GUARD : len(block) - GUARD] for block in blocks], blocks


def assert_only_middles_written(blocks: list[Tensor]) -> None:
    for block in blocks:
        assert bool(block[:GUARD].isnan().all()) and bool(block[len(block) - GUARD :].isnan().all())


# ---------------------------------------------------------------- window moments


@pytest.mark.parametrize("dtypes", SAME + DIFFERENT, ids=called)
def test_window_moments_are_the_reference_s_for_every_size_and_number_of_rows(dtypes) -> None:
    own, ring, full = dtypes
    for count, sizes in [(2, SIZES), *((count, SMALL_SIZES) for count in ROWS)]:
        gradient = [random_tensor(n, own) for n in sizes]
        previous = [random_tensor(n, full) for n in sizes]
        rows = [[random_tensor(n, ring) for n in sizes] for _ in range(count)]
        store, _ = poisoned(sizes, ring)
        moments = window_moments(gradient, rows=rows, previous=previous, store=store)
        for i in range(len(sizes)):
            assert_right(moments, i, gradient[i : i + 1], [row[i : i + 1] for row in rows], previous[i : i + 1])
        assert_right(moments, -1, gradient, rows, previous)


@pytest.mark.parametrize("dtypes", SAME + DIFFERENT, ids=called)
def test_the_gradient_is_stored_in_the_ring_s_dtype_and_kept_in_full_and_nothing_beyond_is_written(dtypes) -> None:
    own, ring, full = dtypes
    for scale in (1.0, 0.3):
        gradient = [random_tensor(n, own) for n in SIZES]
        (store, store_blocks), (keep, keep_blocks) = poisoned(SIZES, ring), poisoned(SIZES, full)
        window_moments(gradient, store=store, keep=keep, scale=scale)
        compute = F64 if F64 in dtypes else F32
        for g, stored, kept in zip(gradient, store, keep, strict=True):
            scaled = g.to(compute) * torch.tensor(scale, dtype=compute)
            assert_same_bits(stored, scaled.to(ring))
            assert_same_bits(kept, scaled.to(full))
        assert_only_middles_written(store_blocks + keep_blocks)


@pytest.mark.parametrize("dtypes", [*SAME, (F32, BF16, F32)], ids=called)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_gradient_that_is_stored_past_the_caches_is_the_one_that_is_stored_through_them(dtypes, scale) -> None:
    own, ring, _ = dtypes
    gradient = [None if n == 63 else random_tensor(n, own) for n in SIZES]
    for shift in range(3):  # where the lines of the store begin
        through = [torch.full((n + shift,), math.nan, dtype=ring)[shift:] for n in SIZES]
        past, blocks = zip(*(middles(n, ring, shift) for n in SIZES), strict=True)
        expected = window_moments(gradient, absent=own, store=through, scale=scale)
        moments = window_moments(gradient, absent=own, store=[*past], scale=scale, streamed=True)
        assert_same_moments(moments, expected)
        for ours, right in zip(past, through, strict=True):
            assert_same_bits(ours, right)
        assert_only_middles_written([block[shift:] for block in blocks])
    nowhere = [*past[:-1], None]  # one tensor has no store
    chunks, layers = cut([*past])
    options = {"store": table(nowhere, ring), "scale": scale, "streamed": True}
    assert_same_moments(passes.window_moments(chunks, layers, table(gradient, own), **options), expected)


def middles(numel: int, dtype: torch.dtype, shift: int) -> tuple[Tensor, Tensor]:
    """A store, shifted, and the block of NaN it is the middle of."""
    block = torch.full((numel + 2 * GUARD + shift,), math.nan, dtype=dtype)
    return block[GUARD + shift : len(block) - GUARD], block


@pytest.mark.parametrize("dtypes", SAME + DIFFERENT, ids=called)
def test_a_row_that_is_overwritten_and_a_previous_row_that_is_renewed_are_read_first(dtypes) -> None:
    own, ring, full = dtypes
    gradient, previous = ([random_tensor(n, d) for n in OVERWRITTEN_SIZES] for d in (own, full))
    rows = [[random_tensor(n, ring) for n in OVERWRITTEN_SIZES] for _ in range(5)]
    apart = window_moments(gradient, rows=rows, previous=previous)
    for overwritten in (rows[0], rows[4]):
        kept = [p.clone() for p in previous]
        before = [t.clone() for t in overwritten]
        together = window_moments(gradient, rows=rows, previous=kept, store=overwritten, keep=kept)
        assert_same_moments(together, apart)
        for g, stored, renewed in zip(gradient, overwritten, kept, strict=True):
            assert_same_bits(stored, g.to(ring))
            assert_same_bits(renewed, g.to(full))
        for t, b in zip(overwritten, before, strict=True):
            t.copy_(b)


def test_a_window_of_one_reads_the_previous_gradient_before_the_new_one_takes_its_place() -> None:
    first, second = ([random_tensor(n, F32) for n in SMALL_SIZES] for _ in range(2))
    ring = [t.clone() for t in first]
    moments = window_moments(second, rows=[ring], previous=ring, store=ring)
    assert_right(moments, -1, second, [first], first)
    for stored, g in zip(ring, second, strict=True):
        assert_same_bits(stored, g)


def test_a_list_of_mixed_dtypes_is_one_call_and_each_tensor_keeps_its_own() -> None:
    kinds = SAME + DIFFERENT
    sizes = (63, BLOCK + 1, CHUNK_ELEMENTS + 1, 5, 1, BLOCK, 100, 1000, 64, 2 * CHUNK_ELEMENTS)
    gradient = [random_tensor(n, own) for n, (own, _, _) in zip(sizes, kinds, strict=True)]
    previous = [random_tensor(n, full) for n, (_, _, full) in zip(sizes, kinds, strict=True)]
    rows = [[random_tensor(n, ring) for n, (_, ring, _) in zip(sizes, kinds, strict=True)] for _ in range(5)]
    store = [torch.full_like(t, math.nan) for t in rows[0]]
    moments = window_moments(gradient, rows=rows, previous=previous, store=store)
    for i in range(len(kinds)):
        assert_right(moments, i, gradient[i : i + 1], [row[i : i + 1] for row in rows], previous[i : i + 1])
        assert_same_bits(store[i], gradient[i].to(store[i].dtype))
    for values in (moments.dots, moments.grad_sq, moments.diff_sq, moments.sum_sq):
        bound = len(kinds) * 2.0**-53 * values[:-1].abs().sum(0)  # float64 additions of the layers
        assert bool(((values[-1] - values[:-1].sum(0)).abs() <= bound).all())
    assert float(moments.grad_absmax[-1]) == float(moments.grad_absmax[:-1].max())


@pytest.mark.parametrize("dtypes", SAME, ids=called)
@pytest.mark.parametrize("offset", [1, 3, 13])
def test_tensors_may_begin_anywhere_in_their_storage(dtypes, offset) -> None:
    numels = (1, 63, BLOCK + 1, 2 * BLOCK - 1)
    gradient, previous = ([random_tensor(n, dtypes[0], offset=offset) for n in numels] for _ in range(2))
    rows = [[random_tensor(n, dtypes[0], offset=offset + k) for n in numels] for k in range(5)]
    assert all(t.data_ptr() % 64 for t in gradient)
    (store, blocks), (aligned, _) = poisoned(numels, dtypes[0]), poisoned(numels, dtypes[0])
    assert any(t.data_ptr() % 16 for t in store)
    moments = window_moments(gradient, rows=rows, previous=previous, store=store)
    assert_right(moments, -1, gradient, rows, previous)
    assert_only_middles_written(blocks)
    copies = [[t.clone() for t in row] for row in rows]
    at_the_start = window_moments(
        [t.clone() for t in gradient], rows=copies, previous=[t.clone() for t in previous], store=aligned
    )
    assert_same_moments(moments, at_the_start)
    for stored, g in zip(store, gradient, strict=True):
        assert_same_bits(stored, g)


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
def test_tensors_may_lie_at_an_odd_byte_address(dtype) -> None:
    numel = BLOCK + 63

    def at_odd_address(content: Tensor) -> Tensor:
        tensor = torch.frombuffer(bytearray(numel * dtype.itemsize + 1), dtype=dtype, count=numel, offset=1)
        assert tensor.data_ptr() % 2 == 1
        return tensor.copy_(content)

    gradient, previous, *rows = (random_tensor(numel, dtype) for _ in range(7))
    odd = [at_odd_address(t) for t in (gradient, previous, *rows)]
    store = at_odd_address(torch.full((numel,), math.nan, dtype=dtype))
    moments = window_moments([odd[0]], rows=[[row] for row in odd[2:]], previous=[odd[1]], store=[store])
    assert_same_moments(moments, window_moments([gradient], rows=[[row] for row in rows], previous=[previous]))
    assert_same_bits(store.clone(), gradient)


@pytest.mark.parametrize("dtypes", [*SAME, (F32, BF16, F32)], ids=called)
def test_a_missing_gradient_reads_as_zeros_and_is_stored_as_zeros(dtypes) -> None:
    own, ring, full = dtypes
    present, previous = ([random_tensor(n, d) for n in SMALL_SIZES] for d in (own, full))
    rows = [[random_tensor(n, ring) for n in SMALL_SIZES] for _ in range(5)]
    (store, store_blocks), (keep, keep_blocks) = poisoned(SMALL_SIZES, ring), poisoned(SMALL_SIZES, full)
    gradient = [present[0], None, None, None]
    zeros = [present[0], *map(torch.zeros_like, present[1:])]
    moments = window_moments(gradient, absent=own, rows=rows, previous=previous, store=store, keep=keep)
    assert_right(moments, 3, zeros[3:], [row[3:] for row in rows], previous[3:])
    assert_right(moments, -1, zeros, rows, previous)
    assert bool((moments.dots[1:4] == 0).all()) and bool((moments.grad_sq[1:4] == 0).all())
    for i in (1, 3):
        norm_sq = reference.dot(previous[i : i + 1], previous[i : i + 1])
        assert_accurate(float(moments.diff_sq[i]), norm_sq, torch.square, previous[i : i + 1])
        assert float(moments.diff_sq[i]) == float(moments.sum_sq[i])
    for stored, kept, zero in zip(store, keep, zeros, strict=True):
        assert_same_bits(stored, zero.to(ring))
        assert_same_bits(kept, zero.to(full))
    assert_only_middles_written(store_blocks + keep_blocks)


def test_without_a_previous_row_the_sums_of_differences_are_zero() -> None:
    moments = window_moments([random_tensor(100, F32)], rows=[[random_tensor(100, F32)]])
    assert moments.diff_sq.tolist() == [0, 0] and moments.sum_sq.tolist() == [0, 0]
    assert moments.dots.shape == (2, 1) and bool((moments.dots != 0).all())


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
def test_nan_and_inf_are_counted_in_their_layer_and_leave_the_others_finite(dtype) -> None:
    numel = CHUNK_ELEMENTS + BLOCK + 5
    clean = [random_tensor(numel, dtype) for _ in range(3)]
    previous = [random_tensor(numel, dtype) for _ in range(3)]
    rows = [[random_tensor(numel, dtype) for _ in range(3)] for _ in range(5)]
    before = window_moments(clean, rows=rows, previous=previous)
    gradient = [t.clone() for t in clean]
    gradient[1][[0, BLOCK, numel - 1]] = math.nan
    gradient[2][17], gradient[2][BLOCK + 1], gradient[2][numel - 2] = math.inf, -math.inf, math.nan
    store = [torch.zeros_like(t) for t in gradient]
    moments = window_moments(gradient, rows=rows, previous=previous, store=store)
    assert moments.nonfinite.tolist() == [0, 3, 3, 6] and moments.nonfinite.dtype is torch.int64
    assert moments.grad_absmax.tolist() == [
        reference.grad_absmax(clean[:1]),
        reference.grad_absmax(gradient[1:2]),
        math.inf,
        math.inf,
    ]
    assert math.isfinite(float(moments.grad_absmax[1]))
    for field in dataclasses.fields(moments):
        values = getattr(moments, field.name)
        assert_same_bits(values[0], getattr(before, field.name)[0])
        assert field.name in ("grad_absmax", "nonfinite") or bool(values[1:].isnan().all())
    for stored, g in zip(store, gradient, strict=True):
        assert_same_bits(stored, g)


def test_sums_of_layers_that_are_inf_and_minus_inf_are_nan_without_a_word() -> None:
    gradient, row = [torch.tensor([math.inf]), torch.tensor([-math.inf])], [torch.ones(1), torch.ones(1)]
    moments = window_moments(gradient, rows=[row])
    assert moments.dots[:2, 0].tolist() == [math.inf, -math.inf] and moments.dots[2, 0].isnan()


def test_inf_alone_makes_the_squared_norm_inf_and_not_nan() -> None:
    gradient = [torch.tensor([1.0, math.inf, -math.inf]), torch.ones(2)]
    moments = window_moments(gradient)
    assert moments.grad_sq.tolist() == [math.inf, 2.0, math.inf]


@pytest.mark.parametrize("dtypes", SAME + DIFFERENT, ids=called)
def test_a_scale_is_applied_as_the_gradient_is_read_and_to_nothing_else(dtypes) -> None:
    own, ring, full = dtypes
    gradient, previous = ([random_tensor(n, d) for n in SMALL_SIZES] for d in (own, full))
    rows = [[random_tensor(n, ring) for n in SMALL_SIZES] for _ in range(5)]
    for scale in (2.0**-10, 3.7):
        untouched = [t.clone() for t in gradient]
        moments = window_moments(gradient, rows=rows, previous=previous, scale=scale)
        compute = F64 if F64 in dtypes else F32
        scaled = [g.to(compute) * torch.tensor(scale, dtype=compute) for g in gradient]
        assert_right(moments, -1, scaled, rows, previous)
        for g, u in zip(gradient, untouched, strict=True):
            assert_same_bits(g, u)


def test_layers_gather_their_tensors_wherever_these_stand_in_the_list() -> None:
    layer = [2, 0, 2, 1, 0, 2, 4]
    sizes = (100, CHUNK_ELEMENTS + 1, 1, 63, 0, BLOCK, 10)
    gradient, previous = ([random_tensor(n, F32) for n in sizes] for _ in range(2))
    rows = [[random_tensor(n, F32) for n in sizes] for _ in range(3)]
    moments = window_moments(gradient, layer, rows=rows, previous=previous)
    for at in range(max(layer) + 1):
        members = [i for i, own in enumerate(layer) if own == at]

        def chosen(list_, members=members):
            return [list_[i] for i in members]

        assert_right(moments, at, chosen(gradient), [chosen(row) for row in rows], chosen(previous))
    assert_right(moments, -1, gradient, rows, previous)


def test_a_layer_of_empty_tensors_is_zero_and_a_list_of_them_no_error() -> None:
    mixed = window_moments([torch.zeros(0), torch.ones(3), torch.zeros(0)], [0, 1, 2], rows=[], store=None)
    assert mixed.grad_sq.tolist() == [0, 3, 0, 3] and mixed.grad_absmax.tolist() == [0, 1, 0, 1]
    nothing = [torch.zeros(0), torch.zeros(0)]
    moments = window_moments(nothing, rows=[nothing, nothing], previous=nothing, store=nothing)
    assert moments.dots.shape == (3, 2)
    for field in dataclasses.fields(moments):
        assert bool((getattr(moments, field.name) == 0).all())


def test_the_bits_of_a_result_are_the_same_again_and_with_any_number_of_threads() -> None:
    sizes = (SERIAL_ELEMENTS + 7, 5, 70_001, 1000)  # enough for threads to be used, whatever an element costs
    gradient, previous = ([random_tensor(n, F32) for n in sizes] for _ in range(2))
    rows = [[random_tensor(n, F32) for n in sizes] for _ in range(6)]
    results, stores = [], []
    for count in (1, 1, 2, 2, 3):
        torch.set_num_threads(count)
        stores.append([torch.full_like(t, math.nan) for t in gradient])
        results.append(window_moments(gradient, [0, 1, 0, 1], rows=rows, previous=previous, store=stores[-1]))
    assert_right(results[-1], -1, gradient, rows, previous)
    for other, store in zip(results[1:], stores[1:], strict=True):
        assert_same_moments(other, results[0])
        for actual, g in zip(store, gradient, strict=True):
            assert_same_bits(actual, g)


@pytest.mark.parametrize("dtypes", [*SAME[:3], (F32, BF16, F32)], ids=called)
@pytest.mark.parametrize("magnitude", [1e-18, 1e18])
def test_the_promised_range_is_kept_for_whole_chunks_of_its_largest_and_smallest_values(dtypes, magnitude) -> None:
    own, ring, full = dtypes
    sizes = (1, BLOCK, CHUNK_ELEMENTS + 63)

    def extreme(dtype):
        signs = [torch.where(random_tensor(n, F64) < 0, -1.0, 1.0) for n in sizes]
        spread = [1 - 0.1 * torch.rand(n, dtype=F64) for n in sizes]
        return [(magnitude * s * r).to(dtype) for s, r in zip(signs, spread, strict=True)]

    gradient, previous = extreme(own), extreme(full)
    rows = [extreme(ring) for _ in range(5)]
    rows[1] = [g.to(ring) for g in gradient]
    moments = window_moments(gradient, rows=rows, previous=previous)
    for i in range(len(sizes)):
        assert_right(moments, i, gradient[i : i + 1], [row[i : i + 1] for row in rows], previous[i : i + 1])
    assert_right(moments, -1, gradient, rows, previous)
    if magnitude > 1:
        ones = [torch.ones_like(g) for g in gradient]
        assert_right(window_moments(ones, rows=rows, previous=previous), -1, ones, rows, previous)


@pytest.mark.parametrize("sign", [1, -1], ids=["nearly equal", "nearly opposite"])
def test_sums_of_differences_stay_right_where_the_formula_from_dots_says_nothing(sign) -> None:
    gradient = [random_tensor(100_003, F32)]
    previous = [(sign * gradient[0].double() * (1 + 1e-7 * random_tensor(100_003, F64))).float()]
    moments = window_moments(gradient, rows=[previous], previous=previous)
    ours = float((moments.diff_sq if sign == 1 else moments.sum_sq)[-1])
    truth = (reference.diff_sq if sign == 1 else reference.sum_sq)(gradient, previous)
    # x - sign y is exact in float32 here (Sterbenz), so only the squares and their sum round: the floor alone.
    assert abs(ours - truth) <= 4 * 2.0**-24 * truth
    single, other = gradient[0], sign * previous[0]
    from_dots = float(single @ single + other @ other - 2 * (single @ other))
    assert abs(from_dots - truth) >= truth  # float32 steps at 1e5 are 0.008: it is 0, or millions of times too large
    assert_right(moments, -1, gradient, [previous], previous)


# ---------------------------------------------------------------- conversions


@njit
def widened(source, out):
    for i in range(source.size):
        out[i] = widen(source[i])


@njit
def narrowed(source, out):
    for i in range(source.size):
        out[i] = narrow(source[i], out)


MEMORY = {BF16: np.uint16, F16: np.int16}


@pytest.fixture(params=[False, True], ids=["subnormals kept", "subnormals flushed"])
def flush_denormal(request) -> Iterator[bool]:
    """What torch can set for speed and our bit tricks must not notice."""
    if request.param and not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    torch.set_flush_denormal(False)
    yield request.param
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_every_16_bit_pattern_widens_exactly(dtype, flush_denormal) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    expected = torch.from_numpy(patterns.view(np.int16)).view(dtype).float()
    out = np.full(1 << 16, 12345, np.float32)
    torch.set_flush_denormal(flush_denormal)
    widened(patterns.view(MEMORY[dtype]), out)
    torch.set_flush_denormal(False)
    assert_same_bits(torch.from_numpy(out), expected)


def awkward_floats(dtype: torch.dtype) -> Tensor:
    """Random bit patterns, and every number of ``dtype`` with what lies halfway to the next and beside the halfway."""
    rng = np.random.default_rng(0)
    random = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    near_one = rng.standard_normal(50_000).astype(np.float32)
    small = (2.0 ** rng.uniform(-150, -10, 100_000)).astype(np.float32)
    numbers = torch.from_numpy(np.arange(1 << 15, dtype=np.int16)).view(dtype).double()
    halfway = ((numbers[:-1] + numbers[1:]) / 2).float().numpy()
    largest = np.float32(torch.finfo(dtype).max)
    border = [np.nextafter(largest, np.float32(0)), largest, np.nextafter(largest, np.float32(np.inf))]
    border += [np.float32(65519.996), np.float32(65520.0), np.float32(65536.0), np.float32(3.4e38)]
    special = np.array([0.0, np.inf, np.nan, 1e-45, 1.1754942e-38, 1.1754944e-38, 2.0**-25, 2.0**-24, *border])
    positive = np.concatenate(
        [
            random,
            near_one,
            small,
            numbers.float().numpy(),
            special.astype(np.float32),
            halfway,
            np.nextafter(halfway, np.float32(0)),
            np.nextafter(halfway, np.float32(np.inf)),
        ]
    )
    return torch.from_numpy(np.concatenate([positive, -positive]))


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_narrowing_rounds_as_torch_does(dtype, flush_denormal) -> None:
    source = awkward_floats(dtype)
    expected = source.to(dtype)
    out = np.full(len(source), 12345, MEMORY[dtype])
    torch.set_flush_denormal(flush_denormal)
    narrowed(source.numpy(), out)
    torch.set_flush_denormal(False)
    assert_same_bits(torch.from_numpy(out.view(np.int16)).view(dtype), expected)


# ---------------------------------------------------------------- updates

UPDATE_KINDS = [*SAME, (BF16, F32, F32), (F32, F32, BF16)]  # gradient, previous gradient, parameter


def assert_right_update(moments: UpdateMoments, at, before, after, gradient, next_gradient) -> None:
    truth = reference.update_moments(before, after, gradient, next_gradient)
    terms = {
        "update_sq": (lambda x, y: (y - x).square(), before, after),
        "grad_dot_update": (lambda x, y, g: g * (y - x), before, after, gradient),
        "next_grad_dot_update": (lambda x, y, g: g * (y - x), before, after, next_gradient),
    }
    for name, (expression, *operands) in terms.items():
        assert_accurate(float(getattr(moments, name)[at]), truth[name], expression, *operands)
    assert_accurate(float(moments.param_sq[at]), reference.dot(after, after), torch.square, after)


@pytest.mark.parametrize("dtypes", UPDATE_KINDS, ids=called)
def test_update_moments_are_the_reference_s_and_the_snapshot_is_renewed(dtypes) -> None:
    own, full, parameter = dtypes
    sizes = (1, 63, 0, BLOCK - 1, BLOCK, BLOCK + 1, CHUNK_ELEMENTS, CHUNK_ELEMENTS + 1, 100_003)
    for scale in (1.0, 0.3):
        before = [random_tensor(n, parameter) for n in sizes]
        after = [(x.double() + 0.01 * random_tensor(x.numel(), F64)).to(parameter) for x in before]
        previous, gradient = ([random_tensor(n, d) for n in sizes] for d in (full, own))
        snapshot, blocks = poisoned(sizes, parameter)
        for s, x in zip(snapshot, before, strict=True):
            s.copy_(x)
        chunks, layers = cut(after)
        moments = passes.update_moments(
            chunks,
            layers,
            table(after),
            table(snapshot),
            gradient=table(gradient),
            previous=table(previous),
            scale=scale,
        )
        compute = F64 if F64 in dtypes else F32
        scaled = [g.to(compute) * torch.tensor(scale, dtype=compute) for g in gradient]
        for i in (*range(len(sizes)), slice(None)):
            at, part = (-1, i) if isinstance(i, slice) else (i, slice(i, i + 1))
            assert_right_update(moments, at, before[part], after[part], previous[part], scaled[part])
        for s, x in zip(snapshot, after, strict=True):
            assert_same_bits(s, x)
        assert_only_middles_written(blocks)


def test_the_update_before_the_first_is_unknown_and_the_snapshot_taken_all_the_same() -> None:
    parameter, snapshot = random_tensor(BLOCK + 1, F32), torch.full((BLOCK + 1,), math.nan)
    moments = passes.update_moments(*cut([parameter]), table([parameter]), table([snapshot]))
    assert_accurate(float(moments.param_sq[-1]), reference.dot([parameter], [parameter]), torch.square, [parameter])
    for unknown in (moments.update_sq, moments.grad_dot_update, moments.next_grad_dot_update):
        assert unknown.tolist() == [0, 0]
    assert_same_bits(snapshot, parameter)


def test_an_update_is_known_where_the_next_gradient_is_missing() -> None:
    before, previous = random_tensor(BLOCK + 1, F32), random_tensor(BLOCK + 1, F32)
    after, snapshot = before + 0.01 * previous, before.clone()
    moments = passes.update_moments(
        *cut([after]), table([after]), table([snapshot]), gradient=table([None]), previous=table([previous])
    )
    assert_right_update(moments, -1, [before], [after], [previous], [torch.zeros_like(after)])
    assert float(moments.next_grad_dot_update[-1]) == 0


def test_update_moments_have_the_same_bits_with_any_number_of_threads() -> None:
    sizes = (3 * CHUNK_ELEMENTS + 7, 1000)
    before, after, previous, gradient = ([random_tensor(n, F32) for n in sizes] for _ in range(4))
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        snapshot = table([x.clone() for x in before])
        results.append(
            passes.update_moments(
                *cut(after), table(after), snapshot, gradient=table(gradient), previous=table(previous)
            )
        )
    assert_same_moments(results[1], results[0])


def test_a_parameter_that_changed_its_dtype_is_refused_before_its_snapshot_is_touched() -> None:
    model = torch.nn.Linear(3, 2)
    layout = Layout(model)
    snapshot = ParameterSnapshot(layout)
    reader = TensorReader(layout, "parameter")
    gradients = table([torch.ones_like(p) for p in layout.parameters])
    snapshot.prepare(reader.locate(layout.parameters))
    snapshot.measure(reader.locate(layout.parameters), gradients, None)
    model.double()
    with pytest.raises(ValueError, match=r"^parameter 'weight': expected dtype torch.float32 as at the first measured"):
        snapshot.prepare(reader.locate(layout.parameters))


@pytest.mark.parametrize("dtypes", [*SAME, *LOSSY], ids=called)
def test_a_ring_gives_the_engine_the_same_dtypes_at_its_first_step_as_at_all_later_ones(dtypes, monkeypatch) -> None:
    """Each combination of dtypes compiles for seconds: one that only a first step has would cost a run those."""
    own, ring, full = dtypes
    parameter = torch.nn.Parameter(torch.zeros(70, dtype=own))
    seen = []
    loop = loops.window_moments

    def spy(*arguments):
        seen.append([str(kind.dtype) for kind in arguments if isinstance(kind, np.ndarray) and kind.size == 0])
        return loop(*arguments)

    monkeypatch.setattr(loops, "window_moments", spy)
    layout = Layout([("x", parameter)])
    history = CpuWindow(layout, 2, dtype=None if own is ring else ring)
    gradients = [[random_tensor(70, own)] for _ in range(4)]
    history.prepare(table(gradients[0]))
    found = [history.measure(table(gradient), step) for step, gradient in enumerate(gradients)]
    kinds = [str(np.dtype(MEMORY.get(d, str(d).removeprefix("torch.")))) for d in (own, ring, full)]
    assert seen[0][-4:-1] == kinds
    assert all(later == seen[-1] for later in seen[1:])
    assert seen[0][-4:] == seen[-1][-4:]
    truth = reference.diff_sq(gradients[3], gradients[2])
    assert_accurate(float(found[3].diff_sq[-1]), truth, lambda g, p: (g - p).square(), gradients[3], gradients[2])


def test_without_a_folder_for_compiled_code_it_compiles_in_memory(run_python) -> None:
    code = """
import numba.core.caching as caching
for kind in vars(caching).values():
    if isinstance(kind, type) and hasattr(kind, "_locator_classes"):
        kind._locator_classes = []
import torch, fastgeom
from fastgeom.engines.cpu.loops import shared
assert not shared.dot.stats.cache_path, shared.dot.stats
print(fastgeom.norm([torch.tensor([3.0, 4.0])]).item())
"""
    assert run_python(code).strip() == "5.0"

"""The plan of a sketch, and the CPU engine against the definition in `fastgeom.reference`."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgeom import reference
from fastgeom.engines.cpu import threads
from fastgeom.engines.cpu.sketch_passes import TILE, sketch_moments, sketch_tasks, update_sketch
from fastgeom.layout.count_sketch import (
    MAX_SIZE,
    MIN_BUCKETS,
    MIN_EXACT,
    SketchPlan,
    cosine_variance,
    dot_variance,
    mix32,
    relative_square_error,
)
from tests.support import assert_accurate, assert_same_bits, random_tensor, table

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
DTYPES = (F32, F64, BF16, F16)
BUCKETS = (128, 256, 1024, 2 * TILE)
ROUNDING = 2.0**-21
"""What the norm of a sketch's error may be, relative to the sketch's norm: float32 sums of up to some hundred terms."""


def sizes_around(m: int) -> tuple[int, ...]:
    """Sizes of tensors, all in one group, together more than its buckets."""
    return (1, 63, 0, m - 1, m, m + 1, 7, 35 * m + 4321)


def whole_numbers(numel: int, dtype: torch.dtype = F32) -> Tensor:
    """Numbers whose sums are exact in float32."""
    return torch.randint(-8, 9, (numel,)).to(dtype)


def one_group(tensors: Sequence[Tensor | None], m: int, seed: int = 0, numels: Sequence[int] = ()) -> SketchPlan:
    plan = SketchPlan(numels or [t.numel() for t in tensors], [0] * len(tensors), 1, m, seed)
    assert plan.sizes.tolist() == [m] and not plan.exact[0]
    return plan


def sketched(plan: SketchPlan, tensors: Sequence[Tensor | None], **options) -> Tensor:
    out = torch.full((plan.total,), torch.nan)
    sketch_moments(plan, table(tensors), out, **options)
    return out


def groups_of(plan: SketchPlan, sketch: Tensor) -> list[Tensor]:
    return [sketch[o : o + m] for o, m in zip(plan.offsets.tolist(), plan.sizes.tolist(), strict=True)]


def definition(plan: SketchPlan, tensors: Sequence[Tensor]) -> Tensor:
    """Every group by the textbook, one after the other."""
    parts = []
    for g in range(plan.n_groups):
        members = [t for t, group in zip(tensors, plan.groups, strict=True) if group == g]
        parts.append(reference.count_sketch(members, int(plan.sizes[g]), int(plan.seeds[g])))
    return torch.cat(parts)


def assert_near(sketch: Tensor, truth: Tensor, rounding: float = ROUNDING) -> None:
    error, allowed = (sketch.double() - truth).norm(), rounding * truth.norm()
    assert error <= allowed, f"off by {error:.3g}, allowed {allowed:.3g}"


# ---------------------------------------------------------------- the plan


@pytest.mark.parametrize("size", [2**10, 5000, 2**14, 2**18, 2**22])
def test_groups_share_the_size_by_their_elements_and_small_ones_are_exact(size) -> None:
    numels = [5, 100, 33, 3000, 70_000, 1_000_000, 700_000]
    plan = SketchPlan(numels, range(7), 7, size)
    m, n = plan.sizes, np.array(numels)
    assert plan.total == m.sum() <= size
    assert all(int(s).bit_count() == 1 for s in m)
    assert np.array_equal(plan.exact, n <= m)
    assert np.array_equal(plan.offsets, np.cumsum(m) - m)
    assert np.all(m[plan.exact] < 2 * np.maximum(n[plan.exact], MIN_EXACT)), "no more padding than the power of two"
    assert np.all(m[~plan.exact] >= MIN_BUCKETS)
    crowded = np.flatnonzero(~plan.exact)
    assert np.all(m[crowded] > size - plan.total), "what is left over would have doubled this group"
    shared = crowded[m[crowded] > MIN_BUCKETS]
    for g in shared:  # it was the most crowded one when it last doubled, except for those that no longer fitted
        rivals = crowded[2 * m[crowded] <= size]
        assert np.all((n[g] / (m[g] / 2) >= n[rivals] / m[rivals]) | (m[rivals] > m[g] / 2))


def test_one_group_gets_the_largest_power_of_two() -> None:
    assert SketchPlan([10**10], [0], 1, 2**18 + 5).sizes.tolist() == [2**18]
    assert SketchPlan([10**6], [0], 1, MAX_SIZE).sizes.tolist() == [2**20]


def test_two_thousand_groups_share_a_size_that_just_suffices() -> None:
    plan = SketchPlan([10**6] * 2000, range(2000), 2000, 2000 * MIN_BUCKETS)
    assert np.all(plan.sizes == MIN_BUCKETS)
    with pytest.raises(ValueError, match="size: expected at least 256000 for 2000 groups, got 255999"):
        SketchPlan([10**6] * 2000, range(2000), 2000, 2000 * MIN_BUCKETS - 1)


def test_empty_tensors_and_groups_have_zeros() -> None:
    plan = SketchPlan([0, 0], [1, 1], 3, 128)
    assert plan.sizes.tolist() == [MIN_EXACT] * 3 and plan.exact.all()
    assert not sketched(plan, [torch.zeros(0)] * 2).any()
    assert SketchPlan([], [], 0, 128).total == 0


@pytest.mark.parametrize(
    ("size", "seed", "message"),
    [
        (100, 0, "size: expected at least 128 for 1 groups, got 100"),
        (MAX_SIZE + 1, 0, r"size: expected at most 2\^30, got 1073741825"),
        (1024, -1, r"seed: expected 0 <= seed < 2\^32, got -1"),
        (1024, 2**32, r"seed: expected 0 <= seed < 2\^32, got 4294967296"),
    ],
)
def test_a_plan_that_cannot_be_says_why(size, seed, message) -> None:
    with pytest.raises(ValueError, match=message):
        SketchPlan([5000], [0], 1, size, seed)


def test_a_plan_is_frozen() -> None:
    with pytest.raises(AttributeError):
        SketchPlan([5000], [0], 1, 1024).size = 5


def test_tiles_cover_every_bucket_of_every_group_that_is_not_exact_once() -> None:
    plan = SketchPlan([10**6, 20, 30_000, 10**5, 2000], [0, 1, 2, 2, 3], 4, 2**15)
    tiles = plan.tiles(2048, 512, 128)
    for g in range(4):
        mine = tiles.group == g
        buckets = [np.arange(b, b + w) for b, w in zip(tiles.bucket[mine], tiles.width[mine], strict=True)]
        assert np.array_equal(np.concatenate([[], *buckets]), np.arange(0 if plan.exact[g] else plan.sizes[g]))
        assert np.all(tiles.bucket[mine] % tiles.width[mine] == 0)
        assert np.all(np.isin(tiles.width[mine], [2048, 512, 128]))


def test_mix32_is_one_to_one_and_changes_half_of_the_bits() -> None:
    words = np.arange(1 << 16, dtype=np.uint32)
    mixed = mix32(words)
    assert len(np.unique(mixed)) == len(words)
    for bit in range(32):
        changed = np.bitwise_count(mixed ^ mix32(words ^ np.uint32(1 << bit)))
        assert 15 < changed.mean() < 17


def test_every_group_has_signs_of_its_own() -> None:
    g = [random_tensor(5000, F32)] * 2
    first, second = groups_of(plan := SketchPlan([5000] * 2, [0, 1], 2, 512), sketched(plan, g))
    assert abs(float(first @ second / first.norm() / second.norm())) < 0.3


# ---------------------------------------------------------------- standard errors


def test_variances_are_their_formulas_and_zero_where_exact() -> None:
    plan = SketchPlan([10, 10**5], [0, 1], 2, 1024)
    inverse = torch.from_numpy(plan.inverse_sizes)
    rho, a, b = (torch.tensor([v, v], dtype=F64) for v in (-0.6, 4.0, 9.0))
    assert cosine_variance(rho, inverse).tolist() == pytest.approx([0, (1 - 0.36) ** 2 / 512])
    assert dot_variance(a, b, rho * 6, inverse).tolist() == pytest.approx([0, (36 + 3.6**2) / 512])
    assert relative_square_error(inverse).tolist() == pytest.approx([0, (2 / 512) ** 0.5])


# ---------------------------------------------------------------- buckets and signs


@pytest.mark.parametrize("m", BUCKETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_whole_numbers_are_those_of_the_definition(dtype, m) -> None:
    tensors = [whole_numbers(n, dtype) for n in sizes_around(m)]
    plan = one_group(tensors, m, seed=3)
    assert_same_bits(sketched(plan, tensors), definition(plan, tensors).float())


@pytest.mark.parametrize("n", [129, 4 * 128, 31 * 128, 32 * 128, 33 * 128 - 1, 100_003])
def test_one_tensor_of_any_number_of_blocks_is_sketched_as_defined(n) -> None:
    tensors = [whole_numbers(n)]
    plan = one_group(tensors, 128, seed=n)
    assert_same_bits(sketched(plan, tensors), definition(plan, tensors).float())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_random_numbers_are_those_of_the_definition_to_rounding(dtype) -> None:
    tensors = [random_tensor(n, dtype, offset=1) for n in sizes_around(1024)]
    plan = one_group(tensors, 1024)
    assert_near(sketched(plan, tensors), definition(plan, tensors))


def test_groups_of_mixed_dtypes_are_each_sketched_as_defined() -> None:
    numels, groups = [3, 5000, 900, 40_000, 31, 0, 1, 77_777], [0, 1, 0, 2, 1, 2, 0, 2]
    for size in (2 * MIN_BUCKETS + 1024, 4096, 2**16):
        tensors = [whole_numbers(n, d) for n, d in zip(numels, 2 * DTYPES, strict=True)]
        plan = SketchPlan(numels, groups, 3, size, seed=9)
        assert_same_bits(sketched(plan, tensors), definition(plan, tensors).float())


def test_an_exact_group_is_its_elements_tensor_after_tensor_and_then_zeros() -> None:
    tensors = [random_tensor(n, F32) for n in (3, 0, 200, 1)]
    plan = SketchPlan([3, 0, 200, 1], [0] * 4, 1, 4096)
    assert plan.sizes.tolist() == [256]
    assert_same_bits(sketched(plan, tensors), torch.cat([*tensors, torch.zeros(52)]))


def test_an_absent_tensor_reads_as_zeros() -> None:
    numels, groups = [5000, 3000, 20, 30], [0, 0, 1, 1]
    plan = SketchPlan(numels, groups, 2, 1024)
    tensors = [whole_numbers(n) for n in numels]
    for absent in range(4):
        there = [None if k == absent else t for k, t in enumerate(tensors)]
        zeros = [torch.zeros_like(t) if k == absent else t for k, t in enumerate(tensors)]
        assert_same_bits(sketched(plan, there), sketched(plan, zeros))
    assert not sketched(plan, [None] * 4).any()


def test_the_scale_multiplies_what_is_read() -> None:
    plan = SketchPlan([5000, 20], [0, 1], 2, 1024)
    for dtype in DTYPES:
        tensors = [whole_numbers(n, dtype) for n in (5000, 20)]
        assert_same_bits(sketched(plan, tensors, scale=0.25), sketched(plan, tensors) * 0.25)


def test_a_sketch_is_linear() -> None:
    plan = SketchPlan([5000, 9000, 20], [0, 0, 1], 2, 1024)
    x, y = ([random_tensor(n, F64) for n in (5000, 9000, 20)] for _ in range(2))
    both = [2 * a - 3 * b for a, b in zip(x, y, strict=True)]
    assert_near(sketched(plan, both), 2 * sketched(plan, x).double() - 3 * sketched(plan, y).double(), 4 * ROUNDING)


def test_another_seed_gives_another_sketch_of_the_same_vector() -> None:
    tensors = [random_tensor(50_000, F32)]
    sketches = torch.stack([sketched(one_group(tensors, 1024, seed), tensors) for seed in range(6)])
    cosines = torch.corrcoef(sketches)
    assert float((cosines - torch.eye(6)).abs().max()) < 5 / 1024**0.5


def test_a_sketch_depends_on_its_own_group_s_tensors_alone() -> None:
    first, second = whole_numbers(20_000), whole_numbers(30_000)
    alone = SketchPlan([20_000], [0], 1, 512)
    both = SketchPlan([20_000, 30_000], [0, 1], 2, 1024)
    assert_same_bits(sketched(alone, [first]), groups_of(both, sketched(both, [first, second]))[0])


# ---------------------------------------------------------------- threads


def in_threes(loop: Callable[..., None], tasks, cost, *arguments) -> None:
    """Backwards, three at a time."""
    assert len(cost) == len(tasks)
    for some in np.array_split(tasks[::-1], max(1, len(tasks) // 3)):
        loop(some, *arguments)


def among(n_threads: int) -> Callable[..., None]:
    """One task at a time, to whichever thread is free."""

    def run_chunks(loop: Callable[..., None], tasks, cost, *arguments) -> None:
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(lambda task: loop(np.array([task]), *arguments), tasks))

    return run_chunks


def test_no_bit_depends_on_how_the_work_is_shared_or_on_the_number_of_threads(monkeypatch) -> None:
    numels, groups = [700_000, 3, 90_000, 2000], [0, 1, 2, 2]
    plan = SketchPlan(numels, groups, 3, 2**14)
    tensors = [random_tensor(n, d) for n, d in zip(numels, DTYPES, strict=True)]
    results = []
    for run_chunks in (threads.run_chunks, in_threes, among(2), among(5)):
        monkeypatch.setattr(threads, "run_chunks", run_chunks)
        out = torch.full((plan.total,), torch.nan)
        moments = sketch_moments(plan, table(tensors), out)
        results.append([out, *(torch.from_numpy(m.copy()) for m in moments)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same_bits(a, b)


# ---------------------------------------------------------------- moments


def by_group(plan: SketchPlan, partials, add: np.ufunc = np.add) -> Tensor:
    """Partial results of tasks gathered by group, and over all of them in the last row, as the engine does it."""
    segments = sketch_tasks(plan).segments
    gathered = np.zeros((plan.n_groups, *partials.shape[1:]), partials.dtype)
    gathered[segments.nonempty] = add.reduceat(partials[segments.order], segments.first, axis=0)
    return torch.from_numpy(np.concatenate([gathered, add.reduce(gathered, axis=0, keepdims=True)]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_are_those_of_the_reference_in_every_group(dtype) -> None:
    numels, groups = [70_001, 3, 9000, 0, 200, 4096], [0, 1, 2, 2, 1, 2]
    plan = SketchPlan(numels, groups, 3, 2**13)
    tensors = [random_tensor(n, dtype, offset=1) for n in numels]
    sums, grad_absmax, nonfinite = sketch_moments(plan, table(tensors), torch.empty(plan.total))
    grad_sq, largest = by_group(plan, sums)[:, 0], by_group(plan, grad_absmax, np.maximum)
    for g in (0, 1, 2, -1):
        members = [t for t, group in zip(tensors, groups, strict=True) if g in {group, -1}]
        assert_accurate(float(grad_sq[g]), reference.dot(members, members), torch.square, members)
        assert float(largest[g]) == reference.grad_absmax(members)
    assert not nonfinite.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_is_counted_where_it_stands_and_spoils_its_own_buckets_only(dtype) -> None:
    numels, groups = [20_000, 3000, 50], [0, 1, 2]
    plan = SketchPlan(numels, groups, 3, 2**11)
    tensors = [random_tensor(n, dtype) for n in numels]
    tensors[1][[5, 2999]] = torch.tensor([torch.nan, -torch.inf], dtype=dtype)
    tensors[2][49] = torch.nan
    out = torch.empty(plan.total)
    _, grad_absmax, nonfinite = sketch_moments(plan, table(tensors), out)
    assert by_group(plan, nonfinite).tolist() == [0, 2, 1, 3]
    assert by_group(plan, grad_absmax, np.maximum).tolist() == [reference.grad_absmax([t]) for t in tensors] + [
        torch.inf
    ]
    assert [int((~part.isfinite()).sum()) for part in groups_of(plan, out)] == [0, 2, 1]


def test_the_sketch_of_a_list_without_elements_has_no_moments() -> None:
    plan = SketchPlan([0], [0], 1, 128)
    sums, grad_absmax, nonfinite = sketch_moments(plan, table([torch.zeros(0)]), torch.empty(plan.total))
    assert not sums.any() and not grad_absmax.any() and not nonfinite.any()


@pytest.mark.parametrize(
    "out", [torch.empty(127), torch.empty(128, dtype=F64), torch.empty(256)[::2]], ids=["short", "float64", "strided"]
)
def test_a_sketch_goes_to_float32_memory_of_its_own_length_only(out) -> None:
    plan = SketchPlan([500], [0], 1, 128)
    with pytest.raises(ValueError, match="out: expected 128 contiguous float32, got"):
        sketch_moments(plan, table([torch.zeros(500)]), out)


# ---------------------------------------------------------------- updates

UPDATE_NUMELS, UPDATE_GROUPS = [70_001, 3, 9000, 0, 200, 4096], [0, 1, 2, 2, 1, 2]


@pytest.mark.parametrize("gradient_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sketch_and_moments_of_an_update_are_those_of_the_difference(dtype, gradient_dtype) -> None:
    plan = SketchPlan(UPDATE_NUMELS, UPDATE_GROUPS, 3, 2**13)
    before, after = ([random_tensor(n, dtype, offset=1) for n in UPDATE_NUMELS] for _ in range(2))
    gradient = [random_tensor(n, gradient_dtype) for n in UPDATE_NUMELS]
    update = [a.double() - b.double() for a, b in zip(after, before, strict=True)]
    snapshot = [t.clone() for t in before]
    out = torch.full((plan.total,), torch.nan)
    sums = update_sketch(plan, table(after), table(snapshot), out, gradient=table(gradient), scale=0.5)
    assert_near(out, definition(plan, update))
    x_sq, u_sq, g_dot_u = by_group(plan, sums).unbind(1)
    for g in (0, 1, 2, -1):
        chosen = [k for k, group in enumerate(UPDATE_GROUPS) if g in {group, -1}]
        x, u, d = ([part[k] for k in chosen] for part in (after, update, gradient))
        d = [t.double() * 0.5 for t in d]
        assert_accurate(float(x_sq[g]), reference.dot(x, x), torch.square, x)
        assert_accurate(float(u_sq[g]), reference.dot(u, u), torch.square, u)
        assert_accurate(float(g_dot_u[g]), reference.dot(d, u), torch.mul, d, u)
    for kept, new in zip(snapshot, after, strict=True):
        assert_same_bits(kept, new)


def test_updates_of_whole_numbers_have_the_sums_of_the_definition_and_absent_gradients_count_as_zeros(
    monkeypatch,
) -> None:
    plan = SketchPlan(UPDATE_NUMELS, UPDATE_GROUPS, 3, 2**13, seed=4)
    before, after = ([whole_numbers(n) for n in UPDATE_NUMELS] for _ in range(2))
    update = [a - b for a, b in zip(after, before, strict=True)]
    gradient = [whole_numbers(n) for n in UPDATE_NUMELS]
    monkeypatch.setattr(threads, "run_chunks", in_threes)
    for g in ([None] * 6, [None, *gradient[1:]]):
        out = torch.full((plan.total,), torch.nan)
        snapshot = [t.clone() for t in before]
        sums = update_sketch(plan, table(after), table(snapshot), out, gradient=table(g))
        assert_same_bits(out, definition(plan, update).float())
        known = [(d, u) for d, u in zip(g, update, strict=True) if d is not None]
        assert sums.sum(0)[2] == (reference.dot(*map(list, zip(*known, strict=True))) if known else 0)
    sums = update_sketch(plan, table(after), table([t.clone() for t in before]), out)
    assert not sums[:, 2].any() and sums[:, 1].sum() == reference.dot(update, update)


def test_a_missing_parameter_is_left_out_and_nothing_beyond_a_snapshot_is_written() -> None:
    plan = SketchPlan([5000, 20], [0, 1], 2, 1024)
    block = torch.full((5000 + 14,), torch.nan)
    snapshot = block[7:-7]
    snapshot[:] = 0
    sums = update_sketch(
        plan, table([x := whole_numbers(5000), None]), table([snapshot, None]), torch.empty(plan.total)
    )
    assert sums[:, 0].sum() == float(x.square().sum())
    assert_same_bits(snapshot, x)
    assert block[:7].isnan().all() and block[-7:].isnan().all()

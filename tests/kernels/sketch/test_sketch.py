"""The sketch kernels against the CPU engine, bit for bit where sums are exact, and against `fastgeom.reference`."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgeom import reference
from fastgeom.engines.cpu.sketch_passes import sketch_moments, update_sketch
from fastgeom.engines.triton.sketch_tables import SketchPrograms, sketch_programs
from fastgeom.kernels.loads import ABSENT, SHORT
from fastgeom.kernels.sketch.sketch import (
    SKETCH_COPY,
    SKETCH_PROGRAMS,
    SKETCH_SUM,
    SKETCH_TILES,
    launch_sketch,
    sketch_bytes,
    sketch_update_bytes,
)
from fastgeom.layout.count_sketch import SketchPlan
from fastgeom.validation import DTYPES
from tests.support import assert_same_bits, random_tensor, table

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
NARROW = (F32, BF16, F16)
ROUNDING = 2.0**-21
"""What the norm of a sketch's error may be, relative to the sketch's norm: float32 sums of up to some hundred terms."""
SQUARES = 2.0**-20
"""The same of float32 sums of at most 64 squares or products, relative to the sum of their magnitudes."""

Tensors = Sequence[Tensor | None]


def tables(plan: SketchPlan, n_programs: int = SKETCH_PROGRAMS) -> SketchPrograms:
    return sketch_programs(plan, SKETCH_TILES, n_programs, SKETCH_COPY, SKETCH_SUM)


def whole_numbers(numel: int, dtype: torch.dtype = F32, *, offset: int = 0) -> Tensor:
    """Numbers whose sums are exact in float32, from element ``offset`` of their storage on."""
    return torch.randint(-8, 9, (offset + numel,)).to(dtype)[offset:]


def located(tensors: Tensors, *others: Tensors) -> tuple[list[int], list[int]]:
    """Addresses and codes; a code is that of an aligned tensor if all tensors at its place are aligned."""
    codes = []
    for aligned in zip(tensors, *others, strict=True):
        if aligned[0] is None:
            codes.append(ABSENT.value)
        else:
            misaligned = any(t.data_ptr() % 16 for t in aligned)
            codes.append(DTYPES.index(aligned[0].dtype) + SHORT.value * misaligned)
    return [0 if t is None else t.data_ptr() for t in tensors], codes


class Sketched:
    """What a launch leaves: ``out``, ``partials``, and the group of each row of these."""

    def __init__(
        self,
        device: torch.device,
        plan: SketchPlan,
        tensors: Tensors,
        *,
        snapshot: Tensors | None = None,
        gradient: Tensors | None = None,
        n_programs: int = SKETCH_PROGRAMS,
        scale: float | None = None,
    ) -> None:
        found = tables(plan, n_programs)
        in_order = [[each[k] for k in plan.tensors] if each else [] for each in (tensors, snapshot, gradient)]
        rows = torch.zeros(len(plan.tensors), 8, dtype=torch.int64)
        rows[:, :3] = torch.from_numpy(found.tensors)
        if snapshot:
            rows[:, 3], rows[:, 4] = map(torch.tensor, located(in_order[0], in_order[1]))
            rows[:, 5] = torch.tensor(located(in_order[1])[0])
            rows[:, 6], rows[:, 7] = map(torch.tensor, located(in_order[2]))
        elif tensors:
            rows[:, 3], rows[:, 4] = map(torch.tensor, located(in_order[0]))
        self.plan = plan
        self.groups = np.concatenate(found.groups)
        self.out = torch.full((plan.total,), torch.nan, device=device)
        self.partials = torch.full((len(self.groups), 3), torch.nan, dtype=F64, device=device)
        launch_sketch(
            [on(device, t) for t in found.programs],
            on(device, found.copies),
            on(device, found.sums),
            rows.to(device),
            torch.full((found.scratch,), torch.nan, device=device),
            self.partials,
            out=self.out,
            update=snapshot is not None,
            wide=any(t is not None and t.dtype is F64 for t in [*tensors, *in_order[2]]),
            scale=None if scale is None else torch.tensor(scale, dtype=F64, device=device),
        )

    def moments(self, g: int) -> tuple[float, float, float]:
        """The partial results of a group: two sums around a maximum."""
        first, second, third = self.partials[self.groups == g].cpu().unbind(1)
        return float(first.sum()), float(second.max()) if len(second) else 0.0, float(third.sum())

    def sums(self, g: int) -> list[float]:
        return self.partials[self.groups == g].sum(0).tolist()


def on(device: torch.device, array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def there(device: torch.device, tensors: Tensors) -> list[Tensor | None]:
    """The tensors on the device, as far from a multiple of 16 bytes as they were."""
    moved = []
    for t in tensors:
        offset = 0 if t is None else t.storage_offset()
        moved.append(t if t is None else t.as_strided((offset + len(t),), (1,), 0).to(device)[offset:])
    return moved


def by_cpu(plan: SketchPlan, tensors: Tensors, **options) -> Tensor:
    out = torch.empty(plan.total)
    sketch_moments(plan, table(tensors), out, **options)
    return out


def members(plan: SketchPlan, tensors: Tensors, g: int) -> list[Tensor]:
    return [t for t, group in zip(tensors, plan.groups, strict=True) if group == g and t is not None]


def definition(plan: SketchPlan, tensors: Sequence[Tensor]) -> Tensor:
    """Every group by the textbook, one after the other."""
    return torch.cat(
        [
            reference.count_sketch(members(plan, tensors, g), int(plan.sizes[g]), int(plan.seeds[g]))
            for g in range(plan.n_groups)
        ]
    )


def assert_near(sketch: Tensor, truth: Tensor) -> None:
    error, allowed = (sketch.cpu().double() - truth).norm(), ROUNDING * truth.norm()
    assert error <= allowed, f"off by {error:.3g}, allowed {allowed:.3g}"


def sizes_around(m: int) -> tuple[int, ...]:
    """Rounds of 32 blocks inside of a tensor, one that ends with its last block, and some with blocks of several."""
    return (63 * m + 21, 1, 63, 0, m - 1, m, m + 1, 70 * m + 5)


# ---------------------------------------------------------------- buckets and signs


@pytest.mark.parametrize("m", [128, 256, 2048])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_sums_of_whole_numbers_are_those_of_the_cpu_engine(device, dtype, m) -> None:
    sizes = sizes_around(m) if m == 128 else (3 * m + 5, 3)
    tensors = [whole_numbers(n, dtype) for n in sizes]
    plan = SketchPlan(sizes, [0] * len(sizes), 1, m, seed=5)
    found = Sketched(device, plan, there(device, tensors), n_programs=3)
    assert_same_bits(found.out.cpu(), by_cpu(plan, tensors))
    assert found.moments(0) == (reference.dot(tensors, tensors), reference.grad_absmax(tensors), 0)


def test_tensors_that_begin_anywhere_have_the_same_sums(device) -> None:
    sizes = (300, 5, 130, 40 * 128)
    for dtype in NARROW:
        tensors = [whole_numbers(n, dtype, offset=k) for k, n in enumerate(sizes)]
        plan = SketchPlan(sizes, [0] * 4, 1, 128)
        assert_same_bits(Sketched(device, plan, there(device, tensors)).out.cpu(), by_cpu(plan, tensors))


def test_groups_of_mixed_dtypes_exact_ones_and_absent_tensors_have_the_sums_of_the_cpu_engine(device) -> None:
    numels, groups = [3, 2600, 600, 2000, 31, 0, 90, 1777, 50], [0, 1, 0, 2, 1, 2, 3, 2, 4]
    tensors: list[Tensor | None] = [whole_numbers(n, d) for n, d in zip(numels, 3 * NARROW, strict=True)]
    tensors[7] = None
    plan = SketchPlan(numels, groups, 5, 1400, seed=2)
    assert plan.exact.any() and len(set(plan.sizes[~plan.exact].tolist())) > 1
    found = Sketched(device, plan, there(device, tensors))
    assert_same_bits(found.out.cpu(), by_cpu(plan, tensors))
    for g in range(5):
        own = members(plan, tensors, g)
        assert found.moments(g) == (reference.dot(own, own), reference.grad_absmax(own), 0)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_random_numbers_have_the_sums_of_the_definition_to_rounding_and_exact_moments(device, dtype) -> None:
    numels, groups = [2000, 300, 100], [0, 0, 1]
    tensors = [random_tensor(n, dtype, offset=k) for k, n in enumerate(numels)]
    plan = SketchPlan(numels, groups, 2, 400)
    found = Sketched(device, plan, there(device, tensors), n_programs=4)
    assert_near(found.out, definition(plan, tensors))
    for g in range(2):
        own = members(plan, tensors, g)
        grad_sq, largest, bad = found.moments(g)
        assert grad_sq == pytest.approx(reference.dot(own, own), rel=SQUARES)
        assert largest == reference.grad_absmax(own) and bad == 0


def test_the_same_bits_come_a_second_time_and_sums_of_whole_numbers_for_any_number_of_programs(device) -> None:
    tensors = there(device, [random_tensor(900, BF16)])
    plan = SketchPlan([900], [0], 1, 128)
    first, second = (Sketched(device, plan, tensors, n_programs=2) for _ in range(2))
    assert_same_bits(first.out, second.out)
    assert_same_bits(first.partials, second.partials)
    numels = [3000, 90, 1300, 50]
    whole = [whole_numbers(n) for n in numels]
    plan = SketchPlan(numels, [0] * 4, 1, 128)
    (programs,) = (p for p in tables(plan, 3).programs if p.size)
    assert (programs[6] != programs[7]).any(), "a program begins past the group's first tensor"
    shared = Sketched(device, plan, there(device, whole), n_programs=3)
    assert_same_bits(shared.out.cpu(), by_cpu(plan, whole))


def test_float64_is_read_and_measured_as_such(device) -> None:
    numels, groups = [900, 300, 40, 200], [0, 0, 1, 0]
    tensors = [
        random_tensor(n, d, offset=1) * 10.0 ** (30 if d is F64 else 0)
        for n, d in zip(numels, (F64, F32, F64, BF16), strict=True)
    ]
    plan = SketchPlan(numels, groups, 2, 300)
    found = Sketched(device, plan, there(device, tensors))
    assert_near(found.out, definition(plan, tensors))
    for g in range(2):
        own = members(plan, tensors, g)
        grad_sq, largest, bad = found.moments(g)
        assert grad_sq == pytest.approx(reference.dot(own, own), rel=1e-14)
        assert largest == reference.grad_absmax(own) and bad == 0


def test_the_scale_multiplies_the_sketch_and_the_moments(device) -> None:
    numels, groups = [900, 40], [0, 1]
    plan = SketchPlan(numels, groups, 2, 300)
    tensors = [whole_numbers(n, BF16) for n in numels]
    found = Sketched(device, plan, there(device, tensors), scale=-0.25)
    assert_same_bits(found.out.cpu() + 0.0, by_cpu(plan, tensors) * -0.25 + 0.0)
    for g in range(2):
        own = members(plan, tensors, g)
        assert found.moments(g) == (reference.dot(own, own) / 16, reference.grad_absmax(own) / 4, 0)
    nothing = Sketched(device, plan, [None, None], scale=torch.inf)
    assert not nothing.out.any() and not nothing.partials.any()


@pytest.mark.parametrize("dtype", (*NARROW, F64), ids=str)
def test_what_is_not_finite_is_counted_where_it_stands_and_spoils_its_own_buckets_only(device, dtype) -> None:
    numels, groups = [900, 400, 50, 200], [0, 1, 2, 1]
    tensors = [random_tensor(n, dtype, offset=k) for k, n in enumerate(numels)]
    tensors[1][[5, 399]] = torch.tensor([torch.nan, -torch.inf], dtype=dtype)
    tensors[2][49] = torch.nan
    plan = SketchPlan(numels, groups, 3, 600)
    found = Sketched(device, plan, there(device, tensors), n_programs=4)
    for g in range(3):
        own = members(plan, tensors, g)
        assert found.moments(g)[1:] == (reference.grad_absmax(own), reference.nonfinite(own))
    parts = [found.out[o : o + m] for o, m in zip(plan.offsets, plan.sizes, strict=True)]
    assert [int((~part.isfinite()).sum()) for part in parts] == [0, 2, 1]


def test_squares_that_overflow_count_nothing(device) -> None:
    tensors = [torch.full((900,), 1e20)]
    found = Sketched(device, SketchPlan([900], [0], 1, 128), there(device, tensors))
    assert found.moments(0) == (torch.inf, torch.tensor(1e20).item(), 0)


def test_a_list_without_elements_has_a_sketch_of_zeros(device) -> None:
    assert not Sketched(device, SketchPlan([0], [0], 1, 128), there(device, [torch.zeros(0)])).out.any()
    assert len(Sketched(device, SketchPlan([], [], 0, 128), []).out) == 0


# ---------------------------------------------------------------- updates

NUMELS, GROUPS = [300, 3, 200, 0, 60], [0, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("dtype", "gradient_dtype"), [(F32, F32), (F32, BF16), (BF16, F32), (BF16, F16), (F16, F16)], ids=str
)
def test_updates_of_whole_numbers_have_the_sums_of_the_cpu_engine(device, dtype, gradient_dtype) -> None:
    plan = SketchPlan(NUMELS, GROUPS, 2, 300, seed=4)
    after, before = ([whole_numbers(n, dtype, offset=k % 2) for k, n in enumerate(NUMELS)] for _ in range(2))
    gradient: list[Tensor | None] = [whole_numbers(n, gradient_dtype) for n in NUMELS]
    gradient[4] = None
    snapshot = there(device, [t.clone() for t in before])
    found = Sketched(device, plan, there(device, after), snapshot=snapshot, gradient=there(device, gradient), scale=0.5)
    for kept, new in zip(snapshot, after, strict=True):
        assert_same_bits(kept.cpu(), new)
    out = torch.empty(plan.total)
    options = {"gradient": table(gradient, gradient_dtype), "scale": 0.5}
    expected = update_sketch(plan, table(after), table(before), out, **options)
    assert_same_bits(found.out.cpu(), out)
    assert torch.equal(found.partials.sum(0).cpu(), torch.from_numpy(expected.sum(0)))


@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, F32), (F64, F64), (F64, BF16), (F32, F64)], ids=str)
def test_updates_of_random_numbers_have_the_sums_of_the_definition_to_rounding(device, dtypes) -> None:
    own, gradient_dtype = dtypes
    plan = SketchPlan(NUMELS, GROUPS, 2, 300)
    after, before = ([random_tensor(n, own) for n in NUMELS] for _ in range(2))
    gradient = [random_tensor(n, gradient_dtype) for n in NUMELS]
    update = [a.double() - b.double() for a, b in zip(after, before, strict=True)]
    snapshot = there(device, before)
    found = Sketched(device, plan, there(device, after), snapshot=snapshot, gradient=there(device, gradient))
    assert_near(found.out, definition(plan, update))
    rounding = 1e-14 if F64 in dtypes else SQUARES
    for g in range(2):
        x, u, d = (reference.flat(members(plan, each, g)) for each in (after, update, gradient))
        for ours, a, b in zip(found.sums(g), (x, u, d), (x, u, u), strict=True):
            assert abs(ours - float(a @ b)) <= rounding * float((a * b).abs().sum())
    for kept, new in zip(snapshot, after, strict=True):
        assert_same_bits(kept.cpu(), new)


def test_nothing_beyond_a_snapshot_is_written(device) -> None:
    plan = SketchPlan([300, 60], [0, 1], 2, 300)
    for dtype, offset in ((F32, 8), (BF16, 8), (BF16, 7), (F64, 7)):
        blocks = [torch.full((n + 2 * offset,), torch.nan, dtype=dtype, device=device) for n in (300, 60)]
        snapshot = [block[offset : len(block) - offset] for block in blocks]
        for t in snapshot:
            t.zero_()
        after = there(device, [whole_numbers(n, dtype) for n in (300, 60)])
        Sketched(device, plan, after, snapshot=snapshot, gradient=[None, None])
        for block, kept, new in zip(blocks, snapshot, after, strict=True):
            assert_same_bits(kept, new)
            assert block[:offset].isnan().all() and block[len(block) - offset :].isnan().all()


# ---------------------------------------------------------------- tables and bytes


def test_every_batch_of_every_tile_belongs_to_one_program_and_every_bucket_is_written_once() -> None:
    plan = SketchPlan([10**6, 20, 30_000, 10**5, 2000], [0, 1, 2, 2, 3], 4, 2**15)
    found = tables(plan, 100)
    written = np.zeros(plan.total, np.int64)
    scratch = np.zeros(found.scratch, np.int64)
    for width, programs in zip(SKETCH_TILES, found.programs, strict=True):
        for bucket in np.unique(programs[0]):
            for buckets in np.unique(programs[1]):
                own = programs[:, (programs[0] == bucket) & (programs[1] == buckets)]
                batches = [np.arange(a, b) for a, b in zip(own[4], own[5], strict=True)]
                expected = np.tile(np.arange(8 * -(-own[2, 0] // 32)), len(batches) and 1) if batches else []
                assert np.array_equal(np.concatenate([[], *batches]), expected)
        for target in programs[8]:
            memory, begin = (written, target) if target >= 0 else (scratch, -1 - target)
            memory[begin : begin + width] += 1
    for target, source, runs, distance in found.sums.T:
        written[target : target + min(SKETCH_SUM, distance)] += 1
        for run in range(runs):
            assert (scratch[source + run * distance :][: min(SKETCH_SUM, distance)] == 1).all()
    for _, _, length, target in found.copies.T:
        written[target : target + length] += 1
    assert (written == 1).all() and (scratch == 1).all()


@pytest.mark.parametrize("size", [2**12, 2**18, 2**20, 2**24])
@pytest.mark.parametrize("n_groups", [1, 30])
def test_programs_are_about_as_many_as_asked_for_and_scratch_is_bounded(size, n_groups) -> None:
    plan = SketchPlan([10**9 // n_groups] * n_groups, range(n_groups), n_groups, size)
    found = tables(plan)
    n_programs, n_tiles = sum(p.shape[1] for p in found.programs), len(plan.tiles(*SKETCH_TILES).group)
    assert n_tiles <= n_programs <= max(n_tiles, SKETCH_PROGRAMS)
    assert n_programs > SKETCH_PROGRAMS / 2
    assert found.scratch <= SKETCH_PROGRAMS * SKETCH_TILES[0]
    assert size < 2**20 or found.scratch == 0


def test_bytes_are_those_that_must_be_moved() -> None:
    assert sketch_bytes(10, 2) == 20
    assert sketch_update_bytes(10, 2, 4) == 10 * (2 + 3 * 4)

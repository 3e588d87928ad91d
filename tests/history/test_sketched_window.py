"""The CPU engine's window of sketches: its numbers are those of plain sketches, its memory is a ring."""

import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastgeom.engines.cpu.sketch_passes import TILE, sketch_moments, update_sketch
from fastgeom.engines.cpu.sketcher import CpuSketchWindow
from fastgeom.engines.results import SketchMoments, UpdateMoments
from fastgeom.layout.chunks import CHUNK_ELEMENTS
from fastgeom.layout.count_sketch import SketchPlan
from fastgeom.layout.layout import Layout
from tests.support import FLOOR, assert_same_bits, memory_of, random_tensor, table

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
TENSORS = {
    "a.weight": (70_001, F32),
    "a.bias": (300, F64),
    "a.gain": (5000, BF16),
    "b.weight": (TILE + 700, BF16),
    "b.bias": (7, F16),
    "b.none": (0, F32),
    "c.weight": (20_000, F64),
    "c.bias": (33, F16),
    "d.weight": (40, F32),
}
SIZE = 8192 + 4096 + 4096 + 64
"""Layers a and c are hashed, in tiles of 2048 buckets; b and d are exact, b in several runs, both with padding."""

Gradient = Sequence[Tensor | None]


@dataclass(frozen=True)
class Step:
    """One step: which tensors are absent, whether it is skipped, what the gradients are multiplied by."""

    number: int
    absent: tuple[int, ...] = ()
    found_inf: float | None = None
    scale: float | None = None


STEPS = (
    Step(3),
    Step(4),
    Step(5, absent=(0, 4, 7)),
    Step(6, scale=4.0),
    Step(7),
    Step(8, found_inf=0.0),
    Step(10, absent=(3, 8)),
    Step(11),
    Step(12, found_inf=1.0),
    Step(13, scale=0.5),
    Step(14, absent=tuple(range(9))),
    Step(15),
    Step(16),
    Step(40),
    Step(41),
)
"""The window fills and wraps around, with a gap, a skipped step, a step without gradients, and a gap beyond it."""


@dataclass
class Truth:
    """All sketches of a run as float64 vectors, and what a new one is against them by numpy."""

    plan: SketchPlan
    window: int
    sketches: dict[int, np.ndarray] = field(default_factory=dict)
    norms: dict[int, np.ndarray] = field(default_factory=dict)

    def parts(self, sketch: np.ndarray) -> list[np.ndarray]:
        """The sketch of every layer, then the whole."""
        return [*np.split(sketch, self.plan.offsets[1:]), sketch]

    def norm(self, sketch: np.ndarray) -> np.ndarray:
        return np.array([np.sqrt((part**2).sum()) for part in self.parts(sketch)])

    def moments(self, sketch: Tensor, step: int) -> dict[str, np.ndarray]:
        s = sketch.double().numpy()
        rows = len(self.parts(s))
        expected = {name: np.full((rows, self.window), np.nan) for name in ("lag_cosine", "past_norm")}
        expected |= {name: np.full(rows, np.nan) for name in ("diff_sq", "sum_sq")}
        for lag in range(1, self.window + 1):
            p = self.sketches.get(step - lag)
            if p is None:
                continue
            dots = np.array([(x * y).sum() for x, y in zip(self.parts(s), self.parts(p), strict=True)])
            with np.errstate(invalid="ignore"):  # 0 / 0
                expected["lag_cosine"][:, lag - 1] = dots / (self.norm(s) * self.norm(p))
            expected["past_norm"][:, lag - 1] = self.norms[step - lag]
            if lag == 1:
                expected["diff_sq"] = self.norm(s - p) ** 2
                expected["sum_sq"] = self.norm(s + p) ** 2
        return expected


def layout_and_plan(size: int = SIZE, seed: int = 5) -> tuple[Layout, SketchPlan]:
    layout = Layout([(name, torch.zeros(n, dtype=dtype)) for name, (n, dtype) in TENSORS.items()])
    return layout, SketchPlan(layout.numels, layout.layer, len(layout.layers), size, seed)


def gradient_at(step: Step, common: Sequence[Tensor]) -> list[Tensor | None]:
    fresh = [c + 0.5 * random_tensor(c.numel(), c.dtype) for c in common]
    return [None if k in step.absent else g for k, g in enumerate(fresh)]


def common_part() -> list[Tensor]:
    return [random_tensor(n, dtype) for n, dtype in TENSORS.values()]


def plain(plan: SketchPlan, gradient: Gradient, scale: float = 1.0) -> Tensor:
    out = torch.full((plan.total,), torch.nan)
    sketch_moments(plan, table(gradient), out, scale=scale)
    return out


def reduce_by_layer(layout: Layout, tensors: Gradient, others: Gradient | None = None) -> np.ndarray:
    """Sums of products in float64 by layer, then over all."""
    pairs = zip(tensors, others or tensors, strict=True)
    dots = [0.0 if a is None or b is None else float((a.double() * b.double()).sum()) for a, b in pairs]
    dots = np.bincount(layout.layer, dots, len(layout.layers))
    return np.append(dots, dots.sum())


def options_of(step: Step) -> dict[str, Tensor]:
    named = {"found_inf": step.found_inf, "grad_scale": step.scale}
    return {name: torch.tensor(value) for name, value in named.items() if value is not None}


def assert_moments(found: SketchMoments, expected: dict[str, np.ndarray], where: str = "") -> None:
    """Cosines to the rounding of float64 sums, whose terms come to at most 1 in magnitude; all else relative to it."""
    np.testing.assert_allclose(found.lag_cosine, expected["lag_cosine"], rtol=0, atol=FLOOR, err_msg=f"cosine {where}")
    for name in ("past_norm", "diff_sq", "sum_sq"):
        np.testing.assert_allclose(getattr(found, name), expected[name], rtol=FLOOR, err_msg=f"{name} {where}")


@dataclass(frozen=True)
class Measured:
    """What a window said of one step, and what it should have said."""

    step: Step
    gradient: Gradient
    found: SketchMoments
    expected: dict[str, np.ndarray]
    out: Tensor
    plain: Tensor
    ring: Tensor
    update: tuple[UpdateMoments, list[np.ndarray]] | None = None
    found_of_update: SketchMoments | None = None
    expected_of_update: dict[str, np.ndarray] | None = None


def run(window: int, *, updates: bool = False) -> Iterator[Measured]:
    """A run of all steps through a window."""
    layout, plan = layout_and_plan()
    past, truth, common = CpuSketchWindow(layout, plan, window), Truth(plan, window), common_part()
    parameter = [torch.zeros_like(t) for t in common]
    for step in STEPS:
        gradient, scale = gradient_at(step, common), 1.0 / (step.scale or 1.0)
        options = options_of(step)
        update = ()
        if updates:
            before = [x.clone() for x in parameter]
            for x, g in zip(parameter, common, strict=True):
                x.add_(g + random_tensor(x.numel(), x.dtype), alpha=0.1)
            past.prepare(table(gradient), table(parameter))
            exact, found = past.measure_update(
                table(parameter), table(gradient), step.number, grad_scale=options.get("grad_scale")
            )
            u = [x.double() - old.double() for x, old in zip(parameter, before, strict=True)]
            g = [None if t is None else t.double() * scale for t in gradient]
            sums = [reduce_by_layer(layout, parameter), reduce_by_layer(layout, u), reduce_by_layer(layout, g, u)]
            sketch = torch.full((plan.total,), torch.nan)
            update_sketch(plan, table(parameter), table(before), sketch)
            update = (exact, sums), found, truth.moments(sketch, step.number)
        past.prepare(table(gradient))
        out = torch.full((plan.total,), torch.nan)
        _, found = past.measure(table(gradient), step.number, out=out, **options)
        sketch = plain(plan, gradient, scale)
        expected = truth.moments(sketch, step.number)
        yield Measured(step, gradient, found, expected, out, sketch, past._ring.clone(), *update)
        if not step.found_inf:
            truth.sketches[step.number] = sketch.double().numpy()
            truth.norms[step.number] = np.sqrt(reduce_by_layer(layout, gradient)) * scale


# ---------------------------------------------------------------- numbers


def test_the_layers_of_these_tests_are_hashed_and_exact() -> None:
    _, plan = layout_and_plan()
    assert plan.exact.tolist() == [False, True, False, True]
    assert plan.sizes.tolist() == [8192, 4096, 4096, 64]


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8])
def test_lags_differences_and_sums_are_those_of_plain_sketches_kept_one_by_one(window) -> None:
    known = 0
    for each in run(window):
        assert_moments(each.found, each.expected, f"at {each.step}")
        known += int(np.isfinite(each.expected["lag_cosine"][-1]).sum())
    assert known > len(STEPS) // 2


def test_norms_and_counts_are_exact_also_of_a_step_that_is_skipped() -> None:
    layout, plan = layout_and_plan()
    past, common = CpuSketchWindow(layout, plan, 2), common_part()
    for step in STEPS:
        gradient = gradient_at(step, common)
        exact, _ = past.measure(table(gradient), step.number, **options_of(step))
        assert not exact.nonfinite.any()
        np.testing.assert_allclose(
            exact.grad_sq, reduce_by_layer(layout, gradient) / (step.scale or 1.0) ** 2, rtol=FLOOR
        )
        np.testing.assert_allclose(exact.grad_norm, exact.grad_sq.sqrt(), rtol=FLOOR)
        grad_absmax = max([float(g.abs().max()) for g in gradient if g is not None and g.numel()] or [0.0])
        assert float(exact.grad_absmax[-1]) == grad_absmax / (step.scale or 1.0)


@pytest.mark.parametrize("window", [1, 3])
def test_updates_are_compared_with_the_gradient_before_and_leave_no_trace(window) -> None:
    for each in run(window, updates=True):
        of_update = {name: v[:, :1] if v.ndim == 2 else v for name, v in each.expected_of_update.items()}
        assert_moments(each.found_of_update, of_update, f"of the update at {each.step}")
        assert_moments(each.found, each.expected, f"at {each.step}")
        exact, sums = each.update
        measured = (exact.param_sq, exact.update_sq, exact.next_grad_dot_update)
        scales = (sums[0], sums[1], np.sqrt(sums[1]) * 1e3)  # a dot cancels: it is rounded as its factors are large
        for value, truth, scale in zip(measured, sums, scales, strict=True):
            assert np.all(np.abs(value.numpy() - truth) <= FLOOR * scale), f"{each.step}"
        assert exact.grad_dot_update.isnan().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
def test_a_gradient_that_is_not_finite_spoils_the_lags_that_meet_it_and_no_others(bad) -> None:
    layout, plan = layout_and_plan()
    past, common, window = CpuSketchWindow(layout, plan, 3), common_part(), 3
    spoilt = [1, 3]  # layers b, which is exact, and d
    for number in range(8):
        gradient = gradient_at(Step(number), common)
        if number == 2:
            gradient[3][5] = gradient[8][39] = bad
        exact, found = past.measure(table(gradient), number)
        assert exact.nonfinite.tolist() == ([0, 1, 0, 1, 2] if number == 2 else [0] * 5)
        for lag in range(1, min(number, window) + 1):
            meets = number == 2 or number - lag == 2
            expected = [meets and row in {*spoilt, 4} for row in range(5)]
            assert found.lag_cosine[:, lag - 1].isnan().tolist() == expected
            huge = found.past_norm[:, lag - 1] == torch.inf
            assert huge.tolist() == [number - lag == 2 and row in {*spoilt, 4} for row in range(5)]
        assert found.diff_sq.isfinite().tolist() == [
            number > 0 and not (number in {2, 3} and row in {*spoilt, 4}) for row in range(5)
        ]


# ---------------------------------------------------------------- what is written


def kept_whole(tensors: Gradient, names: str, size: int, scale: float) -> Tensor:
    """The sketch of an exact layer: its elements, zeros where there is no tensor, and then its padding."""
    chosen = [(t, n) for t, (name, (n, _)) in zip(tensors, TENSORS.items(), strict=True) if name.startswith(names)]
    parts = [torch.zeros(n) if t is None else t.float() * scale for t, n in chosen]
    return torch.cat([*parts, torch.zeros(size - sum(n for _, n in chosen))])


@pytest.mark.parametrize("window", [1, 3])
def test_what_is_given_out_and_what_is_kept_is_the_plain_sketch_bit_for_bit(window) -> None:
    kept = []
    for each in run(window):
        assert_same_bits(each.out, each.plain)
        scale = 1.0 / (each.step.scale or 1.0)
        assert_same_bits(each.out[8192:12288], kept_whole(each.gradient, "b.", 4096, scale))
        assert_same_bits(each.out[-64:], kept_whole(each.gradient, "d.", 64, scale))
        kept = kept if each.step.found_inf else [*kept, each.plain][-window:]
        assert all(any(torch.equal(k, row) for row in each.ring) for k in kept), f"at {each.step}"


def test_a_tensor_of_an_exact_layer_that_is_longer_than_a_chunk_is_kept_whole() -> None:
    numels = [CHUNK_ELEMENTS + 5000, 3, 10**6]
    plan = SketchPlan(numels, [0, 0, 1], 2, 2**18)
    assert plan.exact.tolist() == [True, False]
    layout = Layout([(f"{'ab'[n > 10**5]}.{n}", torch.zeros(n)) for n in numels])
    past, truth = CpuSketchWindow(layout, plan, 2), Truth(plan, 2)
    for number in range(3):
        gradient = [random_tensor(n, F32) for n in numels]
        out = torch.full((plan.total,), torch.nan)
        _, found = past.measure(table(gradient), number, out=out)
        assert_moments(found, truth.moments(out, number))
        assert_same_bits(out[: sum(numels[:2])], torch.cat(gradient[:2]))
        truth.sketches[number] = out.double().numpy()
        truth.norms[number] = np.sqrt(reduce_by_layer(layout, gradient))


def test_the_snapshot_has_the_dtypes_of_the_first_parameters() -> None:
    layout, plan = layout_and_plan()
    past, x = CpuSketchWindow(layout, plan, 2), common_part()
    past.prepare(table(x), table(x))
    past.prepare(table(x))
    with pytest.raises(ValueError, match=r"^parameter 'a.weight': expected dtype torch.float32 .*, got torch.b"):
        past.prepare(table(x), table([x[0].bfloat16(), *x[1:]]))


# ---------------------------------------------------------------- memory


class Largest(TorchDispatchMode):
    """The largest new memory of a tensor that any call returns."""

    def __init__(self, known: dict[int, int]) -> None:
        super().__init__()
        self.known, self.largest = known, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else [found]:
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, each.untyped_storage().nbytes())
        return found


@pytest.mark.parametrize("numels", [[4 * 10**6], [10**6] * 4 + [1000] * 12], ids=["one", "sixteen"])
def test_the_memory_is_window_sketches_and_not_one_more(numels) -> None:
    """Neither held nor taken for the time of a step."""
    window, size = 16, 2**18
    parameters = [torch.zeros(n) for n in numels]
    layout = Layout([(f"{k}.weight", x) for k, x in enumerate(parameters)])
    plan = SketchPlan(layout.numels, layout.layer, len(layout.layers), size)
    past, allowed = CpuSketchWindow(layout, plan, window), 0.01 * window * plan.total * 4
    gradient = table([torch.ones(n) for n in numels])
    for step in range(window + 2):
        past.prepare(gradient)
        past.measure(gradient, step)
    held = memory_of(past, layout)
    assert window * plan.total * 4 <= sum(held.values()) <= window * plan.total * 4 + allowed
    with Largest(held) as tensors:
        past.measure(gradient, window + 2)
    tracemalloc.start()
    try:
        past.measure(gradient, window + 3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak + tensors.largest <= allowed < plan.total * 4


# ---------------------------------------------------------------- threads


def test_no_bit_depends_on_the_number_of_threads() -> None:
    numels = [700_000, 3, 90_000, 2000]
    layout = Layout([(f"{'abcc'[k]}.{k}", torch.zeros(n)) for k, n in enumerate(numels)])
    plan = SketchPlan(layout.numels, layout.layer, 3, 2**14)
    gradients = [[random_tensor(n, F32) for n in numels] for _ in range(4)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            past = CpuSketchWindow(layout, plan, 2)
            for step, g in enumerate(gradients):
                past.prepare(table(g), table(g))
                updated = past.measure_update(table(g), table(gradients[0]), step)
                measured = past.measure(table(g), step)
            each = [value for found in (*updated, *measured) for value in vars(found).values() if value is not None]
            results.append([*each, past._ring])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same_bits(a, b)

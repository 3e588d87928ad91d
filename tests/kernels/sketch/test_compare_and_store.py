"""New sketches against a ring of old ones, inside the launches that make them."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgeom.engines.triton.sketch_tables import SketchPrograms, sketch_programs
from fastgeom.kernels.sketch.compare_and_store import NO_RING, SketchRing, ring_bytes, ring_columns
from fastgeom.kernels.sketch.sketch import SKETCH_COPY, SKETCH_PROGRAMS, SKETCH_SUM, SKETCH_TILES, launch_sketch
from fastgeom.layout.count_sketch import SketchPlan
from tests.support import assert_same_bits, random_tensor

F64 = torch.float64
ROUNDING = 2.0**-21
"""What a float32 sum may be off, relative to the sum of the magnitudes of its terms."""
NUMELS, GROUPS = [2600, 600, 3, 31, 0, 90, 1777, 50], [0, 0, 0, 1, 1, 3, 2, 4]


class Case:
    """A list of tensors, a ring of random sketches, and what a launch makes of them.

    Args:
        device: where.
        slots: of the ring.
        head: the newest slot.
        n_programs: few leave a tile to one program each, many share it.
    """

    def __init__(self, device: torch.device, *, slots: int, head: int = 0, n_programs: int = 40) -> None:
        self.plan = SketchPlan(NUMELS, GROUPS, 5, 1400, seed=2)
        self.programs: SketchPrograms = sketch_programs(self.plan, SKETCH_TILES, n_programs, SKETCH_COPY, SKETCH_SUM)
        self.owners = np.concatenate(self.programs.owners)
        self.slots, self.head, self.device = slots, head, device
        self.tensors = [random_tensor(n, torch.bfloat16).to(device) for n in NUMELS]
        self.ring = random_tensor(slots * self.plan.total, torch.float32).view(slots, -1).to(device)
        self.before = self.ring.clone()

    def launch(self, *, ring: bool = True, out: bool = True, skip: float | None = None, update: bool = False) -> None:
        """Sketch the tensors, or their difference from a snapshot of zeros."""
        found, n_rows = self.programs, sum(map(len, self.programs.groups))
        rows = torch.zeros(len(NUMELS), 8, dtype=torch.int64)
        rows[:, :3] = torch.from_numpy(found.tensors)
        rows[:, 3] = torch.tensor([self.tensors[k].data_ptr() for k in self.plan.tensors])
        rows[:, 4] = 2
        snapshot = [torch.zeros_like(t) for t in self.tensors]
        if update:
            rows[:, 5] = torch.tensor([snapshot[k].data_ptr() for k in self.plan.tensors])
            rows[:, 6], rows[:, 7] = rows[:, 3], rows[:, 4]
        self.out = torch.full((self.plan.total,), torch.nan, device=self.device) if out else None
        self.sums = torch.full((len(self.owners), ring_columns(self.slots)), torch.nan, device=self.device)
        state = torch.tensor([self.head, 7], device=self.device)
        flag = None if skip is None else torch.tensor(skip, device=self.device)
        launch_sketch(
            [self.there(t) for t in found.programs],
            self.there(found.copies),
            self.there(found.sums),
            rows.to(self.device),
            torch.full((found.scratch,), torch.nan, device=self.device),
            torch.full((n_rows, 3), torch.nan, dtype=F64, device=self.device),
            out=self.out,
            ring=SketchRing(self.ring, state, self.sums, flag) if ring else NO_RING,
            update=update,
        )

    def there(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def plain(self) -> Tensor:
        """The sketch, by a launch without a ring."""
        out, sums = self.out, self.sums
        self.launch(ring=False)
        sketch, self.out, self.sums = self.out, out, sums
        return sketch

    def assert_right(self, sketch: Tensor, slots: Sequence[int] | None = None) -> None:
        """The sums of every group against these slots, by default all; there is nothing of others."""
        previous = self.before[self.head]
        for g, (o, m) in enumerate(zip(self.plan.offsets, self.plan.sizes, strict=True)):
            found = self.sums[self.owners == g].double().sum(0).cpu()
            s, p, old = (t[..., o : o + m].double().cpu() for t in (sketch, previous, self.before))
            dots = torch.zeros(self.slots, dtype=F64)
            compared = list(range(self.slots)) if slots is None else slots
            dots[compared] = old[compared] @ s
            expected = torch.cat([dots, torch.stack([s @ s, (s - p) @ (s - p), (s + p) @ (s + p)])])
            magnitude = torch.cat([old.abs() @ s.abs(), torch.ones(3) * (s.abs() + p.abs()).square().sum()])
            assert ((found[:-5] - expected).abs() <= ROUNDING * magnitude).all(), f"group {g}"
            assert not found[-5:].any()


@pytest.mark.parametrize("n_programs", [1, 40], ids=["alone", "shared"])
@pytest.mark.parametrize(("slots", "head"), [(1, 0), (5, 4), (5, 2), (33, 0)])
def test_a_sketch_meets_every_slot_and_then_takes_the_one_after_the_newest(device, slots, head, n_programs) -> None:
    case = Case(device, slots=slots, head=head, n_programs=n_programs)
    assert (case.programs.scratch > 0) == (n_programs > 1), "tiles are shared, or not"
    case.launch()
    sketch = case.plain()
    assert_same_bits(case.out, sketch)
    case.assert_right(sketch)
    target = (head + 1) % slots
    for slot in range(slots):
        assert_same_bits(case.ring[slot], sketch if slot == target else case.before[slot])


def test_nothing_else_is_needed_than_the_ring(device) -> None:
    case = Case(device, slots=3)
    case.launch(out=False)
    sketch = case.plain()
    case.assert_right(sketch)
    assert_same_bits(case.ring[1], sketch)


@pytest.mark.parametrize(("options", "stored"), [({"skip": 1.0}, False), ({"skip": 0.0}, True)], ids=str)
def test_where_the_step_is_skipped_it_is_measured_but_not_stored(device, options, stored) -> None:
    case = Case(device, slots=3, head=2)
    case.launch(**options)
    case.assert_right(case.plain())
    assert torch.equal(case.ring, case.before) != stored


@pytest.mark.parametrize(("slots", "head"), [(3, 1), (40, 35)])
def test_updates_are_compared_with_the_newest_and_not_stored(device, slots, head) -> None:
    case = Case(device, slots=slots, head=head)
    case.launch(update=True)
    case.assert_right(case.plain(), slots=[head])
    assert_same_bits(case.ring, case.before)


def test_the_same_bits_come_a_second_time(device) -> None:
    case = Case(device, slots=3)
    case.launch()
    first = case.sums.clone()
    case.ring.copy_(case.before)
    case.launch()
    assert_same_bits(case.sums, first)


@pytest.mark.parametrize("size", [2**18, 2**22])
def test_partial_sums_are_a_small_part_of_the_ring(size) -> None:
    plan = SketchPlan([10**8, 10**6, 10**4], [0, 1, 2], 3, size)
    found = sketch_programs(plan, SKETCH_TILES, SKETCH_PROGRAMS, SKETCH_COPY, SKETCH_SUM)
    n_rows = sum(map(len, found.owners))
    assert n_rows * ring_columns(16) < 0.005 * 16 * plan.total


def test_bytes_are_those_that_must_be_moved() -> None:
    assert ring_bytes(1024, 16) == 4 * 1024 * 17

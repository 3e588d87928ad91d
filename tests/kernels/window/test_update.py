"""The update's moments on the device against float64: dtypes, sizes, alignment, and the snapshot that is renewed."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fastgeom import reference
from fastgeom.kernels.window.update import (
    GRAD_DOT_UPDATE,
    NEXT_GRAD_DOT_UPDATE,
    PARAM_SQ,
    UPDATE_BIG,
    UPDATE_COLUMNS,
    UPDATE_SMALL,
    UPDATE_SQ,
    launch_update,
    update_bytes,
    update_rows,
)
from fastgeom.validation import DTYPES
from tests.support import assert_same_bits, random_tensor

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
# gradient, ring, parameter; the previous gradient is kept apart, in the gradient's dtype, where the ring has fewer bits
SAME = [(F32, F32, F32), (BF16, BF16, BF16), (F16, F16, F16), (F64, F64, F64)]
MIXED = [
    (F32, BF16, F32),
    (BF16, BF16, F32),
    (F32, F32, BF16),
    (F32, BF16, BF16),
    (F16, BF16, F32),
    (F16, F16, F32),
    (BF16, F32, F32),
    (F64, F32, F64),
    (F32, F32, F64),
    (BF16, BF16, F64),
]
ADDITIONS = 16
"""What a sum may be off by, in roundings relative to its terms' magnitudes, where torch's own sum happens to be exact.

A thread adds 32 numbers at most and its warp 32 such sums, in pairs.
"""
SLOTS = 3
GUARD = 32


def called(dtypes: tuple[torch.dtype, ...]) -> str:
    return "-".join(str(d).removeprefix("torch.") for d in dtypes)


@dataclass
class Step:
    """Tensors on the device before and after an update, and where their past lies."""

    gradient: list[Tensor | None]
    parameter: list[Tensor]
    ring: Tensor
    offset: list[int]
    keep: list[Tensor | None]
    snapshot: list[Tensor]
    head: int
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]

    @property
    def wide(self) -> bool:
        return F64 in self.dtypes

    def previous(self, i: int) -> Tensor:
        numel = self.parameter[i].numel()
        if self.keep[i] is not None:
            return self.keep[i][:numel]
        return self.ring[self.head, self.offset[i] : self.offset[i] + numel]


def unit_elements(ring: torch.dtype) -> tuple[int, int]:
    return UPDATE_BIG // ring.itemsize, UPDATE_SMALL // ring.itemsize


def capacity(numel: int, ring: torch.dtype) -> int:
    small = unit_elements(ring)[1]
    return -(-numel // small) * small


def padded(content: Tensor, size: int, around: float = math.nan) -> Tensor:
    """The middle of a block of memory, 16-byte aligned: the content, zeros up to ``size``, and ``around`` beyond."""
    block = torch.full((size + 2 * GUARD,), around, dtype=content.dtype, device=content.device)
    middle = block[GUARD : GUARD + size]
    middle.zero_()
    middle[: content.numel()] = content
    assert middle.data_ptr() % 16 == 0
    return middle


def a_step(sizes, dtypes, device, *, offset=0, size_of_update=0.01, head=1) -> Step:
    own, ring_dtype, parameter_dtype = dtypes
    sizes = list(sizes)
    capacities = [capacity(n, ring_dtype) for n in sizes]
    starts = [sum(capacities[:i]) for i in range(len(sizes))]
    ring = torch.zeros(SLOTS, sum(capacities), dtype=ring_dtype)
    kept = torch.finfo(ring_dtype).eps > torch.finfo(own).eps
    parameter, snapshot, keep = [], [], []
    for n, size, start in zip(sizes, capacities, starts, strict=True):
        before = random_tensor(n, parameter_dtype)
        after = torch.empty(n + offset, dtype=parameter_dtype, device=device)[offset:]
        after.copy_((before.double() + size_of_update * random_tensor(n, F64)).to(parameter_dtype))
        parameter.append(after)
        snapshot.append(padded(before.to(device), size))
        ring[:, start : start + n] = random_tensor(SLOTS * n, ring_dtype).view(SLOTS, n)
        keep.append(padded(random_tensor(n, own).to(device), size) if kept else None)
    gradient = [torch.empty(n + offset, dtype=own, device=device)[offset:].copy_(random_tensor(n, own)) for n in sizes]
    return Step(gradient, parameter, ring.to(device), starts, keep, snapshot, head, dtypes)


def code(tensor: Tensor, begin: int, length: int, unit: int) -> int:
    fast = length == unit and (tensor.data_ptr() + begin * tensor.itemsize) % 16 == 0
    return DTYPES.index(tensor.dtype) + (0 if fast else 4)


def units(step: Step, i: int, small: bool) -> list[list[int]]:
    """The columns of the units of tensor i: as many big ones as are whole, small ones for the rest."""
    big, unit = unit_elements(step.dtypes[1])
    x, g, keep, numel = step.parameter[i], step.gradient[i], step.keep[i], step.parameter[i].numel()
    border = numel // big * big
    begins = range(border, numel, unit) if small else range(0, border, big)
    columns = []
    for begin in begins:
        length = min(unit, numel - begin) if small else big
        where = begin * x.itemsize
        absent = 8 + (DTYPES.index(step.dtypes[0]) if keep is not None else 0)
        columns.append(
            [
                0 if g is None else g.data_ptr() + begin * g.itemsize,
                absent if g is None else code(g, begin, length, unit if small else big),
                length,
                step.offset[i] + begin,
                0 if keep is None else keep.data_ptr() + begin * keep.itemsize,
                x.data_ptr() + where,
                code(x, begin, length, unit if small else big),
                step.snapshot[i].data_ptr() + where,
            ]
        )
    return columns


def measure(step: Step, scale: float | None = None) -> Tensor:
    """(tensor, 4) float64: the sums of each tensor, whose snapshots are renewed."""
    device = step.ring.device
    state = torch.tensor([step.head, 7], dtype=torch.int64, device=device)
    factor = None if scale is None else torch.tensor(scale, dtype=F64, device=device)
    sums = torch.zeros(len(step.parameter), UPDATE_COLUMNS, dtype=F64)
    for small in (False, True):
        columns = [units(step, i, small) for i in range(len(step.parameter))]
        flat = [unit for tensor in columns for unit in tensor]
        table = torch.tensor(flat, dtype=torch.int64, device=device).view(-1, 8).T.contiguous()
        rows = update_rows(len(flat), small)
        partials = torch.full((rows, UPDATE_COLUMNS), math.nan, dtype=F64 if step.wide else F32, device=device)
        launch_update(
            table,
            len(flat),
            step.ring,
            state,
            partials,
            small=small,
            wide=step.wide,
            keep=step.keep[0] is not None,
            scale=factor,
        )
        by_unit = partials.cpu().double().view(len(flat), rows // max(1, len(flat)), UPDATE_COLUMNS).sum(1)
        owner = [i for i, tensor in enumerate(columns) for _ in tensor]
        sums.index_add_(0, torch.tensor(owner, dtype=torch.int64), by_unit)
    return sums


def terms(step: Step, i: int, before: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """(4, element): what is summed, computed in ``dtype``."""
    x, old, p = (t.cpu().to(dtype) for t in (step.parameter[i], before, step.previous(i)))
    g = torch.zeros_like(x) if step.gradient[i] is None else step.gradient[i].cpu().to(dtype) * scale
    return torch.stack([x * x, (x - old).square(), p * (x - old), g * (x - old)])


def assert_right(sums: Tensor, step: Step, snapshots: list[Tensor], scale: float = 1.0) -> None:
    """Each sum is off from float64 by at most twice what torch's sum of the same terms is, plus the floor."""
    compute = F64 if step.wide else F32
    scale = float(torch.tensor(scale, dtype=compute))
    for i, before in enumerate(snapshots):
        exact, torchs = (terms(step, i, before, scale, d) for d in (F64, compute))
        truth = exact.sum(1)
        bound = 2 * (torchs.sum(1) - truth).abs() + ADDITIONS * torch.finfo(compute).eps / 2 * exact.abs().sum(1)
        error = (sums[i] - truth).abs()
        assert bool((error <= bound).all()), f"tensor {i}: off by {error.tolist()}, allowed {bound.tolist()}"


def before_of(step: Step) -> list[Tensor]:
    return [s[: x.numel()].clone() for s, x in zip(step.snapshot, step.parameter, strict=True)]


def assert_renewed(step: Step) -> None:
    """The snapshot is the parameter, then zeros to the end of its unit, and nothing beyond is written."""
    for x, s in zip(step.parameter, step.snapshot, strict=True):
        assert_same_bits(s[: x.numel()].cpu(), x.cpu())
        assert bool((s[x.numel() :] == 0).all())
        block = s.new_empty(0).set_(s.untyped_storage())
        assert len(block) == len(s) + 2 * GUARD
        assert bool(block[:GUARD].isnan().all()) and bool(block[len(block) - GUARD :].isnan().all())


@pytest.mark.parametrize("dtypes", SAME + MIXED, ids=called)
def test_moments_are_those_of_float64_and_the_snapshot_is_renewed(dtypes, device) -> None:
    big, small = unit_elements(dtypes[1])
    step = a_step((1, 63, 0, small, small + 1, big, big + 2 * small - 1), dtypes, device)
    snapshots = before_of(step)
    sums = measure(step)
    assert_right(sums, step, snapshots)
    assert_renewed(step)


@pytest.mark.parametrize("dtypes", SAME, ids=called)
def test_moments_have_the_names_and_places_of_the_reference(dtypes, device) -> None:
    step = a_step((unit_elements(dtypes[1])[1] - 1,), dtypes, device)
    snapshots = before_of(step)
    sums = measure(step)[0]
    truth = reference.update_moments(snapshots, step.parameter, [step.previous(0)], step.gradient)
    tolerance = 1e-14 if step.wide else 1e-5
    size = math.sqrt(float(sums[UPDATE_SQ]) * reference.dot(step.gradient, step.gradient))
    assert float(sums[PARAM_SQ]) == pytest.approx(reference.dot(step.parameter, step.parameter), rel=tolerance)
    assert float(sums[UPDATE_SQ]) == pytest.approx(truth["update_sq"], rel=tolerance)
    assert float(sums[GRAD_DOT_UPDATE]) == pytest.approx(truth["grad_dot_update"], abs=tolerance * size)
    assert float(sums[NEXT_GRAD_DOT_UPDATE]) == pytest.approx(truth["next_grad_dot_update"], abs=tolerance * size)


@pytest.mark.parametrize("dtypes", [*SAME, (F32, BF16, F32)], ids=called)
@pytest.mark.parametrize("offset", [1, 3])
def test_gradients_and_parameters_may_begin_anywhere(dtypes, offset, device) -> None:
    big, small = unit_elements(dtypes[1])
    step = a_step((big, 2 * small - 1), dtypes, device, offset=offset)
    assert all(t.data_ptr() % 16 for t in step.gradient + step.parameter)
    snapshots = before_of(step)
    assert_right(measure(step), step, snapshots)
    assert_renewed(step)


@pytest.mark.parametrize("head", range(SLOTS))
def test_the_previous_gradient_is_the_row_that_the_state_names(head, device) -> None:
    step = a_step((unit_elements(BF16)[0], 700), (BF16, BF16, BF16), device, head=head)
    snapshots = before_of(step)
    assert_right(measure(step), step, snapshots)


@pytest.mark.parametrize("dtypes", [(BF16, BF16, BF16), (F32, BF16, F32), (F64, F64, F64)], ids=called)
def test_a_missing_gradient_reads_as_zeros_whatever_the_scale(dtypes, device) -> None:
    step = a_step((unit_elements(dtypes[1])[0] + 5, 63), dtypes, device)
    step.gradient = [None, None]
    snapshots = before_of(step)
    sums = measure(step, scale=math.inf)
    assert_right(sums, step, snapshots)
    assert sums[:, NEXT_GRAD_DOT_UPDATE].tolist() == [0, 0] and bool((sums[:, UPDATE_SQ] > 0).all())


@pytest.mark.parametrize("dtypes", [*SAME, (F32, BF16, F32)], ids=called)
def test_a_scale_multiplies_the_new_gradient_alone(dtypes, device) -> None:
    step = a_step((unit_elements(dtypes[1])[0] + 63, 7), dtypes, device)
    untouched = [g.clone() for g in step.gradient]
    snapshots = before_of(step)
    assert_right(measure(step, scale=0.3), step, snapshots, scale=0.3)
    for g, u in zip(step.gradient, untouched, strict=True):
        assert_same_bits(g, u)


def test_an_infinite_scale_leaves_the_padding_zero(device) -> None:
    step = a_step((63,), (F32, F32, F32), device)
    step.gradient[0].abs_()
    step.parameter[0].copy_(step.snapshot[0][:63] + 1)
    assert measure(step, scale=math.inf)[0, NEXT_GRAD_DOT_UPDATE] == math.inf


@pytest.mark.parametrize("dtypes", [(F32, F32, F32), (F32, BF16, F32), (F64, F64, F64)], ids=called)
def test_differences_are_taken_before_they_are_rounded(dtypes, device) -> None:
    step = a_step((3000,), dtypes, device)
    step.parameter[0].add_(1000)
    before = step.parameter[0] * (1 - 8 * torch.finfo(dtypes[2]).eps)
    step.snapshot[0][:3000] = before
    sums = measure(step)
    assert_right(sums, step, [before])
    assert 0 < float(sums[0, UPDATE_SQ]) < 100 * torch.finfo(dtypes[2]).eps ** 2 * float(sums[0, PARAM_SQ])


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy, inside the interpreter
@pytest.mark.parametrize("dtypes", [(BF16, BF16, BF16), (F32, BF16, F32), (F32, F32, F32)], ids=called)
def test_what_is_not_finite_stays_in_its_own_tensor_and_sum(dtypes, device) -> None:
    sizes = (unit_elements(dtypes[1])[0], 600, 600)
    step, clean = (a_step(sizes, dtypes, device) for _ in range(2))
    for name in ("gradient", "parameter", "ring", "keep", "snapshot"):
        own, other = getattr(clean, name), getattr(step, name)
        for a, b in zip(own, other, strict=True):
            if a is not None:
                a.copy_(b)
    step.gradient[1][17] = math.nan
    step.parameter[2][5] = math.inf
    sums, expected = measure(step), measure(clean)
    assert_same_bits(sums[0], expected[0])
    assert_same_bits(sums[1, :3], expected[1, :3])
    assert math.isnan(sums[1, NEXT_GRAD_DOT_UPDATE])
    assert sums[2, PARAM_SQ] == math.inf and sums[2, UPDATE_SQ] == math.inf
    assert_renewed(step)


def test_tensors_of_several_dtypes_are_one_call(device) -> None:
    step = a_step((unit_elements(BF16)[0] + 100,) * 3, (BF16, BF16, BF16), device)
    step.dtypes = (F32, BF16, F32)
    size = capacity(step.parameter[0].numel(), BF16)
    step.gradient[1] = step.gradient[1].float() + 1e-4
    step.parameter[1] = step.parameter[1].float() + 1e-4
    step.snapshot[1] = padded(step.snapshot[1][: step.parameter[1].numel()].float(), size)
    step.keep[1] = padded(step.gradient[1] * 0.9, size)
    step.gradient[2] = step.gradient[2].half()
    step.keep[2] = padded(step.gradient[2] * 0.9, size)
    step.keep = step.keep[1:] + step.keep[:1]  # the first has one: see measure()
    for name in ("gradient", "parameter", "snapshot", "offset"):
        setattr(step, name, getattr(step, name)[1:] + getattr(step, name)[:1])
    snapshots = before_of(step)
    assert_right(measure(step), step, snapshots)
    assert_renewed(step)


@pytest.mark.parametrize("dtypes", [(BF16, BF16, BF16), (F32, BF16, F32)], ids=called)
def test_the_same_tensors_give_the_same_bits(dtypes, device) -> None:
    step = a_step((unit_elements(dtypes[1])[0] + 700, 63), dtypes, device)
    snapshots = before_of(step)
    first = measure(step)
    for s, b in zip(step.snapshot, snapshots, strict=True):
        s[: b.numel()] = b
    assert_same_bits(measure(step), first)


def test_a_step_that_changes_nothing_has_no_update(device) -> None:
    step = a_step((100,), (F32, F32, F32), device)
    measure(step)
    assert measure(step)[0, 1:].tolist() == [0, 0, 0]


def test_its_bytes_are_four_reads_and_a_write() -> None:
    assert update_bytes(10**9, 2, 2, 4) == 16 * 10**9 and update_bytes(1) == 20
    assert (update_rows(5, small=True), update_rows(5, small=False)) == (5, 40)

"""A case made ready: gradients in memory, and the same past for all ways of measuring against it."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from bench.common import truth
from bench.common.case import CLIP, DEFERRED, DOT, NORM, SKETCH, SKETCH_STEP, STEP, UPDATE, WINDOW, Case
from bench.common.device import Device
from bench.common.gradients import Gradients, fill
from bench.common.shapes import numels
from fastgeom.kernels.lists.dots import dot_bytes
from fastgeom.kernels.lists.norm import norm_bytes
from fastgeom.kernels.sketch.compare_and_store import ring_bytes
from fastgeom.kernels.sketch.sketch import sketch_bytes
from fastgeom.kernels.window.gram import gram_bytes
from fastgeom.kernels.window.update import update_bytes
from fastgeom.kernels.window.window import window_bytes
from fastgeom.layout.count_sketch import SketchPlan


class Problem:
    """The memory of a case.

    Args:
        device: where it lies.
        case: what it is for; ``elements`` is what memory allows.
        again: whether it is one more copy, to be read like the first: of ones, and not checked again.

    Attributes:
        g: the gradient.
    """

    def __init__(self, device: Device, case: Case, *, again: bool = False) -> None:
        self.device, self.case, self.again = device, case, again
        self.g = self.another().ones() if again else self.another().draw(0)
        self._rows: Tensor | None = None

    def another(self, *, kept: bool = False) -> Gradients:
        """Memory for one more list like the gradient."""
        sizes = numels(self.case.tensors, self.case.elements)
        return Gradients.empty(sizes, self.case.dtype, self.device.device, kept=kept)

    @cached_property
    def second(self) -> Gradients:
        """Another list, for dots."""
        return self.another().ones() if self.again else self.another().draw(1)

    @cached_property
    def drawn_sq(self) -> float:
        """sum g^2 of the gradient as it was drawn: for ways that leave it as it is."""
        return truth.square(*self.g.tensors)

    @cached_property
    def drawn_dot(self) -> tuple[float, float]:
        """The dot with the second list, and the product of the norms; for ways that leave both as they are."""
        scale = (self.drawn_sq * truth.square(*self.second.tensors)) ** 0.5
        return truth.dot(self.g.tensors, self.second.tensors), scale

    @cached_property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Parameters whose gradients these are."""
        found = [torch.nn.Parameter(t, requires_grad=True) for t in self.g.tensors]
        for parameter, gradient in zip(found, self.g.tensors, strict=True):
            parameter.grad = gradient
        return found

    @property
    def rows(self) -> Tensor:
        """Past gradients in one matrix, a row each, which all ways but ours share; ours where it can be lent."""
        if self._rows is None:
            dtype = self.g.flats[0].dtype if len(self.g.flats) == 1 else torch.float32
            self._rows = torch.empty(
                self.case.ring_rows, self.g.n_elements, dtype=dtype, device=self.device.device
            )  # fmt: skip
            for seed, row in enumerate(self._rows, start=1):
                fill(row, seed)
        return self._rows

    def lend(self, rows: Tensor) -> None:
        """Let the others use this matrix instead of one more."""
        self._rows = rows

    @cached_property
    def plan(self) -> SketchPlan:
        """How the gradient is sketched."""
        layout = self.g.layout(self.case.layers)
        return SketchPlan(layout.numels, layout.layer, len(layout.layers), self.case.buckets)

    @cached_property
    def drawn_sketches(self) -> dict[int, Tensor]:
        """Of the first and the last layer of the gradient as it was drawn: layer → its sketch in float64."""
        layer, plan = self.g.layout(self.case.layers).layer, self.plan
        return {
            group: truth.count_sketch(
                [t for t, owner in zip(self.g.tensors, layer, strict=True) if owner == group],
                int(plan.sizes[group]),
                int(plan.seeds[group]),
            )
            for group in sorted({0, len(plan.sizes) - 1})
        }

    @cached_property
    def update(self) -> "Update":
        """Vectors for the moments of an update."""
        return Update(self)

    def bytes_moved(self) -> int:
        """The least that one step must move, whoever does it."""
        case = self.case
        total = sum(_bytes(case, flat.numel(), flat.element_size()) for flat in self.g.flats)
        return total + (ring_bytes(case.buckets, case.window) if case.statistic == SKETCH_STEP else 0)


def _bytes(case: Case, n: int, item: int) -> int:
    """Bytes of a step over ``n`` elements of so many bytes each."""
    each_step = {
        NORM: lambda: norm_bytes(n, item),
        CLIP: lambda: 3 * norm_bytes(n, item),
        DOT: lambda: dot_bytes(n, item),
        WINDOW: lambda: window_bytes(n, case.window, item, item),
        STEP: lambda: window_bytes(n, case.window, item, item),
        DEFERRED: lambda: window_bytes(n, 0, item, item) + gram_bytes(n, case.window, case.block, item) // case.block,
        UPDATE: lambda: update_bytes(n, item, item, item),
        SKETCH: lambda: sketch_bytes(n, item),
        SKETCH_STEP: lambda: sketch_bytes(n, item),
    }
    return each_step[case.statistic]()


class Update:
    """The parameters of two steps, and the gradients there.

    What a way keeps from step to step, ``old`` and ``before``, lies in such memory as our engine keeps it in.
    """

    def __init__(self, problem: Problem) -> None:
        self.new, self.after = problem.another().draw(2), problem.another().draw(4)
        self.old, self.before = problem.another(kept=True).draw(1), problem.another(kept=True).draw(3)


@dataclass(frozen=True)
class Shrunk:
    """A case that fits in memory, and what to say of it."""

    case: Case
    note: str = ""


def fit(device: Device, case: Case) -> Shrunk:
    """Fewer elements where the case would take more than 60 % of the memory."""
    wanted = sum(numels(case.tensors, case.elements))
    room = int(device.room_bytes() / case.memory_bytes(lent=device.backend is None))
    if wanted <= room:
        return Shrunk(replace(case, elements=wanted))
    fitting = sum(numels(case.tensors, room))
    return Shrunk(
        replace(case, elements=fitting), f"{fitting:,} elements; {wanted:,} would take more than 60 % of the memory"
    )

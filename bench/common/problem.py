"""A case in memory: gradients, and the same past for every implementation."""

from functools import cached_property
from types import SimpleNamespace

import torch
from torch import Tensor

from bench.common import truth
from bench.common.case import Case
from bench.common.device import Device
from bench.common.gradients import Gradients, fill
from bench.common.shapes import numels
from fastgeom.layout.count_sketch import SketchPlan


class Problem:
    """The memory of a case.

    Args:
        device: where it lies.
        case: what it is for; ``elements`` is what memory allows.
        again: whether it is one more copy, read like the first: of ones, and not checked again.

    Attributes:
        g: the gradient.
    """

    def __init__(self, device: Device, case: Case, *, again: bool = False) -> None:
        self.device, self.case, self.again = device, case, again
        self.g = self.another().ones() if again else self.another().draw(0)
        self._rows: Tensor | None = None

    def another(self, *, stored: bool = False) -> Gradients:
        """Memory for one more list like the gradient."""
        sizes = numels(self.case.tensors, self.case.elements)
        return Gradients.empty(sizes, self.case.dtype, self.device.device, stored=stored)

    @cached_property
    def second(self) -> Gradients:
        """Another list, for dots."""
        return self.another().ones() if self.again else self.another().draw(1)

    @cached_property
    def drawn_sq(self) -> float:
        """sum g^2 of the gradient as it was drawn: for implementations that leave it as it is."""
        return truth.square(*self.g.tensors)

    @cached_property
    def drawn_dot(self) -> tuple[float, float]:
        """The dot with the second list, and the product of the norms; if both are still as drawn."""
        scale = (self.drawn_sq * truth.square(*self.second.tensors)) ** 0.5
        return truth.dot(self.g.tensors, self.second.tensors), scale

    @cached_property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Parameters whose gradients these are."""
        parameters = [torch.nn.Parameter(t, requires_grad=True) for t in self.g.tensors]
        for parameter, gradient in zip(parameters, self.g.tensors, strict=True):
            parameter.grad = gradient
        return parameters

    def rows(self, count: int) -> Tensor:
        """Past gradients in one matrix, a row each, which all other implementations share; ours where it was lent."""
        if self._rows is None:
            dtype = self.g.flats[0].dtype if len(self.g.flats) == 1 else torch.float32
            self._rows = torch.empty(count, self.g.n_elements, dtype=dtype, device=self.device.device)
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
    def update(self) -> SimpleNamespace:
        """The parameters of two steps, and the gradients there.

        What is stored from step to step, ``old`` and ``before``, lies in memory like that of our engine.
        """
        new, after = self.another().draw(2), self.another().draw(4)
        old, before = self.another(stored=True).draw(1), self.another(stored=True).draw(3)
        return SimpleNamespace(new=new, after=after, old=old, before=before)

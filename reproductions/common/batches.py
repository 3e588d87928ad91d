"""Mini-batches, and measurements that tell their noise from the geometry."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import fastgeom
from reproductions.common.data import Examples
from reproductions.common.descent import add_batch_gradient


def batches(n_examples: int, size: int | None, seed: int) -> Iterator[Tensor | None]:
    """Yield the rows of one mini-batch after another, without end; each epoch shuffles the examples anew.

    Examples that fill no whole mini-batch at the end of an epoch are left out.

    Args:
        n_examples: number of examples.
        size: examples in a mini-batch; None yields None, which stands for all examples.
        seed: of the order.

    Raises:
        ValueError: a mini-batch of more examples than there are.
    """
    if size is not None and not 0 < size <= n_examples:
        raise ValueError(f"batch: expected 1 to {n_examples} examples, all there are, got {size}")
    generator = torch.Generator().manual_seed(seed)
    while True:
        if size is None:
            yield None
            continue
        order = torch.randperm(n_examples, generator=generator)
        yield from order.split(size)[: n_examples // size]


class BatchProbes:
    r"""Compute the gradient of a mini-batch from its two halves, and that of the previous batch at the new point.

    With a, b the gradients of the halves of batch B_t, g_t = (a + b) / 2. Adds to the scalars of the step

    - ``half_dot``: <a, b>, whose mean is the squared norm of the noiseless gradient;
    - ``same_batch_cosine``: cos of the gradients of batch B_{t-1} at x_{t-1} and at x_t: how the landscape turned,
      without the change of batch. It costs one more backward pass a step.
    """

    def __init__(self, model: nn.Module, examples: Examples, loss: str) -> None:
        self.model, self.examples, self.loss = model, examples, loss
        self.parameters = list(model.parameters())
        self.previous_batch: tuple[Tensor, list[Tensor]] | None = None

    def add_gradient(self, rows: Tensor, scalars: dict[str, float | Tensor]) -> Tensor:
        """Set every ``.grad`` to the batch's gradient, add to ``scalars``, and return the batch's loss."""
        scalars["same_batch_cosine"] = float("nan")
        if self.previous_batch is not None:
            past_rows, past_gradient = self.previous_batch
            _, gradient_here = self._gradient(past_rows)
            scalars["same_batch_cosine"] = fastgeom.cosine(past_gradient, gradient_here)
        middle = len(rows) // 2
        first_loss, first = self._gradient(rows[:middle])
        second_loss, second = self._gradient(rows[middle : 2 * middle])
        scalars["half_dot"] = fastgeom.dot(first, second)
        gradient = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
        for parameter, value in zip(self.parameters, gradient, strict=True):
            parameter.grad = value
        self.previous_batch = (rows[: 2 * middle], [value.clone() for value in gradient])
        return (first_loss + second_loss) / 2

    def _gradient(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        self.model.zero_grad()  # the tensors of the gradient before are left as they are
        loss = add_batch_gradient(self.model, self.examples, rows, self.loss)
        return loss, [parameter.grad for parameter in self.parameters if parameter.grad is not None]

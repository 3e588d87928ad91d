"""The same in torch alone, and the plain ways through memory whose fastest is the measured peak.

Bytes are those that the statistic must move, whoever computes it: a way that moves more shows fewer GB/s.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu import truth
from bench.gpu.building import Work
from bench.gpu.cells import COPY, SUM, Cell
from bench.gpu.device import Device
from bench.gpu.gradients import Gradients, fill
from fastgeom.kernels.norm import norm_bytes
from fastgeom.kernels.update import update_bytes
from fastgeom.kernels.window import window_bytes

ROUNDING = 0.02
"""What torch may be off by, relative to the product of the norms: it rounds results to bfloat16."""


def peak(device: Device, cell: Cell, n: int) -> Work:
    """A copy, a sum, or a dot product of large vectors."""
    a, b = (torch.ones(n, dtype=getattr(torch, cell.dtype), device=device.device) for _ in range(2))
    row = n * cell.item_bytes
    if cell.method == COPY:
        return Work(lambda: b.copy_(a), n, 2 * row, 0.0)
    if cell.method == SUM:
        return Work(a.sum, n, row, 0.0)
    return Work(lambda: torch.dot(a, b), n, 2 * row, 0.0)


def foreach_norm(device: Device, cell: Cell, n: int) -> Work:
    """What torch's own clipping computes."""
    g = Gradients.random(n, cell.tensors, getattr(torch, cell.dtype), device.device)

    def call() -> Tensor:
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(g.tensors)))

    return _norm(g, cell, call)


def compiled_norm(device: Device, cell: Cell, n: int) -> Work:
    """The obvious expression, of elements that lie in one piece."""
    g = Gradients.random(n, cell.tensors, getattr(torch, cell.dtype), device.device)
    obvious = device.compile(lambda flat: flat.float().square().sum().sqrt())
    return _norm(g, cell, lambda: obvious(g.flat))


def _norm(g: Gradients, cell: Cell, call: Callable[[], Any]) -> Work:
    error = truth.assert_near(float(call()), truth.square(g.flat) ** 0.5, ROUNDING, "norm")
    return Work(call, g.flat.numel(), norm_bytes(g.flat.numel(), cell.item_bytes), error)


class _Ring:
    """W rows of numbers in one matrix, and the gradient that goes over one after the other."""

    def __init__(self, device: Device, cell: Cell, n: int) -> None:
        self.g = Gradients.random(n, cell.tensors, getattr(torch, cell.dtype), device.device)
        self.rows = torch.empty(
            cell.window, self.g.flat.numel(), dtype=getattr(torch, cell.dtype), device=device.device
        )
        for seed, row in enumerate(self.rows, start=1):
            fill(row, seed)
        self._slot = -1

    def slot(self) -> int:
        """Where the gradient goes next."""
        self._slot = (self._slot + 1) % len(self.rows)
        return self._slot

    def work(self, cell: Cell, call: Callable[[], Any]) -> Work:
        """Check one call, which returns the dots, and the norm."""
        kept = self.rows[1 % len(self.rows)]
        exact, exact_sq = truth.dot(self.g.flat, kept), truth.square(self.g.flat)
        scale = (exact_sq * truth.square(kept)) ** 0.5
        dots, norm = call()  # the row that a single slot held may be gone
        error = truth.assert_near(float(dots[1]), exact, ROUNDING, "dot", scale) if len(self.rows) > 1 else 0.0
        truth.assert_near(float(norm) ** 2, exact_sq, 3 * ROUNDING, "norm squared")
        assert torch.equal(self.rows[0], self.g.flat), "the gradient was not stored"
        n = self.g.flat.numel()
        return Work(call, n, window_bytes(n, cell.window, cell.item_bytes, cell.item_bytes), error)


def lean(device: Device, cell: Cell, n: int) -> Work:
    """Gradients concatenated into their row of the ring, one matrix-vector product, one norm."""
    ring = _Ring(device, cell, n)

    def call() -> tuple[Tensor, Tensor]:
        row = ring.rows[ring.slot()]
        torch.cat(ring.g.tensors, out=row)
        return torch.mv(ring.rows, row), torch.linalg.vector_norm(row)

    return ring.work(cell, call)


def cat_dots(device: Device, cell: Cell, n: int) -> Work:
    """Gradients concatenated, a dot product with each row, a norm, a copy into the ring."""
    ring = _Ring(device, cell, n)

    def call() -> tuple[list[Tensor], Tensor]:
        flat = torch.cat(ring.g.tensors)
        dots = [torch.dot(flat, row) for row in ring.rows]
        ring.rows[ring.slot()].copy_(flat)
        return dots, torch.linalg.vector_norm(flat)

    return ring.work(cell, call)


def compiled_window(device: Device, cell: Cell, n: int) -> Work:
    """The obvious expression, of a gradient that lies in one piece; the copy into the ring stands behind it."""
    ring = _Ring(device, cell, n)

    @device.compile
    def obvious(rows: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
        return (rows.float() * flat.float()).sum(1), flat.float().square().sum().sqrt()

    def call() -> tuple[Tensor, Tensor]:
        found = obvious(ring.rows, ring.g.flat)
        ring.rows[ring.slot()].copy_(ring.g.flat)
        return found

    return ring.work(cell, call)


def _moments(new: Tensor, old: Tensor, g_prev: Tensor, g_new: Tensor) -> tuple[Tensor, ...]:
    x, u = new.float(), new.float() - old.float()
    sums = x.square().sum(), u.square().sum(), (g_prev.float() * u).sum(), (g_new.float() * u).sum()
    old.copy_(new)
    return sums


def update(device: Device, cell: Cell, n: int) -> Work:
    """The moments of an update as one would write them, of vectors that lie in one piece."""
    return _update(device, cell, n, _moments)


def compiled_update(device: Device, cell: Cell, n: int) -> Work:
    """The same, compiled."""
    return _update(device, cell, n, device.compile(_moments))


def _update(device: Device, cell: Cell, n: int, moments: Callable[..., Any]) -> Work:
    new, old, before, after = (torch.empty(n, dtype=getattr(torch, cell.dtype), device=device.device) for _ in range(4))
    for seed, vector in enumerate((old, new, before, after), start=1):
        fill(vector, seed)
    exact = float(truth.summed(lambda a, b, c: (a - b) * c, new, old, before))
    scale = (truth.difference_sq(new, old) * truth.square(before)) ** 0.5
    found = moments(new, old, before, after)
    error = truth.assert_near(float(found[2]), exact, ROUNDING, "grad_dot_update", scale)
    assert torch.equal(new, old), "the snapshot was not renewed"
    return Work(lambda: moments(new, old, before, after), n, update_bytes(n, *[cell.item_bytes] * 3), error)

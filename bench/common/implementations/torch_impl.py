"""The same in torch alone: what one would write without us, and what torch has for it.

Memory for concatenated gradients is given beforehand; rows of past gradients are those of `Problem.rows`.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from bench.common import truth
from bench.common.implementations.base import Work
from bench.common.problem import Problem
from bench.peers.available import Missing

ROUNDING = 0.02
"""What torch may be off by, relative to the product of the norms: it rounds results to bfloat16, and its own float32
norm of 1e8 elements on a CPU is wrong by 1 %."""


# ---------------------------------------------------------------- norms


def foreach_norm(problem: Problem) -> Work:
    """Norms of all tensors, and the norm of these."""
    g = problem.g.tensors

    def call() -> Tensor:
        norms = torch._foreach_norm(g)
        return torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms]))

    return check_norm(problem, call)


def total_norm(problem: Problem) -> Work:
    """``torch.nn.utils.get_total_norm``."""
    g = problem.g.tensors
    return check_norm(problem, lambda: torch.nn.utils.get_total_norm(g))


def clip_grad_norm(problem: Problem) -> Work:
    """``torch.nn.utils.clip_grad_norm_``, to a norm that is larger."""
    parameters = problem.parameters
    most = 2 * problem.drawn_sq**0.5
    return check_norm(problem, lambda: torch.nn.utils.clip_grad_norm_(parameters, most))


def cat_norm(problem: Problem) -> Work:
    """Everything concatenated, and one norm."""
    g = problem.g.tensors
    return check_norm(problem, lambda: torch.linalg.vector_norm(torch.cat(g)))


def compiled_norm(problem: Problem) -> Work:
    """The obvious expression, compiled, of elements in one vector."""
    obvious, flat = _compiled(problem, _obvious_norm), _one_vector(problem)
    return check_norm(problem, lambda: obvious(flat))


def _obvious_norm(flat: Tensor) -> Tensor:
    return flat.float().square().sum().sqrt()


def check_norm(problem: Problem, call: Callable[[], Any]) -> Work:
    """An implementation of the norm, once its result is right."""
    if problem.again:
        return Work(call, 0.0)
    return Work(call, truth.assert_near(float(call()), problem.drawn_sq**0.5, ROUNDING, "norm"))


# ---------------------------------------------------------------- dots


def dots(problem: Problem) -> Work:
    """``torch.dot`` of every pair, added up."""
    a, b = problem.g.tensors, problem.second.tensors

    def call() -> Tensor:
        return torch.stack([torch.dot(x, y).float() for x, y in zip(a, b, strict=True)]).sum()

    return check_dot(problem, call)


def cat_dot(problem: Problem) -> Work:
    """Both lists concatenated, and one dot."""
    a, b = problem.g.tensors, problem.second.tensors
    return check_dot(problem, lambda: torch.dot(torch.cat(a), torch.cat(b)))


def foreach_dot(problem: Problem) -> Work:
    """``torch._foreach_mul``, and the sums of the products."""
    a, b = problem.g.tensors, problem.second.tensors

    def call() -> Tensor:
        return torch.stack([product.sum().float() for product in torch._foreach_mul(a, b)]).sum()

    return check_dot(problem, call)


def compiled_dot(problem: Problem) -> Work:
    """The obvious expression, compiled, of elements in one vector."""
    obvious, a = _compiled(problem, _obvious_dot), _one_vector(problem)
    b = torch.cat(problem.second.tensors)
    return check_dot(problem, lambda: obvious(a, b))


def _obvious_dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() * b.float()).sum()


def check_dot(problem: Problem, call: Callable[[], Any]) -> Work:
    """An implementation of the dot product, once its result is right."""
    if problem.again:
        return Work(call, 0.0)
    exact, scale = problem.drawn_dot
    return Work(call, truth.assert_near(float(call()), exact, ROUNDING, "dot", scale))


# ---------------------------------------------------------------- windows


class TorchRing:
    """The rows of a problem, and the gradient that goes over one after the other."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.g = problem, problem.g.tensors
        self.rows = problem.rows(problem.case.window)[: problem.case.window]
        self._slot = -1

    def slot(self) -> int:
        """The row that the gradient goes to next."""
        self._slot = (self._slot + 1) % len(self.rows)
        return self._slot

    def work(self, call: Callable[[], tuple[Sequence[Tensor] | Tensor, Tensor]]) -> Work:
        """Check one call, which returns the dots with all rows, and the norm."""
        if self.problem.again:
            return Work(call, 0.0)
        last, flat = len(self.rows) - 1, _one_vector(self.problem)
        exact, exact_sq = truth.dot([flat], [self.rows[last]]), truth.square(flat)
        scale = (exact_sq * truth.square(self.rows[last])) ** 0.5
        dots, norm = call()
        errors = [truth.assert_near(float(norm) ** 2, exact_sq, 3 * ROUNDING, "norm squared")]
        if last > 0:  # the row that a single slot held is gone
            errors.append(truth.assert_near(float(dots[last]), exact, ROUNDING, "dot", scale))
        assert torch.equal(self.rows[0], flat), "the gradient was not stored"
        return Work(call, max(errors))


def lean(problem: Problem) -> Work:
    """Gradients concatenated into their row of the ring, one matrix-vector product, one norm."""
    ring = TorchRing(problem)

    def call() -> tuple[Tensor, Tensor]:
        row = ring.rows[ring.slot()]
        torch.cat(ring.g, out=row)
        return torch.mv(ring.rows, row), torch.linalg.vector_norm(row)

    return ring.work(call)


def cat_dots(problem: Problem) -> Work:
    """Gradients concatenated, a dot product with each row, a norm, a copy into the ring."""
    ring = TorchRing(problem)

    def call() -> tuple[list[Tensor], Tensor]:
        flat = torch.cat(ring.g)
        dots = [torch.dot(flat, row) for row in ring.rows]
        ring.rows[ring.slot()].copy_(flat)
        return dots, torch.linalg.vector_norm(flat)

    return ring.work(call)


def stack_mv(problem: Problem) -> Work:
    """Past gradients in a list: stacked, multiplied with the concatenated one, the oldest replaced."""
    ring = TorchRing(problem)
    past = list(ring.rows)

    def call() -> tuple[Tensor, Tensor]:
        flat = torch.cat(ring.g)
        dots = torch.stack(past) @ flat
        past[ring.slot()].copy_(flat)
        return dots, torch.linalg.vector_norm(flat)

    return ring.work(call)


def compiled_window(problem: Problem) -> Work:
    """The obvious expression, compiled, of a gradient in one vector; the copy into the ring stands behind it."""
    ring, flat = TorchRing(problem), _one_vector(problem)
    obvious = _compiled(problem, _obvious_window)

    def call() -> tuple[Tensor, Tensor]:
        dots_and_norm: tuple[Tensor, Tensor] = obvious(ring.rows, flat)
        ring.rows[ring.slot()].copy_(flat)
        return dots_and_norm

    return ring.work(call)


def _obvious_window(rows: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
    return (rows.float() * flat.float()).sum(1), flat.float().square().sum().sqrt()


def deferred_mm(problem: Problem) -> Work:
    """B gradients concatenated into a ring of W + B rows, a norm each; then all rows times the new ones at once."""
    case, g = problem.case, problem.g.tensors
    ring, flat = problem.rows(case.window + case.block), _one_vector(problem)
    new = ring[: case.block]

    def steps() -> tuple[Tensor, list[Tensor]]:
        norms = []
        for row in new:
            torch.cat(g, out=row)
            norms.append(torch.linalg.vector_norm(row))
        return ring @ new.T, norms

    exact = truth.dot([flat], [ring[-1]])
    scale = (truth.square(flat) * truth.square(ring[-1])) ** 0.5
    dots, norms = steps()
    truth.assert_near(float(norms[-1]) ** 2, truth.square(flat), 3 * ROUNDING, "norm squared")
    error = truth.assert_near(float(dots[-1, 0]), exact, ROUNDING, "dot", scale)
    return Work(steps, error, steps=case.block)


# ---------------------------------------------------------------- updates


def _moments(new: Tensor, old: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, ...]:
    x, u = new.float(), new.float() - old.float()
    sums = x.square().sum(), u.square().sum(), (before.float() * u).sum(), (after.float() * u).sum()
    old.copy_(new)
    return sums


def update(problem: Problem) -> Work:
    """The moments of an update as one would write them, of contiguous vectors."""
    return _update(problem, _moments)


def compiled_update(problem: Problem) -> Work:
    """The same, compiled."""
    return _update(problem, _compiled(problem, _moments))


def _update(problem: Problem, moments: Callable[..., Any]) -> Work:
    if len(problem.g.flats) > 1:
        raise Missing("it takes vectors of one dtype")
    vectors = problem.update
    new, before, after = vectors.new.flat, vectors.before.flat, vectors.after.flat
    old = vectors.old.draw(1).flat
    if problem.again:
        return Work(lambda: moments(new, old, before, after), 0.0)
    exact = truth.summed(lambda a, b, c: (a - b) * c, [new], [old], [before])
    scale = (truth.diff_sq([new], [old]) * truth.square(before)) ** 0.5
    grad_dot_update = moments(new, old, before, after)[2]
    error = truth.assert_near(float(grad_dot_update), exact, ROUNDING, "grad_dot_update", scale)
    assert torch.equal(new, old), "the snapshot was not renewed"
    return Work(lambda: moments(new, old, before, after), error)


def _one_vector(problem: Problem) -> Tensor:
    """The gradient as one vector; of mixed dtypes as torch concatenates them, in float32."""
    return problem.g.flat if len(problem.g.flats) == 1 else torch.cat(problem.g.tensors)


def _compiled(problem: Problem, function: Callable[..., Any]) -> Callable[..., Any]:
    """What ``torch.compile`` makes of it, once for all sizes; the function itself where no times are wanted."""
    return _compiled_once(function) if problem.device.timed else function


_compiled_once = lru_cache(partial(torch.compile, dynamic=True))

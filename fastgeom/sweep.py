"""`scale_sweep`: gradients at points along minus the gradient, from steps far below to far above 1/curvature."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgeom import ops
from fastgeom.engines.torch_ops import list_dots
from fastgeom.validation import check_closure_loss, check_measurable, checked_parameters, checked_scales

Closure = Callable[[], Tensor | float | None]


@dataclass(frozen=True, eq=False)
class ScaleSweep:
    r"""Results of `scale_sweep`: float64 tensors on the parameters' device, of shape (scale,) but for the last two.

    Attributes:
        scales: s, as given; a step is s g, so s has the units of a learning rate.
        cosine: cos(g(x), g(x - s g)); NaN where either gradient is 0.
        grad_norm: ‖g(x - s g)‖.
        curvature: (⟨g, g⟩ - ⟨g(x - s g), g⟩) / (s ‖g‖²), in units of the loss over those of a parameter squared;
            positive where the loss curves upward. NaN where g is 0.
        displacement: ‖x' - x‖, x' being x - s g rounded to the parameters' dtypes, where the gradient was taken. It is
            s ‖g‖ where the dtypes resolve such a step; where they do not, the other numbers belong to another point,
            and the curvature, which divides by s, is meaningless.
        loss: f(x - s g); ``None`` where the closure returns no loss.
        start_grad_norm: ‖g(x)‖, shape ().
        start_loss: f(x), shape (), or ``None``.
    """

    scales: Tensor
    cosine: Tensor
    grad_norm: Tensor
    curvature: Tensor
    displacement: Tensor
    loss: Tensor | None
    start_grad_norm: Tensor
    start_loss: Tensor | None


def scale_sweep(closure: Closure, parameters: Iterable[Tensor], scales: Iterable[float]) -> ScaleSweep:
    r"""Compare the gradient at the present point with those at steps of many lengths along its negative.

    .. math::
        \cos\bigl(g(x),\, g(x - s g)\bigr), \qquad
        K(s) = \frac{\langle g - g(x - s g),\, g\rangle}{s\,\|g\|^2}, \qquad g = g(x)

    K is the curvature along the gradient, averaged over the step: the Rayleigh quotient of the Hessian as s goes to 0,
    without a Hessian-vector product. The cosine changes sign where s K(s) = 1: below, a step of gradient descent at the
    rate s would be followed by one in the same direction, above by one back.

    Args:
        closure: as for ``torch.optim.LBFGS``: clears the gradients, computes the loss, calls ``backward()`` and returns
            the loss (a number, or a tensor of one; ``None`` where it is not wanted). It must compute the same function
            every time: the same batch, and no dropout, or one seeded anew.
        parameters: the leaf tensors x, on one device; each counts once. One whose gradient is ``None`` counts as 0.
        scales: the steps s, finite numbers above 0 in any order, such as ``numpy.logspace(-4, 2, 25)``.

    Returns:
        A `ScaleSweep`.

    Raises:
        TypeError, ValueError: no parameters, one or its gradient that cannot be measured (sparse, complex, integer,
            sharded), no leaf, expanded, two devices; no scales, or one that is no finite number above 0; a loss that is
            not one number.

    The call restores the parameters bit for bit from a copy, and every ``.grad`` to the tensor that it was, with its
    values, or ``None``, also where the closure raises. At each call of the closure every ``.grad`` is ``None``.
    Whatever else the closure changes stays changed: gradients of parameters that are not given, and the running
    statistics of batch norm, which include every point (use ``eval()``, or a copy of the model). A graph made before
    the call cannot be run backward after it, as autograd counts the writes to the parameters.

    Nothing waits for the device. Memory: two copies, of the parameters and of g, beside the gradient that ``backward``
    makes and the gradients set aside. Cost: 1 + len(scales) calls of the closure, and for each scale
    9 × n_elements × itemsize bytes moved beside it. Source: fastgeom; ``fastgeom.reference.cosine`` and
    ``fastgeom.reference.directional_curvature`` of the update -s g.

    Example:
        The loss x² + 2 y², of curvature 2 and 4; along the gradient (2, 4) at (1, 1) it is 3.6.

        >>> x = torch.ones(2, requires_grad=True)
        >>> def closure():
        ...     x.grad = None
        ...     loss = (torch.tensor([1.0, 2.0]) * x**2).sum()
        ...     loss.backward()
        ...     return loss
        >>> sweep = scale_sweep(closure, [x], [0.125, 0.25, 0.5])
        >>> sweep.cosine
        tensor([ 0.9839,  0.4472, -0.8944], dtype=torch.float64)
        >>> sweep.curvature
        tensor([3.6000, 3.6000, 3.6000], dtype=torch.float64)
        >>> sweep.loss
        tensor([1.0625, 0.2500, 2.0000], dtype=torch.float64)
    """
    owners, steps = checked_parameters(parameters), checked_scales(scales)
    with _restored(owners) as start:
        start_loss, computed = _gradient(closure, owners)
        gradient = [g.clone() for g in computed]  # backward may write into the same memory next time
        del computed
        square, start_norm = list_dots(gradient, gradient)
        dots, norms, losses, lengths = [], [], [], []
        for scale in steps:
            lengths.append(_move(owners, start, gradient, scale))
            loss, here = _gradient(closure, owners)
            dot, norm = list_dots(here, gradient)
            del here  # before the next one is made
            dots.append(dot)
            norms.append(norm)
            losses.append(loss)
        s = torch.tensor(steps, dtype=torch.float64, device=square.device)
        dot, norm = torch.stack(dots), torch.stack(norms)
        given = [loss for loss in losses if loss is not None]
        return ScaleSweep(
            scales=s,
            cosine=dot / (start_norm * norm),
            grad_norm=norm,
            curvature=(square - dot) / (s * square),
            displacement=torch.stack(lengths),
            loss=torch.stack(given) if len(given) == len(steps) else None,
            start_grad_norm=start_norm,
            start_loss=start_loss,
        )


@contextmanager
def _restored(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Copies of the parameters; at the end parameters and their ``.grad`` are restored."""
    copies = [p.detach().clone() for p in parameters]
    gradients = [p.grad for p in parameters]
    try:
        yield copies
    finally:
        for parameter, gradient, x in zip(parameters, gradients, copies, strict=True):
            parameter.grad = gradient
            with torch.no_grad():
                parameter.copy_(x)


def _move(parameters: Sequence[Tensor], start: Sequence[Tensor], gradient: Sequence[Tensor], scale: float) -> Tensor:
    """Set the parameters to start - scale × gradient, and return the distance."""
    for parameter in parameters:
        parameter.grad = None  # its memory is free for the differences
    with torch.no_grad():
        for parameter, x, g in zip(parameters, start, gradient, strict=True):
            torch.add(x, g, alpha=-scale, out=parameter)
        return ops.norm([p - x for p, x in zip(parameters, start, strict=True)])


def _gradient(closure: Closure, parameters: Sequence[Tensor]) -> tuple[Tensor | None, list[Tensor]]:
    """The loss, and the gradient of each parameter: zeros where it has none."""
    for parameter in parameters:
        parameter.grad = None
    with torch.enable_grad():
        loss = closure()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in parameters]
    for index, gradient in enumerate(gradients):
        check_measurable(gradient, f"gradient of parameters[{index}]")
    return _as_number(loss, gradients[0].device), gradients


def _as_number(loss: Tensor | float | None, device: torch.device) -> Tensor | None:
    if loss is None:
        return None
    number = torch.empty((), dtype=torch.float64, device=device)
    if not isinstance(loss, Tensor):
        return number.fill_(loss)
    check_closure_loss(loss)
    return number.copy_(loss.detach().reshape(()))

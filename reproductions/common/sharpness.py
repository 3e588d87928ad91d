"""Sharpness: the largest eigenvalue of the Hessian of the full-batch loss, from Hessian-vector products alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

LossTerms = Callable[[], Iterable[Tensor]]

KRYLOV = 8
"""Vectors that ARPACK keeps. A call takes one product more at least, and restarts take more: a convolutional network of
6,138 parameters on MNIST digits took 17 to 21 products at first and 9 to 13 from the eigenvector of five steps earlier,
the eigenvalue right to 2e-6. With 10 they were 16 to 21 and 11 to 16, with 6 16 to 25 and 10 to 13."""

NOISE = 0.1
"""Length of the random part of a start, beside the given one's 1. A hundredth takes as many products."""


def sharpness(
    parameters: Sequence[Tensor], loss_terms: LossTerms, start: np.ndarray | None = None, tolerance: float = 1e-3
) -> tuple[float, np.ndarray]:
    r"""Find the largest algebraic eigenvalue of a loss's Hessian, and its eigenvector.

    $$ \lambda = \max_{\|v\| = 1} v^\top \nabla^2 f(x)\, v, \qquad f = \sum_i f_i $$

    Args:
        parameters: the leaf tensors x; the Hessian is that of all of them together, n elements.
        loss_terms: yields losses f_i with their graphs, scaled so that they add up to f. It is called once for every
            product, and each term's graph is dropped before the next is asked for.
        start: where to begin, shape (n,): the eigenvector that the last call returned.
        tolerance: the eigenvector's residual, ‖Hv - λv‖ ≤ tolerance × |λ|. The error of λ is its square over the gap
            to the next eigenvalue, far smaller.

    Returns:
        λ, in units of the loss over those of a parameter squared, and v, float64, shape (n,), of norm 1: the elements
        of the first parameter in the order of their indices, then those of the second.

    Raises:
        scipy.sparse.linalg.ArpackNoConvergence: not within 10 n restarts.
    """
    sizes = [parameter.numel() for parameter in parameters]
    operator = LinearOperator(
        (sum(sizes), sum(sizes)), matvec=lambda v: hessian_product(parameters, loss_terms, v), dtype=np.float64
    )
    noise = np.random.default_rng(0).standard_normal(sum(sizes))
    # Another eigenvector may have become the largest; from a start without any part of it, it would not be found.
    start_vector = noise if start is None else start / np.linalg.norm(start) + NOISE * noise / np.linalg.norm(noise)
    values, vectors = eigsh(operator, k=1, which="LA", v0=start_vector, ncv=min(KRYLOV, sum(sizes)), tol=tolerance)
    return float(values[0]), vectors[:, 0]


def hessian_product(parameters: Sequence[Tensor], loss_terms: LossTerms, vector: np.ndarray) -> np.ndarray:
    """Multiply a loss's Hessian with a vector, term by term; the products are added up in float64."""
    sizes = [parameter.numel() for parameter in parameters]
    split = torch.from_numpy(np.asarray(vector, np.float64).reshape(-1)).split(sizes)
    directions = [v.reshape(p.shape).to(p) for v, p in zip(split, parameters, strict=True)]
    total = torch.zeros(sum(sizes), dtype=torch.float64)
    with torch.enable_grad():
        for term in loss_terms():
            gradient = torch.autograd.grad(term, parameters, create_graph=True, materialize_grads=True)
            curved = [(g, v) for g, v in zip(gradient, directions, strict=True) if g.requires_grad]
            if not curved:  # the term is linear in all parameters
                continue
            products = torch.autograd.grad(
                [g for g, _ in curved], parameters, [v for _, v in curved], materialize_grads=True
            )
            total += torch.cat([p.reshape(-1) for p in products]).to(total)
    return total.numpy()

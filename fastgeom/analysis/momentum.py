"""What momentum would make of a window of gradients, for any coefficient, after the fact.

The momentum m_t = sum_k (1 - dampening) beta^k g_{t-k} is a weighted sum of past gradients, so that its products follow
from their Gram matrix. What lies before the window is left out: nothing, where the window begins at the first step,
else the share beta^m of the weights, which ``neglected_weight`` gives.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fastgeom.analysis.arrays import FloatArray, as_gram, quadratic_form, ratio, root


def momentum_norm(gram: ArrayLike, beta: float, *, dampening: float = 0.0) -> FloatArray:
    r"""Norm of the momentum at the last step of a window.

    $$ \|m_t\| = \sqrt{b^\top G b}, \qquad b_i = (1 - \text{dampening})\, \beta^{\,m-1-i} $$

    m_t = beta m_{t-1} + (1 - dampening) g_t, from 0: ``dampening=0`` is the heavy ball of ``torch.optim.SGD``, and
    ``dampening=beta`` the exponential average of Adam, without its bias correction. It depends on the gradients alone,
    but they are those of the run that was made, not of the one that this momentum would have made.

    Args:
        gram: G, shape (..., m, m), oldest step first, as ``window_gram`` and ``window_grams`` return it.
        beta: momentum coefficient, 0 <= beta < 1.
        dampening: 0 <= dampening < 1.

    Returns:
        float64, shape (...), in units of the gradient; NaN where anything in the window is unknown. Good for windows
        much longer than 1 / (1 - beta).

    Raises:
        ValueError: ``beta`` or ``dampening`` outside [0, 1), or ``gram`` that is not of that shape, not symmetric, or
            negative on the diagonal.

    Source: Polyak (1964); its norm from a Gram matrix is ours.

    Example:
        Gradients (6, 0) and (0, 4), of which (3, 4) is left:

        >>> momentum_norm([[36.0, 0.0], [0.0, 16.0]], beta=0.5).item()
        5.0
    """
    matrices = as_gram(gram)
    if not 0.0 <= dampening < 1.0:
        raise ValueError(f"dampening: expected a number from 0 to below 1, got {dampening}")
    return (1.0 - dampening) * root(quadratic_form(matrices, _weights(beta, matrices.shape[-1])))


def momentum_cosine(gram: ArrayLike, beta: float) -> FloatArray:
    r"""Cosine between momentum and gradient at the last step of a window.

    $$ \cos(m_t, g_t) = \frac{(G b)_{m-1}}{\sqrt{b^\top G b}\, \sqrt{G_{m-1,m-1}}}, \qquad b_i = \beta^{\,m-1-i} $$

    Dampening scales m_t and leaves it as it is. In a zigzag of equal norms the momentum keeps the sign of the last
    gradient, cosine 1; it falls to -1 where an old, larger push outweighs it.

    Args:
        gram: as for ``momentum_norm``.
        beta: as for ``momentum_norm``.

    Returns:
        float64, shape (...), in [-1, 1]; NaN where anything in the window is unknown, or m_t or g_t is 0.

    Raises:
        ValueError: as ``momentum_norm``.

    Source: ours.

    Example:
        >>> momentum_cosine([[1.0, 0.0], [0.0, 1.0]], beta=0.75).round(12).item()
        0.8
    """
    matrices = as_gram(gram)
    weights = _weights(beta, matrices.shape[-1])
    dot = (matrices[..., -1, :] * weights).sum(axis=-1)
    norms = root(quadratic_form(matrices, weights)) * root(matrices[..., -1, -1])
    return np.clip(ratio(dot, norms), -1.0, 1.0)


def neglected_weight(beta: float, size: int) -> float:
    r"""Share of the weights of momentum that lies before a window, and is left out.

    $$ \frac{\sum_{k \ge m} \beta^k}{\sum_{k \ge 0} \beta^k} = \beta^m $$

    Args:
        beta: momentum coefficient, 0 <= beta < 1.
        size: number of steps m in the window, at least 1.

    Returns:
        A fraction of 1. For beta = 0.9 it falls below 1 % at 44 steps.

    Raises:
        ValueError: ``beta`` outside [0, 1), or ``size`` below 1.

    Source: the geometric series.

    Example:
        >>> neglected_weight(0.5, size=3)
        0.125
    """
    if size < 1:
        raise ValueError(f"size: expected at least 1 step, got {size}")
    _check_beta(beta)
    return float(beta**size)


def _check_beta(beta: float) -> None:
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"beta: expected a number from 0 to below 1, got {beta}")


def _weights(beta: float, size: int) -> FloatArray:
    _check_beta(beta)
    return np.power(float(beta), np.arange(size - 1, -1, -1, dtype=np.float64))

"""Statistics of a window's Gram matrix: how aligned its gradients are, how alternating, and of how many directions.

All take one Gram matrix, shape (m, m), oldest step first, as ``window_gram`` returns it, or a stack of them, shape
(..., m, m), as ``window_grams`` does, and give one number for each. Each is a share or a count, the same for a gradient
of any scale. A matrix with a NaN or an infinity in it, or of zero gradients alone, gives NaN. Given ``window_cosine``
instead, every step counts the same, however long its gradient.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fastgeom.analysis.arrays import FloatArray, as_gram, quadratic_form, ratio


def two_cycle_index(gram: ArrayLike) -> FloatArray:
    r"""How much the gradients of a window alternate between two states.

    $$ \tfrac{1}{2} (\rho_2 - \rho_1), \qquad
    \rho_k = \frac{\frac{1}{m - k} \sum_{i \ge k} G_{i, i-k}}{\frac{1}{m} \sum_i G_{ii}} $$

    1 in a perfect zigzag (rho_1 = -1, rho_2 = 1), 0 for equal and for orthogonal gradients, (cos 2 phi - cos phi) / 2
    for a gradient that turns by phi a step. Unlike c_t it does not take one lone reversal for a zigzag. Where norms
    differ much within the window it can leave [-1, 1]; of ``window_cosine`` it cannot.

    Args:
        gram: G, shape (..., m, m), m at least 3.

    Returns:
        float64, shape (...), no unit.

    Raises:
        ValueError: ``gram`` that is not of that shape, not symmetric, or negative on the diagonal.

    Source: ours; rho_k is the autocorrelation at lag k, its products averaged over the window.

    Example:
        >>> two_cycle_index([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, 1.0]]).item()
        1.0
    """
    share = _normalised(gram, least=3)
    m = share.shape[-1]
    one, two = (share.trace(-lag, axis1=-2, axis2=-1) * m / (m - lag) for lag in (1, 2))
    index: FloatArray = (two - one) / 2
    return index


def dc_energy(gram: ArrayLike) -> FloatArray:
    r"""Share of the window's squared gradients that lies in their mean: the constant direction of time.

    $$ \frac{\mathbf 1^\top G \mathbf 1}{m \operatorname{tr} G} $$

    Args:
        gram: G, shape (..., m, m).

    Returns:
        float64, shape (...), in [0, 1]: 1 for equal gradients, 1 / m for orthogonal ones, 0 for a zigzag of even m.

    Raises:
        ValueError: ``gram`` that is not of that shape, not symmetric, or negative on the diagonal.

    Source: ours; the energy of the discrete Fourier transform over the window's steps at frequency 0.

    Example:
        >>> dc_energy([[1.0, 0.0], [0.0, 1.0]]).item()
        0.5
    """
    share = _normalised(gram)
    return _energy(share, np.ones(share.shape[-1]))


def nyquist_energy(gram: ArrayLike) -> FloatArray:
    r"""Share of the window's squared gradients that flips sign every step: the alternating direction of time.

    $$ \frac{s^\top G s}{m \operatorname{tr} G}, \qquad s_i = (-1)^i $$

    Args:
        gram: G, shape (..., m, m).

    Returns:
        float64, shape (...), in [0, 1]: 1 for a perfect zigzag, 1 / m for orthogonal gradients, 0 for equal ones and
        even m.

    Raises:
        ValueError: ``gram`` that is not of that shape, not symmetric, or negative on the diagonal.

    Source: ours; the energy of the discrete Fourier transform over the window's steps at the Nyquist frequency.

    Example:
        >>> nyquist_energy([[4.0, -4.0], [-4.0, 4.0]]).item()
        1.0
    """
    share = _normalised(gram)
    return _energy(share, np.where(np.arange(share.shape[-1]) % 2, -1.0, 1.0))


def coherence(gram: ArrayLike) -> FloatArray:
    r"""How far the gradients of a window add up: the square of their sum over the sum of their squares.

    $$ \frac{\mathbf 1^\top G \mathbf 1}{\operatorname{tr} G} $$

    m times ``dc_energy``.

    Args:
        gram: G, shape (..., m, m).

    Returns:
        float64, shape (...), in [0, m]: m for equal gradients, 1 for orthogonal ones, 0 for a zigzag of even m.

    Raises:
        ValueError: ``gram`` that is not of that shape, not symmetric, or negative on the diagonal.

    Source: the m-coherence of Chatterjee and Zielinski (2020), who ask it of the examples of a batch; over the steps
    of a window it is ours.

    Example:
        >>> coherence([[1.0, 1.0], [1.0, 1.0]]).item()
        2.0
    """
    energy = dc_energy(gram)
    return np.asarray(energy * np.shape(gram)[-1])


def effective_rank(gram: ArrayLike) -> FloatArray:
    r"""Number of directions that the gradients of a window use, by the entropy of its spectrum.

    $$ \exp\Bigl(-\sum_i p_i \ln p_i\Bigr), \qquad p_i = \lambda_i / \sum_j \lambda_j $$

    with the eigenvalues lambda_i of G, the squares of the singular values of the matrix of gradients. Eigenvalues
    below 0 are rounding and count as 0.

    Args:
        gram: G, shape (..., m, m).

    Returns:
        float64, shape (...), in [1, m]: 1 for gradients along one line, m for orthogonal ones of one length.

    Raises:
        ValueError: ``gram`` that is not of that shape, not symmetric, or negative on the diagonal.

    Source: Roy and Vetterli (2007), "The effective rank", of the matrix G.

    Example:
        >>> effective_rank([[2.0, 0.0], [0.0, 2.0]]).round(12).item()
        2.0
    """
    p = _spectrum(_normalised(gram))
    p = ratio(p, p.sum(axis=-1, keepdims=True))
    surprise = -np.log(np.where(p > 0, p, 1.0))
    return np.asarray(np.exp((p * surprise).sum(axis=-1)))


def participation_ratio(gram: ArrayLike) -> FloatArray:
    r"""Number of directions that the gradients of a window use, by the second moment of its spectrum.

    $$ \frac{(\sum_i \lambda_i)^2}{\sum_i \lambda_i^2} = \frac{(\operatorname{tr} G)^2}{\sum_{ij} G_{ij}^2} $$

    Never above ``effective_rank``, as weak directions count less.

    Args:
        gram: G, shape (..., m, m).

    Returns:
        float64, shape (...), in [1, m]: 1 for gradients along one line, m for orthogonal ones of one length.

    Raises:
        ValueError: ``gram`` that is not of that shape, not symmetric, or negative on the diagonal.

    Source: Bell and Dean (1970), of eigenvalues instead of amplitudes.

    Example:
        >>> participation_ratio([[3.0, 0.0], [0.0, 1.0]]).item()
        1.6
    """
    share = _normalised(gram)
    return ratio(np.ones(share.shape[:-2]), (share**2).sum(axis=(-2, -1)))


def spectral_gap(gram: ArrayLike) -> FloatArray:
    r"""How far the first direction of a window stands above the second.

    $$ 1 - \lambda_2 / \lambda_1 $$

    with the two largest eigenvalues of G. Of the definitions in use this is the bounded one; lambda_1 / lambda_2 is
    1 / (1 - gap).

    Args:
        gram: G, shape (..., m, m), m at least 2.

    Returns:
        float64, shape (...), in [0, 1]: 1 for gradients along one line, 0 where two directions are equally strong.

    Raises:
        ValueError: ``gram`` that is not of that shape, not symmetric, or negative on the diagonal.

    Source: ours; the relative eigengap.

    Example:
        >>> spectral_gap([[4.0, 0.0], [0.0, 1.0]]).item()
        0.75
    """
    eigenvalues = _spectrum(_normalised(gram, least=2))
    return 1.0 - ratio(eigenvalues[..., -2], eigenvalues[..., -1])


def _normalised(gram: ArrayLike, *, least: int = 1) -> FloatArray:
    """Matrices G / tr G, all NaN where the trace is unknown or 0."""
    array = as_gram(gram, least=least)
    with np.errstate(over="ignore"):
        trace = array.trace(axis1=-2, axis2=-1)
    return ratio(array, trace[..., None, None])


def _energy(share: FloatArray, direction: FloatArray) -> FloatArray:
    return np.asarray(np.minimum(quadratic_form(share, direction) / share.shape[-1], 1.0))


def _spectrum(share: FloatArray) -> FloatArray:
    """Eigenvalues in rising order, none below 0, shape (..., m); NaN where the matrix is."""
    unknown = np.isnan(share[..., 0, 0])  # of a matrix all entries are NaN, or none
    eigenvalues = np.linalg.eigvalsh(np.where(unknown[..., None, None], 0.0, share))
    return np.where(unknown[..., None], np.nan, np.maximum(eigenvalues, 0.0))

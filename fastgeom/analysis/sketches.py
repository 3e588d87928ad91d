"""Every step of a run against every other, from the small sketch of each gradient that a trace can store.

``Sketch(stored_size=m)`` stores m numbers a step, ``trace.sketch``. Dot products of two of them estimate those of the
gradients without bias, however far apart the steps lie. Time: 2 step^2 m operations; memory, with temporaries: about
8 step (3 step + 2 m) bytes, 0.65 GB for 4,000 steps and m = 4,096; hand over every n-th row of a longer run.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastgeom.analysis.arrays import FloatArray, as_series, root


class SketchCosine(NamedTuple):
    """Estimated cosines of all pairs of steps, and the standard error of each; both of shape (step, step)."""

    cosine: FloatArray
    error: FloatArray


def sketch_cosine(sketches: ArrayLike) -> SketchCosine:
    r"""Cosines between the gradients of all pairs of steps, with their standard errors.

    $$ \hat c_{st} = \frac{\langle S(g_s), S(g_t)\rangle}{\|S(g_s)\|\,\|S(g_t)\|}, \qquad
    \sigma = \frac{1 - \hat c^2}{\sqrt m} $$

    Sketches are divided by their own norms even though a trace knows the gradients' exactly: the errors of product and
    norms cancel, so that c = 1 and c = -1 come out exact. Divided by exact norms the error is sqrt((1 + c^2) / m),
    nowhere smaller and 1.4 / sqrt(m) in a zigzag.

    Args:
        sketches: S(g_t), shape (step, m); ``trace.sketch``.

    Returns:
        ``SketchCosine(cosine, error)``, each float64, shape (step, step), symmetric; cosines in [-1, 1], 1 on the
        diagonal. NaN in the rows and columns of steps whose sketch is 0 or not finite. The error is that of m random
        buckets: too large for a model so small that m numbers store it exactly. A recorded sketch is one of the
        history's sketch, of ``size`` buckets, which adds the fraction m / size to the variance.

    Raises:
        ValueError: ``sketches`` that are not of shape (step, m), m at least 1.

    Source: Charikar, Chen, Farach-Colton (2002) for the sketch; the error is that of a sample correlation.

    Example:
        >>> import numpy as np
        >>> cosine, error = sketch_cosine([[1.0, 1.0, 0.0, 0.0], [-2.0, -2.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]])
        >>> cosine.round(12).tolist()
        [[1.0, -1.0, 0.5], [-1.0, 1.0, -0.5], [0.5, -0.5, 1.0]]
        >>> error.round(12).tolist()
        [[0.0, 0.0, 0.375], [0.0, 0.0, 0.375], [0.375, 0.375, 0.0]]
    """
    rows = _as_sketches(sketches)
    norm = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    norm[norm == 0] = np.nan
    unit = rows / norm[:, None]
    cosine = np.clip(unit @ unit.T, -1.0, 1.0)
    valid = np.flatnonzero(np.isfinite(norm))
    cosine[valid, valid] = 1.0
    return SketchCosine(cosine, (1.0 - cosine**2) / np.sqrt(rows.shape[1]))


def sketch_gram(sketches: ArrayLike, grad_sq: ArrayLike | None = None) -> FloatArray:
    r"""Gram matrix of the gradients of all steps of a run.

    $$ \hat G_{st} = \hat c_{st}\, \|g_s\|\, \|g_t\|, \quad\text{or}\quad \langle S(g_s), S(g_t)\rangle $$

    the first where the norms are given, which a trace holds exactly; the second where they are not. Its standard error
    is ||g_s|| ||g_t|| times (1 - c^2) / sqrt(m) in the first case, and sqrt((1 + c^2) / m) in the second.

    Args:
        sketches: S(g_t), shape (step, m); ``trace.sketch``.
        grad_sq: ||g_t||^2, shape (step,); ``trace.grad_sq``.

    Returns:
        float64, shape (step, step), symmetric, in units of the gradient squared, ``grad_sq`` itself on the diagonal
        where it is given. What ``window_gram`` gives, for a window as long as the run. NaN in the rows and columns of
        steps whose sketch is not finite, or whose norm is unknown.

    Raises:
        ValueError: ``sketches`` that are not of shape (step, m), m at least 1, or ``grad_sq`` of another length.

    Source: as ``sketch_cosine``.

    Example:
        >>> sketch_gram([[1.0, 0.0], [3.0, 4.0]]).tolist()
        [[1.0, 3.0], [3.0, 25.0]]
        >>> sketch_gram([[1.0, 0.0], [3.0, 4.0]], grad_sq=[1.0, 16.0]).round(12).tolist()
        [[1.0, 2.4], [2.4, 16.0]]
    """
    rows = _as_sketches(sketches)
    if grad_sq is None:
        gram: FloatArray = rows @ rows.T
        return gram
    squared = as_series("grad_sq", grad_sq)
    if len(squared) != len(rows):
        raise ValueError(f"grad_sq: expected one value for each of the {len(rows)} sketches, got {len(squared)}")
    norm = np.where(np.isfinite(rows[:, 0]), root(squared), np.nan)
    cosine = sketch_cosine(rows).cosine
    cosine[norm == 0] = cosine[:, norm == 0] = 0.0
    gram = cosine * np.outer(norm, norm)
    valid = np.flatnonzero(np.isfinite(np.diagonal(gram)))
    gram[valid, valid] = squared[valid]
    return gram


def _as_sketches(sketches: ArrayLike) -> FloatArray:
    """In float64, since that decides near c = 1; a row with anything that is not finite is all NaN."""
    rows = np.asarray(sketches, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise ValueError(f"sketches: expected shape (step, m) with m at least 1, got shape {rows.shape}")
    return np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, np.nan)

"""How much of a mini-batch gradient is noise, and what the correlation of gradients would be without it.

A trace does not have this by itself: it takes the gradients a and b of two halves of a batch, g = (a + b) / 2, and
their product handed over as a scalar, ``probe.step(half_dot=...)``. Two ranks or two accumulated micro-batches do.
All work elementwise on arrays of any shape, such as (step,) or (step, layer).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fastgeom.analysis.arrays import FloatArray, check_same_shape, ratio, root


def noise_share(half_dot: ArrayLike, grad_sq: ArrayLike, batch_share: float = 0.0) -> FloatArray:
    r"""Share of the squared gradient norm that is noise of the batch.

    $$ \nu_t = (1 - q) \Big( 1 - \frac{\langle a_t, b_t\rangle}{\|g_t\|^2} \Big), \qquad g_t = \tfrac12 (a_t + b_t) $$

    Halves drawn independently from a population have independent noises: the expectation of <a, b> is the squared norm
    of the population's gradient (q = 0). Halves of a batch drawn without replacement from a data set exclude each
    other, so that their noises about the data set's own gradient are opposite by a little; with q, the batch's share of
    the data set, that is made good exactly. Of one step the ratio is noisy, with a bias of the order of its variance:
    for many steps together divide sums, ``noise_share(half_dot.sum(), grad_sq.sum(), q)``.

    Args:
        half_dot: <a_t, b_t>, any shape.
        grad_sq: ||g_t||^2 of the whole batch, same shape.
        batch_share: q, from 0 to 1: examples in a batch over examples in the data set, drawn without replacement; 0
            for noise about the gradient of the population.

    Returns:
        nu_t, float64, same shape: 0 without noise, 1 where there is nothing else. The estimate of one step can exceed
        1, where the halves point apart. NaN where the gradient is 0 or either is unknown.

    Raises:
        ValueError: shapes that differ, or ``batch_share`` outside [0, 1].

    Source: ours; McCandlish et al. (2018), "An empirical model of large-batch training", measure the same noise from
    two batch sizes.

    Example:
        Halves (1, 1) and (1, -1), so that g = (1, 0); then (2, 1) and (2, 0).

        >>> noise_share([0.0, 4.0], [1.0, 4.25]).round(4).tolist()
        [1.0, 0.0588]
    """
    dot, squared = np.asarray(half_dot, dtype=np.float64), np.asarray(grad_sq, dtype=np.float64)
    check_same_shape(half_dot=dot, grad_sq=squared)
    if not 0 <= batch_share <= 1:
        raise ValueError(f"batch_share: expected a number from 0 to 1, got {batch_share}")
    return (1.0 - batch_share) * (1.0 - ratio(np.where(np.isfinite(dot), dot, np.nan), squared))


def cosine_attenuation(noise_share: ArrayLike, earlier_noise_share: ArrayLike) -> FloatArray:
    r"""Factor by which noise shortens the cosine of two gradients.

    $$ \sqrt{(1 - \nu_t)(1 - \nu_{t-k})} $$

    Args:
        noise_share: nu_t, any shape.
        earlier_noise_share: nu_{t-k} of the step that g_t is compared with, same shape; ``nu[:-1]`` beside ``nu[1:]``
            for adjacent steps.

    Returns:
        float64, same shape, no unit; NaN where a factor is 0 or less, as no true gradient was seen, or unknown.

    Raises:
        ValueError: shapes that differ.

    Source: Spearman (1904), "The proof and measurement of association between two things".

    Example:
        >>> cosine_attenuation([0.75, 1.0], [0.0, 0.5]).tolist()
        [0.5, nan]
    """
    now, before = np.asarray(noise_share, dtype=np.float64), np.asarray(earlier_noise_share, dtype=np.float64)
    check_same_shape(noise_share=now, earlier_noise_share=before)
    return root(np.where(now < 1, 1 - now, np.nan)) * root(np.where(before < 1, 1 - before, np.nan))


def denoised_cosine(cosine: ArrayLike, noise_share: ArrayLike, earlier_noise_share: ArrayLike) -> FloatArray:
    r"""Cosine of the true gradients behind two noisy ones.

    $$ \frac{c_t(k)}{\sqrt{(1 - \nu_t)(1 - \nu_{t-k})}} $$

    For batches drawn independently only. Where steps share a batch, as at the same position in two epochs, or batches
    of one epoch exclude each other, the noises are correlated and this is biased. The estimate of one step is itself
    noisy; average c, nu or both over steps first where nu is near 1.

    Args:
        cosine: c_t(k), any shape.
        noise_share: nu_t, same shape.
        earlier_noise_share: nu_{t-k}, same shape.

    Returns:
        float64, same shape; not clipped, as that would bias averages: it may leave [-1, 1]. NaN where
        ``cosine_attenuation`` or the cosine is.

    Raises:
        ValueError: shapes that differ.

    Source: Spearman's correction for attenuation (1904).

    Example:
        >>> denoised_cosine([-0.25], [0.75], [0.75]).tolist()
        [-1.0]
    """
    observed = np.asarray(cosine, dtype=np.float64)
    now, before = np.asarray(noise_share, dtype=np.float64), np.asarray(earlier_noise_share, dtype=np.float64)
    check_same_shape(cosine=observed, noise_share=now, earlier_noise_share=before)
    return ratio(observed, cosine_attenuation(now, before))

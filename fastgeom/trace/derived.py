"""Quantities derived from recorded sums, computed when read, so that nothing derivable is stored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def grad_norm(grad_sq: np.ndarray) -> np.ndarray:
    """Gradient norm |g_t| = sqrt(grad_sq), of any shape; NaN where the square was not recorded."""
    return np.sqrt(np.asarray(grad_sq, np.float64))


def lag_cosine(lag_dot: np.ndarray, grad_sq: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Cosine c_t(k) = <g_t, g_{t-k}> / (|g_t| |g_{t-k}|) between a gradient and the one k steps before it.

    The norm of g_{t-k} is looked up by step number, since rows may skip steps.

    Args:
        lag_dot: ``(n, lags)`` or ``(n, layers, lags)``; lag k stands at index k - 1 of the last axis.
        grad_sq: ``(n,)`` or ``(n, layers)``, the squared norms of the same rows.
        step: ``(n,)`` integers, strictly increasing.

    Returns:
        float64 of the shape of ``lag_dot``; NaN where step t - k has no row, where the dot is NaN, and where one of the
        norms is 0 or not finite.

    Raises:
        ValueError: shapes that do not fit together, or steps that do not increase.

    Source: Morchdi, Zhou, Ding, Wang (2022) for lag 1; the window of lags is ours.

    Example:
        >>> nan = float("nan")
        >>> lag_cosine([[nan], [-3.0], [nan]], grad_sq=[4.0, 9.0, 1.0], step=[0, 1, 5]).tolist()
        [[nan], [-0.5], [nan]]
    """
    lag_dot, norm, step = np.asarray(lag_dot, np.float64), grad_norm(grad_sq), np.asarray(step)
    if lag_dot.shape[:-1] != norm.shape or step.shape != norm.shape[:1]:
        raise ValueError(
            "expected lag_dot (n, ..., lags), grad_sq (n, ...) and step (n,), "
            f"got {lag_dot.shape}, {norm.shape} and {step.shape}"
        )
    if np.any(np.diff(step) <= 0):
        raise ValueError("expected strictly increasing steps")
    norm[~((norm > 0) & (norm < np.inf))] = np.nan
    cosine = np.full(lag_dot.shape, np.nan)
    for k in range(1, lag_dot.shape[-1] + 1):
        now, before = rows_apart(step, k)
        cosine[now, ..., k - 1] = lag_dot[now, ..., k - 1] / norm[now] / norm[before]
    return cosine


def rows_apart(step: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices ``(i, j)`` of all pairs of rows with ``step[i] - step[j] == k``; ``step`` is strictly increasing."""
    j = np.searchsorted(step, step - k)
    i = np.flatnonzero(step[j] == step - k)  # k > 0, so j never points behind the last row
    return i, j[i]


INPUTS = {
    "grad_norm": ("grad_sq",),
    "lag_cosine": ("lag_dot", "grad_sq"),
    "lag_cosine_error": ("lag_dot_error", "grad_sq"),
}
"""The recorded fields that each derived field is computed from."""


def derive(name: str, inputs: Mapping[str, np.ndarray], step: np.ndarray) -> np.ndarray:
    """Compute a derived field from its inputs by name: all of them overall, of all layers, or of one layer."""
    if name == "grad_norm":
        return grad_norm(inputs["grad_sq"])
    dots, grad_sq = (inputs[i] for i in INPUTS[name])
    return lag_cosine(dots, grad_sq, step)

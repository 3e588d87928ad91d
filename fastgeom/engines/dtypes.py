"""The dtypes in which a window stores its gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastgeom.validation import check_float16_gradients


def ring_dtypes(names: Sequence[str], gradients: Sequence[torch.dtype], dtype: torch.dtype | None) -> list[torch.dtype]:
    """The dtype to store each gradient in: ``dtype`` where that has less precision, else the gradient's own.

    Args:
        names: of the gradients.
        gradients: the dtype of each.
        dtype: asked for by the history; ``None`` for the gradients' own.

    Raises:
        ValueError: float16 for gradients of another dtype.
    """
    check_float16_gradients(names, gradients, dtype)
    return [gradient if dtype is None or not _loses(dtype, gradient) else dtype for gradient in gradients]


def _loses(stored: torch.dtype, gradient: torch.dtype) -> bool:
    """Whether a gradient of dtype ``gradient`` loses precision when stored as ``stored``."""
    return torch.finfo(stored).eps > torch.finfo(gradient).eps

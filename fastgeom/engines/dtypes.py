"""In which dtypes a window keeps its gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def kept_dtypes(names: Sequence[str], gradients: Sequence[torch.dtype], dtype: torch.dtype | None) -> list[torch.dtype]:
    """In what each gradient is kept: in ``dtype`` where that has less precision than its own, else in its own.

    Raises:
        ValueError: float16 for gradients of another dtype, whose small values it has no exponents for.
    """
    for name, own in zip(names, gradients, strict=True):
        if dtype is torch.float16 and own is not torch.float16:
            raise ValueError(f"history dtype: expected float16 gradients for a float16 history, got {own} in {name!r}")
    return [own if dtype is None or not loses(dtype, own) else dtype for own in gradients]


def loses(kept: torch.dtype, own: torch.dtype) -> bool:
    """Whether a gradient of dtype ``own`` loses precision in ``kept``."""
    return torch.finfo(kept).eps > torch.finfo(own).eps

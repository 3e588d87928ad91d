"""`Exact`: a history of the past gradients themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastgeom.validation import check_history_dtype, checked_defer


@dataclass(frozen=True)
class Exact:
    """Keep the last ``window`` gradients themselves: lags are exact.

    Args:
        dtype: what to store gradients in, where that has less precision than their own dtype; otherwise, and by
            default, each is stored in its own, and nothing is lost. ``torch.bfloat16`` halves a float32 ring. Where
            precision is lost, one previous gradient is also kept in full, for the sums of differences.
            ``torch.float16`` is for float16 gradients alone: it has no exponents for the small values of other dtypes.
        defer: B, the number of steps whose dots with past gradients are taken in one pass. A step then stores its
            gradient and reads nothing else, and every B steps one pass over window + B gradients gives the same
            numbers, up to B - 1 steps late, filed under their own steps. With a window of W gradients of h bytes this
            moves 2 h + h (W + B) / B bytes a step instead of h (W + 2).

    Raises:
        ValueError: a dtype that cannot be measured; a ``defer`` that is no positive integer, or is more than 1 beside a
            ``dtype``.

    Memory: window × gradient bytes, and ``defer`` gradients more where that is more than 1.
    """

    dtype: torch.dtype | None = None
    defer: int = 1

    def __post_init__(self) -> None:
        check_history_dtype(self.dtype)
        object.__setattr__(self, "defer", checked_defer(self.defer, self.dtype))

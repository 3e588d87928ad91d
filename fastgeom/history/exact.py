"""`Exact`: keep past gradients themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastgeom.validation import DTYPES, integer


@dataclass(frozen=True)
class Exact:
    """Keep the last ``window`` gradients themselves.

    Args:
        dtype: what to keep them in, where that has less precision than the gradient's own dtype; otherwise, and by
            default, each is kept in its own, so that nothing is lost. ``torch.bfloat16`` halves a float32 ring. Where
            precision is lost, the one gradient before is also kept in full, for the sums of differences.
            ``torch.float16`` is for float16 gradients alone: it has no exponents for the small ones of other dtypes.
        defer: of how many steps the dots with past gradients are taken in one pass. A step then stores its gradient,
            reading nothing else, and every ``defer`` steps one pass over window + defer gradients gives the same
            numbers, up to ``defer`` - 1 steps late, filed under their own steps. With a window of W in the gradient's
            own dtype h this moves 2 h + h (W + defer) / defer bytes a step instead of h (W + 2).

    Raises:
        ValueError: a dtype that cannot be measured; a ``defer`` that is no positive integer, or beside a ``dtype``.
    """

    dtype: torch.dtype | None = None
    defer: int = 1

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            expected = ", ".join(map(str, DTYPES))
            raise ValueError(f"history dtype: expected None or one of {expected}, got {self.dtype!r}")
        integer("history defer", self.defer, 1)
        if self.defer > 1 and self.dtype is not None:
            raise ValueError(
                f"history defer: expected gradients in their own dtype (dtype=None) with defer={self.defer}, "
                f"got dtype={self.dtype}"
            )

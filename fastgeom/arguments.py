"""Checks of what a trainer hands to the probe; each error names what was expected and what came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real

from torch import Tensor


def checked_window(window: int) -> int:
    """A window of at least 1."""
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise ValueError(f"window: expected an integer of at least 1, got {window!r}")
    return window


def checked_lags(lags: Sequence[int] | None, window: int) -> tuple[int, ...]:
    """Lags in rising order; all of the window for ``None``."""
    if lags is None:
        return tuple(range(1, window + 1))
    chosen = sorted(lags)
    if not chosen or len(set(chosen)) < len(chosen) or chosen[0] < 1 or chosen[-1] > window:
        raise ValueError(f"record_lags: expected different lags from 1 to window = {window}, got {list(lags)!r}")
    return tuple(chosen)


def checked_step(step: int | None, last: int | None) -> int:
    """The number of this step: the trainer's, or one more than the last."""
    if step is None:
        return 0 if last is None else last + 1
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError(f"step: expected an integer of at least 0, got {step!r}")
    if last is not None and step <= last:
        raise ValueError(f"step: expected a number above the last, {last}, got {step}")
    return step


def checked_scalars(scalars: Mapping[str, Tensor | float]) -> dict[str, Tensor | float]:
    """Numbers as floats, tensors of one element as 0-d tensors without history."""
    for name, value in scalars.items():
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"scalar {name!r}: expected one number, got a tensor of shape {tuple(value.shape)}")
        elif not isinstance(value, Real):
            raise TypeError(f"scalar {name!r}: expected a number or a tensor of one, got {type(value).__name__}")
    return {n: v.detach().reshape(()) if isinstance(v, Tensor) else float(v) for n, v in scalars.items()}

"""Checks of what a trainer hands to the probe; each error names what was expected and what came."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def integer(name: str, value: Any, least: int) -> int:
    """``value`` as an int of at least ``least``: Python's own or numpy's, but no bool."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    return number


def checked_window(window: int) -> int:
    """A window of at least 1."""
    return integer("window", window, 1)


def checked_lags(lags: Sequence[int] | None, window: int) -> tuple[int, ...]:
    """Lags in rising order; all of the window for ``None``."""
    if lags is None:
        return tuple(range(1, window + 1))
    if isinstance(lags, str) or not isinstance(lags, Sequence):
        raise TypeError(f"record_lags: expected None or a sequence of lags, got {lags!r}")
    chosen = sorted(integer("record_lags", lag, 1) for lag in lags)
    if not chosen or len(set(chosen)) < len(chosen) or chosen[-1] > window:
        raise ValueError(f"record_lags: expected different lags from 1 to window = {window}, got {list(lags)!r}")
    return tuple(chosen)


def checked_step(step: int | None, last: int | None) -> int:
    """The number of this step: the trainer's, or one more than the last."""
    if step is None:
        return 0 if last is None else last + 1
    number = integer("step", step, 0)
    if last is not None and number <= last:
        raise ValueError(f"step: expected a number above the last, {last}, got {number}")
    return number


def checked_max_norm(max_norm: float | None) -> float | None:
    """A norm of at least 0, infinity included."""
    if max_norm is None:
        return None
    try:
        number = float(max_norm)
    except (TypeError, ValueError):
        number = math.nan
    if not number >= 0:
        raise ValueError(f"max_norm: expected None or a number of at least 0, got {max_norm!r}")
    return number


def checked_callable(name: str, value: F | None) -> F | None:
    """``None`` or something to call."""
    if value is not None and not callable(value):
        raise TypeError(f"{name}: expected None or a callable, got {value!r}")
    return value


def checked_path(path: str | os.PathLike[str] | None) -> str | None:
    """``None`` or a path as text."""
    if path is None:
        return None
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"trace: expected None or a path, got {path!r}")
    return text


def checked_scalars(scalars: Mapping[str, Tensor | float]) -> dict[str, Tensor | float]:
    """Numbers as floats, tensors of one element as 0-d tensors without history."""
    checked: dict[str, Tensor | float] = {}
    for name, value in scalars.items():
        if isinstance(value, Tensor):
            if value.numel() != 1 or value.is_complex():
                raise ValueError(
                    f"scalar {name!r}: expected one number, got a tensor of shape {tuple(value.shape)}, {value.dtype}"
                )
            checked[name] = value.detach().reshape(())
        else:
            checked[name] = _number(name, value)
    return checked


def _number(name: str, value: Any) -> float:
    try:
        if not isinstance(value, str | bytes):
            return float(value)
    except TypeError:
        pass
    raise TypeError(f"scalar {name!r}: expected a number or a tensor of one, got {type(value).__name__}")

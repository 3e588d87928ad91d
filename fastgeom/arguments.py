"""Checks of what a trainer hands to the probe or a sweep; each error names what was expected and what came."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from fastgeom.engines import check_device
from fastgeom.tables import check_measurable

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


def checked_parameters(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Leaf tensors that can be measured and written to, each once, on one device."""
    if isinstance(parameters, Tensor) or not isinstance(parameters, Iterable):
        raise TypeError(
            f"parameters: expected an iterable of parameters, such as model.parameters(), "
            f"got {type(parameters).__name__}"
        )
    found: dict[int, Tensor] = {}
    for place, parameter in enumerate(parameters):
        what = f"parameters[{place}]"
        check_measurable(parameter, what)
        if not parameter.is_leaf:
            raise ValueError(f"{what}: expected a leaf tensor, got the result of {parameter.grad_fn}")
        if any(stride == 0 and size > 1 for stride, size in zip(parameter.stride(), parameter.shape, strict=True)):
            raise ValueError(f"{what}: expected each element in a place of its own, got an expanded tensor")
        first = next(iter(found.values()), parameter)
        check_device(what, parameter.device)
        if parameter.device != first.device:
            raise ValueError(f"{what}: expected it on {first.device} with all others, got {parameter.device}")
        found[id(parameter)] = parameter
    if not found:
        raise ValueError("parameters: expected at least one, got none")
    return list(found.values())


def checked_scales(scales: Iterable[float]) -> list[float]:
    """At least one finite number above 0."""
    if isinstance(scales, Tensor | str | bytes) or not isinstance(scales, Iterable):
        raise TypeError(f"scales: expected a sequence of numbers on the host, got {type(scales).__name__}")
    found = []
    for place, scale in enumerate(scales):
        if isinstance(scale, Tensor | str | bytes):
            raise TypeError(f"scales[{place}]: expected a number on the host, got {type(scale).__name__}")
        number = float(scale)
        if not 0 < number < math.inf:
            raise ValueError(f"scales[{place}]: expected a finite number above 0, got {number}")
        found.append(number)
    if not found:
        raise ValueError("scales: expected at least one, got none")
    return found


def _number(name: str, value: Any) -> float:
    try:
        if not isinstance(value, str | bytes):
            return float(value)
    except TypeError:
        pass
    raise TypeError(f"scalar {name!r}: expected a number or a tensor of one, got {type(value).__name__}")

"""Checks of what a trainer hands to the probe or a sweep; each error names what was expected and what came."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""What can be measured; the place in this tuple is the dtype's code in an `AddressTable`."""

_TRITON_DEVICES = ("cuda", "xpu")  # ROCm calls itself cuda


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
        raise TypeError(f"layer_lags: expected None or a sequence of lags, got {lags!r}")
    chosen = sorted(integer("layer_lags", lag, 1) for lag in lags)
    if not chosen or len(set(chosen)) < len(chosen) or chosen[-1] > window:
        raise ValueError(f"layer_lags: expected different lags from 1 to window = {window}, got {list(lags)!r}")
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


def check_measurable(tensor: Tensor, what: str) -> None:
    """Raise unless ``tensor`` is a dense float tensor of a measurable dtype.

    Raises:
        TypeError: it is no tensor, sharded, sparse, complex, integer or of an unsupported float type; names ``what``.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{what}: expected a tensor, got {type(tensor).__name__}")
    if hasattr(tensor, "placements"):
        raise TypeError(f"{what}: expected a plain tensor, got a DTensor; sharded parameters are not measured yet")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{what}: expected a dense tensor, got layout {tensor.layout}")
    if tensor.dtype not in DTYPES:
        expected = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise TypeError(f"{what}: expected dtype {expected}, got {str(tensor.dtype).removeprefix('torch.')}")


def is_plain(tensor: object) -> bool:
    """Whether it is one of the tensors that `check_measurable` lets pass, and which it need not look at; soon said."""
    return type(tensor) is Tensor and tensor.dtype in DTYPES and tensor.layout is torch.strided


def check_device(what: str, device: torch.device) -> None:
    """Raise unless an engine measures on such devices.

    Raises:
        ValueError: names ``what``.
    """
    if device.type not in ("cpu", *_TRITON_DEVICES):
        raise ValueError(f"{what}: expected tensors on cpu, {' or '.join(_TRITON_DEVICES)}, got {device}")


def check_deferrable(names: Sequence[str], codes: NDArray[np.int8]) -> None:
    """Raise where a gradient is float64, whose dots are taken at every step.

    Raises:
        ValueError: names the gradient.
    """
    wide = np.flatnonzero(codes == DTYPES.index(torch.float64))
    if len(wide):
        raise ValueError(f"history defer: expected gradients of 16 or 32 bits, got float64 in {names[wide[0]]!r}")


def check_dtypes(
    names: Sequence[str], what: str, first: NDArray[np.int8], codes: NDArray[np.int8], address: NDArray[np.int64]
) -> None:
    """Raise unless the tensors that are there have the dtypes that they had at the first measured step.

    Args:
        names: of the tensors.
        what: what they are, for the message.
        first: (tensor,) index into `DTYPES` of each at the first step.
        codes: the same now.
        address: (tensor,) where each lies; 0 where there is none.

    Raises:
        ValueError: names the tensor.
    """
    if codes is first:
        return
    changed = np.flatnonzero((codes != first) & (address != 0))
    if len(changed):
        i = changed[0]
        raise ValueError(
            f"{what}{names[i]!r}: expected dtype {DTYPES[first[i]]} as at the first measured step, "
            f"got {DTYPES[codes[i]]}"
        )

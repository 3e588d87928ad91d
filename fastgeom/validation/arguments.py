"""Checks of arguments: numbers, names, paths, choices and the trainer's scalars.

Each error names the argument, what was expected and what came. A function named ``checked_*`` returns the value in the
form that is stored, one named ``check_*`` only raises.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastgeom.validation.tensors import DTYPES, check_device

F = TypeVar("F", bound=Callable[..., Any])

BACKENDS = ("cpu", "triton")
LAYER_CHOICES = ("module", "parameter", "all")


def checked_integer(name: str, value: Any, least: int) -> int:
    """``value`` as an int of at least ``least``: Python's own or numpy's, but no bool."""
    number = _index(value)
    if number is None or number < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    return number


def _index(value: Any) -> int | None:
    """``value`` as an int; ``None`` where it is no integer, or a bool."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def checked_callable(name: str, value: F | None) -> F | None:
    """``None`` or something to call."""
    if value is not None and not callable(value):
        raise TypeError(f"{name}: expected None or a callable, got {value!r}")
    return value


# ---------------------------------------------------------------- of a probe


def checked_window(window: int) -> int:
    """A window of at least 1."""
    return checked_integer("window", window, 1)


def checked_layer_lags(lags: Sequence[int] | None, window: int) -> tuple[int, ...]:
    """Lags in rising order; all of the window for ``None``."""
    if lags is None:
        return tuple(range(1, window + 1))
    if isinstance(lags, str) or not isinstance(lags, Sequence):
        raise TypeError(f"layer_lags: expected None or a sequence of lags, got {lags!r}")
    chosen = sorted(checked_integer("layer_lags", lag, 1) for lag in lags)
    if not chosen or len(set(chosen)) < len(chosen) or chosen[-1] > window:
        raise ValueError(f"layer_lags: expected different lags from 1 to window = {window}, got {list(lags)!r}")
    return tuple(chosen)


def check_layers(layers: object) -> None:
    """Raise unless ``layers`` is a callable or one of `LAYER_CHOICES`."""
    if not callable(layers) and not (isinstance(layers, str) and layers in LAYER_CHOICES):
        raise ValueError(f"layers: expected 'module', 'parameter', 'all' or a callable name -> layer, got {layers!r}")


def checked_layer_name(layer: object, parameter: str) -> str:
    """What the callable ``layers`` returned for a parameter: a printable name that is not empty."""
    if not isinstance(layer, str) or not layer:
        raise TypeError(f"layers: expected a callable that returns a layer name, got {layer!r} for {parameter!r}")
    if not layer.isprintable():
        raise ValueError(f"layers: expected a callable that returns printable names, got {layer!r} for {parameter!r}")
    return layer


def checked_path(path: str | os.PathLike[str] | None) -> str | None:
    """``None`` or a path as text."""
    if path is None:
        return None
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"trace: expected None or a path, got {path!r}")
    return text


def check_backend(backend: str | None, device: torch.device) -> None:
    """Raise unless this engine can measure tensors on ``device``; ``None`` leaves the choice open."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend: expected None or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if device.type != "cpu":
        check_device("backend", device)
        if backend == "cpu":
            raise ValueError(f"backend: expected tensors on the CPU for 'cpu', got {device}")
    elif backend == "triton" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            "backend: expected tensors on a GPU for 'triton', got cpu; on CPU tensors it runs through Triton's "
            "interpreter alone, with TRITON_INTERPRET=1 in the environment"
        )


# ---------------------------------------------------------------- of a history and a sketch


def check_history(history: object, kinds: tuple[type, ...]) -> None:
    """Raise unless ``history`` is ``None`` or an instance of one of ``kinds``."""
    if history is not None and not isinstance(history, kinds):
        raise ValueError(f"history: expected None, fastgeom.Exact(...) or fastgeom.Sketch(...), got {history!r}")


def check_history_dtype(dtype: torch.dtype | None) -> None:
    """Raise unless gradients can be stored in ``dtype``; ``None`` is their own."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"history dtype: expected None or one of {', '.join(map(str, DTYPES))}, got {dtype!r}")


def checked_defer(defer: int, dtype: torch.dtype | None) -> int:
    """How many steps share a pass: at least 1, and with more than 1 gradients stay in their own dtype."""
    number = checked_integer("history defer", defer, 1)
    if number > 1 and dtype is not None:
        raise ValueError(
            f"history defer: expected gradients in their own dtype (dtype=None) with defer={number}, got dtype={dtype}"
        )
    return number


def check_ring_rows(window: int, defer: int, most: int) -> None:
    """Raise where a deferred window has more rows than one pass on a GPU can read."""
    if window + defer > most:
        raise ValueError(f"history defer: expected window + defer of at most {most} on a GPU, got {window} + {defer}")


def check_defer_limit(defer: int, most: int, dtype: torch.dtype) -> None:
    """Raise where more steps share a pass than a GPU's program can accumulate for gradients of this dtype."""
    if defer > most:
        raise ValueError(f"history defer: expected at most {most} for {dtype} gradients on a GPU, got {defer}")


def checked_bucket_count(size: int, least: int) -> int:
    """The size of one sketch: a power of two."""
    number = _index(size)
    if number is None or number < least or number & (number - 1):
        raise ValueError(f"size: expected a power of two of at least {least}, got {size!r}")
    return number


def check_stored_size(size: int, least: int, most: int) -> None:
    """Raise unless the size of a stored sketch is a power of two that the whole sketch has buckets for."""
    if size & (size - 1) or not least <= size <= most:
        raise ValueError(f"sketch stored_size: expected a power of two from {least} to size = {most}, got {size}")


def check_plan_size(size: int, least: int, most: int, n_groups: int) -> None:
    """Raise where the buckets of all groups of a sketch are too few or too many."""
    if size < least:
        raise ValueError(f"size: expected at least {least} for {n_groups} groups, got {size}")
    if size > most:
        raise ValueError(f"size: expected at most 2^{most.bit_length() - 1}, got {size}")


def checked_seed(seed: int) -> int:
    """A 32-bit number."""
    number = _index(seed)
    if number is None or not 0 <= number < 1 << 32:
        raise ValueError(f"seed: expected 0 <= seed < 2^32, got {seed!r}")
    return number


# ---------------------------------------------------------------- of a step


def checked_step(step: int | None, last: int | None) -> int:
    """The number of this step: the trainer's, or one more than the last."""
    if step is None:
        return 0 if last is None else last + 1
    number = checked_integer("step", step, 0)
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


def checked_scalars(
    scalars: Mapping[str, Tensor | float],
    *,
    names: Sequence[str] | None = None,
    path: str | None = None,
    graph_device: torch.device | None = None,
) -> dict[str, Tensor | float]:
    """The trainer's scalars: numbers as floats, tensors of one element as 0-d tensors without history.

    Args:
        scalars: by name.
        names: those that a trace has room for; ``None`` where any is new.
        path: of that trace, for the message.
        graph_device: where tensors must lie, as a CUDA graph is being captured; ``None`` where none is.
    """
    checked: dict[str, Tensor | float] = {}
    for name, value in scalars.items():
        if isinstance(value, Tensor):
            if value.numel() != 1 or value.is_complex():
                raise ValueError(
                    f"scalar {name!r}: expected one number, got a tensor of shape {tuple(value.shape)}, {value.dtype}"
                )
            if graph_device is not None and value.device != graph_device:
                raise ValueError(
                    f"scalar {name!r}: expected a tensor on {graph_device} in a CUDA graph, got {value.device}"
                )
            checked[name] = value.detach().reshape(())
        else:
            checked[name] = _number(name, value)
    if names is not None and (unknown := [name for name in scalars if name not in names]):
        raise ValueError(
            f"scalar {unknown[0]!r}: expected one of those of the first measured step ({', '.join(names) or 'none'}); "
            f"the trace {path} has no place for a new one"
        )
    return checked


def _number(name: str, value: Any) -> float:
    try:
        if not isinstance(value, str | bytes):
            return float(value)
    except TypeError:
        pass
    raise TypeError(f"scalar {name!r}: expected a number or a tensor of one, got {type(value).__name__}")


def check_no_closure(arguments: Iterable[object]) -> None:
    """Raise where ``optimizer.step()`` was called with a closure."""
    if any(callable(argument) for argument in arguments):
        raise RuntimeError(
            "Probe.attach: expected optimizer.step() without a closure; a closure computes the gradients after the "
            "probe has looked. Call probe.step() yourself, at the end of the closure"
        )


# ---------------------------------------------------------------- of a schedule and a sweep


def checked_burst(every: int, length: int) -> tuple[int, int]:
    """A period and a length that is no longer."""
    every, length = checked_integer("every", every, 1), checked_integer("length", length, 1)
    if length > every:
        raise ValueError(f"length: expected at most every = {every}, got {length}")
    return every, length


def checked_scales(scales: Iterable[float]) -> list[float]:
    """At least one finite number above 0."""
    if isinstance(scales, Tensor | str | bytes) or not isinstance(scales, Iterable):
        raise TypeError(f"scales: expected a sequence of numbers on the host, got {type(scales).__name__}")
    numbers = []
    for index, scale in enumerate(scales):
        if isinstance(scale, Tensor | str | bytes):
            raise TypeError(f"scales[{index}]: expected a number on the host, got {type(scale).__name__}")
        number = float(scale)
        if not 0 < number < math.inf:
            raise ValueError(f"scales[{index}]: expected a finite number above 0, got {number}")
        numbers.append(number)
    if not numbers:
        raise ValueError("scales: expected at least one, got none")
    return numbers


def check_closure_loss(loss: Tensor) -> None:
    """Raise unless a sweep's closure returned one number."""
    if loss.numel() != 1 or loss.is_complex():
        raise ValueError(f"closure: expected it to return one number, got a tensor of shape {tuple(loss.shape)}")

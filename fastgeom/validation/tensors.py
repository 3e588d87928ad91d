"""Checks of tensors: dtype, layout, device, shape, and of lists and names of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Measurable dtypes; the index in this tuple is the dtype's code in an `AddressTable`."""

_GPU_TYPES = ("cuda", "xpu")  # ROCm calls itself cuda


# ---------------------------------------------------------------- one tensor


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
    """Fast path: True if ``tensor`` is a plain dense tensor of a measurable dtype."""
    return type(tensor) is Tensor and tensor.dtype in DTYPES and tensor.layout is torch.strided


def check_device(what: str, device: torch.device) -> None:
    """Raise unless an engine measures on such devices.

    Raises:
        ValueError: names ``what``.
    """
    if device.type not in ("cpu", *_GPU_TYPES):
        raise ValueError(f"{what}: expected tensors on cpu, {' or '.join(_GPU_TYPES)}, got {device}")


def check_fits(tensor: Tensor, what: str, shape: torch.Size, device: torch.device) -> None:
    """Raise unless ``tensor`` is measurable and has the shape and the device that its parameter had at the start.

    Raises:
        TypeError, ValueError: names ``what``.
    """
    check_measurable(tensor, what)
    if tensor.shape != shape:
        raise ValueError(f"{what}: expected shape {tuple(shape)} as at the start, got {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{what}: expected it on {device} with all others, got {tensor.device}")


def check_sketch_output(out: Tensor, size: int) -> None:
    """Raise unless a sketch of ``size`` numbers can be written to ``out``."""
    if out.shape != (size,) or out.dtype is not torch.float32 or not out.is_contiguous():
        raise ValueError(f"out: expected {size} contiguous float32, got {tuple(out.shape)} {out.dtype}")


# ---------------------------------------------------------------- lists of tensors


def checked_tensors(tensors: Iterable[Tensor], name: str) -> list[Tensor]:
    """Measurable tensors on one device, detached."""
    if isinstance(tensors, Tensor):
        raise TypeError(f"{name}: expected a list of tensors, got one tensor; write [tensor]")
    checked = list(tensors)
    for index, tensor in enumerate(checked):
        if not is_plain(tensor):
            check_measurable(tensor, f"{name}[{index}]")
        if tensor.device != checked[0].device:
            raise ValueError(f"{name}: expected all on one device, got {checked[0].device} and {tensor.device}")
        if tensor.requires_grad:
            checked[index] = tensor.detach()
    if checked:
        check_device(name, checked[0].device)
    return checked


def check_pairs(a: Sequence[Tensor], b: Sequence[Tensor], name: str) -> None:
    """Raise unless the tensors of ``b``, which is called ``name``, pair with those of ``a``."""
    if len(a) != len(b):
        raise ValueError(f"{name}: expected {len(a)} tensors to pair with, got {len(b)}")
    for index, (x, y) in enumerate(zip(a, b, strict=True)):
        if x.shape != y.shape:
            raise ValueError(f"{name}[{index}]: expected shape {tuple(x.shape)}, got {tuple(y.shape)}")
        if x.device != y.device:
            raise ValueError(f"{name}[{index}]: expected it on {x.device}, got {y.device}")


def checked_parameters(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Leaf tensors that can be measured and written to, each once, on one device."""
    if isinstance(parameters, Tensor) or not isinstance(parameters, Iterable):
        raise TypeError(
            f"parameters: expected an iterable of parameters, such as model.parameters(), "
            f"got {type(parameters).__name__}"
        )
    checked: dict[int, Tensor] = {}
    for index, parameter in enumerate(parameters):
        what = f"parameters[{index}]"
        check_measurable(parameter, what)
        if not parameter.is_leaf:
            raise ValueError(f"{what}: expected a leaf tensor, got the result of {parameter.grad_fn}")
        if any(stride == 0 and size > 1 for stride, size in zip(parameter.stride(), parameter.shape, strict=True)):
            raise ValueError(f"{what}: expected each element in a place of its own, got an expanded tensor")
        first = next(iter(checked.values()), parameter)
        check_device(what, parameter.device)
        if parameter.device != first.device:
            raise ValueError(f"{what}: expected it on {first.device} with all others, got {parameter.device}")
        checked[id(parameter)] = parameter
    if not checked:
        raise ValueError("parameters: expected at least one, got none")
    return list(checked.values())


# ---------------------------------------------------------------- what a probe measures


def checked_target(target: torch.nn.Module | Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Name → parameter: a module's trainable ones, or the pairs given; each tensor once."""
    if isinstance(target, torch.nn.Module):
        parameters = list(target.named_parameters())
        pairs: Iterable[object] = [(name, p) for name, p in parameters if p.requires_grad]
        description = f"{type(target).__name__} with {len(parameters)} parameters, none of which requires a gradient"
    elif isinstance(target, Iterable) and not isinstance(target, Tensor):
        pairs, description = target, "an empty iterable"
    else:
        raise TypeError(f"target: expected a module or an iterable of (name, parameter), got {type(target).__name__}")
    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    for index, pair in enumerate(pairs):
        name, parameter = _checked_pair(pair, index)
        if name in named:
            raise ValueError(f"target: expected each name once, got parameter {name!r} twice")
        check_measurable(parameter, f"parameter {name!r}")
        if id(parameter) not in seen:
            seen.add(id(parameter))
            named[name] = parameter
    if not named:
        raise ValueError(f"target: expected at least one parameter to measure, got {description}")
    return named


def _checked_pair(pair: object, index: int) -> tuple[str, Tensor]:
    if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and pair[0]:
        return pair[0], pair[1]
    got = f"name {pair[0]!r}" if isinstance(pair, tuple) and pair else type(pair).__name__
    raise ValueError(
        f"target: expected pairs (name, parameter) with a name that is not empty, got {got} at place {index}"
    )


def check_one_device(named: dict[str, Tensor]) -> None:
    """Raise unless all parameters lie on one device."""
    devices = {str(p.device): name for name, p in named.items()}
    if len(devices) > 1:
        raise ValueError(f"parameters: expected all on one device, got {devices} (device: last parameter on it)")


def check_not_replaced(names: Sequence[str], parameters: Sequence[Tensor], current: Sequence[Tensor | None]) -> None:
    """Raise where a module's parameter is another one than at the start, whose gradient would not be read.

    Raises:
        ValueError: names the parameter.
    """
    for name, parameter, now in zip(names, parameters, current, strict=True):
        if now is not parameter:
            raise ValueError(f"parameter {name!r}: expected the one that the probe was made for, got a new one")


def check_any_gradient(gradients: Sequence[Tensor | None]) -> None:
    """Raise where no parameter has a gradient."""
    if all(gradient is None for gradient in gradients):
        raise ValueError(
            f"gradient: expected at least one of {len(gradients)} parameters to have one, got None for all; "
            "measure after backward() and before zero_grad()"
        )


# ---------------------------------------------------------------- the dtypes of a step's gradients


def check_float16_gradients(names: Sequence[str], gradients: Sequence[torch.dtype], dtype: torch.dtype | None) -> None:
    """Raise where a float16 history is asked for other gradients, whose small values float16 has no exponents for.

    Raises:
        ValueError: names the gradient.
    """
    for name, gradient in zip(names, gradients, strict=True):
        if dtype is torch.float16 and gradient is not torch.float16:
            raise ValueError(
                f"history dtype: expected float16 gradients for a float16 history, got {gradient} in {name!r}"
            )


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
    """Raise where a tensor has another dtype than at the first measured step.

    Args:
        names: of the tensors.
        what: what they are, for the message.
        first: (tensor,) index into `DTYPES` of each at the first step.
        codes: (tensor,) the same now.
        address: (tensor,) of each; 0 where there is no tensor, and nothing to check.

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

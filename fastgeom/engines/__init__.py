"""Engines: the same few calls over a layout, on the device where the tensors lie.

Each is imported when it is first needed: who measures on a GPU does not wait for numba, nor the others for Triton.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from fastgeom.engines.window import (
    LateLags,
    ListMoments,
    NormMoments,
    Sketcher,
    SketchMoments,
    SketchWindow,
    UpdateMoments,
    Window,
    WindowStatistics,
)
from fastgeom.layout import Layout
from fastgeom.sketching import SketchPlan
from fastgeom.tables import AddressTable, Ints

__all__ = [
    "BACKENDS", "Engine", "LateLags", "ListMoments", "NormMoments", "SketchMoments", "SketchWindow",
    "Sketcher", "UpdateMoments", "Window", "WindowStatistics", "check_device", "select_engine",
]  # fmt: skip

BACKENDS = ("cpu", "triton")
_TRITON_DEVICES = ("cuda", "xpu")  # ROCm calls itself cuda


class Engine(Protocol):
    """What measures lists of tensors on one kind of device."""

    name: str
    rows_alike: bool
    """Whether all rows of one `list_moments` must have the same dtypes."""

    def zeros(self, rows: int, n_elements: int, dtype: torch.dtype) -> Tensor:
        """Memory of shape (rows, n_elements), zeroed."""

    def window(
        self, layout: Layout, window: int, *, dtype: torch.dtype | None = None, defer: int = 1,
        track_updates: bool = False,
    ) -> Window:  # fmt: skip
        """The last ``window`` gradients of a layout, kept in ``dtype`` where that is less than their own.

        With ``defer`` > 1 the lags of so many steps are taken in one pass, after the last of them.
        """

    def sketcher(self, plan: SketchPlan) -> Sketcher:
        """What makes sketches of lists of tensors."""

    def sketch_window(self, layout: Layout, plan: SketchPlan, window: int) -> SketchWindow:
        """Sketches of the last ``window`` gradients of a layout."""

    def list_moments(self, numels: Ints, tensors: AddressTable, rows: Sequence[AddressTable] = ()) -> ListMoments:
        """One read of a list of tensors against rows of others."""

    def scale(self, tensors: Sequence[Tensor], factor: Tensor) -> None:
        """Multiply tensors in place by a 0-d tensor, which stays on the device."""


def select_engine(backend: str | None, device: torch.device) -> Engine:
    """The engine for tensors on ``device``.

    Args:
        backend: ``None`` to choose by the device, or the name of one engine.
        device: where the tensors lie.

    Raises:
        ValueError: no such backend, or it cannot run on this device; says why.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend: expected None or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if device.type == "cpu" and backend != "triton":
        return _cpu_engine()
    check_device("backend", device)
    if backend == "cpu":
        raise ValueError(f"backend: expected tensors on the CPU for 'cpu', got {device}")
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            "backend: expected tensors on a GPU for 'triton', got cpu; on CPU tensors it runs through Triton's "
            "interpreter alone, with TRITON_INTERPRET=1 in the environment"
        )
    return _triton_engine(device)


def check_device(what: str, device: torch.device) -> None:
    """Raise unless an engine measures on such devices.

    Raises:
        ValueError: names ``what``.
    """
    if device.type not in ("cpu", *_TRITON_DEVICES):
        raise ValueError(f"{what}: expected tensors on cpu, {' or '.join(_TRITON_DEVICES)}, got {device}")


@lru_cache(maxsize=1)
def _cpu_engine() -> Engine:
    from fastgeom.engines.cpu import CpuEngine

    return CpuEngine()


@lru_cache
def _triton_engine(device: torch.device) -> Engine:
    try:
        from fastgeom.engines.triton import TritonEngine
    except ModuleNotFoundError as error:
        link = error.name is not None and error.name.startswith("fastgeom.kernels")
        cause = "this checkout has no symlink fastgeom/kernels" if link else "install it"
        raise ValueError(f"backend: expected what 'triton' needs on {device}, but {error}; {cause}") from error
    return TritonEngine(device)

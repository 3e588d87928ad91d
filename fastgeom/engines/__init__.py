"""Engines: the same few calls over a layout, on the device where the tensors lie."""

from __future__ import annotations

import torch

from fastgeom.engines.cpu import CpuEngine, UpdateMoments, WindowMoments

__all__ = ["BACKENDS", "Engine", "UpdateMoments", "WindowMoments", "select_engine"]

Engine = CpuEngine
BACKENDS = ("cpu",)


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
    if device.type != "cpu":
        raise ValueError(f"backend: expected tensors on the CPU, the one device this version measures on, got {device}")
    return CpuEngine()

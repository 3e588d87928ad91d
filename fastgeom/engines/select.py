"""Choose the engine for the device where tensors lie.

Each is imported when it is first needed: who measures on a GPU does not wait for numba, nor the others for Triton.
"""

from __future__ import annotations

import os
from functools import lru_cache

import torch

from fastgeom.engines.protocol import Engine
from fastgeom.validation import check_device

BACKENDS = ("cpu", "triton")


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


@lru_cache(maxsize=1)
def _cpu_engine() -> Engine:
    from fastgeom.engines.cpu.engine import CpuEngine

    return CpuEngine()


@lru_cache
def _triton_engine(device: torch.device) -> Engine:
    try:
        from fastgeom.engines.triton.engine import TritonEngine
    except ModuleNotFoundError as error:
        link = error.name is not None and error.name.startswith("fastgeom.kernels")
        cause = "this checkout has no symlink fastgeom/kernels" if link else "install it"
        raise ValueError(f"backend: expected what 'triton' needs on {device}, but {error}; {cause}") from error
    return TritonEngine(device)

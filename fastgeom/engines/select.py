"""Choose the engine for the device where tensors lie.

Each is imported on first use: measuring on a GPU does not wait for numba, nor measuring on a CPU for Triton.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from fastgeom.engines.protocol import Engine
from fastgeom.validation import check_backend


def select_engine(backend: str | None, device: torch.device) -> Engine:
    """The engine for tensors on ``device``.

    Args:
        backend: ``None`` to choose by the device, or the name of one engine.
        device: where the tensors lie.

    Raises:
        ValueError: no such backend, or it cannot run on this device; says why.
    """
    check_backend(backend, device)
    if device.type == "cpu" and backend != "triton":
        return _cpu_engine()
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

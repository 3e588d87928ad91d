"""Root attributes of a trace: how a run was measured."""

from __future__ import annotations

import importlib.metadata
import json

import torch

from fastgeom.history.exact import Exact
from fastgeom.history.sketch import Sketch
from fastgeom.layout.layout import LayerChoice, Layout
from fastgeom.schedules import Schedule


def run_attributes(
    layout: Layout,
    *,
    window: int,
    history: Exact | Sketch,
    chosen: bool,
    layers: LayerChoice,
    schedule: Schedule,
    track_updates: bool,
    backend: str,
) -> dict[str, str | int | float]:
    """Root attributes of a trace: the probe's configuration as JSON, the device, versions, threads.

    Args:
        layout: the measured tensors.
        window: number of past gradients.
        history: what is kept of them.
        chosen: whether the probe chose the history, not the user.
        layers: what a layer is; a callable is recorded by its name.
        schedule: which steps are measured.
        track_updates: whether updates of the parameters are measured.
        backend: name of the engine.
    """
    configuration = {
        "window": window,
        "history": repr(history),
        "history_chosen": chosen,
        "layers": layers if isinstance(layers, str) else _name(layers),
        "track_updates": track_updates,
        "schedule": _name(schedule),
        "backend": backend,
        "n_parameters": int(layout.numels.sum()),
        "n_tensors": len(layout.names),
        "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in layout.parameters}),
    }
    return {
        "configuration": json.dumps(configuration),
        "device": str(layout.device),
        "torch_version": str(torch.__version__),
        "numba_version": _version("numba"),
        "triton_version": _version("triton"),
        "n_threads": torch.get_num_threads(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _name(function: object) -> str:
    return str(getattr(function, "__qualname__", None) or repr(function))

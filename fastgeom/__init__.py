"""fastgeom measures the geometry of optimisation while a network trains.

A `Probe` reads the gradients once a step and records what they say about the path: norms, the lag cosines of a window
of past gradients, curvature along the step, per layer and over all layers. `open_trace` reads a recorded run back as
numpy arrays, `fastgeom.analysis` interprets it and `fastgeom.figures` draws it; these three need no torch.

Every name is loaded on first use, so that reading a trace does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from fastgeom._version import __version__

if TYPE_CHECKING:
    from fastgeom import analysis, figures
    from fastgeom.history.exact import Exact
    from fastgeom.history.sketch import Sketch
    from fastgeom.ops import clip_grad_norm_, cosine, count_sketch, dot, norm, window_dots
    from fastgeom.probe import Probe
    from fastgeom.schedules import bursts, every
    from fastgeom.step_statistics import StepStatistics
    from fastgeom.sweep import ScaleSweep, scale_sweep
    from fastgeom.trace import open_trace

__all__ = [
    "Exact",
    "Probe",
    "ScaleSweep",
    "Sketch",
    "StepStatistics",
    "__version__",
    "analysis",
    "bursts",
    "clip_grad_norm_",
    "cosine",
    "count_sketch",
    "dot",
    "every",
    "figures",
    "norm",
    "open_trace",
    "scale_sweep",
    "window_dots",
]

_SUBMODULES = frozenset({"analysis", "figures"})

_HOMES = {
    "Exact": "fastgeom.history.exact",
    "Probe": "fastgeom.probe",
    "ScaleSweep": "fastgeom.sweep",
    "Sketch": "fastgeom.history.sketch",
    "StepStatistics": "fastgeom.step_statistics",
    "bursts": "fastgeom.schedules",
    "clip_grad_norm_": "fastgeom.ops",
    "cosine": "fastgeom.ops",
    "count_sketch": "fastgeom.ops",
    "dot": "fastgeom.ops",
    "every": "fastgeom.schedules",
    "norm": "fastgeom.ops",
    "open_trace": "fastgeom.trace",
    "scale_sweep": "fastgeom.sweep",
    "window_dots": "fastgeom.ops",
}


if not TYPE_CHECKING:  # a type checker would take every misspelled name for one of this module

    def __getattr__(name: str) -> object:
        """Load a public name on first use (PEP 562)."""
        if name in _SUBMODULES:
            return import_module(f"{__name__}.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """List the names that are loaded and those that can be."""
    return sorted({*globals(), *__all__})

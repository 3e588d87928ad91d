"""Choose a history by the device's memory, and make its window."""

from __future__ import annotations

import logging
import os

import torch

from fastgeom.engines.protocol import Engine, HistoryWindow
from fastgeom.history.exact import Exact
from fastgeom.history.sketch import Sketch
from fastgeom.history.sketched_window import SketchedWindow
from fastgeom.layout.layout import Layout

logger = logging.getLogger("fastgeom")

_MEMORY_SHARE = 0.1
"""Largest fraction of the device's memory that an exact history is chosen for."""


def choose_history(layout: Layout, window: int) -> Exact | Sketch:
    """Exact where its ring fits a tenth of the device's total memory, else a sketch; logs the choice and its reason."""
    ring = window * sum(p.dtype.itemsize * p.numel() for p in layout.parameters)
    total = _total_memory(layout.device)
    if ring <= _MEMORY_SHARE * total:
        logger.info("history: Exact(), %.3g of %.3g GB of memory", ring / 1e9, total / 1e9)
        return Exact()
    sketch = Sketch()
    logger.warning(
        "history: window=%d exact gradients would take %.3g of %.3g GB of memory; sketches of %d numbers are kept "
        "instead, and lags are estimates. history=fastgeom.Exact() keeps the gradients, Sketch(size=...) makes better "
        "estimates",
        window,
        ring / 1e9,
        total / 1e9,
        sketch.size,
    )
    return sketch


def _total_memory(device: torch.device) -> int:
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    total: int = torch.get_device_module(device).get_device_properties(device).total_memory
    return total


def make_window(
    history: Exact | Sketch, layout: Layout, engine: Engine, window: int, *, track_updates: bool
) -> HistoryWindow:
    """Make the window of a history.

    Args:
        history: what to keep of past gradients.
        layout: the measured tensors.
        engine: computes on them.
        window: number of past gradients.
        track_updates: whether updates of the parameters will be measured.

    Raises:
        ValueError: a sketch that is too small for so many layers.
    """
    if isinstance(history, Sketch):
        size, seed, stored_size = history.size, history.seed, history.stored_size
        return SketchedWindow(layout, engine, window, size=size, seed=seed, stored_size=stored_size)
    return engine.window(layout, window, dtype=history.dtype, defer=history.defer, track_updates=track_updates)

"""What is remembered of past gradients: the gradients themselves, or sketches of them."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import torch

from fastgeom.engines import Engine, Window
from fastgeom.layout import Layout
from fastgeom.sketched import SketchedWindow
from fastgeom.tables import DTYPES

logger = logging.getLogger("fastgeom")

_MEMORY_SHARE = 0.1
"""The part of the device's memory that an exact history takes without being asked."""


@dataclass(frozen=True)
class Exact:
    """Keep the last ``window`` gradients themselves.

    Args:
        dtype: what to keep them in, where that has less precision than the gradient's own dtype; otherwise, and by
            default, each is kept in its own, so that nothing is lost. ``torch.bfloat16`` halves a float32 ring. Where
            precision is lost, the one gradient before is also kept in full, for the sums of differences.
            ``torch.float16`` is for float16 gradients alone: it has no exponents for the small ones of other dtypes.
        defer: of how many steps the dots with past gradients are taken in one pass. A step then stores its gradient,
            reading nothing else, and every ``defer`` steps one pass over window + defer gradients gives the same
            numbers, up to ``defer`` - 1 steps late, filed under their own steps. With a window of W in the gradient's
            own dtype h this moves 2 h + h (W + defer) / defer bytes a step instead of h (W + 2).

    Raises:
        ValueError: a dtype that cannot be measured; a ``defer`` that is no positive integer, or beside a ``dtype``.
    """

    dtype: torch.dtype | None = None
    defer: int = 1

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            expected = ", ".join(map(str, DTYPES))
            raise ValueError(f"history dtype: expected None or one of {expected}, got {self.dtype!r}")
        _check_integer("history defer", self.defer, 1)
        if self.defer > 1 and self.dtype is not None:
            raise ValueError(
                f"history defer: expected gradients in their own dtype (dtype=None) with defer={self.defer}, "
                f"got dtype={self.dtype}"
            )


@dataclass(frozen=True)
class Sketch:
    r"""Keep sketches of the last ``window`` gradients: ``size`` numbers each, whatever the number of parameters.

    Norms, absolute maxima and counts stay exact. Dots, cosines and sums of differences are estimates; their standard
    errors stand beside them, as ``lag_dot_error`` and so on. A cosine :math:`\rho` of one layer with m buckets is off
    by about :math:`(1-\rho^2)/\sqrt m`. Layers share ``size`` by their share of the parameters; one that is smaller
    than its share is kept whole, and exact. Memory: window × size × 4 bytes, and with ``record`` one sketch more; for
    window=16 besides 0.3 kB a layer on a CPU, on a GPU 0.9 kB and 0.1 MB.

    Args:
        size: float32 numbers of a sketch.
        seed: chooses which element goes to which bucket, with which sign. Sketches can be compared only where size,
            seed and model are the same.
        record: also store a small sketch of so many buckets at every step, in the trace as ``sketch``: any two steps of
            a run can then be compared, with an error of about :math:`1/\sqrt{\mathtt{record}}`.

    Raises:
        ValueError: a size or a record that is no positive integer, a seed that is no 32-bit number, or a record that is
            no power of two.

    Source: Charikar, Chen, Farach-Colton, "Finding frequent items in data streams", 2002; see ``fastgeom.sketching``.
    """

    size: int = 2**18
    seed: int = 0
    record: int | None = None

    def __post_init__(self) -> None:
        _check_integer("sketch size", self.size, 1)
        _check_integer("sketch seed", self.seed, 0)
        if self.record is not None:
            _check_integer("sketch record", self.record, 1)


def _check_integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")


def choose_history(layout: Layout, window: int) -> Exact | Sketch:
    """Exact where it fits a tenth of the device's total memory, else a sketch; the log says which, and why."""
    ring = window * sum(p.dtype.itemsize * p.numel() for p in layout.parameters)
    total = _total_memory(layout.device)
    if ring <= _MEMORY_SHARE * total:
        logger.info("history: Exact(), %.3g of %.3g GB of memory", ring / 1e9, total / 1e9)
        return Exact()
    chosen = Sketch()
    logger.warning(
        "history: window=%d exact gradients would take %.3g of %.3g GB of memory; sketches of %d numbers are kept "
        "instead, and lags are estimates. history=fastgeom.Exact() keeps the gradients, Sketch(size=...) makes better "
        "estimates",
        window, ring / 1e9, total / 1e9, chosen.size,
    )  # fmt: skip
    return chosen


def _total_memory(device: torch.device) -> int:
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    total: int = torch.get_device_module(device).get_device_properties(device).total_memory
    return total


def make_window(history: Exact | Sketch, layout: Layout, engine: Engine, window: int, *, track_updates: bool) -> Window:
    """The memory of a probe's past gradients.

    Raises:
        ValueError: a sketch that is too small for so many layers.
    """
    if isinstance(history, Sketch):
        return SketchedWindow(
            layout, engine, window, size=history.size, seed=history.seed, record=history.record
        )  # fmt: skip
    return engine.window(layout, window, dtype=history.dtype, defer=history.defer, track_updates=track_updates)

"""Ours: each builder makes one cell ready, asserts that what it computes is right, and returns what is to be timed."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import fastgeom
from bench.gpu import truth
from bench.gpu.cells import Cell
from bench.gpu.device import Device
from bench.gpu.gradients import Gradients, fill
from fastgeom.engines import LateLags, WindowStatistics, select_engine
from fastgeom.kernels.gram import gram_bytes
from fastgeom.kernels.norm import norm_bytes
from fastgeom.kernels.sketch import sketch_bytes
from fastgeom.kernels.sketch_ring import ring_bytes
from fastgeom.kernels.update import update_bytes
from fastgeom.kernels.window import window_bytes
from fastgeom.sketching import SketchPlan

ROUNDING = 1e-6
"""What a sum may be off by, relative to the product of the norms: short float32 sums folded into float64."""
SKETCH_ROUNDING = 1e-5
"""The same of a bucket, against the largest one: a float32 sum of thousands."""


Lags = WindowStatistics | LateLags


@dataclass(frozen=True)
class Work:
    """What is timed.

    Attributes:
        call: does it.
        n_elements: of a gradient.
        bytes_moved: the least that a step must move.
        relative_error: the largest that was seen before timing.
        steps: how many steps a call is.
        close: afterwards.
    """

    call: Callable[[], object]
    n_elements: int
    bytes_moved: int
    relative_error: float
    steps: int = 1
    close: Callable[[], object] = lambda: None


def norm(device: Device, cell: Cell, n: int) -> Work:
    """``fastgeom.norm`` of a list."""
    g = Gradients.random(n, cell.tensors, getattr(torch, cell.dtype), device.device)
    error = truth.assert_near(float(fastgeom.norm(g.tensors)) ** 2, truth.square(g.flat), ROUNDING, "norm squared")
    bytes_moved = norm_bytes(g.flat.numel(), cell.item_bytes)
    return Work(lambda: fastgeom.norm(g.tensors), g.flat.numel(), bytes_moved, error)


class _Steps:
    """A window that measures the same memory step after step."""

    def __init__(self, device: Device, cell: Cell, g: Gradients, **options: int | bool) -> None:
        engine = select_engine("triton", device.device)
        self.g, self.next = g, 0
        self.window = engine.window(g.layout(cell.groups), cell.window, **options)

    def __call__(self) -> object:
        self.window.fit(self.g.located, None)
        self.next += 1
        return self.window.measure(self.g.located, self.next - 1)


def window(device: Device, cell: Cell, n: int) -> Work:
    """One step of an exact window: dots with W gradients, everything else of a step, and the gradient stored."""
    g = Gradients.random(n, cell.tensors, getattr(torch, cell.dtype), device.device)
    step = _Steps(device, cell, g)
    for seed in range(cell.window + 2):
        g.draw(seed)
        found = step()
    errors = [truth.assert_near(float(found.grad_sq[-1]), truth.square(g.flat), ROUNDING, "grad_sq")]
    assert int(found.nonfinite[-1]) == 0, "nonfinite: expected 0"
    past = torch.empty_like(g.flat)
    errors += _check_lags(found, g, past, cell.window + 1, cell.window)
    bytes_moved = window_bytes(g.flat.numel(), cell.window, cell.item_bytes, cell.item_bytes)
    return Work(step, g.flat.numel(), bytes_moved, max(errors))


def _check_lags(found: Lags, gradients: Gradients, past: Tensor, step: int, window: int) -> list[float]:
    """Some lags of one step, overall and of the first layer; the past is drawn again, into ``past``."""
    g, first = gradients.flat, len(gradients.tensors[0])
    scale, errors = truth.square(g), []
    for lag in sorted({1, (window + 1) // 2, window}):
        fill(past, step - lag)
        for row, n in ((-1, len(g)), (0, first)):
            exact = truth.dot(g[:n], past[:n])
            errors.append(truth.assert_near(float(found.lag_dot[row, lag - 1]), exact, ROUNDING, f"lag {lag}", scale))
        if lag == 1:
            exact = truth.difference_sq(g, past)
            errors.append(truth.assert_near(float(found.diff_sq[-1]), exact, ROUNDING, "diff_sq", scale))
    return errors


def deferred(device: Device, cell: Cell, n: int) -> Work:
    """B steps of a deferred window, the last of which takes the lags of all of them."""
    g = Gradients.random(n, cell.tensors, getattr(torch, cell.dtype), device.device)
    step = _Steps(device, cell, g, defer=cell.block)
    blocks = -(-(cell.window + 1) // cell.block) + 1
    for seed in range(blocks * cell.block):
        g.draw(seed)
        found = step()
    assert len(found.late) == cell.block, f"expected the lags of {cell.block} steps, got {len(found.late)}"
    past, errors = torch.empty_like(g.flat), []
    for late in (found.late[0], found.late[-1]):
        g.draw(late.step)
        errors += _check_lags(late, g, past, late.step, cell.window)

    def steps() -> None:
        for _ in range(cell.block):
            step()

    count, h = g.flat.numel(), cell.item_bytes
    bytes_moved = window_bytes(count, 0, h, h) + gram_bytes(count, cell.window, cell.block, h) // cell.block
    return Work(steps, count, bytes_moved, max(errors), steps=cell.block)


def update(device: Device, cell: Cell, n: int) -> Work:
    """Moments of the update, and the snapshot renewed; timed without the pass that follows it in a step."""
    x, g = (Gradients.random(n, cell.tensors, getattr(torch, cell.dtype), device.device) for _ in range(2))
    measured = select_engine("triton", device.device).window(x.layout(), cell.window, track_updates=True)
    for step in range(2):
        x.draw(step + 1)
        g.draw(step + 3)
        measured.fit(g.located, x.located)
        found = measured.measure_update(x.located, g.located, step)
        measured.measure(g.located, step)
    old, before = torch.empty_like(x.flat), torch.empty_like(g.flat)
    fill(old, 1)
    fill(before, 3)
    moved = truth.difference_sq(x.flat, old)
    scale = (moved * truth.square(g.flat)) ** 0.5

    def along(gradient: Tensor) -> float:
        return float(truth.summed(lambda a, b, c: (a - b) * c, x.flat, old, gradient))

    errors = [
        truth.assert_near(float(found.param_sq[-1]), truth.square(x.flat), ROUNDING, "param_sq"),
        truth.assert_near(float(found.update_sq[-1]), moved, ROUNDING, "update_sq"),
        truth.assert_near(float(found.grad_dot_update[-1]), along(before), ROUNDING, "grad_dot_update", scale),
        truth.assert_near(
            float(found.next_grad_dot_update[-1]), along(g.flat), ROUNDING, "next_grad_dot_update", scale
        ),
    ]
    bytes_moved = update_bytes(g.flat.numel(), *[cell.item_bytes] * 3)
    return Work(lambda: measured.measure_update(x.located, g.located, 2), g.flat.numel(), bytes_moved, max(errors))


def sketch(device: Device, cell: Cell, n: int) -> Work:
    """The sketch of a gradient, with its exact moments."""
    g = Gradients.random(n, cell.tensors, getattr(torch, cell.dtype), device.device)
    layout, engine = g.layout(cell.groups), select_engine("triton", device.device)
    plan = SketchPlan(layout.numels, layout.layer, len(layout.layers), cell.buckets)
    sketcher, out = engine.sketcher(plan), torch.zeros(plan.total, device=device.device)
    sketcher.fit(g.located)
    found = sketcher.sketch(g.located, out)
    errors = [truth.assert_near(float(found.grad_sq[-1]), truth.square(g.flat), ROUNDING, "grad_sq")]
    for group in sorted({0, len(layout.layers) - 1}):
        first, m = int(plan.offsets[group]), int(plan.sizes[group])
        members = [t for t, owner in zip(g.tensors, layout.layer, strict=True) if owner == group]
        exact = truth.count_sketch(members, m, int(plan.seeds[group]))
        off = float((out[first : first + m] - exact).abs().max() / exact.abs().max())
        assert off <= SKETCH_ROUNDING, f"sketch of layer {group}: off by {off:.2g} of its largest bucket"
        errors.append(off)
    bytes_moved = sketch_bytes(g.flat.numel(), cell.item_bytes)
    return Work(lambda: sketcher.sketch(g.located, out), g.flat.numel(), bytes_moved, max(errors))


def sketch_step(device: Device, cell: Cell, n: int) -> Work:
    """A whole ``probe.step`` with a window of sketches."""
    g = Gradients.random(n, cell.tensors, getattr(torch, cell.dtype), device.device)
    probe = fastgeom.Probe(
        g.named(), window=cell.window, history=fastgeom.Sketch(cell.buckets), groups=cell.groups, backend="triton",
        gradient=lambda p: p,
    )  # fmt: skip
    probe.step()
    found = probe.step()
    error = truth.assert_near(float(found.grad_sq), truth.square(g.flat), ROUNDING, "grad_sq")
    truth.assert_near(float(found.lag_cosine[0]), 1.0, 1e-5, "cosine with itself")
    bytes_moved = sketch_bytes(g.flat.numel(), cell.item_bytes) + ring_bytes(cell.buckets, cell.window)
    return Work(probe.step, g.flat.numel(), bytes_moved, error)


def small_step(device: Device, cell: Cell, n: int) -> Work:
    """A whole ``probe.step`` of many small tensors, with or without a trace."""
    parameters = Gradients.random(n, cell.tensors, getattr(torch, cell.dtype), device.device)
    named = [(name, torch.nn.Parameter(t)) for name, t in parameters.named()]
    g = Gradients.random(n, cell.tensors, getattr(torch, cell.dtype), device.device)
    for (_, p), t in zip(named, g.tensors, strict=True):
        p.grad = t
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "run.h5" if cell.method.endswith("trace") else None
    probe = fastgeom.Probe(
        named, window=cell.window, groups=cell.groups, backend="triton", trace=path, history=fastgeom.Exact()
    )
    for seed in range(cell.window + 2):
        g.draw(seed)
        found = probe.step(loss=1.0)
    errors, past, scale = [], torch.empty_like(g.flat), truth.square(g.flat)
    for lag in range(1, cell.window + 1):
        fill(past, cell.window + 1 - lag)
        exact = truth.dot(g.flat, past)
        errors.append(truth.assert_near(float(found.lag_dot[lag - 1]), exact, ROUNDING, f"lag {lag}", scale))

    def close() -> None:
        probe.close()
        folder.cleanup()

    bytes_moved = window_bytes(g.flat.numel(), cell.window, cell.item_bytes, cell.item_bytes)
    return Work(lambda: probe.step(loss=1.0), g.flat.numel(), bytes_moved, max(errors), close=close)

"""Ours: each builder prepares a problem, asserts that its result is right, and returns what is timed."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import fastgeom
from bench.common import truth
from bench.common.gradients import Gradients
from bench.common.implementations.base import Work
from bench.common.problem import Problem
from bench.peers.available import Missing
from fastgeom.engines.cpu.deferred_window import CpuDeferredWindow
from fastgeom.engines.cpu.window import CpuWindow
from fastgeom.engines.results import LateLags, SketchMoments, WindowStatistics
from fastgeom.engines.select import select_engine
from fastgeom.layout.reader import TensorReader

ROUNDING, CPU_ROUNDING = 1e-6, 1e-12
"""What a sum may be off by, relative to the product of the norms: short float32 sums folded into float64; on a CPU all
is float64, so that one element of 1e8 that is left out shows."""
SKETCH_ROUNDING = 1e-5
"""The same of a bucket, against the largest one: a float32 sum of thousands."""

_QUICKLY_CHECKED = 20_000_000
"""Elements beyond which one step of a deferred block is checked, and not two."""

Lags = WindowStatistics | LateLags


def norm(problem: Problem) -> Work:
    """``fastgeom.norm`` of a list."""
    tensors = problem.g.tensors
    if problem.again:
        return Work(lambda: fastgeom.norm(tensors), 0.0)
    error = _near(problem, float(fastgeom.norm(tensors)) ** 2, problem.drawn_sq, "norm squared")
    return Work(lambda: fastgeom.norm(tensors), error)


def clip(problem: Problem) -> Work:
    """``fastgeom.clip_grad_norm_``, to a norm that is larger: every element is read, and written as it is."""
    parameters = problem.parameters
    exact = problem.drawn_sq
    norm = fastgeom.clip_grad_norm_(parameters, 2 * exact**0.5)
    error = _near(problem, float(norm) ** 2, exact, "norm squared")
    after = truth.square(*problem.g.tensors)
    assert after == exact, f"a gradient within the norm was changed: its square is {after!r}, was {exact!r}"
    return Work(lambda: fastgeom.clip_grad_norm_(parameters, 2 * exact**0.5), error)


def dot(problem: Problem) -> Work:
    """``fastgeom.dot`` of two lists."""
    a, b = problem.g.tensors, problem.second.tensors
    if problem.again:
        return Work(lambda: fastgeom.dot(a, b), 0.0)
    exact, scale = problem.drawn_dot
    error = _near(problem, fastgeom.dot(a, b), exact, "dot", scale)
    return Work(lambda: fastgeom.dot(a, b), error)


def _near(problem: Problem, value: Tensor | float, exact: float, what: str, scale: float | None = None) -> float:
    """Raise where a sum is off by more than rounding allows; return by how much it is."""
    rounding = CPU_ROUNDING if problem.device.backend is None else ROUNDING
    return truth.assert_near(float(value), exact, rounding, what, scale)


class _Steps:
    """A window that measures the same tensors step after step, and looks each time where they lie."""

    def __init__(self, problem: Problem, **options: int | bool) -> None:
        case, g = problem.case, problem.g
        engine = select_engine(problem.device.backend, problem.device.device)
        layout = g.layout(case.layers)
        self.g, self.next = g, 0
        self.reader = TensorReader(layout, "gradient")
        self.window = engine.window(layout, case.window, **options)

    def __call__(self) -> object:
        located = self.reader.locate(self.g.tensors)
        self.window.prepare(located, None)
        self.next += 1
        return self.window.measure(located, self.next - 1)


def _lags(window: int) -> list[int]:
    """The lags that are checked: the first, the middle, the last."""
    return sorted({1, (window + 1) // 2, window})


def _needed_steps(step: int, window: int) -> set[int]:
    """The steps whose gradients take part in those lags."""
    return {step, *(step - lag for lag in _lags(window))}


def _prepare(g: Gradients, step: int, last: int, window: int) -> None:
    """The gradient of a step: drawn where a lag that is checked needs it, else the one before, negated."""
    if step in _needed_steps(last, window):
        g.draw(step)
    else:
        g.scale(-1.0)


def window(problem: Problem) -> Work:
    """One step of an exact window: dots with W gradients, everything else of a step, and the gradient stored."""
    g, last = problem.g, problem.case.window + 1
    step = _Steps(problem)
    for t in range(last + 1):
        if not problem.again:
            _prepare(g, t, last, problem.case.window)
        result = step()
    if problem.again:
        _lend(problem, step.window)
        return Work(step, 0.0)
    errors = [_near(problem, result.grad_sq[-1], truth.square(*g.tensors), "grad_sq")]
    assert int(result.nonfinite[-1]) == 0, "nonfinite: expected 0"
    errors += _check_lags(problem, result, problem.another(), last)
    _lend(problem, step.window)
    return Work(step, max(errors))


def _lend(problem: Problem, window: object) -> None:
    """On the CPU the ring is a plain matrix: other implementations need none of their own."""
    if len(problem.g.flats) == 1 and isinstance(window, CpuWindow | CpuDeferredWindow):
        rows = window._ring.row if isinstance(window, CpuWindow) else window._ring
        problem.lend(rows[0].owners[0])


def _check_lags(problem: Problem, result: Lags, past: Gradients, step: int) -> list[float]:
    """Some lags of one step, overall and of the first layer; the past is drawn again, into ``past``."""
    g, errors = problem.g.tensors, []
    scale = truth.square(*g)
    for lag in _lags(problem.case.window):
        before = past.draw(step - lag).tensors
        for row, n in ((-1, len(g)), (0, 1)):
            exact = truth.dot(g[:n], before[:n])
            errors.append(_near(problem, result.lag_dot[row, lag - 1], exact, f"lag {lag}", scale))
        if lag == 1:
            exact = truth.diff_sq(g, before)
            errors.append(_near(problem, result.diff_sq[-1], exact, "diff_sq", scale))
    return errors


def _probe(problem: Problem, history: fastgeom.Exact | fastgeom.Sketch, trace: Path | None = None) -> fastgeom.Probe:
    case, g = problem.case, problem.g
    return fastgeom.Probe(
        g.named(),
        window=case.window,
        layers=g.grouping(case.layers),
        backend=problem.device.backend,
        history=history,
        trace=trace,
        gradient=lambda p: p,
    )


def probe_step(problem: Problem) -> Work:
    """A whole ``probe.step``, with or without a trace."""
    case, g = problem.case, problem.g
    folder = tempfile.TemporaryDirectory()
    probe = _probe(problem, fastgeom.Exact(), Path(folder.name) / "run.h5" if case.traced else None)
    last = case.window + 1
    for t in range(last + 1):
        _prepare(g, t, last, case.window)
        result = probe.step(loss=1.0)
    past, scale = problem.another(), truth.square(*g.tensors)
    errors = [_near(problem, result.grad_sq, scale, "grad_sq")]
    for lag in _lags(case.window):
        exact = truth.dot(g.tensors, past.draw(last - lag).tensors)
        errors.append(_near(problem, result.lag_dot[lag - 1], exact, f"lag {lag}", scale))
        if case.layers in ("module", "parameter"):
            layer = truth.dot(g.tensors[-1:], past.tensors[-1:])
            _near(problem, result.layer_lag_dot[-1, lag - 1], layer, f"last layer, lag {lag}", scale)
    _lend(problem, probe._history_window)

    def close() -> None:
        probe.close()
        folder.cleanup()

    return Work(lambda: probe.step(loss=1.0), max(errors), close=close)


def deferred(problem: Problem) -> Work:
    """B steps of a deferred window, the last of which takes the lags of all of them."""
    case, g = problem.case, problem.g
    step = _Steps(problem, defer=case.block)
    end = (-(-(case.window + 1) // case.block) + 1) * case.block
    for t in range(end):
        if t in _needed_steps(end - case.block, case.window):
            g.draw(t)
        else:
            _prepare(g, t, end - 1, case.window)
        result = step()
    assert len(result.late) == case.block, f"expected the lags of {case.block} steps, got {len(result.late)}"
    past, errors = problem.another(), []
    for late in (result.late[0], result.late[-1])[-1 if g.n_elements > _QUICKLY_CHECKED else 0 :]:
        g.draw(late.step)
        errors += _check_lags(problem, late, past, late.step)
    _lend(problem, step.window)
    return Work(_repeated(step, case.block), max(errors), steps=case.block)


def step_by_step(problem: Problem) -> Work:
    """Some steps of a window that is not deferred, from a problem of which a deferred one has been made."""
    step, n_steps = _Steps(problem), min(4, problem.case.block)
    for _ in range(problem.case.window + 1):
        result = step()
    exact = truth.square(*problem.g.tensors)
    error = _near(problem, result.lag_dot[-1, -1], exact, "lag with itself")
    return Work(_repeated(step, n_steps), error, steps=n_steps)


def _repeated(step: _Steps, times: int) -> Callable[[], None]:
    def steps() -> None:
        for _ in range(times):
            step()

    return steps


def update(problem: Problem) -> Work:
    """Moments of the update, and the snapshot renewed; timed without the pass that follows it in a step."""
    x, g, case = problem.update.new, problem.update.after, problem.case
    engine = select_engine(problem.device.backend, problem.device.device)
    layout = x.layout()
    measured = engine.window(layout, case.window, track_updates=True)
    for step in range(2):
        x.draw(step + 1)
        g.draw(step + 3)
        measured.prepare(g.located, x.located)
        result = measured.measure_update(x.located, g.located, step)
        measured.measure(g.located, step)
    readers = TensorReader(layout, "parameter"), TensorReader(layout, "gradient")

    def again() -> object:
        parameter, gradient = (reader.locate(of.tensors) for reader, of in zip(readers, (x, g), strict=True))
        return measured.measure_update(parameter, gradient, 2)

    if problem.again:
        return Work(again, 0.0)
    old, before = problem.update.old.draw(1).tensors, problem.update.before.draw(3).tensors
    moved, scale_sq = truth.diff_sq(x.tensors, old), truth.square(*g.tensors)
    scale = (moved * scale_sq) ** 0.5

    def along(gradient: list[Tensor]) -> float:
        return truth.summed(lambda a, b, c: (a - b) * c, x.tensors, old, gradient)

    exact = {
        "param_sq": (truth.square(*x.tensors), None),
        "update_sq": (moved, None),
        "grad_dot_update": (along(before), scale),
        "next_grad_dot_update": (along(g.tensors), scale),
    }
    errors = [_near(problem, getattr(result, name)[-1], value, name, of) for name, (value, of) in exact.items()]
    return Work(again, max(errors))


def sketch(problem: Problem) -> Work:
    """The sketch of a gradient, with its exact moments."""
    g, plan, device = problem.g, problem.plan, problem.device
    sketcher = select_engine(device.backend, device.device).sketcher(plan)
    out = torch.zeros(plan.total, device=device.device)
    sketcher.prepare(g.located)
    reader = TensorReader(g.layout(problem.case.layers), "gradient")

    def step() -> SketchMoments:
        return sketcher.sketch(reader.locate(g.tensors), out)

    result = step()
    if problem.again:
        return Work(step, 0.0)
    errors = [_near(problem, result.grad_sq[-1], problem.drawn_sq, "grad_sq")]
    for group, exact in problem.drawn_sketches.items():
        first = int(plan.offsets[group])
        off = float((out[first : first + len(exact)] - exact).abs().max() / exact.abs().max())
        assert off <= SKETCH_ROUNDING, f"sketch of layer {group}: off by {off:.2g} of its largest bucket"
        errors.append(off)
    return Work(step, max(errors))


def sketch_on_one_thread(problem: Problem) -> Work:
    """The same, on one thread of the processor."""
    if problem.device.device.type != "cpu" or (threads := torch.get_num_threads()) == 1:
        raise Missing("it is for processors of which torch uses more than one thread")
    work = sketch(problem)

    def call() -> None:
        torch.set_num_threads(1)
        try:
            work.call()
        finally:
            torch.set_num_threads(threads)

    return Work(call, work.relative_error)


def sketch_step(problem: Problem) -> Work:
    """A whole ``probe.step`` with a window of sketches."""
    g, case = problem.g, problem.case
    probe = _probe(problem, fastgeom.Sketch(case.buckets))
    for _ in range(case.window + 1):
        result = probe.step()
    error = _near(problem, result.grad_sq, truth.square(*g.tensors), "grad_sq")
    truth.assert_near(float(result.lag_cosine[-1]), 1.0, 1e-5, "cosine with itself")
    return Work(probe.step, error, close=probe.close)

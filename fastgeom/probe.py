"""`Probe`: one call a step that measures the gradients, remembers them, and sends a row to the trace."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from fastgeom import ops
from fastgeom.engines.results import LateLags
from fastgeom.engines.select import select_engine
from fastgeom.engines.triton.capture import capturing
from fastgeom.history.choose import choose_history, make_window
from fastgeom.history.exact import Exact
from fastgeom.history.sketch import Sketch
from fastgeom.layout.layout import LayerChoice, Layout
from fastgeom.layout.reader import TensorReader
from fastgeom.recording.device_copy import wait_for
from fastgeom.recording.recorder import LAGS, UPDATE, Recorder, TraceShape
from fastgeom.run_attributes import run_attributes
from fastgeom.schedules import Schedule, every
from fastgeom.step_statistics import StepStatistics, drop_none, late_lags, late_update, recorded_values, step_statistics
from fastgeom.validation import (
    checked_callable,
    checked_lags,
    checked_max_norm,
    checked_path,
    checked_scalars,
    checked_step,
    checked_window,
)

__all__ = ["Probe", "StepStatistics"]


class Probe:
    r"""Measures how each gradient relates to those of the ``window`` steps before it, overall and per layer.

    At every scheduled step it takes, in one read of the gradient and of the remembered ones, ‖g‖², max|g|, the count of
    inf and NaN, :math:`\langle g_t, g_{t-k}\rangle` for k = 1…window, and ‖g_t ∓ g_{t-1}‖²; see ``fastgeom.schema``.

    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with Probe(model, window=4) as probe:
    ...     for _ in range(3):
    ...         optimizer.zero_grad()
    ...         loss = model(torch.ones(1, 2)).square().sum()
    ...         loss.backward()
    ...         statistics = probe.step(loss=loss)
    ...         optimizer.step()
    >>> statistics.lag_cosine.shape
    torch.Size([4])

    Args:
        target: a module (its trainable parameters; tied ones count once), or an iterable of ``(name, parameter)``.
        window: how many past gradients to remember, at least 1.
        history: how: `Exact`, or `Sketch` where they do not fit in memory. ``None`` takes Exact where it fits a tenth
            of the device's memory, else Sketch; the choice is logged, and stands in the trace.
        trace: path of the file to record to; ``None`` records nothing.
        trace_mode: ``"x"`` refuses an existing file, ``"w"`` replaces it.
        layers: what a layer is: ``"module"`` (the module that owns the parameter), ``"parameter"``, ``"all"`` (one
            layer in all), or a callable from parameter name to group name.
        track_updates: also measure the parameters' own movement u_t = x_{t+1} - x_t, whatever the optimiser. Costs the
            memory of the parameters.
        layer_lags: the lags kept per layer in the trace; all by default. Overall, every lag is kept.
        schedule: which steps to measure, ``step -> bool``; see `every` and `bursts`.
        gradient: from a parameter to its gradient, where that does not lie in ``.grad``.
        backend: ``None`` takes Triton for tensors on a GPU and the CPU engine for those on the CPU; ``"cpu"`` and
            ``"triton"`` name one. Triton runs on CPU tensors with ``TRITON_INTERPRET=1``, slowly.

    Raises:
        ValueError, TypeError: an argument that cannot be; the message names it, what was expected and what came.
        OSError: the trace cannot be written there: it exists, another process writes it, or its folder is not writable.

    Memory: window × gradients, in their own dtype (see `Exact`), and the parameters once with ``track_updates``. It is
    known by address: a probe can be neither copied nor pickled.

    Cost of a measured step: g + (window + 1) h bytes moved, g and h the bytes of the gradient and of a row of history;
    with ``track_updates`` g + h + 3 x more, x the bytes of the parameters. The first step of the first run compiles the
    loops for the dtypes in use, some seconds; they are cached for later runs.

    On a GPU nothing waits for the device, and a step can be captured in a CUDA graph: measure one step by hand, capture
    (the trainer's scalars as tensors on the device), replay, and call `drain` now and then.

    Source: the lag cosines are those of Morchdi, Zhou, Ding, Wang: On the Mysterious Optimization Geometry of Deep
    Neural Networks; every definition stands in ``fastgeom.schema`` and, in float64, in ``fastgeom.reference``.
    """

    def __init__(
        self,
        target: torch.nn.Module | Iterable[tuple[str, Tensor]],
        *,
        window: int = 16,
        history: Exact | Sketch | None = None,
        trace: str | os.PathLike[str] | None = None,
        trace_mode: str = "x",
        layers: LayerChoice = "module",
        track_updates: bool = False,
        layer_lags: Sequence[int] | None = None,
        schedule: Schedule | None = None,
        gradient: Callable[[Tensor], Tensor | None] | None = None,
        backend: str | None = None,
    ) -> None:
        self.window = checked_window(window)
        if history is not None and not isinstance(history, Exact | Sketch):
            raise ValueError(f"history: expected None, fastgeom.Exact(...) or fastgeom.Sketch(...), got {history!r}")
        layer_lags = checked_lags(layer_lags, self.window)
        self._layout = Layout(target, layers)
        self._history = history or choose_history(self._layout, self.window)
        self._engine = select_engine(backend, self._layout.device)
        self._past = make_window(self._history, self._layout, self._engine, self.window, track_updates=track_updates)
        self._track_updates = track_updates
        self._gradients = TensorReader(self._layout, "gradient")
        self._parameters = TensorReader(self._layout, "parameter")
        self._gradient_of = checked_callable("gradient", gradient)
        self._schedule = checked_callable("schedule", schedule) or every(1)
        self._last_step: int | None = None
        self._hook: RemovableHandle | None = None
        self._closed = self._captured = False
        self._recorder: Recorder | None = None
        if (path := checked_path(trace)) is not None:
            attributes = run_attributes(
                self._layout, window=self.window, history=self._history, chosen=history is None, layers=layers,
                schedule=self._schedule,
                track_updates=track_updates, backend=self._engine.name,
            )  # fmt: skip
            sketched = isinstance(self._history, Sketch)
            buckets = (self._history.stored_size or 0) if isinstance(self._history, Sketch) else 0
            shape = TraceShape(self._layout.layers, self.window, layer_lags, track_updates, sketched, buckets)
            self._recorder = Recorder(path, trace_mode, shape, attributes, self._layout.device)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the order of the per-layer statistics."""
        return self._layout.layers

    def step(
        self, loss: Tensor | float | None = None, *, step: int | None = None, max_norm: float | None = None,
        **scalars: Tensor | float,
    ) -> StepStatistics | None:  # fmt: skip
        """Measure this step: after the last backward and unscaling, before clipping and ``optimizer.step()``.

        Args:
            loss: recorded beside the measurement.
            step: the trainer's own count, larger than at any call before; by default one more than at the last.
            max_norm: clip the gradients in place to this norm, after measuring them and by the norm just measured.
            scalars: more to record, such as the learning rate. The first measured step fixes their names.

        Returns:
            The statistics, on the device and without synchronising; ``None`` on a step that is not scheduled.

        A step that a gradient scaler is about to skip is measured like any other when this is called by hand: leave it
        out, or let `attach` mark it.

        Raises:
            RuntimeError: the probe is closed.
            ValueError, TypeError: gradients that cannot be measured, all of them ``None``, a step number that does not
                grow, a new scalar after the first measured step.
        """
        return self._step(loss, step, max_norm, scalars)

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Measure by itself before every ``optimizer.step()``, until `detach`; one optimizer at a time.

        With a fused optimizer under a gradient scaler, gradients reach the optimizer scaled: they are divided by its
        ``grad_scale``, and a step that it will skip (``found_inf``) is recorded as skipped and does not enter the
        window.

        Raises:
            RuntimeError: attached already.
            RuntimeError: from ``optimizer.step(closure)``: there the gradients come after this hook.
            ValueError: from ``optimizer.step()`` where no parameter has a gradient.
        """
        if self._hook is not None:
            raise RuntimeError("Probe.attach: expected a probe that is not attached, call detach() first")
        self._hook = optimizer.register_step_pre_hook(self._before_optimizer_step)
        return self

    def detach(self) -> None:
        """Undo `attach`; without it, does nothing."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def drain(self) -> None:
        """Wait until all rows that are whole have reached the writer, and full chunks the disk.

        Steps that a CUDA graph replays are counted and measured on the device, which holds some hundred rows: call this
        now and then, and before the next step by hand. A row that finds no room is dropped and counted.
        """
        if self._recorder is not None:
            self._recorder.drain()
        if self._captured and (step := self._past.step_on_device()) is not None:
            self._last_step = wait_for(step)
            self._past.resume(self._last_step)

    def close(self) -> None:
        """Detach, let the last row go without what would have come a step later, and finish the trace."""
        self.detach()
        first, self._closed = not self._closed, True
        if self._recorder is not None:
            try:
                if first and self._last_step is not None:
                    self._complete_lags(self._past.finish())
            finally:
                self._recorder.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("Probe: expected to stay where it was made, as it knows its memory by address; make a new one")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _before_optimizer_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if any(callable(a) for a in (*args, *kwargs.values())):
            raise RuntimeError(
                "Probe.attach: expected optimizer.step() without a closure; a closure computes the gradients after the "
                "probe has looked. Call probe.step() yourself, at the end of the closure"
            )
        self._step(
            None, None, None, {},
            grad_scale=getattr(optimizer, "grad_scale", None), found_inf=getattr(optimizer, "found_inf", None),
        )  # fmt: skip

    def _step(
        self, loss: Tensor | float | None, step: int | None, max_norm: float | None,
        scalars: dict[str, Tensor | float], *, grad_scale: Tensor | None = None, found_inf: Tensor | None = None,
    ) -> StepStatistics | None:  # fmt: skip
        started = time.perf_counter()
        if self._closed:
            raise RuntimeError("Probe.step: expected an open probe, this one is closed")
        number = checked_step(step, self._last_step)
        max_norm = checked_max_norm(max_norm)
        if not self._schedule(number):
            if max_norm is not None:
                self._clip(max_norm)
            self._last_step = number
            return None
        scalars = checked_scalars(scalars if loss is None else {"loss": loss, **scalars})
        if self._recorder is not None:
            self._recorder.check_scalars(scalars)
        gradients = self._collect()
        located = self._gradients.locate(gradients)
        parameters = self._parameters.locate(self._layout.parameters) if self._track_updates else None
        self._past.prepare(located, parameters)
        self._captured = self._captured or capturing(self._layout.device)
        self._last_step = number  # nothing was written before this line, and nothing is refused after it
        update = None
        if parameters is not None:
            update = self._past.measure_update(parameters, located, number, grad_scale=grad_scale)
            if self._recorder is not None:
                self._recorder.complete(UPDATE, late_update(update))
        window = self._past.measure(located, number, found_inf=found_inf, grad_scale=grad_scale)
        coefficient = None
        if max_norm is not None:
            coefficient = ops.clip_coefficient(window.grad_norm[-1], max_norm)
            ops.scale_([g for g in gradients if g is not None], coefficient)
        statistics = step_statistics(
            number, window, param_sq=None if update is None else update.param_sq, clip_coefficient=coefficient
        )
        if self._recorder is not None:
            skipped = 0 if found_inf is None else (found_inf != 0).reshape(())
            values = {**recorded_values(statistics), "skipped": skipped}
            if self._captured and capturing(self._layout.device):
                values |= drop_none({"step": self._past.step_on_device()})
            late = [UPDATE] * self._track_updates + [LAGS] * (window.lag_dot is None)
            self._recorder.submit(values, scalars, started=started, late=late)
            self._complete_lags(window.late)
        return statistics

    def _complete_lags(self, late: Iterable[LateLags]) -> None:
        """Give rows that wait what a deferred window has found of their steps."""
        if self._recorder is not None:
            for lags in late:
                self._recorder.complete(LAGS, late_lags(lags), lags.step)
            self._recorder.release()

    def _clip(self, max_norm: float) -> None:
        """Clip without measuring."""
        gradients = self._collect()
        self._gradients.locate(gradients)  # refuses by name what cannot be read
        present = [g for g in gradients if g is not None]
        ops.scale_(present, ops.clip_coefficient(ops.norm(present), max_norm))

    def _collect(self) -> list[Tensor | None]:
        """The gradient of every measured parameter."""
        self._layout.check_current()
        get = self._gradient_of
        gradients = [p.grad if get is None else get(p) for p in self._layout.parameters]
        if all(g is None for g in gradients):
            raise ValueError(
                f"gradient: expected at least one of {len(gradients)} parameters to have one, got None for all; "
                "measure after backward() and before zero_grad()"
            )
        return gradients

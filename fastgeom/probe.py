"""`Probe`: measure the gradients of a training step, keep them for later lags, and record a row of the trace."""

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
from fastgeom.recording.recorder import LATE_LAGS, LATE_UPDATE, Recorder, TraceShape
from fastgeom.run_attributes import run_attributes
from fastgeom.schedules import Schedule, every
from fastgeom.step_statistics import StepStatistics, drop_none, late_lags, late_update, recorded_values, step_statistics
from fastgeom.validation import (
    check_any_gradient,
    check_history,
    check_no_closure,
    checked_callable,
    checked_layer_lags,
    checked_max_norm,
    checked_path,
    checked_scalars,
    checked_step,
    checked_window,
)

__all__ = ["Probe", "StepStatistics"]


class Probe:
    r"""Measure how each gradient relates to those of the ``window`` steps before it, overall and per layer.

    At every scheduled step one read of the gradient and of the past ones gives :math:`\|g_t\|^2`, :math:`\max|g_t|`,
    the count of inf and NaN, :math:`\langle g_t, g_{t-k}\rangle` for k = 1…window, and
    :math:`\|g_t \mp g_{t-1}\|^2`; cosines and norms follow from them. With ``track_updates`` the parameters' movement
    :math:`u_t = x_{t+1} - x_t` is measured too. ``fastgeom.schema`` lists every quantity with its formula and unit.

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
        window: number of past gradients, at least 1.
        history: what to keep of past gradients: `Exact`, or `Sketch` where they do not fit in memory. ``None`` chooses
            Exact where it fits a tenth of the device's total memory, else Sketch; the choice is logged and recorded in
            the trace.
        trace: path of the file to record to; ``None`` records nothing.
        trace_mode: ``"x"`` refuses an existing file, ``"w"`` replaces it.
        layers: what a layer is: ``"module"`` (the module that owns the parameter), ``"parameter"``, ``"all"`` (a single
            layer), or a callable from parameter name to layer name.
        track_updates: also measure the update :math:`u_t`, whatever the optimiser.
        layer_lags: the lags recorded per layer; all by default. Overall, every lag is recorded.
        schedule: which steps to measure, ``step -> bool``; see `every` and `bursts`. ``None`` measures every step.
        gradient: callable from a parameter to its gradient, where that is not in ``.grad``.
        backend: ``None`` selects Triton for tensors on a GPU and the CPU engine for tensors on the CPU; ``"cpu"`` and
            ``"triton"`` name one. Triton runs on CPU tensors with ``TRITON_INTERPRET=1``, slowly.

    Raises:
        ValueError, TypeError: an invalid argument; the message names it, what was expected and what was given.
        OSError: the trace cannot be written: it exists, another process writes it, or its folder is not writable.

    Memory: window × gradient bytes (see `Exact` and `Sketch`), and the parameters once with ``track_updates``. A probe
    refers to its memory by address and can be neither copied nor pickled.

    Cost: g + (window + 1) h bytes moved at a measured step, where g and h are the bytes of the gradient and of one past
    gradient as stored; 2 g more where a past gradient is stored in fewer bits, and
    with ``track_updates`` g + h + 3 x more, where x is the bytes of the parameters. The first step
    of the first run compiles the loops for the dtypes in use, which takes some seconds; they are cached for later runs.

    On a GPU no call waits for the device, and a step can be captured in a CUDA graph: measure one step eagerly, capture
    a step (with the scalars as tensors on the device), replay it, and call `drain` from time to time.

    Source: lag cosines are those of Morchdi, Zhou, Ding, Wang: On the Mysterious Optimization Geometry of Deep Neural
    Networks; ``fastgeom.reference`` has the float64 definition of every statistic.
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
        check_history(history, (Exact, Sketch))
        layer_lags = checked_layer_lags(layer_lags, self.window)
        self._layout = Layout(target, layers)
        self._history = history or choose_history(self._layout, self.window)
        self._engine = select_engine(backend, self._layout.device)
        self._history_window = make_window(
            self._history, self._layout, self._engine, self.window, track_updates=track_updates
        )
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
                self._layout,
                window=self.window,
                history=self._history,
                chosen=history is None,
                layers=layers,
                schedule=self._schedule,
                track_updates=track_updates,
                backend=self._engine.name,
            )
            sketched = isinstance(self._history, Sketch)
            buckets = (self._history.stored_size or 0) if isinstance(self._history, Sketch) else 0
            shape = TraceShape(self._layout.layers, self.window, layer_lags, track_updates, sketched, buckets)
            self._recorder = Recorder(path, trace_mode, shape, attributes, self._layout.device)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the order of the per-layer statistics."""
        return self._layout.layers

    def step(
        self,
        loss: Tensor | float | None = None,
        *,
        step: int | None = None,
        max_norm: float | None = None,
        **scalars: Tensor | float,
    ) -> StepStatistics | None:
        """Measure this step: after the last backward and unscaling, before clipping and ``optimizer.step()``.

        Args:
            loss: recorded with the measurement.
            step: the trainer's step number, larger than at any call before; by default one more than at the last.
            max_norm: clip the gradients in place to this norm, after they are measured and by the norm just measured.
            **scalars: more numbers to record, such as the learning rate. The first measured step fixes their names.

        Returns:
            The statistics, on the device and without synchronising; ``None`` on a step that is not scheduled.

        Raises:
            RuntimeError: the probe is closed.
            ValueError, TypeError: gradients that cannot be measured, or are all ``None``; a step number that does not
                increase; a ``max_norm`` below 0; a scalar that is not one number, or is new after the first measured
                step.

        A step that a gradient scaler is about to skip is measured like any other: do not call this at such a step, or
        use `attach`, which marks it.
        """
        return self._step(loss, step, max_norm, scalars)

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Measure automatically before every ``optimizer.step()``, until `detach`.

        With a fused optimizer under a gradient scaler, gradients reach the optimizer scaled: they are divided by its
        ``grad_scale``, and a step that it will skip (``found_inf``) is recorded as skipped and does not enter the
        window.

        Args:
            optimizer: the one to measure before; one at a time.

        Returns:
            The probe itself.

        Raises:
            RuntimeError: the probe is attached already. From ``optimizer.step(closure)``, which computes the gradients
                after this hook.
            ValueError: from ``optimizer.step()``, where no parameter has a gradient.
        """
        if self._hook is not None:
            raise RuntimeError("Probe.attach: expected a probe that is not attached, call detach() first")
        self._hook = optimizer.register_step_pre_hook(self._before_optimizer_step)
        return self

    def detach(self) -> None:
        """Undo `attach`; does nothing where the probe is not attached."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def drain(self) -> None:
        """Wait until all complete rows have reached the writer, and full chunks of the file the disk.

        Steps that a CUDA graph replays are counted and measured on the device, which stores some hundred rows: call
        this from time to time, and before the next eager step. Rows beyond that are dropped and counted.
        """
        if self._recorder is not None:
            self._recorder.drain()
        if self._captured and (step := self._history_window.step_on_device()) is not None:
            self._last_step = wait_for(step)
            self._history_window.resume(self._last_step)

    def close(self) -> None:
        """Detach, write the last row, whose late fields stay NaN, and finish the trace; a second call does nothing."""
        self.detach()
        first, self._closed = not self._closed, True
        if self._recorder is not None:
            try:
                if first and self._last_step is not None:
                    self._complete_lags(self._history_window.finish())
            finally:
                self._recorder.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "Probe: expected one that is neither copied nor pickled, as it knows memory by address; make a new one"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _before_optimizer_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        check_no_closure((*args, *kwargs.values()))
        grad_scale, found_inf = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        self._step(None, None, None, {}, grad_scale=grad_scale, found_inf=found_inf)

    def _step(
        self,
        loss: Tensor | float | None,
        step: int | None,
        max_norm: float | None,
        scalars: dict[str, Tensor | float],
        *,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> StepStatistics | None:
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
        check = checked_scalars if self._recorder is None else self._recorder.checked_scalars
        scalars = check(scalars if loss is None else {"loss": loss, **scalars})
        gradients = self._collect()
        located = self._gradients.locate(gradients)
        parameters = self._parameters.locate(self._layout.parameters) if self._track_updates else None
        self._history_window.prepare(located, parameters)
        self._captured = self._captured or capturing(self._layout.device)
        self._last_step = number  # nothing was written before this line, and nothing is refused after it
        update = None
        if parameters is not None:
            update = self._history_window.measure_update(parameters, located, number, grad_scale=grad_scale)
            if self._recorder is not None:
                self._recorder.complete(LATE_UPDATE, late_update(update))
        window = self._history_window.measure(located, number, found_inf=found_inf, grad_scale=grad_scale)
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
                values |= drop_none({"step": self._history_window.step_on_device()})
            late = [LATE_UPDATE] * self._track_updates + [LATE_LAGS] * (window.lag_dot is None)
            self._recorder.submit(values, scalars, started=started, late=late)
            self._complete_lags(window.late)
        return statistics

    def _complete_lags(self, late: Iterable[LateLags]) -> None:
        """Add the lags that a deferred window has computed to their pending rows."""
        if self._recorder is not None:
            for lags in late:
                self._recorder.complete(LATE_LAGS, late_lags(lags), lags.step)
            self._recorder.release()

    def _clip(self, max_norm: float) -> None:
        """Clip without measuring."""
        gradients = self._collect()
        self._gradients.locate(gradients)  # raises for a gradient that cannot be read, by name
        given = [g for g in gradients if g is not None]
        ops.scale_(given, ops.clip_coefficient(ops.norm(given), max_norm))

    def _collect(self) -> list[Tensor | None]:
        """The gradient of every measured parameter."""
        self._layout.check_current()
        get = self._gradient_of
        gradients = [p.grad if get is None else get(p) for p in self._layout.parameters]
        check_any_gradient(gradients)
        return gradients

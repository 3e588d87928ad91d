"""What measuring adds to a step of training: fastgeom in its modes, and what people watch gradients with.

A twin of the model for each mode, all from one seed, takes a step in every round: forward, backward, measurement,
optimizer. Before that it measures one gradient until its window is full, since a window that still grows reads less and
takes new memory. A gradient must be the same after measuring, and in the end all twins, bit by bit.

A model of a billion parameters exists once: all modes train it in turn, and each measures the gradients of its turns.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastgeom
from bench.common import models
from bench.common.models import Training
from bench.common.timing import Bench
from bench.peers.available import Missing
from bench.peers.monitors import MONITORS, WINDOW, NumpyWindow, TensorBoard, WeightsAndBiases

PLAIN, EXACT = "nothing", "Exact()"
OURS: dict[str, dict[str, Any]] = {
    EXACT: {"history": fastgeom.Exact()},
    "Exact(dtype=torch.bfloat16)": {"history": fastgeom.Exact(dtype=torch.bfloat16)},
    "Exact(defer=8)": {"history": fastgeom.Exact(defer=8)},
    "Sketch()": {"history": fastgeom.Sketch()},
    "Exact(), track_updates=True": {"history": fastgeom.Exact(), "track_updates": True},
    "Exact(), layers='parameter'": {"history": fastgeom.Exact(), "layers": "parameter"},
}
"""Options of a probe with 16 lags and a trace."""
TWINS = {"cnn": (models.cnn, 12), "gpt_blocks": (models.gpt_blocks, 7)}
"""Models that fit many times, and the rounds that each is timed."""
NOT_OF_A_BILLION = {
    "Exact(dtype=torch.bfloat16)": "is Exact() where the gradients are bfloat16",
    NumpyWindow.name: "its 16 float32 gradients would be 64 GB on the host",
    TensorBoard.name: "its histograms of a billion elements are made on the host, in many seconds",
    WeightsAndBiases.name: "its hooks would measure in the backward passes of all modes: the model is shared",
}
FILL = 24
"""Steps until no window grows any more: 16 lags and the 8 steps of a deferred one."""
BILLION_BYTES = 40e9
"""What the billion parameters and their training take, with a little for the cheapest modes."""


class Mode:
    """A model in training, its own or shared, and what watches it."""

    def __init__(self, training: Training, watch: Callable[[Tensor], object]) -> None:
        self.training, self._watch, self.steps = training, watch, 0

    def __call__(self) -> None:
        """One step of training."""
        loss = self.training.loss()
        loss.backward()
        self._watch(loss.detach())
        self.training.optimizer.step()
        self.training.optimizer.zero_grad()
        self.steps += 1

    def fill(self, times: int) -> None:
        """Measure one gradient so many times, assert that it and the parameters stay as they are, and train nothing."""
        loss = self.training.loss()
        loss.backward()
        before = [t.clone() for t in self._state()]
        for _ in range(times):
            self._watch(loss.detach())
        same = all(torch.equal(old, t) for old, t in zip(before, self._state(), strict=True))
        assert same, "measuring changed a gradient or a parameter"
        self.training.optimizer.zero_grad()
        self.steps += times

    def _state(self) -> list[Tensor]:
        parameters = list(self.training.model.parameters())
        return [p.detach() for p in parameters] + [p.grad for p in parameters]


class Ours:
    """A probe that writes a trace."""

    def __init__(self, options: dict[str, Any], model: nn.Module, folder: Path) -> None:
        self._path = folder / "trace.h5"
        probe = fastgeom.Probe(model, window=WINDOW, trace=self._path, **options)
        self.step, self.close = lambda loss: probe.step(loss=loss), probe.close

    def check(self, steps: int) -> None:
        """Assert that the trace has every step."""
        trace = fastgeom.open_trace(self._path)
        assert trace.step.tolist() == list(range(steps)), f"expected {steps} rows in the trace, got {len(trace)}"
        dropped = trace.attributes["rows_dropped"]
        assert dropped == 0, f"rows_dropped: expected 0, got {dropped}"


WATCHING = {name: partial(Ours, options) for name, options in OURS.items()} | {m.name: m for m in MONITORS}


def _enter(name: str, training: Training, folder: Path, fill: int) -> tuple[Mode, Any]:
    """Make one mode, and fill its memory.

    Raises:
        Missing: it needs a package or more memory.
    """
    folder.mkdir()
    watching = None
    try:
        watching = WATCHING[name](training.model, folder)
        mode = Mode(training, watching.step)
        mode.fill(fill)
    except torch.OutOfMemoryError as error:
        with contextlib.suppress(torch.OutOfMemoryError):
            if watching is not None:
                watching.close()
        raise Missing("needs more memory than the modes before it leave") from error
    return mode, watching


def _contest(
    bench: Bench,
    folder: Path,
    make: Callable[..., Training],
    *,
    rounds: int,
    left_out: dict[str, str],
    shared: bool,
) -> dict[str, Any]:
    """Time all modes, check their traces, and give what is recorded of the model.

    Args:
        bench: the fixture.
        folder: for what the modes write.
        make: from a device and ``small`` to a model in training.
        rounds: how many are timed.
        left_out: modes that are not made, and why.
        shared: let all modes have the first model.
    """
    device = bench.device
    rounds, fill = (rounds, FILL) if device.timed else (2, 1)
    plain = Mode(make(device.device, small=not device.timed), lambda loss: None)
    modes, watching, skipped = {PLAIN: plain}, {}, dict(left_out)
    if shared:
        plain()  # the optimizer takes its memory before the modes take theirs
    with contextlib.ExitStack() as stack:
        for position, name in enumerate(name for name in WATCHING if name not in left_out):
            training = plain.training if shared else make(device.device, small=not device.timed)
            try:
                modes[name], watching[name] = _enter(name, training, folder / str(position), fill)
                stack.callback(watching[name].close)
            except Missing as missing:
                skipped[name] = str(missing)
                device.forget()
        timed = bench.rounds(modes, rounds=rounds, single=True)
    for name, mode in modes.items():
        if name in OURS:
            watching[name].check(mode.steps)
        if not shared:
            twins = zip(plain.training.model.parameters(), mode.training.model.parameters(), strict=True)
            assert all(torch.equal(p, q) for p, q in twins), f"{name}: measuring changed the training"
    time_ms = timed.median(PLAIN) * 1e3
    results: dict[str, dict[str, Any]] = {name: {"skipped": reason} for name, reason in skipped.items()}
    for name in watching:
        ratio = timed.ratio(name, over=PLAIN)
        times = {"time_ms": timed.median(name) * 1e3, "added_ms": (ratio.value - 1) * time_ms}
        results[name] = ratio.facts() | times
    for name, result in results.items():
        result["peer"] = name not in OURS
    return {"n_elements": plain.training.n_elements, "time_ms": time_ms, "rounds": rounds, "modes": results}


@pytest.mark.parametrize("model", list(TWINS))
def test_step_of_training(bench: Bench, tmp_path: Path, model: str) -> None:
    make, rounds = TWINS[model]
    with contextlib.ExitStack() as stack:
        if bench.device.kind == "cuda":
            # twins compute the same bits: convolutions and attention without atomic additions
            stack.enter_context(torch.backends.cudnn.flags(deterministic=True, benchmark=False))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        result = _contest(bench, tmp_path, make, rounds=rounds, left_out={}, shared=False)
    goals = []
    if model == "cnn":
        what = "step of the demo's network with Exact() and a trace, over the step without"
        goals = [{"what": what, "value": result["modes"][EXACT]["ratio"], "most": 1.05}]
    bench.record(kind="training", model=model, goals=goals, **result)


def test_step_of_training_a_billion_parameters(bench: Bench, tmp_path: Path) -> None:
    device = bench.device
    if device.timed and device.kind == "cpu":
        pytest.skip("a billion parameters are trained on a card only")
    if device.timed and (total := torch.cuda.get_device_properties(device.device).total_memory) < BILLION_BYTES:
        pytest.skip(f"needs a card of {BILLION_BYTES / 1e9:.0f} GB, this one has {total / 1e9:.0f}")
    result = _contest(bench, tmp_path, models.one_billion, rounds=9, left_out=NOT_OF_A_BILLION, shared=True)
    bench.record(kind="training", model="one_billion", goals=[], **result)

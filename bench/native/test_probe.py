"""A measured loop on a card: it never waits, graphs replay it, its bits repeat; on a processor its numbers alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fastgeom
from bench.common.device import Card, Cpu
from bench.common.gradients import Gradients
from bench.common.shapes import numels

History = fastgeom.Exact | fastgeom.Sketch
HISTORIES: dict[str, History] = {
    "exact": fastgeom.Exact(),
    "bfloat16": fastgeom.Exact(dtype=torch.bfloat16),
    "deferred": fastgeom.Exact(defer=3),
    "sketch": fastgeom.Sketch(size=2048, stored_size=128),
}
CLOCKS = ("wall_time", "measure_time_ms")


class Training:
    """A small network, its optimizer and its probe; every run of it sees the same data."""

    def __init__(self, device: Card | Cpu, history: History, path: Path, **options: bool) -> None:
        torch.manual_seed(0)
        width, steps = (200, 24) if device.kind == "cuda" else (8, 4)
        layers = torch.nn.Linear(width, width), torch.nn.Tanh(), torch.nn.Linear(width, 5, bias=False)
        self.model = torch.nn.Sequential(*layers).to(device.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.data = [torch.randn(32, width).to(device.device) for _ in range(steps)]
        self.x = self.data[0].clone()
        options |= {"backend": device.backend}
        self.probe = fastgeom.Probe(self.model, window=2, history=history, trace=path, **options)

    def step(self, *, to_none: bool = False, max_norm: float | None = None) -> Tensor:
        """One step on what lies in ``x``; the norm of its gradient by torch."""
        self.optimizer.zero_grad(set_to_none=to_none)
        loss = self.model(self.x).square().mean()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters()])
        self.probe.step(loss=loss, lr=0.05, max_norm=max_norm)
        self.optimizer.step()
        return norm


@pytest.mark.parametrize("history", HISTORIES)
def test_a_training_loop_never_waits(device: Card | Cpu, tmp_path: Path, history: str) -> None:
    training = Training(device, HISTORIES[history], tmp_path / "run.h5", track_updates=True)
    with device.forbid_waiting():
        norms = []
        for x in training.data:
            training.x.copy_(x)
            norms.append(training.step(max_norm=0.5))
    training.probe.close()
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert trace.step.tolist() == list(range(len(norms))) and trace.attributes["rows_dropped"] == 0
    np.testing.assert_allclose(trace.grad_norm, [float(n) for n in norms], rtol=1e-4)
    assert np.isfinite(trace.lag_cosine[2:]).all() and np.isfinite(trace.update_sq[:-1]).all()


@pytest.mark.parametrize("to_none", [False, True], ids=["same", "new"])
@pytest.mark.parametrize("drained", [True, False], ids=["drained", "at-once"])
@pytest.mark.parametrize("track_updates", [True, False], ids=["updates", "no-updates"])
@pytest.mark.parametrize("history", ["exact", "sketch"])
def test_a_graph_replays_what_eager_steps_measure(  # noqa: PLR0917 - pytest passes parameters by name
    device: Card | Cpu, tmp_path: Path, history: str, track_updates: bool, drained: bool, to_none: bool
) -> None:
    """Forward, backward, ``probe.step`` and the optimizer in one graph, fed with new data by a copy.

    Captured after a drain and right after a step; with gradients that stay where they are, and with new ones.
    """
    warm_up, traces = 2, []
    for captured in (False, True):
        path = tmp_path / f"{captured}.h5"
        training = Training(device, HISTORIES[history], path, track_updates=track_updates)
        calls = iter(range(warm_up))

        def step(training: Training = training, calls: object = calls) -> None:
            training.step(to_none=to_none)
            if drained and next(calls, None) == warm_up - 1:
                training.probe.drain()

        replay: Callable[[], object] = step
        if captured:
            replay = device.capture(step, warm_up)
        else:
            for _ in range(warm_up):
                step()
        for x in training.data[:-warm_up]:
            training.x.copy_(x)
            replay()
        training.probe.drain()
        training.probe.close()
        traces.append(fastgeom.open_trace(path))
    eager, replayed = traces
    assert replayed.step.tolist() == eager.step.tolist() == list(range(len(training.data)))
    assert replayed.attributes["rows_dropped"] == 0
    for name in sorted(set(eager.names) - set(CLOCKS)):
        expected, actual = (np.asarray(trace[name], float) for trace in (eager, replayed))
        largest = np.nanmax(np.abs(expected), initial=0.0)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * largest, err_msg=name)


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["16-bit", "32-bit"])
def test_a_second_run_has_the_same_bits(device: Card | Cpu, history: str, dtype: torch.dtype) -> None:
    """Of tensors large enough that programs run in another order every time."""
    sizes = numels(3, 30_000_000 if device.kind == "cuda" else 900)
    g = Gradients.empty(sizes, str(dtype).removeprefix("torch."), device.device)
    runs = []
    for _ in range(2):
        options = {"history": HISTORIES[history], "backend": device.backend, "gradient": lambda p: p}
        probe = fastgeom.Probe(g.named(), window=2, **options)
        steps = []
        for seed in range(4):
            g.draw(seed)
            steps.append(probe.step())
        runs.append([vars(s) for s in steps] + [vars(s) for s in probe._history_window.finish()])
    for first, second in zip(*runs, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            if isinstance(value, Tensor):
                same = (value == second[name]) | (value.isnan() & second[name].isnan())
                assert bool(same.all()), name

"""What a probe adds to the step of the demo's own training: W = 32, per layer, every step, updates, a trace written."""

from collections.abc import Callable
from pathlib import Path

import torch

import fastgeom
from bench.measuring import Bench
from reproductions.common.data import load
from reproductions.common.descent import add_full_batch_gradient
from reproductions.common.models import build
from reproductions.demo import LEARNING_RATES, WINDOW

DATA = "mnist5k"


def test_step_of_the_demo_with_the_probe_against_without(bench: Bench, tmp_path: Path) -> None:
    data = load(DATA)

    def training() -> tuple[torch.nn.Module, Callable[[Callable[[torch.Tensor], object]], None]]:
        model = build("cnn", data, seed=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATES[DATA])

        def step(measure: Callable[[torch.Tensor], object]) -> None:
            loss = add_full_batch_gradient(model, data)
            measure(loss)
            optimizer.step()
            optimizer.zero_grad()

        return model, step

    plain, plain_step = training()
    measured, measured_step = training()
    with fastgeom.Probe(measured, window=WINDOW, trace=tmp_path / "run.h5", track_updates=True) as probe:
        rounds = bench.rounds(
            lambda: measured_step(lambda loss: probe.step(loss=loss)),
            {"without": lambda: plain_step(lambda loss: None)},
            rounds=60,
        )
    for p, q in zip(plain.parameters(), measured.parameters(), strict=True):
        assert torch.equal(p, q), "measuring changed the training"
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    bench.note("step without", rounds.peers["without"] * 1e3, "ms")
    bench.note("step with", rounds.ours * 1e3, "ms")
    bench.note("step with over step without", rounds.ours / rounds.peers["without"], most=1.05)
    bench.note("Probe.step by its own clock", float(sorted(trace.measure_time_ms)[len(trace) // 2]), "ms")

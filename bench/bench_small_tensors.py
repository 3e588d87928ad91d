"""2,000 tensors of 1,000 elements, W = 16, every parameter a layer: what a step costs where tensors are small."""

from collections import deque

import numpy as np
import torch

import fastgeom
from bench.measuring import Bench, peak_bytes_per_second, plain_reads

WINDOW, TENSORS, SIZE = 16, 2000, 1000


def test_probe_step_of_2000_small_tensors(bench: Bench) -> None:
    named = [(f"layer{i}.weight", torch.nn.Parameter(torch.zeros(SIZE))) for i in range(TENSORS)]
    probe = fastgeom.Probe(named, window=WINDOW, groups="parameter")
    gradients: deque[torch.Tensor] = deque(maxlen=WINDOW + 1)  # the newest last
    for _ in range(2 * WINDOW + 3):
        gradients.append(torch.randn(TENSORS, SIZE))
        for (_, p), g in zip(named, gradients[-1], strict=True):
            p.grad = g
        statistics = probe.step()
    assert_right_dots(statistics, gradients)

    def renew_gradients() -> None:
        for _, p in named:
            p.grad = p.grad.clone()  # as after zero_grad(): new tensors, every one to be looked at again

    rows = torch.randn(WINDOW, TENSORS * SIZE)
    work, moved = plain_reads(rows)
    rounds = bench.rounds(probe.step, {**work, "new gradients": renew_gradients}, rounds=25)
    read_once = rows.nbytes * (WINDOW + 1) / WINDOW / peak_bytes_per_second(rounds, moved)
    bench.note("time of a step", rounds.ours * 1e3, "ms")
    bench.note("times reading ring and gradients once", rounds.ours / read_once, most=2.5)


def assert_right_dots(statistics: fastgeom.StepStatistics, gradients: deque[torch.Tensor]) -> None:
    """Products with every lag, of each layer and of all; every step had gradients of its own."""
    *past, newest = (g.double() for g in gradients)
    norm = newest.norm(dim=1)
    for lag, g in enumerate(reversed(past), start=1):
        truth = (newest * g).sum(dim=1).numpy()
        error = np.abs(statistics.layer_lag_dot[:, lag - 1].numpy() - truth)
        assert np.all(error <= 1e-6 * (norm * g.norm(dim=1)).numpy()), f"lag {lag}"
        overall_error = abs(statistics.lag_dot[lag - 1].item() - truth.sum())
        assert overall_error <= 5e-8 * float(newest.norm() * g.norm()), f"lag {lag}"

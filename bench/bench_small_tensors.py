"""2,000 tensors of 1,000 elements, W = 16, every parameter a layer: what a step costs where tensors are small."""

import numpy as np
import torch

import fastgeom
from bench.measuring import Bench, peak_bytes_per_second, plain_reads

WINDOW, TENSORS, SIZE = 16, 2000, 1000


def test_probe_step_of_2000_small_tensors(bench: Bench) -> None:
    named = [(f"layer{i}.weight", torch.nn.Parameter(torch.zeros(SIZE))) for i in range(TENSORS)]
    probe = fastgeom.Probe(named, window=WINDOW, groups="parameter")
    for _, p in named:
        p.grad = torch.randn(SIZE)
    for _ in range(WINDOW + 1):
        statistics = probe.step()
    truth = np.array([float(p.grad.double() @ p.grad.double()) for _, p in named])
    np.testing.assert_allclose(
        statistics.layer_lag_dot.numpy(), np.broadcast_to(truth[:, None], (TENSORS, WINDOW)), rtol=1e-6
    )

    def renew_gradients() -> None:
        for _, p in named:
            p.grad = p.grad.clone()  # as after zero_grad(): new tensors, every one to be looked at again

    rows = torch.randn(WINDOW, TENSORS * SIZE)
    work, moved = plain_reads(rows)
    rounds = bench.rounds(probe.step, {**work, "new gradients": renew_gradients}, rounds=25)
    read_once = rows.nbytes * (WINDOW + 1) / WINDOW / peak_bytes_per_second(rounds, moved)
    bench.note("time of a step", rounds.ours * 1e3, "ms")
    bench.note("times reading ring and gradients once", rounds.ours / read_once, most=2.5)

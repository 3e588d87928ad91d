"""The window pass at 1e8 float32 elements in 400 tensors, W = 16, against the measured peak and the lean torch way.

The lean torch way moves nearly as little as we do and says far less: gradients concatenated into their row of the ring,
one matrix-vector product, one norm.
"""

import numpy as np
import torch

import fastgeom
from bench.measuring import Bench, elements, note_speed, plain_reads
from fastgeom import reference
from fastgeom.engines import select_engine
from fastgeom.engines.cpu_window import TensorStore
from fastgeom.kernels.window import window_bytes
from fastgeom.layout import Layout, TensorReader

WINDOW, TENSORS = 16, 400


def gradients(n_elements: int) -> list[tuple[str, torch.nn.Parameter]]:
    """Named parameters with gradients."""
    named = [(f"layer{i}.weight", torch.nn.Parameter(torch.empty(n_elements // TENSORS))) for i in range(TENSORS)]
    for _, p in named:
        p.grad = torch.randn(p.shape)
    return named


def test_window_dots_norm_and_store(bench: Bench) -> None:
    n = elements(100_000_000, 4 * (WINDOW + 4))
    named = gradients(n)
    layout = Layout(named, "global")
    engine = select_engine(None, layout.device)
    ring = TensorStore(layout, engine, [torch.float32] * TENSORS, WINDOW)
    rows = ring.row[0].owners[0]
    rows.normal_()
    located = TensorReader(layout, "gradient").locate([p.grad for _, p in named])
    history = [row.split([p.numel() for _, p in named]) for row in rows[[0, WINDOW - 1]]]

    def step():
        return engine.window_moments(layout.chunks, layout.segments, located, rows=ring.row, store=ring.row[-1])

    moments = step()
    grads = [p.grad for _, p in named]
    scale = reference.norm(grads) * reference.norm(history[0])
    for column, row in zip((0, WINDOW - 1), history, strict=True):
        assert abs(moments.dots[-1, column].item() - reference.dot(grads, row)) < 5e-8 * scale
    assert all(
        torch.equal(a, b.grad) for a, (_, b) in zip(rows[-1].split([g.numel() for g in grads]), named, strict=True)
    )

    work, moved = plain_reads(rows)
    rounds = bench.rounds(step, work)
    note_speed(bench, rounds, moved, window_bytes(n, WINDOW), least=0.9)


def test_probe_step_with_every_statistic(bench: Bench) -> None:
    n = elements(100_000_000, 4 * (WINDOW + 4))
    named = gradients(n)
    grads = [p.grad for _, p in named]
    probe = fastgeom.Probe(named, window=WINDOW, groups="layer", history=fastgeom.Exact())

    scale = 1.0
    for t in range(WINDOW + 3):
        for g in grads:
            g.mul_(scale_of(t) / scale)
        scale = scale_of(t)
        statistics = probe.step()
    assert_right(statistics, grads, [scale_of(t - lag) / scale for lag in range(1, WINDOW + 1)])

    ring = probe._past._ring.row[0].owners[0]  # the one ring serves both: a second would not fit in 16 GB

    def lean_torch():
        torch.cat([g.view(-1) for g in grads], out=ring[3])
        return torch.mv(ring, ring[3]), ring[3].norm()

    work, moved = plain_reads(ring)
    rounds = bench.rounds(probe.step, {**work, "lean torch": lean_torch})
    note_speed(bench, rounds, moved, window_bytes(n, WINDOW), least=0.75)
    bench.note("times as fast as lean torch", rounds.ratio("lean torch"), least=1.1)


def scale_of(step: int) -> float:
    """Factor of the gradient of a step: plus or minus a power of two, exact in float32; 18 in a row all differ.

    The past is known by its factors alone: copies of 17 gradients would not fit beside the ring.
    """
    return (-1.0) ** step * 2.0 ** (5 * step % 9 - 4)


def assert_right(statistics: fastgeom.StepStatistics, grads: list[torch.Tensor], past: list[float]) -> None:
    """Every lag, of each layer and of all, where the gradient of lag k was ``past[k - 1]`` times today's."""
    layer_sq, factors = np.array([reference.dot([g], [g]) for g in grads]), np.array(past)

    def assert_close(found: torch.Tensor, truth: np.ndarray | float) -> None:
        np.testing.assert_allclose(found.numpy(), truth, rtol=5e-8)

    assert_close(statistics.grad_sq, layer_sq.sum())
    assert_close(statistics.lag_dot, factors * layer_sq.sum())
    assert_close(statistics.layer_lag_dot, layer_sq[:, None] * factors)
    assert_close(statistics.lag_cosine, np.sign(factors))
    assert_close(statistics.diff_sq, (1 - past[0]) ** 2 * layer_sq.sum())
    assert_close(statistics.sum_sq, (1 + past[0]) ** 2 * layer_sq.sum())

"""The moments of the update, and the snapshot renewed, at 2e7 float32 elements in 400 tensors, against the peak."""

import torch

from bench.measuring import Bench, elements, note_speed, plain_reads
from fastgeom import reference
from fastgeom.engines import select_engine
from fastgeom.engines.cpu_window import TensorStore
from fastgeom.kernels.update import update_bytes
from fastgeom.layout import Layout, TensorReader

TENSORS = 400
LARGEST_ERROR = 5e-8


def test_update_moments(bench: Bench) -> None:
    n = elements(20_000_000, 60)  # five vectors in float32, and five in float64 for the truth
    rows = torch.randn(4, n)
    rows[1].mul_(0.01).add_(rows[0])
    before, after, previous, gradient = (list(row.view(TENSORS, -1)) for row in rows)
    layout = Layout([(f"layer{i}.weight", p) for i, p in enumerate(after)], "global")
    engine = select_engine(None, layout.device)
    snapshot = TensorStore(layout, engine, [torch.float32] * TENSORS, 1).row[0]
    kept = snapshot.owners[0][0]
    kept.copy_(rows[0])
    table = {name: TensorReader(layout, name).locate(tensors) for name, tensors in
             (("parameter", after), ("gradient", gradient), ("previous", previous))}  # fmt: skip

    def step():
        return engine.update_moments(
            layout.chunks, layout.segments, table["parameter"], snapshot,
            gradient=table["gradient"], previous=table["previous"],
        )  # fmt: skip

    moments = step()
    truth = reference.update_moments(before, after, previous, gradient) | {"param_sq": reference.dot(after, after)}
    update_norm = truth["update_sq"] ** 0.5
    scale = {
        "param_sq": truth["param_sq"],
        "update_sq": truth["update_sq"],
        "grad_dot_update": reference.norm(previous) * update_norm,
        "next_grad_dot_update": reference.norm(gradient) * update_norm,
    }
    for name, of in scale.items():
        assert abs(getattr(moments, name)[-1].item() - truth[name]) <= LARGEST_ERROR * of, name
    assert torch.equal(kept, rows[1]), "the snapshot was not renewed"

    work, moved = plain_reads(rows)
    rounds = bench.rounds(step, work)
    note_speed(bench, rounds, moved, update_bytes(n))

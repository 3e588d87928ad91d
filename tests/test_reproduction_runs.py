"""Runs are named by what decides them, made once, and refused where their files are not what they should be."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fastgeom
from fastgeom import analysis
from reproductions.common import pool
from reproductions.common.batches import batches
from reproductions.common.configuration import Configuration, Restart
from reproductions.common.data import load
from reproductions.common.descent import add_batch_gradient
from reproductions.common.models import build
from reproductions.common.runs import Run, RunError, find, record_path, trace_path
from reproductions.common.training import flatten, restart_index, restart_point, train

TINY = Configuration(data="digits", n_examples=40, network="cnn", lr=0.1, steps=6, seed=3)


def made(configuration: Configuration, folder: Path) -> Run:
    pool.finish([configuration], folder, workers=1)
    run = find(configuration, folder)
    assert run is not None
    return run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made(TINY, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def own(tmp_path: Path) -> Run:
    return made(TINY, tmp_path)


def test_run_is_whole(tiny: Run) -> None:
    assert tiny.trace.step.tolist() == list(range(6)) and tiny.trace.window == 32
    assert tiny.end == 6 and tiny.diverged_at is None and tiny.seconds > 0
    assert tiny.n_parameters == 3738
    assert tiny.cosine.shape == (6,) and tiny.layer_cosine.shape == (6, 4)
    assert tiny.share("smooth", 0.9) + tiny.share("mixed", 0.9) + tiny.share("zigzag", 0.9) == pytest.approx(1)


def test_name_follows_from_every_field() -> None:
    changes = {
        "data": "mnist5k", "n_examples": 41, "network": "mlp", "lr": 0.2, "steps": 7, "seed": 4, "loss": "mse",
        "optimiser": "adam", "batch": 10, "micro_batch": 20, "window": 31, "sketch": 64, "checkpoint_every": 2,
        "sharpness_every": 2, "batch_probes": True, "keep_gradients": True, "restart": Restart(TINY), "device": "cuda",
    }  # fmt: skip
    assert set(changes) == set(Configuration.__dataclass_fields__)
    names = {replace(TINY, **{field: value}).name for field, value in changes.items()}
    assert len(names | {TINY.name}) == len(changes) + 1
    assert replace(TINY, restart=Restart(TINY, 0.8)).name != replace(TINY, restart=Restart(TINY)).name
    assert replace(TINY).name == TINY.name


def test_a_kept_run_is_not_made_again(own: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(pool, "train", refuse)
    pool.finish([TINY, TINY], own.folder, workers=1)
    with pytest.raises(AssertionError, match="trained again"):
        pool.finish([replace(TINY, seed=4)], own.folder, workers=1)


def test_an_unfinished_run_is_made_again(own: Run) -> None:
    """What Ctrl-C leaves: a trace, and no record."""
    record_path(TINY, own.folder).unlink()
    assert find(TINY, own.folder) is None
    assert made(TINY, own.folder).trace.status == "finished"


def test_the_same_run_is_the_same_bits(tiny: Run, own: Run) -> None:
    for name in ("loss", "grad_sq", "lag_dot", "update_sq"):
        np.testing.assert_array_equal(tiny.trace[name], own.trace[name])


def test_processes_make_what_one_process_makes(tiny: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pool.finish([TINY, replace(TINY, seed=4)], tmp_path, workers=2)
    run = find(TINY, tmp_path)
    assert run is not None
    np.testing.assert_array_equal(run.trace.loss, tiny.trace.loss)
    assert "all runs: 100%" in capfd.readouterr().err


def test_an_error_in_a_process_arrives(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no-such-network"):
        pool.finish([replace(TINY, network="no-such-network", seed=s) for s in (1, 2)], tmp_path, workers=2)


@pytest.mark.parametrize("damage", ["foreign", "no JSON", "empty record"])
def test_record_that_is_not_this_runs_is_refused(own: Run, damage: str) -> None:
    path = record_path(TINY, own.folder)
    record = json.loads(path.read_text())
    record["configuration"]["lr"] = 0.7
    path.write_text({"foreign": json.dumps(record), "no JSON": "nothing", "empty record": "{}"}[damage])
    with pytest.raises(RunError, match=f"{path}: expected the record of"):
        find(TINY, own.folder)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:900])


def crash(path: Path) -> None:
    import h5py

    with h5py.File(path, "r+") as file:
        del file.attrs["finished"]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [(Path.unlink, "expected the trace"), (cut, "expected the trace"), (crash, "got a crashed one"),
     (lambda path: path.write_text("foreign"), "expected the trace")],
    ids=["missing", "cut", "unfinished", "foreign"],
)  # fmt: skip
def test_trace_that_cannot_be_used_is_refused(own: Run, damage: Callable[[Path], object], expected: str) -> None:
    path = trace_path(TINY, own.folder)
    damage(path)
    run = find(TINY, own.folder)
    assert run is not None
    with pytest.raises(RunError, match=expected) as raised:
        _ = run.trace
    assert str(path) in str(raised.value) and "delete" in str(raised.value)


def test_another_runs_trace_under_this_name_is_refused(own: Run) -> None:
    other = replace(TINY, window=2)
    made(other, own.folder)
    trace_path(other, own.folder).replace(trace_path(TINY, own.folder))
    with pytest.raises(RunError, match="expected a window of 32, got 2"):
        _ = find(TINY, own.folder).trace


def test_divergence_ends_a_run_and_is_recorded(tmp_path: Path) -> None:
    run = made(replace(TINY, lr=1e30), tmp_path)
    assert run.diverged_at is not None and 0 < run.diverged_at < 6
    assert run.end <= run.diverged_at and np.isfinite(run.trace.loss[: run.end]).all()


def test_restart_begins_where_the_parent_zigzagged(tmp_path: Path) -> None:
    parent = Configuration(
        data="digits", n_examples=100, network="cnn", lr=0.15, steps=200, seed=0, checkpoint_every=7, window=2
    )
    run = made(replace(parent, lr=0.015, steps=3, restart=Restart(parent), checkpoint_every=1), tmp_path)
    kept = find(parent, tmp_path)
    assert kept is not None
    stretches = [part for part in analysis.runs(kept.labels(0.9)) if part.label == analysis.ZIGZAG]
    assert stretches, "the settings of this test no longer zigzag"
    step = kept.arrays["checkpoint_steps"][restart_index(Restart(parent), kept)]
    assert any(part.start <= step < part.stop for part in stretches)
    np.testing.assert_array_equal(run.arrays["checkpoints"][0], restart_point(Restart(parent), tmp_path))
    np.testing.assert_allclose(run.trace.loss[0], kept.trace.loss[step], rtol=1e-12)


def test_restart_without_its_parent_is_refused(tmp_path: Path) -> None:
    orphan = replace(TINY, restart=Restart(replace(TINY, seed=9)))
    with pytest.raises(RunError, match="expected the finished run to restart from"):
        train(orphan, tmp_path, lambda done, line: None)


def test_gradients_and_checkpoints_are_those_of_the_run(tmp_path: Path) -> None:
    run = made(replace(TINY, keep_gradients=True, checkpoint_every=1), tmp_path)
    gradients, parameters = run.arrays["gradients"].astype(np.float64), run.arrays["checkpoints"].astype(np.float64)
    np.testing.assert_allclose((gradients**2).sum(1), run.trace.grad_sq, rtol=1e-6)
    np.testing.assert_allclose(parameters[1:], parameters[:-1] - 0.1 * gradients[:-1], atol=1e-6)


def test_stored_sketches_are_a_trace_of_their_own(tmp_path: Path) -> None:
    run = made(replace(TINY, sketch=256, window=5), tmp_path)
    assert run.sketches.sketch.shape == (6, 256)
    exact = run.trace.grad_sq
    np.testing.assert_allclose((run.sketches.sketch.astype(np.float64) ** 2).sum(1), exact, rtol=0.6)


def test_batch_probes_are_what_they_are_called(tmp_path: Path) -> None:
    """The batch's gradient is the mean of its halves', and the same batch turns less than the next one."""
    configuration = replace(TINY, batch=10, batch_probes=True, keep_gradients=True, steps=12, lr=0.01)
    run = made(configuration, tmp_path)
    plain = made(replace(configuration, batch_probes=False), tmp_path)
    np.testing.assert_allclose(run.arrays["gradients"][0], plain.arrays["gradients"][0], rtol=1e-4, atol=1e-6)
    assert np.isnan(run.trace.same_batch_cosine[0])
    assert (run.trace.same_batch_cosine[1:] > 0.99).all()
    assert (run.trace.same_batch_cosine[1:] > run.cosine[1:]).all()
    examples = load("digits", 40)
    model = build("cnn", examples, seed=3)
    halves = []
    for rows in next(batches(40, 10, seed=3)).split(5):
        model.zero_grad()
        add_batch_gradient(model, examples, rows)
        halves.append(flatten([parameter.grad for parameter in model.parameters()]).astype(np.float64))
    np.testing.assert_allclose(run.trace.half_dot[0], halves[0] @ halves[1], rtol=1e-4)
    np.testing.assert_allclose(run.arrays["gradients"][0], (halves[0] + halves[1]) / 2, rtol=1e-4, atol=1e-6)


def test_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch: expected 1 to 40 examples, all there are, got 41"):
        pool.finish([replace(TINY, batch=41)], tmp_path, workers=1)


def test_threads_are_as_before(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    made(TINY, tmp_path)
    assert torch.get_num_threads() == before


def test_trace_opens_by_itself(tiny: Run) -> None:
    trace = fastgeom.open_trace(trace_path(TINY, tiny.folder))
    assert trace.status == "finished" and trace.scalars == ("loss", "lr")

"""Runs are named by what decides them, made once, and refused where their files are not what they should be."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tqdm import tqdm

import fastgeom
from fastgeom import analysis
from reproductions.common import pool, training
from reproductions.common.batches import batches
from reproductions.common.checkpoints import (
    checkpoints_in_longest_stretch,
    flatten,
    restart_index,
    restart_point,
    set_parameters,
)
from reproductions.common.configuration import GENERATION, Configuration, Restart
from reproductions.common.data import Examples, load
from reproductions.common.descent import add_batch_gradient, loss_terms
from reproductions.common.models import build
from reproductions.common.runs import RunError, TrainingRun, arrays_path, find, record_path, regime_share, trace_path
from reproductions.common.sharpness import sharpness
from reproductions.common.training import train

TINY = Configuration(data="digits", n_examples=40, network="cnn", lr=0.1, steps=6, seed=3)


def made(configuration: Configuration, folder: Path) -> TrainingRun:
    pool.finish([configuration], folder, workers=1)
    run = find(configuration, folder)
    assert run is not None
    return run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    return made(TINY, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def fresh_run(tmp_path: Path) -> TrainingRun:
    return made(TINY, tmp_path)


def test_run_is_whole(tiny: TrainingRun) -> None:
    assert tiny.trace.step.tolist() == list(range(6)) and tiny.trace.window == 32
    assert tiny.end == 6 and tiny.diverged_at is None and tiny.seconds > 0
    assert tiny.n_parameters == 3738 and len(tiny.processor) > 3 and tiny.processor != "unknown"
    assert tiny.cosine.shape == (6,) and tiny.layer_cosine.shape == (6, 4)
    assert tiny.share("smooth", 0.9) + tiny.share("mixed", 0.9) + tiny.share("zigzag", 0.9) == pytest.approx(1)


def test_name_follows_from_every_field() -> None:
    changes = {
        "data": "mnist5k",
        "n_examples": 41,
        "network": "mlp",
        "lr": 0.2,
        "steps": 7,
        "seed": 4,
        "loss": "mse",
        "optimiser": "adam",
        "batch": 10,
        "micro_batch": 20,
        "window": 31,
        "sketch": 64,
        "checkpoint_every": 2,
        "sharpness_every": 2,
        "batch_probes": True,
        "keep_gradients": True,
        "restart": Restart(TINY),
        "device": "cuda",
    }
    assert set(changes) == set(Configuration.__dataclass_fields__)
    names = {replace(TINY, **{field: value}).name for field, value in changes.items()}
    assert len(names | {TINY.name}) == len(changes) + 1
    assert replace(TINY, restart=Restart(TINY, 0.8)).name != replace(TINY, restart=Restart(TINY)).name
    assert replace(TINY).name == TINY.name


def test_a_kept_run_is_not_made_again(fresh_run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(pool, "train", refuse)
    pool.finish([TINY, TINY], fresh_run.folder, workers=1)
    with pytest.raises(AssertionError, match="trained again"):
        pool.finish([replace(TINY, seed=4)], fresh_run.folder, workers=1)


def test_an_unfinished_run_is_made_again(fresh_run: TrainingRun) -> None:
    """What Ctrl-C leaves: a trace, and no record."""
    record_path(TINY, fresh_run.folder).unlink()
    assert find(TINY, fresh_run.folder) is None
    assert made(TINY, fresh_run.folder).trace.status == "finished"


def test_the_same_run_is_the_same_bits(tiny: TrainingRun, fresh_run: TrainingRun) -> None:
    for name in ("loss", "grad_sq", "lag_dot", "update_sq"):
        np.testing.assert_array_equal(tiny.trace[name], fresh_run.trace[name])


def test_processes_make_what_one_process_makes(
    tiny: TrainingRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pool.finish([TINY, replace(TINY, seed=4)], tmp_path, workers=2)
    run = find(TINY, tmp_path)
    assert run is not None
    np.testing.assert_array_equal(run.trace.loss, tiny.trace.loss)
    assert "all runs: 100%" in capfd.readouterr().err


def test_an_error_in_a_process_arrives(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no-such-network"):
        pool.finish([replace(TINY, network="no-such-network", seed=s) for s in (1, 2)], tmp_path, workers=2)


def test_ctrl_c_closes_the_bar_before_it_ends_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bars share a lock, and a worker that is ended may hold it."""
    open_bars = []
    terminate, here = BaseProcess.terminate, threading.current_thread()

    def interrupt(waiting: object) -> None:
        raise KeyboardInterrupt

    def count_bars(process: BaseProcess) -> None:
        if threading.current_thread() is here:  # an executor has a thread of its own that ends what is left
            open_bars.append(len(tqdm._instances))
        terminate(process)

    monkeypatch.setattr(pool, "as_completed", interrupt)
    monkeypatch.setattr(BaseProcess, "terminate", count_bars)
    with pytest.raises(KeyboardInterrupt):
        pool.finish([TINY, replace(TINY, seed=4)], tmp_path, workers=2)
    assert len(open_bars) >= 2 and set(open_bars) == {0}


ENDLESS = """
import sys
from pathlib import Path
from reproductions.common.configuration import Configuration
from reproductions.common.pool import finish
runs = [Configuration(data="digits", n_examples=40, network="cnn", lr=0.1, steps=10**7, seed=s) for s in (1, 2)]
finish(runs, Path(sys.argv[1]), workers=2)
"""


@contextlib.contextmanager
def started(checkout: Path, *arguments: str):
    """Python with these arguments in a session of its own; whatever is left of it is killed."""
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=checkout, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def in_time(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether a condition comes true."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def n_in_training(folder: Path) -> int:
    """How many runs are being made, by the locks on them."""
    held = 0
    for path in (folder / ".locks").glob("*"):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held += 1
    return held


def test_workers_end_with_the_process_that_started_them(checkout: Path, tmp_path: Path) -> None:
    with started(checkout, "-c", ENDLESS, str(tmp_path)) as process:
        assert in_time(lambda: n_in_training(tmp_path) == 2)
        process.kill()
        assert in_time(lambda: n_in_training(tmp_path) == 0), "workers without a parent train on"


def test_ctrl_c_while_workers_start_is_one_line(checkout: Path, tmp_path: Path) -> None:
    arguments = ["--quick", "--workers", "2", "--runs", str(tmp_path)]
    with started(checkout, "-m", "reproductions", "p1", *arguments) as process:
        shown = ""
        while "all runs" not in shown:
            shown += process.stderr.read(1)
        time.sleep(0.5)  # the workers exist, and load torch
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=60)
    lines = [line for line in errors.splitlines() if line.strip() and "%|" not in line]
    assert process.returncode == 130 and len(lines) == 1 and lines[0].startswith("Interrupted: finished runs are kept")


@pytest.mark.parametrize("damage", ["foreign", "no JSON", "empty record"])
def test_record_that_is_not_this_runs_is_refused(fresh_run: TrainingRun, damage: str) -> None:
    path = record_path(TINY, fresh_run.folder)
    record = json.loads(path.read_text())
    record["configuration"]["lr"] = 0.7
    path.write_text({"foreign": json.dumps(record), "no JSON": "nothing", "empty record": "{}"}[damage])
    with pytest.raises(RunError, match=f"{path}: expected the record of"):
        find(TINY, fresh_run.folder)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:900])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_another_files(path: Path) -> None:
    path.write_text("foreign")


def crash(path: Path) -> None:
    import h5py

    with h5py.File(path, "r+") as file:
        del file.attrs["finished"]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (Path.unlink, "expected the trace"),
        (cut, "expected the trace"),
        (crash, "got a crashed one"),
        (empty, "expected the trace"),
        (replace_by_another_files, "expected the trace"),
    ],
    ids=["missing", "cut", "unfinished", "empty", "foreign"],
)
def test_trace_that_cannot_be_used_is_refused(
    fresh_run: TrainingRun, damage: Callable[[Path], object], expected: str
) -> None:
    path = trace_path(TINY, fresh_run.folder)
    damage(path)
    run = find(TINY, fresh_run.folder)
    assert run is not None
    with pytest.raises(RunError, match=expected) as raised:
        _ = run.trace
    assert str(path) in str(raised.value) and "delete" in str(raised.value)


@pytest.mark.parametrize(
    "damage", [Path.unlink, cut, empty, replace_by_another_files], ids=lambda damage: damage.__name__
)
def test_arrays_that_cannot_be_used_are_refused(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    run = made(replace(TINY, checkpoint_every=2), tmp_path)
    path = arrays_path(run.configuration, tmp_path)
    damage(path)
    with pytest.raises(RunError, match="expected the arrays of cnn on digits") as raised:
        _ = run.arrays
    assert str(path) in str(raised.value)
    assert f"delete {record_path(run.configuration, tmp_path).name} to train again" in str(raised.value)


def test_another_runs_trace_under_this_name_is_refused(fresh_run: TrainingRun) -> None:
    other = replace(TINY, window=2)
    made(other, fresh_run.folder)
    trace_path(other, fresh_run.folder).replace(trace_path(TINY, fresh_run.folder))
    with pytest.raises(RunError, match="expected a window of 32, got 2"):
        _ = find(TINY, fresh_run.folder).trace


def test_divergence_ends_a_run_and_is_recorded(tmp_path: Path) -> None:
    run = made(replace(TINY, lr=1e30), tmp_path)
    assert run.diverged_at is not None and 0 < run.diverged_at < 6
    assert run.end <= run.diverged_at and np.isfinite(run.trace.loss[: run.end]).all()


def test_run_whose_trace_could_not_be_written_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    with monkeypatch.context() as patched:
        patched.setattr("fastgeom.trace.writer.create_file", refuse)
        with pytest.raises(RunError, match=r"expected the trace of cnn on digits.*: nothing is recorded, train again"):
            made(TINY, tmp_path)
    assert find(TINY, tmp_path) is None
    assert made(TINY, tmp_path).trace.status == "finished"


def test_restart_begins_where_the_parent_zigzagged(tmp_path: Path) -> None:
    parent = Configuration(
        data="digits", n_examples=100, network="cnn", lr=0.15, steps=200, seed=0, checkpoint_every=7, window=2
    )
    run = made(replace(parent, lr=0.015, steps=3, restart=Restart(parent), checkpoint_every=1), tmp_path)
    parent_run = find(parent, tmp_path)
    assert parent_run is not None
    stretches = [stretch for stretch in analysis.stretches(parent_run.labels(0.9)) if stretch.label == analysis.ZIGZAG]
    assert stretches, "the settings of this test no longer zigzag"
    step = parent_run.arrays["checkpoint_steps"][restart_index(Restart(parent), parent_run)]
    assert any(stretch.start <= step < stretch.stop for stretch in stretches)
    np.testing.assert_array_equal(run.arrays["checkpoints"][0], restart_point(Restart(parent), tmp_path))
    np.testing.assert_allclose(run.trace.loss[0], parent_run.trace.loss[step], rtol=1e-12)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [([0, 3, 6, 8, 10], [2, 3]), ([0, 3, 10], [1]), ([0, 5, 10], []), ([], [])],
    ids=["in the longest", "in a shorter one", "in none", "no checkpoints"],
)
def test_checkpoints_of_the_longest_stretch_that_has_any(steps: list[int], expected: list[int]) -> None:
    labels = np.array([0, 0, 0, -1, -1, 0, -1, -1, -1, 1])
    assert checkpoints_in_longest_stretch(labels, analysis.ZIGZAG, np.array(steps, np.int64)).tolist() == expected


def test_share_of_a_regime_is_of_the_known_steps() -> None:
    cosine = np.array([np.nan, 0.95, 0.95, 0.0, -1.0, np.nan])
    assert regime_share(cosine, "smooth", 0.9) == 0.5
    assert regime_share(cosine, "zigzag", 0.9) == 0, "one step alone is no regime"
    assert np.isnan(regime_share(cosine[:2], "smooth", 0.9))


def test_restart_without_its_parent_is_refused(tmp_path: Path) -> None:
    orphan = replace(TINY, restart=Restart(replace(TINY, seed=9)))
    with pytest.raises(RunError, match="expected the finished run to restart from"):
        train(orphan, tmp_path, lambda done, line: None)


def test_top_cosine_is_that_of_gradient_and_eigenvector(tmp_path: Path) -> None:
    run = made(replace(TINY, sharpness_every=2, keep_gradients=True, checkpoint_every=1), tmp_path)
    examples, model = load("digits", 40), build("cnn", load("digits", 40), seed=3)
    for step in (0, 4):
        set_parameters(model, run.arrays["checkpoints"][step])
        value, vector = sharpness(list(model.parameters()), lambda: loss_terms(model, examples))
        gradient = run.arrays["gradients"][step].astype(np.float64)
        assert run.trace.sharpness[step] == pytest.approx(value, rel=1e-4)
        assert run.trace.top_cosine[step] == pytest.approx(abs(gradient @ vector) / np.linalg.norm(gradient), abs=5e-3)
    assert np.isnan(run.trace.top_cosine[1::2]).all()


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


def test_trace_opens_by_itself(tiny: TrainingRun) -> None:
    trace = fastgeom.open_trace(trace_path(TINY, tiny.folder))
    assert trace.status == "finished" and trace.scalars == ("loss", "lr")


FIRST_GRADIENTS: list[tuple[dict[str, Any], dict[str, float]]] = [
    ({"network": "mlp"}, {"loss": 2.313712, "grad_sq": 0.1898609}),
    ({"network": "cnn"}, {"loss": 2.271098, "grad_sq": 0.01786141}),
    ({"network": "cnn-gelu"}, {"loss": 2.270325, "grad_sq": 0.01073553}),
    ({"network": "vgg"}, {"loss": 2.659565, "grad_sq": 18.17769}),
    ({"network": "resnet"}, {"loss": 2.348397, "grad_sq": 0.7028248}),
    ({"network": "resnet-bn"}, {"loss": 2.332718, "grad_sq": 1.422371}),
    ({"network": "resnet-bn", "micro_batch": 10}, {"loss": 2.352456, "grad_sq": 1.395305}),
    ({"network": "plain"}, {"loss": 2.29203, "grad_sq": 0.04874384}),
    ({"network": "plain-bn"}, {"loss": 2.382438, "grad_sq": 0.973515}),
    ({"loss": "mse"}, {"loss": 0.6278561, "grad_sq": 0.5661701}),
    ({"batch": 10}, {"loss": 2.24403, "grad_sq": 0.1086275}),
    ({"batch": 10, "batch_probes": True}, {"loss": 2.24403, "grad_sq": 0.1086275, "half_dot": -0.05238449}),
    ({"sharpness_every": 5}, {"loss": 2.271098, "grad_sq": 0.01786141, "sharpness": 0.3330621}),
]
"""What the first step measures, in float64. Not of the transformer: its text comes with Python, another one with each
version."""


@pytest.mark.parametrize(("changes", "numbers"), FIRST_GRADIENTS, ids=str)
def test_the_code_makes_the_numbers_of_its_generation(
    changes: dict[str, Any], numbers: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept runs hold them too: where the code came to make others, nothing else would tell old runs from new ones.

    Processors round differently, and training amplifies it: with batch norm six steps turn 1e-7 into 5 %. The first
    gradient, taken in float64, is the same on each but for the initial weights, which are drawn in float32.
    """

    def build_in_float64(*arguments: Any) -> torch.nn.Module:
        return build(*arguments).double()

    def load_in_float64(*arguments: Any) -> Examples:
        examples = load(*arguments)
        return replace(examples, inputs=examples.inputs.double())

    monkeypatch.setattr(training, "build", build_in_float64)
    monkeypatch.setattr(training, "load", load_in_float64)
    run = made(replace(TINY, steps=1, **changes), tmp_path)
    measured = {name: float(run.trace[name][0]) for name in numbers}
    advice = "count GENERATION up, make all results again, and write the new numbers here"
    assert GENERATION == 2 and measured == pytest.approx(numbers, rel=1e-5), advice


def sgd(gradients: np.ndarray, momentum: float) -> np.ndarray:
    """Updates u_t = -lr v_t with v_t = momentum v_{t-1} + g_t."""
    velocity, updates = np.zeros_like(gradients[0]), []
    for gradient in gradients:
        velocity = momentum * velocity + gradient
        updates.append(-TINY.lr * velocity)
    return np.array(updates)


def adam(gradients: np.ndarray) -> np.ndarray:
    """Updates of Adam as its paper has them, beta 0.9 and 0.999, epsilon 1e-8."""
    first, second, updates = np.zeros_like(gradients[0]), np.zeros_like(gradients[0]), []
    for step, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        scale = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        updates.append(-TINY.lr * first / (1 - 0.9**step) / scale)
    return np.array(updates)


@pytest.mark.parametrize(
    ("optimiser", "expected"),
    [("gd", partial(sgd, momentum=0.0)), ("momentum", partial(sgd, momentum=0.9)), ("adam", adam)],
    ids=["gd", "momentum", "adam"],
)
def test_gradients_and_checkpoints_are_those_of_the_run(
    optimiser: str, expected: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    """Whatever the gradients are, the trace has their norms, and each step goes where its optimiser says."""
    run = made(replace(TINY, optimiser=optimiser, keep_gradients=True, checkpoint_every=1), tmp_path)
    gradients, parameters = run.arrays["gradients"].astype(np.float64), run.arrays["checkpoints"].astype(np.float64)
    np.testing.assert_allclose((gradients**2).sum(1), run.trace.grad_sq, rtol=1e-6)
    np.testing.assert_allclose(np.diff(parameters, axis=0), expected(gradients)[:-1], rtol=1e-3, atol=1e-6)

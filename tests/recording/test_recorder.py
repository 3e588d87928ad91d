"""A row from a step to the file, and that nothing in between stops a run."""

import logging
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import fastgeom
from fastgeom import probe as probe_module
from fastgeom.recording import recorder
from fastgeom.schema import reserved_names
from fastgeom.trace import TraceWriter


def one_parameter_probe(path, **options) -> tuple[nn.Parameter, fastgeom.Probe]:
    p = nn.Parameter(torch.zeros(4))
    p.grad = torch.ones(4)
    return p, fastgeom.Probe([("layer.p", p)], window=2, trace=path, **options)


def test_the_last_row_of_a_run_is_kept_and_has_no_update(tmp_path):
    p, probe = one_parameter_probe(tmp_path / "run.h5", track_updates=True)
    for _ in range(3):
        probe.step()
        p.data += 1.0
    probe.close()
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    np.testing.assert_array_equal(trace.update_sq, [4.0, 4.0, math.nan])
    np.testing.assert_array_equal(trace.grad_dot_update, [4.0, 4.0, math.nan])
    np.testing.assert_array_equal(trace.layer_next_grad_dot_update, [[4.0], [4.0], [math.nan]])
    np.testing.assert_array_equal(trace.param_sq, [0.0, 4.0, 16.0])


def test_rows_have_their_wall_time_and_what_measuring_cost(tmp_path, monkeypatch):
    """The wall clock may step, backwards too: a row has what it says. The cost comes from a clock that never does."""
    wall_times = [1e9, 1e9 + 100.0, 1e9 + 40.0]
    clock = SimpleNamespace(time=iter(wall_times).__next__, perf_counter=time.perf_counter)
    monkeypatch.setattr(recorder, "time", clock)
    pauses, elapsed_ms = [0.0, 0.05, 0.0], []

    def gradient(parameter):
        time.sleep(pauses[len(elapsed_ms)])  # reading the gradient is part of measuring
        return parameter.grad

    _, probe = one_parameter_probe(tmp_path / "run.h5", gradient=gradient)
    for _ in wall_times:
        started = time.perf_counter()
        probe.step()
        elapsed_ms.append((time.perf_counter() - started) * 1e3)
    probe.close()
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    np.testing.assert_array_equal(trace.wall_time, wall_times)
    assert np.all(trace.measure_time_ms > np.array(pauses) * 1e3)
    assert np.all(trace.measure_time_ms < elapsed_ms)


def test_the_wall_time_is_that_of_the_system_s_clock(tmp_path):
    _, probe = one_parameter_probe(tmp_path / "run.h5")
    before = time.time()
    probe.step()
    after = time.time()
    probe.close()
    (wall_time,) = fastgeom.open_trace(tmp_path / "run.h5").wall_time
    assert before - 60 <= wall_time <= after + 60  # seconds since 1970, wherever a step of the clock falls


def test_scalars_are_recorded_and_their_names_fixed_by_the_first_measured_step(tmp_path):
    _, probe = one_parameter_probe(tmp_path / "run.h5")
    probe.step(loss=torch.tensor([2.5], requires_grad=True), lr=0.1)
    probe.step(lr=0.2)
    with pytest.raises(ValueError, match=r"scalar 'temperature': expected one of .* first measured step \(loss, lr\)"):
        probe.step(loss=1.0, temperature=3.0)
    probe.step(loss=1, lr=torch.tensor(0.3, dtype=torch.float64))
    probe.close()
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    np.testing.assert_array_equal(trace.loss, [2.5, math.nan, 1.0])
    np.testing.assert_array_equal(trace.lr, [0.1, 0.2, 0.3])
    assert list(trace.step) == [0, 1, 2]


@pytest.mark.parametrize("trace", [True, False])
def test_scalars_are_checked_once_a_step(tmp_path, monkeypatch, trace):
    checked = []
    for module in (recorder, probe_module):
        check = module.checked_scalars
        monkeypatch.setattr(
            module,
            "checked_scalars",
            lambda scalars, check=check, **rules: checked.append(scalars) or check(scalars, **rules),
        )
    _, probe = one_parameter_probe(tmp_path / "run.h5" if trace else None, schedule=fastgeom.every(2))
    for step in range(5):
        probe.step(loss=step, lr=0.1)
    probe.close()
    assert checked == [{"loss": step, "lr": 0.1} for step in (0, 2, 4)]


def test_no_scalar_may_hide_what_a_trace_has_by_that_name(tmp_path):
    _, probe = one_parameter_probe(tmp_path / "run.h5")
    probe.step()
    probe.close()
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert {name for name in dir(trace) if not name.startswith("_")} <= reserved_names()


@pytest.mark.parametrize(
    ("scalars", "error", "message"),
    [
        ({"grad_sq": 1.0}, ValueError, "scalar 'grad_sq'"),
        ({"loss": torch.ones(2)}, ValueError, r"scalar 'loss': expected one number, got a tensor of shape \(2,\)"),
        ({"lr": "high"}, TypeError, "scalar 'lr': expected a number or a tensor of one, got str"),
    ],
    ids=["taken name", "vector", "text"],
)
def test_a_scalar_that_cannot_be_recorded_is_an_error_and_costs_no_row(tmp_path, scalars, error, message):
    _, probe = one_parameter_probe(tmp_path / "run.h5")
    with pytest.raises(error, match=message):
        probe.step(**scalars)
    probe.step(loss=1.0)
    probe.close()
    assert list(fastgeom.open_trace(tmp_path / "run.h5").step) == [0]


def test_a_path_that_cannot_be_written_is_an_error_before_the_run_begins(tmp_path):
    (tmp_path / "old.h5").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"old\.h5"):
        one_parameter_probe(tmp_path / "old.h5")
    assert (tmp_path / "old.h5").read_bytes() == b"precious"
    with pytest.raises(OSError, match="missing"):
        one_parameter_probe(tmp_path / "missing" / "run.h5")
    with pytest.raises(ValueError, match="trace mode: expected 'x'"):
        one_parameter_probe(tmp_path / "run.h5", trace_mode="a")
    _, first = one_parameter_probe(tmp_path / "run.h5")
    with pytest.raises(OSError, match=str(os.getpid())):
        one_parameter_probe(tmp_path / "run.h5", trace_mode="w")
    first.step()
    first.close()
    _, second = one_parameter_probe(tmp_path / "run.h5", trace_mode="w")
    for _ in range(2):
        second.step()
    second.close()
    assert len(fastgeom.open_trace(tmp_path / "run.h5")) == 2


def test_a_probe_that_never_measured_leaves_nothing(tmp_path):
    _, probe = one_parameter_probe(tmp_path / "run.h5")
    probe.close()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_follow_costs_rows_that_are_counted_and_never_time(tmp_path, monkeypatch):
    gate = threading.Event()
    append = TraceWriter.append

    def slow(self, row):
        gate.wait()
        append(self, row)

    monkeypatch.setattr(TraceWriter, "append", slow)
    monkeypatch.setattr(recorder, "_QUEUE_ROWS", 8)
    _, probe = one_parameter_probe(tmp_path / "run.h5")
    steps = 30
    for _ in range(steps):
        probe.step()  # would wait for ever if a full queue made it wait
    gate.set()
    probe.close()
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert trace.status == "finished"
    assert 8 <= len(trace) <= 9
    assert trace.attributes["rows_dropped"] == steps - len(trace)
    assert list(trace.step[:8]) == list(range(8))
    assert trace.rows_dropped[-1] == steps - len(trace)


def test_a_disk_that_fails_is_said_once_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    append = TraceWriter.append

    def failing(self, row):
        if row["step"] in {3, 4, 5}:
            self.count_dropped()
            raise OSError("No space left on device")
        append(self, row)

    monkeypatch.setattr(TraceWriter, "append", failing)
    _, probe = one_parameter_probe(tmp_path / "run.h5")
    with caplog.at_level(logging.WARNING, "fastgeom"):
        for _ in range(8):
            probe.step()
        probe.close()
    assert sum("No space left on device" in r.getMessage() for r in caplog.records) == 1
    assert "3 rows were dropped" in caplog.records[-1].getMessage()
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert list(trace.step) == [0, 1, 2, 6, 7]
    assert trace.rows_dropped.tolist() == [0, 0, 0, 3, 3]


def test_a_file_that_cannot_be_created_at_the_first_step_does_not_stop_the_run(tmp_path, caplog):
    _, probe = one_parameter_probe(tmp_path / "run.h5")
    (tmp_path / "run.h5").write_bytes(b"somebody else's")
    for _ in range(3):
        assert probe.step() is not None
    probe.close()
    assert (tmp_path / "run.h5").read_bytes() == b"somebody else's"
    assert sum("the run goes on" in r.getMessage() for r in caplog.records) == 1
    assert "3 rows were dropped" in caplog.records[-1].getMessage()


class InterruptedOnce:
    """Ctrl-C in the first wait for the writer thread, which is not done before it is waited for again."""

    def __init__(self, monkeypatch) -> None:
        self.calls, self.waited_again = 0, threading.Event()
        join, close = threading.Thread.join, TraceWriter.close

        def interrupted_join(thread, timeout=None):
            if thread.name == "fastgeom-trace":
                self.calls += 1
                if self.calls == 1:
                    raise KeyboardInterrupt
                self.waited_again.set()
            join(thread, timeout)

        def late_close(writer):
            self.waited_again.wait(60)
            close(writer)

        monkeypatch.setattr(threading.Thread, "join", interrupted_join)
        monkeypatch.setattr(TraceWriter, "close", late_close)


@pytest.mark.parametrize("track_updates", [False, True])
def test_a_close_that_was_interrupted_is_finished_by_the_next(tmp_path, monkeypatch, track_updates):
    interrupted = InterruptedOnce(monkeypatch)
    _, probe = one_parameter_probe(tmp_path / "run.h5", track_updates=track_updates)
    try:
        for _ in range(3):
            probe.step()
        probe.drain()  # the file is there
        with pytest.raises(KeyboardInterrupt):
            probe.close()
        assert fastgeom.open_trace(tmp_path / "run.h5").status == "live"
        probe.close()
        trace = fastgeom.open_trace(tmp_path / "run.h5")
        assert trace.status == "finished"
        assert list(trace.step) == [0, 1, 2]
        probe.close()
    finally:
        interrupted.waited_again.set()


def test_a_close_that_was_interrupted_is_finished_at_exit(tmp_path, run_python):
    code = """
        import sys, threading, time, torch, fastgeom
        from fastgeom.trace import TraceWriter
        join, close = threading.Thread.join, TraceWriter.close

        def interrupted_join(thread, timeout=None):
            threading.Thread.join = join
            raise KeyboardInterrupt

        def late_close(writer):
            time.sleep(0.5)  # at exit, a daemon thread that nobody waits for is gone by then
            close(writer)

        TraceWriter.close = late_close
        p = torch.nn.Parameter(torch.zeros(4))
        p.grad = torch.ones(4)
        probe = fastgeom.Probe([("layer.p", p)], window=2, trace=sys.argv[1])
        probe.step()
        threading.Thread.join = interrupted_join
        try:
            probe.close()
        except KeyboardInterrupt:
            print("interrupted")
    """
    assert run_python(textwrap.dedent(code), str(tmp_path / "run.h5")).strip() == "interrupted"
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert trace.status == "finished"
    assert list(trace.step) == [0]


def test_a_run_that_ends_before_its_file_is_created_has_a_finished_trace(tmp_path, run_python):
    code = """
        import sys, time, torch, fastgeom
        from fastgeom.trace import TraceWriter
        create = TraceWriter.create

        def late_create(*arguments):
            time.sleep(0.5)
            create(*arguments)

        TraceWriter.create = late_create
        p = torch.nn.Parameter(torch.zeros(4))
        p.grad = torch.ones(4)
        probe = fastgeom.Probe([("layer.p", p)], window=2, trace=sys.argv[1])
        probe.step()
    """
    run_python(textwrap.dedent(code), str(tmp_path / "run.h5"))
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert trace.status == "finished"
    assert list(trace.step) == [0]
    assert list(tmp_path.glob("*.part")) == []


def test_the_first_layer_with_a_non_finite_gradient_is_named_once(tmp_path, caplog):
    parameters = [(f"block{i}.weight", nn.Parameter(torch.zeros(3))) for i in range(3)]
    for _, p in parameters:
        p.grad = torch.ones(3)
    with fastgeom.Probe(parameters, window=2, trace=tmp_path / "run.h5") as probe:
        probe.step()
        parameters[1][1].grad[0] = math.nan
        parameters[2][1].grad[:] = math.inf
        probe.step()
        probe.step()
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 1
    assert "step 1: 4 inf or NaN in the gradient, the first in layer 'block1' (1)" in messages[0]


RUN = """
    import sys, time, torch, fastgeom
    p = torch.nn.Parameter(torch.zeros(4))
    probe = fastgeom.Probe([("layer.p", p)], window=2, trace=sys.argv[1])
    for step in range(int(sys.argv[2])):
        p.grad = torch.full((4,), float(step))
        probe.step(loss=step)
        if step % 64 == 0:
            probe.drain()
            print(step, flush=True)
            if sys.argv[3:] == ["wait"]:
                sys.stdin.readline()
"""


def start(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_run_that_forgets_to_close_ends_with_a_finished_trace(tmp_path):
    process = start(RUN, tmp_path / "run.h5", 100)
    process.communicate(timeout=120)
    assert process.returncode == 0
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert trace.status == "finished"
    np.testing.assert_array_equal(trace.loss, np.arange(100))


def test_a_run_killed_midway_reads_back_every_flushed_chunk(tmp_path):
    process = start(RUN, tmp_path / "run.h5", 10**9)
    acknowledged = 0
    for line in process.stdout:
        acknowledged = int(line)
        if acknowledged >= 640:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert trace.status == "crashed"
    assert len(trace) >= acknowledged
    assert len(trace) % 64 == 0
    steps = np.arange(len(trace))
    np.testing.assert_array_equal(trace.step, steps)
    np.testing.assert_array_equal(trace.loss, steps)
    np.testing.assert_array_equal(trace.grad_sq, 4.0 * steps**2)
    np.testing.assert_array_equal(trace.lag_dot[2:, 1], 4.0 * steps[2:] * (steps[2:] - 2))


def test_another_process_reads_a_run_in_its_middle_and_gets_whole_right_rows(tmp_path):
    def read() -> tuple[str, int]:
        with fastgeom.open_trace(tmp_path / "run.h5") as trace:
            steps = np.arange(len(trace))
            np.testing.assert_array_equal(trace.step, steps)
            np.testing.assert_array_equal(trace.grad_sq, 4.0 * steps**2)
            return trace.status, len(trace)

    seen = []
    with start(RUN, tmp_path / "run.h5", 640, "wait") as process:
        for line in process.stdout:
            seen.append(read())
            process.stdin.write("\n")
            process.stdin.flush()
            assert read()[1] >= int(line), "a reader beside a writer that does not wait"
    assert seen == [("live", rows) for rows in range(0, 640, 64)]
    assert process.returncode == 0
    assert read() == ("finished", 640)


def test_the_trace_says_how_it_was_measured(tmp_path):
    _, probe = one_parameter_probe(tmp_path / "run.h5", track_updates=True, schedule=fastgeom.bursts(every=5, length=2))
    probe.step()
    probe.close()
    attributes = fastgeom.open_trace(tmp_path / "run.h5").attributes
    configuration = attributes["configuration"]
    assert configuration["window"] == 2
    assert configuration["track_updates"] is True
    assert configuration["schedule"] == "bursts(every=5, length=2)"
    assert configuration["layers"] == "module"
    assert configuration["n_parameters"] == 4
    assert configuration["dtypes"] == ["float32"]
    assert attributes["device"] == "cpu"
    assert attributes["torch_version"] == torch.__version__
    assert attributes["n_threads"] == torch.get_num_threads()

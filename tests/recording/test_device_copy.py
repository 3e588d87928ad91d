"""Copies off a device, which are polled and not waited for, and rows that a captured graph leaves there.

Without a card the device is played by CPU tensors: copies that are not there yet, a capture that is none.
"""

import numpy as np
import pytest
import torch

import fastgeom
from fastgeom.recording import device_copy, pending_rows, recorder
from fastgeom.recording.device_copy import Transfer
from fastgeom.recording.graph_ring import GraphRing
from fastgeom.recording.pending_rows import MAX_COPYING_ROWS
from fastgeom.schema import Field


def gradient_of(step):
    return torch.full((3,), float(step + 1))


def steps_of(probe, weight, steps):
    for step in steps:
        weight.grad = gradient_of(step).to(weight.device)
        probe.step(step=step, loss=torch.tensor(float(step)))


# ---------------------------------------------------------------- copies


def test_values_that_share_memory_leave_in_one_copy(monkeypatch):
    copied = []
    monkeypatch.setattr(device_copy, "_copy", lambda value: copied.append(value.numel()) or value.clone())
    packed = torch.arange(24.0, dtype=torch.float64).view(4, 6)
    values = {"whole": packed[:-1, 0], "last": packed[-1, 0], "lags": packed[:, 2:], "count": torch.arange(4)}
    arrived = device_copy._to_pinned(values)
    assert copied == [24, 4]
    for name, value in values.items():
        assert torch.equal(arrived[name], value) and arrived[name].shape == value.shape


def test_one_element_of_a_large_tensor_leaves_alone(monkeypatch):
    copied = []
    monkeypatch.setattr(device_copy, "_copy", lambda value: copied.append(value.numel()) or value.clone())
    large = torch.arange(1000.0)
    assert float(device_copy._to_pinned({"loss": large[7]})["loss"]) == 7.0
    assert copied == [1]


def test_a_transfer_gives_numbers_and_arrays_that_later_writes_do_not_reach(device):
    source = torch.arange(3.0, device=device)
    moved = Transfer({"vector": source, "scalar": source[1], "half": source[2].bfloat16(), "number": 5})
    moved.wait()
    assert moved.ready()
    source.zero_()
    values = moved.result()
    assert values["vector"].tolist() == [0.0, 1.0, 2.0]
    assert (values["scalar"], values["half"], values["number"]) == (1.0, 2.0, 5)


class Slow(Transfer):
    """Copies that arrive when told."""

    arrived = 0
    made = 0

    def __init__(self, values):
        super().__init__(values)
        Slow.made += 1
        self._number = Slow.made

    def ready(self):
        return self._number <= Slow.arrived

    def wait(self):
        Slow.arrived = max(Slow.arrived, self._number)


@pytest.fixture
def slow(monkeypatch):
    for module in (recorder, pending_rows):
        monkeypatch.setattr(module, "Transfer", Slow)
    Slow.arrived = Slow.made = 0
    return Slow


def test_rows_are_looked_at_when_the_next_one_comes_and_leave_in_order(tmp_path, slow):
    weight = torch.nn.Parameter(torch.zeros(3))
    probe = fastgeom.Probe([("w", weight)], window=2, trace=tmp_path / "run.h5")
    steps_of(probe, weight, range(5))
    assert [row.step for row in probe._recorder._pending] == [0, 1, 2, 3, 4]
    slow.arrived = 3
    steps_of(probe, weight, [5])
    assert [row.step for row in probe._recorder._pending] == [3, 4, 5]
    probe.drain()
    assert len(probe._recorder._pending) == 0
    probe.close()
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert trace.step.tolist() == trace.loss.tolist() == [0, 1, 2, 3, 4, 5]
    assert trace.attributes["rows_dropped"] == 0


def test_a_device_that_does_not_follow_costs_rows_that_are_counted_and_never_time(tmp_path, slow):
    weight = torch.nn.Parameter(torch.zeros(3))
    with fastgeom.Probe([("w", weight)], window=2, trace=tmp_path / "run.h5") as probe:
        steps_of(probe, weight, range(MAX_COPYING_ROWS + 10))
        assert len(probe._recorder._pending) == MAX_COPYING_ROWS
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert trace.step.tolist() == list(range(10, MAX_COPYING_ROWS + 10))
    assert trace.attributes["rows_dropped"] == 10


# ---------------------------------------------------------------- replays

FIELDS = (
    Field("step", "t", "1", ("step",), "int64", ""),
    Field("value", "v", "1", ("step", "lag"), "float64", ""),
    Field("late", "l", "1", ("step",), "float64", ""),
)


def replayed(device, n, *, capacity=None):
    rows = GraphRing(device, FIELDS, {"lag": 2})
    if capacity is not None:
        rows._capacity = capacity
    for k in range(n):
        if k:
            rows.complete({"late": torch.tensor(k - 1.0, device=device)})
        rows.append({"step": torch.tensor(k, device=device), "value": torch.tensor([k, -k], device=device)})
    return rows


def test_replayed_rows_come_once_and_with_the_late_fields_of_the_row_before_them(device):
    rows = replayed(device, 4)
    drained, lost, before = rows.drain()
    assert [int(row["step"]) for row in drained] == [0, 1, 2, 3] and lost == 0
    assert [row["value"].tolist() for row in drained] == [[0, 0], [1, -1], [2, -2], [3, -3]]
    np.testing.assert_array_equal([float(row["late"]) for row in drained], [0, 1, 2, np.nan])
    assert drained[0]["step"].dtype == np.int64 and before["late"] == 0
    assert rows.drain() == ([], 0, {})
    rows.complete({"late": torch.tensor(7.0, device=device)})
    rows.append({"step": torch.tensor(4, device=device), "value": torch.tensor([4, -4], device=device)})
    drained, _, before = rows.drain()
    assert int(drained[0]["step"]) == 4 and float(before["late"]) == 7


def test_late_fields_of_a_row_that_left_before_any_replay_are_kept_too(device):
    rows = GraphRing(device, FIELDS, {"lag": 2})
    rows.complete({"late": torch.tensor(7.0, device=device)})
    rows.append({"step": torch.tensor(0, device=device), "value": torch.tensor([0, 0], device=device)})
    assert float(rows.drain()[2]["late"]) == 7


def test_replayed_rows_that_found_no_room_are_counted(device):
    rows = replayed(device, 7, capacity=4)
    drained, lost, before = rows.drain()
    assert [int(row["step"]) for row in drained] == [3, 4, 5, 6] and lost == 3 and before == {}


@pytest.mark.parametrize("history", [fastgeom.Exact(), fastgeom.Sketch(size=128)], ids=["exact", "sketch"])
@pytest.mark.parametrize("track_updates", [False, True])
def test_steps_measured_while_capturing_are_counted_on_the_device_and_drained(
    tmp_path, monkeypatch, device, track_updates, history
):
    """A capture repeats what the host was told once: here every call of a capture stands for one replay."""
    now = {"capturing": False}
    for module in ("recording.recorder", "probe"):
        monkeypatch.setattr(f"fastgeom.{module}.capturing", lambda _: now["capturing"])
    monkeypatch.setattr("fastgeom.recording.recorder.can_capture", lambda _: True)
    traces = []
    for capture in (False, True):
        path = tmp_path / f"{capture}.h5"
        weight = torch.nn.Parameter(torch.zeros(3, device=device))
        gradient = weight.grad = torch.zeros(3, device=device)  # captured graphs write to one place
        with fastgeom.Probe(
            [("w", weight)], window=2, history=history, trace=path, backend="triton", track_updates=track_updates
        ) as probe:
            for step in range(6):
                now["capturing"] = capture and 2 <= step < 5
                gradient.copy_(gradient_of(step))
                with torch.no_grad():
                    weight.add_(1.0)
                probe.step(loss=torch.tensor(float(step), device=device))
                if step == 4:
                    now["capturing"] = False
                    probe.drain()
        traces.append(fastgeom.open_trace(path))
    eager, replayed = traces
    assert replayed.step.tolist() == list(range(6))
    for name in set(eager.names) - {"wall_time", "measure_time_ms"}:
        np.testing.assert_array_equal(replayed[name], eager[name], err_msg=name)


@pytest.mark.parametrize(
    ("history", "module"),
    [(fastgeom.Exact(), "triton.window"), (fastgeom.Sketch(size=128), "triton.sketch_window")],
    ids=["exact", "sketch"],
)
def test_a_first_step_inside_of_a_capture_is_refused(monkeypatch, device, history, module):
    weight = torch.nn.Parameter(torch.zeros(3, device=device))
    weight.grad = torch.ones(3, device=device)
    with fastgeom.Probe([("w", weight)], window=2, history=history, backend="triton") as probe:
        monkeypatch.setattr(f"fastgeom.engines.{module}.capturing", lambda _: True)
        with pytest.raises(RuntimeError, match="expected a measured step before a CUDA graph is captured"):
            probe.step()


def test_a_number_that_is_no_tensor_is_the_same_in_every_replay(tmp_path, monkeypatch, device):
    monkeypatch.setattr("fastgeom.recording.recorder.can_capture", lambda _: True)
    weight = torch.nn.Parameter(torch.zeros(3, device=device))
    with fastgeom.Probe([("w", weight)], window=2, trace=tmp_path / "run.h5", backend="triton") as probe:
        weight.grad = torch.ones(3, device=device)
        probe.step(lr=0.5)
        for module in ("recording.recorder", "probe"):
            monkeypatch.setattr(f"fastgeom.{module}.capturing", lambda _: True)
        probe.step(lr=0.25)
    assert fastgeom.open_trace(tmp_path / "run.h5").lr.tolist() == [0.5, 0.25]

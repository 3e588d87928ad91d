"""`make gpu` without a card: what it refuses, a dry run through all of it, and how it judges what it is given."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

import fastgeom
from bench.common import device, truth
from bench.common.device import Card, Twin
from bench.common.gradients import Gradients
from bench.common.shapes import numels
from bench.common.ways import Way
from bench.gpu import __main__ as command
from bench.gpu import cells, worker
from bench.gpu.cells import Cell, Sizes, all_cells, target
from bench.gpu.report import datasheet_gb_per_s, document, passed
from bench.gpu.supervising import SICK, run_cells
from bench.gpu.table import page
from bench.gpu.testing import TestRun, run_tests
from fastgeom import reference

BF16 = "bfloat16"


def gpu(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, on a machine that shows no card."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "."}
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *arguments], cwd=checkout, env=environment, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip


# ---------------------------------------------------------------- what it refuses


def test_without_a_card_it_says_so_in_a_line_and_exits_2(checkout):
    done = gpu(checkout)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "no CUDA card" in done.stderr and not done.stdout


def test_missing_packages_are_named_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(command, "NEEDED", ("torch", "no_such_package", "pytest", "nor_this"))
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert command.main() == 2
    assert capsys.readouterr().err == (
        "fastgeom: make gpu installs nothing, and these packages are missing: no-such-package, nor-this\n"
    )


def test_every_file_of_tests_that_it_runs_is_there(checkout):
    values = command.files(*command.VALUE_TESTS)
    assert {
        "tests/kernels/window/test_window.py",
        "tests/engines/triton/test_engine.py",
        "tests/recording/test_device_copy.py",
    } <= set(values)
    assert {"tests/layout/test_count_sketch.py", "tests/history/test_sketch_statistics.py"} <= set(values)
    assert command.files(*command.NATIVE_TESTS) == ["bench/gpu/native_large.py", "bench/gpu/native_probe.py"]
    assert command.VALUE_S + command.NATIVE_S + command.LAST_S < command.SECONDS - 150 < 480 - 150


# ---------------------------------------------------------------- a dry run


@pytest.fixture(scope="module")
def dry(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str, str]:
    """The document, the page and the output of a dry run."""
    folder = tmp_path_factory.mktemp("gpu")
    done = gpu(checkout, "--dry", "--out", str(folder))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    (data,) = folder.glob("*.json")
    return json.loads(data.read_text()), (folder / "gpu.md").read_text(), done.stdout


def test_a_dry_run_goes_through_every_cell(dry):
    found, _, _ = dry
    assert [(c["case"], c["method"], c["dtype"]) for c in found["cells"]] == [
        (c.case, c.method, c.dtype) for c in all_cells(cells.TINY)
    ]
    for row in found["cells"]:
        assert "error" not in row, row
        assert row["time_ms"] == pytest.approx(1.0 if row["case"] != "deferred" else 0.5)
        assert row["bandwidth_gb_per_s"] == pytest.approx(row["bytes_moved"] / row["time_ms"] / 1e6)
        assert row["launches"] >= 1 and 0 <= row["relative_error"] < 0.02 and row["missed"] is None


def test_what_a_dry_run_writes_has_all_that_a_result_must_say(dry):
    found, _, _ = dry
    assert found["schema"] == 1 and found["dry"] is True and found["card"]["name"] == "dry run on CPU tensors"
    assert found["versions"]["torch"] == torch.__version__ and found["versions"]["python"]
    assert set(found["tests"]) == {"values", "native"} and found["peak_gb_per_s"] > 0
    for run in found["tests"].values():
        assert run["fine"] and run["passed"] == run["collected"] - run["skipped"] > 3
    assert {"date", "commit", "seconds", "datasheet_gb_per_s"} <= set(found)


def test_cells_for_which_memory_is_short_shrink_and_say_so(dry):
    found, text, _ = dry
    shrunk = [row for row in found["cells"] if "note" in row]
    assert {row["case"] for row in shrunk} >= {"window", "deferred", "update"}
    assert all(row["n_elements"] < row["elements"] for row in shrunk)
    assert "- window W=2, fastgeom, bfloat16: 1,024 elements; 1,200 would take more than 60 % of the memory." in text


def test_the_page_has_a_row_for_every_cell_and_is_printed(dry):
    found, text, printed = dry
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(found["cells"])
    assert len({row.count(" | ") for row in rows}) == 1
    assert "no number here means anything" in text and text in printed


# ---------------------------------------------------------------- what is timed, and what is meant to be reached


def test_the_cells_are_those_of_the_plan():
    planned = all_cells(Sizes())
    assert len(set(planned)) == len(planned)
    for dtype in (BF16, "float32"):
        for elements in (10**8, 10**9):
            mine = [c for c in planned if c.dtype == dtype and c.elements == elements]
            windows = [c.window for c in mine if c.case == cells.WINDOW and c.method == cells.OURS]
            assert windows == [1, 4, 16, 64]
            assert {c.method for c in mine if c.case == cells.WINDOW} == {
                cells.OURS, cells.LEAN, cells.CAT_DOTS, cells.COMPILED,
            }  # fmt: skip
            assert {c.method for c in mine if c.case == cells.NORM} == {
                cells.OURS, cells.FOREACH, cells.COMPILED, cells.POINTER_TABLE,
            }  # fmt: skip
            (deferred,) = [c for c in mine if c.case == cells.DEFERRED]
            assert (deferred.window, deferred.block) == (16, 8 if dtype == BF16 else 16)
            assert {c.buckets for c in mine if c.case == cells.SKETCH} == {1 << 18}
    assert {(c.tensors, c.elements) for c in planned if c.case == cells.SMALL_STEP} == {(2000, 2_000_000)}
    assert all(worker._bytes_per_element(c) > 0 for c in planned)


@pytest.mark.parametrize(
    ("cell", "text", "good", "bad"),
    [
        (Cell("norm", "fastgeom", BF16, 10**9), "≥ 0.88 of data sheet", 0.88, 0.87),
        (Cell("window", "fastgeom", "float32", 10**8, window=16), "≥ 0.75 of data sheet", 0.75, 0.74),
        (Cell("sketch", "fastgeom", BF16, 10**9, layers="all"), "≥ 0.8 of data sheet", 0.81, 0.79),
        (Cell("deferred", "fastgeom", BF16, 10**9, window=16, block=8), "≥ 3 × per-step window", 3.0, 2.9),
        (Cell("2,000 tensors: step", "fastgeom", BF16, 10**6), "≤ 0.3 host ms", 0.3, 0.31),
    ],
)
def test_targets_are_those_of_the_plan(cell, text, good, bad):
    goal = target(cell)
    assert goal.text() == text and not goal.missed(good) and goal.missed(bad)


def test_nothing_is_asked_of_torch_itself():
    assert all(target(c) is None for c in all_cells(Sizes()) if c.method != cells.OURS)


@pytest.mark.parametrize(
    ("name", "speed"),
    [
        ("NVIDIA H100 80GB HBM3", 3350),
        ("NVIDIA H200", 4800),
        ("NVIDIA A100-SXM4-80GB", 2039),
        ("NVIDIA B200", 8000),
        ("AMD Instinct MI300X", 5300),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-SXM4-40GB", None),
        ("", None),
    ],
)
def test_the_data_sheet_is_known_for_these_cards_alone(name, speed):
    assert datasheet_gb_per_s(name) == speed


# ---------------------------------------------------------------- one cell


def test_a_cell_that_fails_leaves_its_error_and_the_others_go_on(monkeypatch):
    def broken(problem):
        raise RuntimeError("no\nsuch kernel")

    monkeypatch.setitem(worker.WAYS, "norm", [Way("fastgeom", broken)])
    found = worker.run_cell(Twin(), Cell("norm", "fastgeom", BF16, 64))
    assert found == {"error": "RuntimeError: no such kernel"}


def test_a_bench_that_computes_wrongly_is_not_timed(monkeypatch):
    monkeypatch.setattr(fastgeom, "norm", lambda tensors: torch.tensor(1.0))
    found = worker.run_cell(Twin(), Cell("norm", "fastgeom", BF16, 640))
    assert found["error"].startswith("AssertionError: norm squared: off by") and "time_ms" not in found


def test_a_size_is_cut_to_the_room_there_is(monkeypatch):
    monkeypatch.setattr(Twin, "room_bytes", lambda self: 4096)
    found = worker.run_cell(Twin(), Cell("norm", cells.FOREACH, BF16, 10**12, tensors=2))
    assert found["n_elements"] == 2048
    assert found["note"] == "2,048 elements; 1,000,000,000,000 would take more than 60 % of the memory"


def test_a_profiler_that_does_not_run_costs_one_column_alone(monkeypatch):
    monkeypatch.setattr(Twin, "launches", lambda self, work: 1 / 0)
    found = worker.run_cell(Twin(), Cell("norm", cells.FOREACH, BF16, 640))
    assert found["launches"] is None and "error" not in found


def test_numbers_are_drawn_again_and_differ_from_seed_to_seed():
    g = Gradients.empty(numels(3, 1000), "float32", torch.device("cpu")).draw(0)
    assert [t.numel() for t in g.tensors] == [328] * 3 and len({t.data_ptr() % 16 for t in g.tensors}) == 1
    first = g.flat.clone()
    g.draw(1)
    assert not torch.equal(g.flat, first)
    g.draw(0)
    assert torch.equal(g.flat, first)


# ---------------------------------------------------------------- the card's clock


@pytest.fixture
def card(monkeypatch):
    """A card whose device counts: a read of the cover takes 1 ms there, the work 5 ms."""
    now = {"device": 0.0, "passes": []}

    class Event:
        def record(self):
            self.at = now["device"]

        def elapsed_time(self, end):
            return (end.at - self.at) * 1e3

        def synchronize(self):
            pass

    def read_cover(passes):
        now["passes"].append(passes)
        now["device"] += passes * 1e-3

    found = Card.__new__(Card)
    found._pass_s = 1e-3
    monkeypatch.setattr(device, "_event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(found, "_read_cover", read_cover)
    monkeypatch.setattr(found, "synchronize", lambda: None)
    return found, now


def test_a_call_is_timed_alone_behind_reads_that_outlast_the_host(card):
    card, now = card
    calls = []

    def work():
        calls.append(None)
        now["device"] += 5e-3
        time.sleep(4e-3)

    timing = card.time(work, seconds=0.05)
    assert timing.device_s == pytest.approx(5e-3) and 4e-3 <= timing.host_s < 0.1
    assert timing.repeats == 10 and len(calls) == 3 + 1 + 1 + 10
    assert len(now["passes"]) == 11 and min(now["passes"]) * 1e-3 >= 1.5 * 4e-3


def test_waiting_is_forbidden_only_inside(card, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with pytest.raises(RuntimeError, match="a wait"), card[0].forbid_waiting():
        assert modes == ["error"]
        raise RuntimeError("a wait")
    assert modes == ["error", "default"]


# ---------------------------------------------------------------- the truth


def test_sums_in_pieces_are_those_of_the_whole():
    a, b = torch.randn(1000).bfloat16(), torch.randn(1000)
    assert truth.summed(torch.mul, [a], [b], piece=64) == pytest.approx(reference.dot([a], [b]), rel=1e-13)
    assert truth.square(b) == pytest.approx(reference.dot([b], [b]), rel=1e-13)
    assert truth.difference_sq([a], [b]) == pytest.approx(reference.difference_sq([a], [b]), rel=1e-13)


@pytest.mark.parametrize("sizes", [(5000,), (1300, 1, 999, 128), (60, 40)])
def test_sketches_in_pieces_are_those_of_the_definition(sizes):
    tensors = [torch.randn(n) for n in sizes]
    expected = reference.count_sketch(tensors, 128, 77)
    torch.testing.assert_close(truth.count_sketch(tensors, 128, 77, piece=300), expected, rtol=1e-12, atol=1e-12)


def test_what_is_off_by_too_much_or_is_no_number_raises():
    assert truth.assert_near(1.001, 1.0, 0.01, "x") == pytest.approx(0.001)
    with pytest.raises(AssertionError, match=r"^x: off by 0\.1 relatively, allowed 0\.01: 1\.1 for 1\.0$"):
        truth.assert_near(1.1, 1.0, 0.01, "x")
    with pytest.raises(AssertionError, match=r"^x: off by inf"):
        truth.assert_near(float("nan"), 1.0, 0.01, "x")


# ---------------------------------------------------------------- processes with a limit


def fake_worker(tmp_path: Path, body: str) -> list[str]:
    """A worker that says its card, then runs ``body`` for each cell."""
    script = tmp_path / "worker.py"
    head = """
        import json, os, sys, time
        lines = open(sys.argv[1], "a")
        def say(**line):
            print(json.dumps(line), file=lines, flush=True)
        say(card={"name": "some card"})
        for cell in map(int, sys.argv[2:]):
    """
    script.write_text(textwrap.dedent(head) + textwrap.indent(textwrap.dedent(body), "    "))
    return [sys.executable, str(script)]


def cells_of(tmp_path: Path, body: str, *, n: int = 3, seconds: float = 30.0, cell_s: float = 20.0):
    return run_cells(
        n, tmp_path, folder=tmp_path, environment=os.environ, seconds=seconds, cell_s=cell_s,
        worker=fake_worker(tmp_path, body),
    )  # fmt: skip


def test_a_cell_that_ends_its_process_is_blamed_and_the_rest_runs_in_a_new_one(tmp_path):
    body = """
        if cell == 1:
            print("about to die", flush=True)
            os._exit(9)
        say(cell=cell, found={"ok": cell})
    """
    card, found = cells_of(tmp_path, body)
    assert card == {"name": "some card"}
    assert found == [{"ok": 0}, {"error": "its process ended with status 9: about to die"}, {"ok": 2}]


def test_a_cell_that_takes_too_long_is_ended(tmp_path):
    body = """
        time.sleep(60 if cell == 0 else 0)
        say(cell=cell, found={"ok": cell})
    """
    _, found = cells_of(tmp_path, body, cell_s=1.0)
    assert found == [{"error": "no result within 1 s: it printed nothing"}, {"ok": 1}, {"ok": 2}]


def test_after_a_sick_device_no_other_cell_is_blamed(tmp_path):
    body = f"""
        say(cell=cell, found={{"error": "fault"}} if cell == 0 else {{"ok": cell}})
        if cell == 0:
            sys.exit({SICK})
    """
    _, found = cells_of(tmp_path, body)
    assert found == [{"error": "fault"}, {"ok": 1}, {"ok": 2}]


def test_cells_that_no_time_is_left_for_say_so(tmp_path):
    body = """
        say(cell=cell, found={"ok": cell})
        time.sleep(60 if cell == 1 else 0)
    """
    _, found = cells_of(tmp_path, body, seconds=4.0)
    assert found == [{"ok": 0}, {"ok": 1}, {"error": "the time for the benches ran out before this cell"}]


def test_a_worker_that_never_starts_is_given_up(tmp_path):
    (tmp_path / "broken.py").write_text("raise SystemExit('no such module')")
    card, found = run_cells(
        5, tmp_path, folder=tmp_path, environment=os.environ, seconds=60.0,
        worker=[sys.executable, str(tmp_path / "broken.py")],
    )  # fmt: skip
    assert card == {} and [f["error"] for f in found[3:]] == ["the benches do not start: no such module"] * 2


TESTS = """
    import time
    import pytest
    @pytest.mark.parametrize("k", range(3))
    def test_that_passes(k):
        pass
    def test_that_fails():
        assert 1 + 1 == 3, "sums are wrong"
    @pytest.fixture
    def broken():
        raise RuntimeError("no fixture")
    def test_without_its_fixture(broken):
        pass
    @pytest.mark.skip
    def test_left_out():
        pass
"""


def counts_of(checkout: Path, tmp_path: Path, more: str = "", seconds: float = 60.0):
    (tmp_path / "test_some.py").write_text(textwrap.dedent(TESTS) + textwrap.dedent(more))
    environment = os.environ | {"PYTHONPATH": "."}
    return run_tests(
        [str(tmp_path / "test_some.py")], tmp_path, folder=checkout, environment=environment, seconds=seconds,
        spread=False,
    )  # fmt: skip


def test_tests_are_counted_and_failures_named(checkout, tmp_path):
    found = counts_of(checkout, tmp_path)
    assert (found.collected, found.passed, found.skipped, found.status) == (6, 3, 1, 1) and not found.fine
    failed, broken = found.failures.items()
    assert failed[0].endswith("::test_that_fails") and "sums are wrong" in failed[1]
    assert broken[0].endswith("::test_without_its_fixture") and "no fixture" in broken[1]
    assert found.text().startswith("3 of 6 passed, 2 failed, 1 skipped") and "short test summary" in found.said


def test_tests_that_run_out_of_time_are_counted_as_far_as_they_came(checkout, tmp_path):
    found = counts_of(checkout, tmp_path, "def test_that_hangs():\n    time.sleep(600)\n", seconds=8.0)
    assert found.status is None and not found.fine
    assert (found.collected, found.passed, len(found.failures)) == (7, 3, 2)
    assert found.text().endswith("the time ran out")


# ---------------------------------------------------------------- the document and its page

PEAK = Cell("peak", "copy", "float32", 10**9)
WINDOW = Cell("window", "fastgeom", BF16, 10**9, 400, 16)
LEAN = Cell("window", cells.LEAN, BF16, 10**9, 400, 16)
DEFERRED = Cell("deferred", "fastgeom", BF16, 10**9, 400, 16, 8)
FINE = TestRun(collected=3, passed=3, status=0).as_dict()


def result(n: int, bytes_moved: float, time_ms: float) -> dict:
    return {
        "n_elements": n, "bytes_moved": int(bytes_moved), "relative_error": 1e-8, "time_ms": time_ms, "host_ms": 0.2,
        "repeats": 20, "launches": 6.0,
    }  # fmt: skip


def made(checkout: Path, *more: tuple[Cell, dict], card: str = "NVIDIA H100 80GB HBM3", tests: dict | None = None):
    found = [
        (PEAK, result(10**9, 8e9, 8 / 3.0)),  # 3000 GB/s
        (WINDOW, result(10**9, 36e9, 12.0)),  # 3000 GB/s, 0.896 of the data sheet
        (LEAN, result(10**9, 36e9, 18.0)),
        *more,
    ]
    listed, results = zip(*found, strict=True)
    runs = {"values": FINE, "native": FINE} if tests is None else tests
    facts = {"name": card, "driver": "580.1", "cuda": "13.0"}
    return document(facts, listed, results, runs, checkout, dry=False, seconds=200.0)


def test_speeds_are_set_against_the_peak_the_data_sheet_and_ours(checkout):
    found = made(checkout, (DEFERRED, result(5 * 10**8, 5e9, 1.9)))
    _, window, lean, deferred = found["cells"]
    assert found["peak_gb_per_s"] == pytest.approx(3000)
    assert window["fraction_of_peak"] == pytest.approx(1.0)
    assert window["fraction_of_datasheet"] == pytest.approx(3000 / 3350) and window["missed"] is False
    assert lean["times_as_long"] == pytest.approx(1.5) and window["times_as_long"] is None
    assert deferred["times_per_step_window"] == pytest.approx(12.0 / (2 * 1.9)) and deferred["missed"] is False
    text = page(found)
    assert "# GPU: NVIDIA H100 80GB HBM3" in text and "driver 580.1, CUDA 13.0" in text
    assert "≥ 0.88 of data sheet: reached" in text and "≥ 3 × per-step window: reached (3.16)" in text
    assert passed(found)


def test_a_missed_target_is_marked_and_fails_nothing(checkout):
    found = made(checkout, (Cell("norm", "fastgeom", BF16, 10**9), result(10**9, 2e9, 1.0)))
    assert found["cells"][-1]["missed"] is True and passed(found)
    assert "≥ 0.88 of data sheet: missed" in page(found)


def test_of_an_unknown_card_no_fraction_of_its_data_sheet_is_claimed(checkout):
    found = made(checkout, card="NVIDIA L4")
    window = found["cells"][1]
    assert found["datasheet_gb_per_s"] is None
    assert window["fraction_of_datasheet"] is None and window["missed"] is None
    assert "data sheet unknown GB/s" in page(found)


def test_a_cell_that_did_not_run_is_in_the_page_and_fails_the_run(checkout):
    found = made(checkout, (DEFERRED, {"error": "OutOfMemoryError: a | b"}))
    assert not passed(found)
    assert "**did not run: OutOfMemoryError: a \\| b**" in page(found)


def test_without_a_peak_or_a_window_that_ran_there_are_no_ratios(checkout):
    found = document(
        {}, (PEAK, LEAN, DEFERRED), ({"error": "x"}, result(9, 9, 1.0), result(9, 9, 1.0)), {}, checkout, dry=False,
        seconds=1.0,
    )  # fmt: skip
    assert found["peak_gb_per_s"] is None
    assert {row.get("fraction_of_peak") for row in found["cells"]} == {None}
    assert found["cells"][1]["times_as_long"] is found["cells"][2]["times_per_step_window"] is None
    assert "# GPU: no card" in page(found)


def test_failed_and_unfinished_tests_fail_the_run_and_are_named(checkout):
    failed = TestRun(3, 2, failures={"tests/a.py::b": "wrong"}, status=1).as_dict()
    late = TestRun(3, 1, said=".....").as_dict()
    found = made(checkout, tests={"values": failed, "native": late})
    assert not passed(found)
    text = page(found)
    assert "  - `tests/a.py::b`: wrong" in text and "; the time ran out" in text and "....." in text

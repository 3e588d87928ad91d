"""`make gpu` without a card: what it refuses, what it would run, and a run of files that pass, fail, crash and hang."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from bench import gpu
from bench.common.registry import REGISTRY
from bench.gpu import Job
from bench.outcome import Outcome


def test_without_a_card_it_says_so_in_a_line_and_exits_2(checkout):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "."}
    command = [sys.executable, "-m", "bench.gpu"]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "fastgeom: no CUDA card found: make gpu needs one\n" and not done.stdout


def test_missing_packages_are_named_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "NEEDED", ("torch", "no_such_package", "pytest", "nor_this"))
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    assert capsys.readouterr().err == (
        "fastgeom: make gpu installs nothing, and these packages are missing: no-such-package, nor-this\n"
    )


def test_what_is_missing_is_named_before_it_is_imported(run_python):
    absent = dict.fromkeys(gpu.NEEDED)
    code = f"import sys; sys.modules.update({absent!r}); import bench.gpu"
    assert run_python(code) == ""


def test_it_runs_every_value_test_every_native_check_and_every_bench_within_its_time(checkout):
    jobs = gpu.jobs()
    for group, patterns in (("values", gpu.VALUE_TESTS), ("native", gpu.NATIVE_TESTS)):
        matched = [sorted(str(path.relative_to(checkout)) for path in checkout.glob(pattern)) for pattern in patterns]
        assert all(matched) and [job.name for job in jobs if job.group == group] == sum(matched, [])
    assert sorted(gpu.STATISTICS) == sorted(REGISTRY)
    benches = {job.arguments[0] for job in jobs if job.name.startswith("bench: ")}
    assert benches == {f"bench/{path.name}" for path in (checkout / "bench").glob("bench_*.py")}
    assert all((checkout / job.arguments[0]).is_file() for job in jobs)
    assert sum(gpu.GROUP_S.values()) < gpu.SECONDS - 150 < 480 - 150


@pytest.mark.parametrize("statistic", gpu.STATISTICS)
def test_the_benches_of_a_statistic_are_selected_by_name(statistic):
    (job,) = [job for job in gpu.jobs() if job.name == f"bench: {statistic}"]
    selected = job.arguments[job.arguments.index("-k") + 1]
    assert re.fullmatch(r"[\w:+\-.\[\]/]+", selected), "an expression of one name"
    for name, entry in REGISTRY.items():
        assert {selected in f"test_speed[{case.name}]" for case in entry.cases} == {name == statistic}


FILE = """
import os, time
import pytest

def result(benchmark, title):
    device = {"kind": "cuda", "name": "Fake Card", "slug": "fake-card"}
    benchmark.extra_info.update(device=device, versions={}, threads={}, kind="memory", title=title)
    benchmark.extra_info.update(ring_bytes=1e9, beside_bytes=1e6)
    benchmark(int)
"""
FILES = {
    "crashes": """
def test_before(benchmark):
    result(benchmark, "before the crash")

def test_that_dies():
    os.abort()

def test_after():
    pass
""",
    "hangs": """
def test_that_hangs():
    time.sleep(600)
""",
    "fails": """
def test_wrong(benchmark):
    result(benchmark, "of a wrong one")
    assert 1 + 1 == 3, "sums are wrong"

@pytest.fixture
def broken():
    raise RuntimeError("no fixture")

def test_without_its_fixture(broken):
    pass
""",
    "passes": """
def test_first(benchmark):
    result(benchmark, "of the first file")

@pytest.mark.skip
def test_skipped():
    pass
""",
}


def test_whatever_a_file_does_the_rest_runs_and_its_results_stay(tmp_path, monkeypatch, capsys):
    jobs = []
    for name, text in FILES.items():
        path = tmp_path / f"test_{name}.py"
        path.write_text(FILE + text)
        jobs.append(Job(name, (str(path),), 5.0 if name == "hangs" else 60.0))
    monkeypatch.setattr(gpu, "jobs", lambda: jobs)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path), "--logs", str(tmp_path / "logs")])
    assert gpu.main() == 1
    (path,) = (tmp_path / "results").glob("fake-card-*.json")
    run = json.loads(path.read_text())
    assert [bench["title"] for bench in run["benches"]] == ["before the crash", "of the first file"]
    crashed, hung, failed, passed = (Outcome(**job) for job in run["jobs"])
    assert crashed.ending.startswith("crashed with status -6 in") and crashed.ending.endswith("test_that_dies")
    assert (crashed.collected, crashed.passed, crashed.ok) == (3, 1, False)
    assert hung.ending.startswith("the time ran out in") and not hung.ok
    assert (failed.ending, failed.ok, failed.collected, failed.passed) == ("finished", False, 2, 0)
    wrong, broken = failed.failures.values()
    assert "sums are wrong" in wrong and "no fixture" in broken
    assert (passed.ending, passed.ok, passed.passed, passed.skipped) == ("finished", True, 1, 1)
    assert "Fake Card" in (tmp_path / "README.md").read_text()
    printed = capsys.readouterr().out
    assert "FAIL crashes: 1 of 3 passed" in printed and "ok   passes: 1 of 2 passed" in printed
    assert "before the crash" in printed and "sums are wrong" in printed


def test_where_the_time_runs_out_only_what_is_optional_may_be_cut(tmp_path):
    jobs = [Job("needed", ("x",), 60.0), Job("optional", ("x",), 60.0, optional=True)]
    outcomes, benches = gpu.run_all(jobs, tmp_path, seconds=0.5)
    assert [outcome.ok for outcome in outcomes] == [False, True] and not benches
    assert {outcome.ending for outcome in outcomes} == {"not started: the time ran out"}

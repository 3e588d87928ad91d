"""What `make bench` stores of a run, and its page, picture and comparison: on small runs made by hand."""

import copy
import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import compare, report
from bench.pages import document, roofline
from bench.pages.formatting import count, error, given, number, ratio, size
from bench.pages.page import render

CPU = {"kind": "cpu", "name": "Test CPU, 2 cores", "slug": "test-cpu-2-cores", "cores": 2, "memory_bytes": 16e9}
CARD = {"kind": "cuda", "name": "Test Card", "slug": "test-card", "caches": "L2 50 MB"}
DOT = "bench/bench_speed.py::test_dot"
LEAN, OTHER = "cat + mv", "numpy gemv"


SPEED = json.loads("""
{"kind": "speed", "time_ms": 15.0, "bandwidth_gb_per_s": 26.7, "peak_gb_per_s": 28.0, "peak_way": "torch sum",
 "fraction_of_peak": 0.95, "peak_memory_bytes": 4096, "launches": null, "host_ms": null, "rounds": 21,
 "relative_error": 1e-13, "goals": [{"what": "of peak", "value": 0.95, "least": 0.9}],
 "peers": {"cat + mv": {"time_ms": 30.0, "ratio": 2.0, "ratio_low": 1.9, "ratio_high": 2.1, "relative_error": 3e-7,
                        "peak_memory_bytes": 4e8, "launches": null},
           "numpy gemv": {"skipped": "numpy has no such dtype"}}}
""")
OTHER_KINDS = """
{"bench/bench_training.py::test_mlp": {"kind": "training", "model": "MLP", "n_elements": 55050, "time_ms": 100.0,
   "modes": {"window": {"time_ms": 103.0, "ratio": 1.03, "ratio_low": 1.01, "ratio_high": 1.05, "added_ms": 3.0},
             "other tool": {"time_ms": 130.0, "ratio": 1.3, "added_ms": 30.0, "peer": true},
             "third tool": {"skipped": "not installed", "peer": true}},
   "goals": [{"what": "with over without", "value": 1.0504, "most": 1.05}]},
 "bench/bench_accuracy.py::test_dot": {"kind": "accuracy", "statistic": "dot", "distribution": "six decades",
   "dtype": "float32", "elements": 1000000, "errors": {"fastgeom": 1e-14, "torch": 3e-4, "numpy": NaN},
   "relative_errors": {"fastgeom": 2e-12}, "bound": 5e-8},
 "bench/bench_growth.py::test_norm": {"kind": "growth", "over": "elements", "statistic": "norm",
   "points": [[1000, 2e-6], [100000000, 0.015]], "exponent": 0.98, "exponent_low": 0.96, "exponent_high": 1.01,
   "constant": 0.148, "constant_unit": "ns an element", "model_exponent": 1.0, "model_constant": 0.146},
 "bench/bench_memory.py::test_memory": {"kind": "memory", "title": "10 tensors", "ring_bytes": 640e6,
   "beside_bytes": 2.1e6, "goals": [{"what": "beside the ring, MB", "value": 2.1, "most": 28.8}]},
 "bench/bench_roof.py::test_roof": {"kind": "roof", "gflop_per_s": 260.0, "what": "matrix product"}}
"""

Benches = dict[str, dict[str, Any]]


def speed(statistic: str, dtype: str = "float32", n: int = 10**8, **facts: Any) -> dict[str, Any]:
    case = {"statistic": statistic, "elements": n, "tensors": "400", "dtype": dtype}
    sizes = {"n_elements": n, "bytes_moved": 4 * n, "operations": n}
    return {**copy.deepcopy(SPEED), "case": case, "title": f"{statistic} title", **sizes, **facts}


def every_kind() -> Benches:
    """What a complete run records, by the name of its bench."""
    benches = {f"bench/bench_speed.py::test_{name}": speed(name) for name in document.STATISTICS}
    return benches | json.loads(OTHER_KINDS)


def write(path: Path, benches: Benches, device: dict[str, Any] = CPU, date: str = "2026-12-01T10:11:12") -> Path:
    """A file as pytest-benchmark writes it."""
    shared = {
        "device": device,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "threads": {"torch": 2, "numba": 2},
    }
    stats = {"stats": {"data": [1.5, 2.5]}}
    listed = [{"fullname": name, "extra_info": {**shared, **facts}, **stats} for name, facts in benches.items()]
    commit = {"id": "0123abcd", "dirty": True}
    file = {"commit_info": commit, "datetime": date, "benchmarks": listed}
    path.write_text(json.dumps(file))
    return path


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for bench/results."""
    monkeypatch.setattr(document, "RESULTS", tmp_path / "bench" / "results")
    return document.RESULTS


@pytest.fixture
def page(tmp_path: Path) -> str:
    return render([document.read(write(tmp_path / "whole.json", every_kind()))])


def section(page: str, heading: str) -> str:
    return re.split(r"^##+ ", page.split(f"### {heading}\n")[1], flags=re.M)[0]


def row(text: str, start: str) -> list[str]:
    """The cells of the one row that starts so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_document_has_what_was_recorded_and_no_single_rounds(tmp_path: Path) -> None:
    run = document.read(write(tmp_path / "a.json", every_kind()))
    assert run["commit"] == "0123abcd" and run["dirty"] and run["device"] == CPU
    assert run["versions"] == {"python": "3.11.7", "torch": "2.13.0"} and run["threads"] == {"torch": 2, "numba": 2}
    assert [bench["name"] for bench in run["benches"]] == list(every_kind())
    text = json.dumps(run, allow_nan=False)  # what is not a number has become null
    assert "2.5" not in text and text.count('"torch": "2.13.0"') == 1


def test_page_shows_every_kind(page: str) -> None:
    ours = ["100 M float32, 400 tensors", "15.0", "26.7", "0.95", "1.0e-13", "2.00 [1.90, 2.10], 400 MB"]
    for heading in ("Norm", "Dot product", "Window", "Deferred window", "Update", "Sketch", "Probe.step", "Clipping"):
        name = {"Dot product": "dot", "Deferred window": "deferred", "Probe.step": "step", "Clipping": "clip"}
        title = f"{name.get(heading, heading.lower())} title; "
        assert row(section(page, heading), title) == [title + ours[0], *ours[1:]]
        assert "The fastest other is faster in none of 1 cases." in section(page, heading)
        assert f"Not timed: {OTHER} (numpy has no such dtype)." in section(page, heading)
    training = section(page, "Training")
    assert "MLP, 55 k, 100 ms" in training
    assert row(training, "window") == ["window", "1.03 [1.01, 1.05]", "3.00"]
    assert row(training, "other tool")[0] == "other tool, another tool"
    assert "Not timed: third tool (not installed)." in training
    errors = ["dot, float32, six decades, 1 M", "1.0e-14 (2.0e-12)", "**3.0e-4**", "5.0e-8"]
    assert row(section(page, "Accuracy"), "dot") == errors, "numpy has no number: no column"
    growth = ["0.98 [0.96, 1.01]", "1.00", "0.148 ns an element", "0.146 ns an element"]
    assert row(section(page, "Growth"), "norm") == ["norm over elements, 1,000 to 100 M", *growth]
    assert row(section(page, "Memory"), "10 tensors") == ["10 tensors", "640 MB", "2.10 MB"]
    assert "; commit 0123abcd, with changes that are not in it; cores 2; memory 16.0 GB; " in page
    assert "measured peak 28.0 to 28.0 GB/s over 9 cases (fastest read: torch sum in 9)" in page
    assert "compute roof 260 GFLOP/s: matrix product." in page and "## How to read" in page


def test_page_has_no_nan_no_broken_table_and_no_dead_link(page: str) -> None:
    assert not re.search(r"\b(nan|inf|None)\b", page)
    tables = [list(lines) for rows, lines in itertools.groupby(page.splitlines(), lambda s: s.startswith("|")) if rows]
    for lines in tables:
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in lines}) == 1, lines
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^##+ (.*)$", page, flags=re.M)}
    assert set(re.findall(r"\(#([^)]*)\)", page)) <= anchors
    assert f"(results/roofline-{CPU['slug']}.svg)" in page


def test_a_card_has_columns_of_its_own_and_the_tests_that_ran_there(tmp_path: Path) -> None:
    benches = {"a::b": speed("norm", launches=2, host_ms=0.04, fraction_of_datasheet=0.91)}
    run = document.read(write(tmp_path / "a.json", benches, CARD))
    job = {"ok": True, "passed": 3, "collected": 3, "ending": "finished", "failures": {}}
    late = {"name": "bench: dot", "ok": False, "ending": "the time ran out in a"}
    run["jobs"] = [job | {"name": "tests/a.py"}, job | {"name": "bench: norm"}, job | late]
    page = render([run])
    assert row(section(page, "Norm"), "norm title")[3:7] == ["0.95", "0.91", "1.0e-13", "2"]
    assert row(section(page, "Norm"), "norm title")[7] == "0.0400"
    assert "- `tests/a.py`: 3 of 3 passed\n- `bench: dot`: 3 of 3 passed; **the time ran out in a**\n" in page


def test_cases_that_had_to_shrink_are_named(tmp_path: Path) -> None:
    benches = {name: facts for name, facts in every_kind().items() if facts["kind"] == "growth"}
    for facts in benches.values():
        facts["note"] = "1e8: do not fit"
    benches["a::b"] = speed("norm", note="1e8 do not fit")
    page = render([document.read(write(tmp_path / "a.json", benches))])
    assert "Smaller than meant: 1e8 do not fit.\n" in page
    assert "Smaller than meant:\n\n- norm over elements: 1e8: do not fit\n" in page


def test_goals_missed_come_first_and_are_shown_as_missed(tmp_path: Path) -> None:
    benches = every_kind()
    names = [name for name in benches if "speed" in name]
    for name, value in zip(names, (0.8999, None, 0.9), strict=False):
        benches[name]["goals"][0]["value"] = value
    goals = section(render([document.read(write(tmp_path / "a.json", benches))]), "Goals: 8 of 11 reached")
    lines = [line for line in goals.splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert len(rows) == 11 and [cells[-1] for cells in rows] == ["**missed**"] * 3 + ["reached"] * 8
    norm = ["norm title; 100 M float32, 400 tensors", "of peak", "≥ 0.9", "0.8999", "**missed**"]
    assert norm in rows, "0.900 would look reached"
    assert ["dot title; 100 M float32, 400 tensors", "of peak", "≥ 0.9", "no number", "**missed**"] in rows
    assert ["training of MLP", "with over without", "≤ 1.05", "1.0504", "**missed**"] in rows
    assert ["10 tensors", "beside the ring, MB", "≤ 28.8", "2.10", "reached"] in rows


def test_where_another_is_faster_the_page_shows_it(tmp_path: Path) -> None:
    benches = {"a::large": speed("norm"), "a::small": speed("norm", n=1000, fraction_of_peak=0.04)}
    benches["a::small"]["peers"][LEAN] |= {"ratio": 0.8, "ratio_low": 0.78, "ratio_high": 0.82}
    norm = section(render([document.read(write(tmp_path / "a.json", benches))]), "Norm")
    assert "The fastest other is faster in 1 of 2 cases." in norm
    assert "**0.80 [0.78, 0.82]**" in norm and "**2.00" not in norm


def test_page_holds_the_newest_of_each_device_cpu_first(results: Path, tmp_path: Path) -> None:
    for device, date in ((CARD, "2026-12-03"), (CPU, "2026-12-02"), (CPU, "2026-11-30")):
        assert report.main([str(write(tmp_path / "run.json", every_kind(), device, f"{date}T10:00:00"))]) == 0
    page = (results.parent / "README.md").read_text()
    assert page.index("## Test CPU") < page.index("## Test Card")
    assert "run 2026-12-02 10:00" in page and "2026-11-30" not in page
    pictures = {"roofline-test-card.svg", "roofline-test-cpu-2-cores.svg"}
    runs = {"test-card-2026-12-03.json", "test-cpu-2-cores-2026-11-30.json", "test-cpu-2-cores-2026-12-02.json"}
    assert {path.name for path in results.iterdir()} == pictures | runs
    assert document.read(results / "test-cpu-2-cores-2026-12-02.json")["date"] == "2026-12-02T10:00:00"


def test_partial_run_leaves_stored_results_alone(results, tmp_path, capsys):
    report.main([str(write(tmp_path / "whole.json", every_kind()))])
    before = {path: path.read_bytes() for path in results.parent.rglob("*") if path.is_file()}
    partial = tmp_path / "part.json"
    for left_out, text in (
        ("bench_training|bench_growth", "no training; no growth"),
        ("test_window", "no speed of window"),
        ("test_roof", "1 of the stored benches are missing, bench/bench_roof.py::test_roof among them"),
    ):
        write(partial, {name: facts for name, facts in every_kind().items() if not re.search(left_out, name)})
        capsys.readouterr()
        assert report.main([str(partial)]) == 0
        assert text in capsys.readouterr().out
        assert before == {path: path.read_bytes() for path in results.parent.rglob("*") if path.is_file()}
    assert report.main([str(partial), "--out", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "README.md").is_file()


def test_page_of_a_run_without_speed_links_no_picture(tmp_path: Path) -> None:
    benches = {name: facts for name, facts in every_kind().items() if facts["kind"] == "memory"}
    assert report.main([str(write(tmp_path / "a.json", benches)), "--out", str(tmp_path)]) == 0
    assert "svg" not in (tmp_path / "README.md").read_text() and not list(tmp_path.rglob("*.svg"))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "cannot be read.*--benchmark-disable"),
        (lambda path: path.write_text("{"), "cannot be read as JSON"),
        (lambda path: path.write_text('{"card": {}}'), "expected the JSON of `pytest bench --benchmark-json`"),
        (lambda path: write(path, {}), "without --benchmark-disable"),
        (lambda path: write(path, {"a::b": {}}), "a::b: kind is None.*expected one of speed.*--benchmark-disable"),
        (
            lambda path: write(path, {"a": speed("dot"), "b": speed("dot", device=CARD)}),
            "b ran on test-card",
        ),
        (lambda path: path.write_text(f'{{"format": "{document.FORMAT}", "schema": 99}}'), "with schema 1"),
    ],
    ids=["missing", "no JSON", "other JSON", "empty", "disabled", "two devices", "schema"],
)
@pytest.mark.parametrize("command", [report.main, compare.main])
def test_bad_input_is_named(command, make, text, tmp_path, results, capsys) -> None:
    path = tmp_path / "bad.json"
    make(path)
    assert command([str(path)]) == 2
    message = capsys.readouterr().err
    assert str(path) in message and re.search(text, message) and not results.exists()


def compared(change: Callable[[Benches], object], tmp_path: Path) -> tuple[str, int]:
    """What the comparison of a changed run with the unchanged one says."""
    benches = every_kind()
    benches["bench/bench_training.py::test_mlp"]["modes"]["large"] = {"ratio": 2.0, "peer": False}
    old = document.read(write(tmp_path / "old.json", benches))
    new = copy.deepcopy(benches)
    change(new)
    lines, status = compare.report(document.read(write(tmp_path / "new.json", new)), old)
    return "\n".join(lines), status


def peer(benches: Benches) -> dict[str, Any]:
    return benches["bench/bench_speed.py::test_norm"]["peers"][LEAN]


def modes(benches: Benches) -> Benches:
    return benches["bench/bench_training.py::test_mlp"]["modes"]


@pytest.mark.parametrize(
    ("change", "flagged"),
    [
        (lambda benches: peer(benches).update(ratio=2.0 / 1.16), "norm title; 100 M float32, 400 tensors: × our time"),
        (lambda benches: peer(benches).update(ratio=2.0 / 1.14), ""),
        (lambda benches: peer(benches).update(ratio=2.0 * 1.16), ""),
        (lambda benches: benches[DOT].update(fraction_of_peak=0.95 / 1.16), "of peak: 0.95"),
        (lambda benches: benches[DOT].update(fraction_of_peak=0.95 / 1.14), ""),
        (lambda benches: modes(benches)["large"].update(ratio=2.16), "from 1.00 to 1.16 of a step"),
        (lambda benches: modes(benches)["large"].update(ratio=2.14), ""),
        (lambda benches: modes(benches)["large"].update(ratio=1.5), ""),
        (lambda benches: modes(benches)["window"].update(ratio=1.081), "from 0.03 to 0.08 of a step"),
        (lambda benches: modes(benches)["window"].update(ratio=1.079), ""),
        (lambda benches: modes(benches)["other tool"].update(ratio=9.0), ""),
        (lambda benches: benches[DOT].update(time_ms=900.0, bandwidth_gb_per_s=1.0), ""),
    ],
)
def test_comparison_flags_what_got_worse_by_more_than_15_percent(change, flagged, tmp_path):
    text, status = compared(change, tmp_path)
    assert status == bool(flagged) and ("worse by more than 15 %:\n" in text) == bool(flagged)
    assert flagged in text


def test_comparison_shows_both_intervals(tmp_path: Path) -> None:
    text, _ = compared(lambda benches: peer(benches).update(ratio=1.6, ratio_low=1.2, ratio_high=2.0), tmp_path)
    assert "2.00 [1.90, 2.10], now 1.60 [1.20, 2.00] (25.0 % worse; the intervals overlap)" in text
    assert "1 worse (0 with intervals that do not overlap)" in text
    text, _ = compared(lambda benches: peer(benches).update(ratio=1.6, ratio_low=1.5, ratio_high=1.7), tmp_path)
    assert "now 1.60 [1.50, 1.70] (25.0 % worse)" in text
    assert "1 worse (1 with intervals that do not overlap)" in text


def test_comparison_lists_what_is_new_and_missing(tmp_path: Path) -> None:
    def change(benches: Benches) -> None:
        benches["a::new"] = speed("norm", "bfloat16")
        del benches["bench/bench_speed.py::test_clip"]
        benches["bench/bench_speed.py::test_norm"]["peers"][LEAN] = {"skipped": "torch is gone"}

    text, status = compared(change, tmp_path)
    missing, new = text.split("missing now:\n")[1].split("\nnew:\n")
    assert "clip title; 100 M float32, 400 tensors: × our time" in missing and missing.count("\n") == 3
    assert new.startswith("  norm title; 100 M bfloat16, 400 tensors: fraction of peak\n") and status == 0


def test_comparison_reads_stored_documents_and_takes_the_newest_other_run(results, tmp_path, capsys):
    slow = every_kind()
    peer(slow)["ratio"] = 1.5
    report.main([str(write(tmp_path / "a.json", every_kind(), date="2026-12-01T10:00:00"))])
    report.main([str(write(tmp_path / "b.json", slow, date="2026-12-02T10:00:00"))])
    capsys.readouterr()
    assert compare.main([str(tmp_path / "b.json")]) == 1, "against the day before, not against itself"
    assert "2026-12-02T10:00 against 2026-12-01T10:00" in capsys.readouterr().out
    first, second = sorted(map(str, results.glob("*.json")))
    assert compare.main([first, second]) == 0 and compare.main([second, first]) == 1


def test_ratios_of_different_machines_do_not_compare(results, tmp_path, capsys):
    one, other = write(tmp_path / "a.json", every_kind()), write(tmp_path / "b.json", every_kind(), CARD)
    assert compare.main([str(one), str(other)]) == 2
    assert "ratios of different machines do not compare" in capsys.readouterr().out
    report.main([str(other)])
    assert compare.main([str(one)]) == 2
    assert "holds no other run of Test CPU, 2 cores" in capsys.readouterr().err


@pytest.mark.parametrize(("roof", "drawn"), [(260.0, True), (1e6, False)], ids=["near", "far"])
def test_picture_is_an_svg_with_the_labels_and_always_the_same(tmp_path: Path, roof: float, drawn: bool) -> None:
    benches = every_kind()
    benches["bench/bench_roof.py::test_roof"]["gflop_per_s"] = roof
    benches["a::b"] = speed("clip", "bfloat16")
    run = document.read(write(tmp_path / "run.json", benches))
    paths = [tmp_path / name for name in ("a.svg", "b.svg")]
    for path in paths:
        roofline.draw(run, path)
    text = paths[0].read_text()
    assert text == paths[1].read_text() and "<dc:date>" not in text
    labels = ("norm title, float32: 0.95", "clip title, bfloat16: 0.95", "measured peak, 28 GB/s", "Test CPU, 2 cores")
    assert [label for label in (*labels, "10⁹ multiply-adds a second") if label not in text] == []
    assert ("compute roof: 130" in text) == drawn and ("compute roof" in text) == drawn


def test_picture_takes_the_case_that_moves_the_most(tmp_path: Path) -> None:
    benches = {f"a::{n}": speed("norm", n=n) for n in (1000, 10**8, 10**6)}
    benches |= {"a::mixed": speed("norm", "mixed"), "a::unknown": speed("dot", operations=None)}
    (case,) = document.picture_cases(document.read(write(tmp_path / "a.json", benches)))
    assert case["n_elements"] == 10**8
    assert roofline.intensity(case) == 0.25 and roofline.attained(case) == pytest.approx(1e8 / 0.015 / 1e9)


def test_numbers_have_the_digits_that_they_deserve() -> None:
    numbers = {None: "–", math.nan: "–", 0: "0", 0.97345: "0.973", 27.36: "27.4", 1234.5: "1,234", 2.34e-5: "2.34e-5"}
    numbers |= {9.996: "10.0", 5e7: "5.00e7"}
    errors = {None: "–", 0.0: "0", 1.04e-13: "1.0e-13", 2.2e-2: "2.2e-2"}
    counts = {None: "–", 400: "400", 1000: "1,000", 55_050: "55 k", 124_439_808: "124 M", 10**9: "1 G"}
    counts |= {999_999: "1 M", 9_996: "10 k"}
    sizes = {None: "–", 0: "0 B", 512: "512 B", 4096: "4.10 kB", 999_999: "1.00 MB", 1.5e10: "15.0 GB"}
    for function, texts in ((number, numbers), (error, errors), (count, counts), (size, sizes)):
        assert [function(value) for value in texts] == list(texts.values()), function
    assert given(5e-8) == "5e-8" and given(0.9) == "0.9" and given(1e20) == "1e20"
    assert ratio({"ratio": 12.345, "ratio_low": 11.0, "ratio_high": 13.0}) == "12.3 [11.0, 13.0]"
    assert ratio({"ratio": -1e-9, "ratio_low": -0.001, "ratio_high": 0.1}) == "0.00 [0.00, 0.10]"
    assert ratio({"ratio": 1.5}) == "1.50" and ratio({"ratio": None}) == "–"


def test_the_committed_page_is_that_of_the_stored_results() -> None:
    results = document.newest(document.RESULTS)
    assert results, "no results are stored"
    assert (document.RESULTS.parent / "README.md").read_text(encoding="utf-8") == render(results)
    for run in results:
        assert (document.RESULTS / document.picture_name(run)).exists()

"""The page of all figures says what the kept results say, and nothing else."""

import json
import re
from pathlib import Path

import pytest

from reproductions import __main__ as everything
from reproductions.common.page import CLAIMS, read_results, render
from reproductions.common.reproduction import Reproduction
from reproductions.common.verdict import NOT_SUPPORTED, SUPPORTED, UNDECIDED, judge

RESULTS = read_results(everything.RESULTS, everything.NAMES)
BY_NAME = {result["name"]: result for result in RESULTS}
FIGURES: dict[str, Reproduction] = {figure.name: figure for figure in everything.load_figures()}


def test_the_page_is_what_is_generated() -> None:
    assert everything.PAGE.read_text(encoding="utf-8") == render(RESULTS), "make figures writes it anew"


@pytest.mark.parametrize("name", everything.NAMES)
def test_kept_result_is_that_of_the_script(name: str) -> None:
    """Claim, statistic and threshold of today's script; enough seeds; a verdict that follows from the values."""
    figure, result = FIGURES[name], BY_NAME[name]
    for field in ("title", "statement", "statistic", "threshold", "notes", "id"):
        assert result[field] == getattr(figure, field), field
    assert result["claims"] == list(figure.claims)
    assert result["effort"] == "default" and result["theta"] == 0.9
    assert result["is_default"] and result["seeds"] == list(figure.seeds) and len(result["seeds"]) >= 5
    again = judge([float("nan") if value is None else value for value in result["values"]], figure.threshold)
    assert again.verdict == result["verdict"] and again.reason == result["reason"]
    planned = {c.name for seed in result["seeds"] for c in figure.plan("default", seed).values()}
    assert set(result["runs"]) == planned, "the settings have changed since: make figures"
    for ending in (".png", ".svg"):
        assert (everything.RESULTS / f"{name}{ending}").stat().st_size < 1_500_000


def test_few_are_undecided() -> None:
    verdicts = [result["verdict"] for result in RESULTS if not result["name"].startswith("b")]
    assert len(verdicts) == 14 and set(verdicts) <= {SUPPORTED, NOT_SUPPORTED, UNDECIDED}
    assert verdicts.count(UNDECIDED) <= 3


def test_page_has_every_claim_and_every_figure() -> None:
    page = render(RESULTS)
    for claim in CLAIMS.values():
        assert claim in page
    for result in RESULTS:
        assert result["statement"] in page and f"results/{result['name']}.png" in page
    anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^## (.*)$", page, re.M)}
    assert set(re.findall(r"\]\(#([^)]*)\)", page)) <= anchors


def test_page_without_results_is_a_page(tmp_path: Path) -> None:
    page = render(read_results(tmp_path, everything.NAMES))
    assert "none yet" in page


def test_unknown_numbers_are_called_so(tmp_path: Path) -> None:
    result = {**RESULTS[0], "mean": None, "low": None, "high": None, "values": [None, 0.5]}
    (tmp_path / f"{result['name']}.json").write_text(json.dumps(result))
    page = render(read_results(tmp_path, everything.NAMES))
    assert "unknown [unknown, unknown]" in page and "seeds: unknown, 0.50" in page
    assert "0.25 in all seeds;" in render([{**result, "mean": 0.25, "low": 0.25, "high": 0.25}])


def test_page_of_other_settings_says_so() -> None:
    assert "Made with other settings" not in render(RESULTS)
    page = render([{**RESULTS[0], "theta": 0.5, "is_default": False}])
    assert "**Made with other settings:** effort default, θ = 0.5, seeds 20 to 24." in page


def test_make_figures_writes_page_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All in one command, into a folder of one's own; the kept page is left alone."""
    monkeypatch.setattr(everything, "NAMES", ("p1_two_geometries", "p7_smoothness"))
    kept = everything.PAGE.read_text(encoding="utf-8")
    assert everything.main(["--quick", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "P1" in page and "P7" in page and "](./p1_two_geometries.svg)" in page
    assert everything.PAGE.read_text(encoding="utf-8") == kept
    assert "README.md" in capsys.readouterr().out

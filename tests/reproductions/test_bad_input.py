"""What the figures' command makes of bad input: one line and exit status 2, or a picture that says what is missing."""

import json
import sys
from pathlib import Path

import pytest

from reproductions.__main__ import NAMES, PROGRAM, load_figures, main
from reproductions.common import pool
from reproductions.common.runs import record_path, trace_path

P1 = "p1_two_geometries"


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]):
    """Runs P1 with bad input; returns the one line it says."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            sys.exit(main([P1, *arguments]))
        assert stopped.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "%|" not in line and line.strip()]
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--theta", "0"], "--theta: expected a number between 0 and 1, both excluded, got '0'"),
        (["--theta", "1"], "--theta: expected a number between 0 and 1, both excluded, got '1'"),
        (["--theta", "nan"], "--theta: expected a number between 0 and 1, both excluded, got 'nan'"),
        (["--theta", "large"], "--theta: expected a number between 0 and 1, both excluded, got 'large'"),
        (["--seeds", "0"], "--seeds: expected a whole number of at least 1, got '0'"),
        (["--first-seed", "-1"], "--first-seed: expected a whole number from 0 to 1,000,000,000, got '-1'"),
        (
            ["--first-seed", "99999999999999999999"],
            "--first-seed: expected a whole number from 0 to 1,000,000,000, got '99999999999999999999'",
        ),
        (["--steps", "0"], "--steps: expected a whole number of at least 1, got '0'"),
        (["--lr-scale", "-1"], "--lr-scale: expected a finite number above 0, got '-1'"),
        (["--workers", "0"], "--workers: expected a whole number of at least 1, got '0'"),
        (["--quick", "--full"], "--full: not allowed with argument --quick"),
        (["--slow"], "unrecognized arguments: --slow"),
    ],
)
def test_bad_arguments_are_one_line(fails, arguments: list[str], expected: str) -> None:
    line = fails(*arguments)
    assert line.startswith(f"{PROGRAM}: ") and expected in line


def test_full_without_a_card_is_one_line(fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "--full: expected a CUDA device, found none" in fails("--full")


def test_full_without_data_is_one_line(fails, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("FASTGEOM_DATA", str(tmp_path / "nothing here"))
    line = fails("--full", "--runs", str(tmp_path))
    assert "FASTGEOM_DATA" in line and str(tmp_path / "nothing here") in line


def test_folder_that_cannot_be_written_is_one_line(fails, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert str(tmp_path / "file") in fails("--quick", "--runs", str(tmp_path / "file"))


@pytest.mark.parametrize("damage", ["foreign record", "foreign trace", "unfinished trace"])
def test_run_that_cannot_be_used_is_one_line(fails, tmp_path: Path, damage: str) -> None:
    (figure,) = load_figures([P1])
    pool.finish([c for seed in (20, 21) for c in figure.plan("quick", seed).values()], tmp_path, workers=1)
    (first,) = figure.plan("quick", 20).values()
    if damage == "foreign record":
        path = record_path(first, tmp_path)
        path.write_text(path.read_text().replace('"seed": 20', '"seed": 99'))
    elif damage == "foreign trace":
        path = trace_path(first, tmp_path)
        path.write_text("what another program left")
    else:
        import h5py

        path = trace_path(first, tmp_path)
        with h5py.File(path, "r+") as file:
            del file.attrs["finished"]
    line = fails("--quick", "--runs", str(tmp_path))
    assert str(path) in line and "expected" in line and "delete" in line


def test_ctrl_c_says_that_runs_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "train", interrupt)
    assert main([P1, "--quick", "--runs", str(tmp_path)]) == 130
    assert "finished runs are kept" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arguments", [["--steps", "1"], ["--steps", "3"], ["--lr-scale", "1e30"]], ids=str)
def test_too_short_or_diverged_is_a_picture(name: str, arguments: list[str], tmp_path: Path) -> None:
    assert main([name, "--quick", "--seeds", "1", *arguments, "--runs", str(tmp_path)]) == 0
    record = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert record["verdict"] == "undecided"
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    if arguments[0] == "--lr-scale":
        assert record["diverged"] > 0 and "diverged" in record["settings"]

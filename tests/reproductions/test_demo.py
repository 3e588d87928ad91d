"""The demo, run as a user runs it: what it writes and prints, and what it says to bad input."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastgeom
from fastgeom import analysis
from reproductions.__main__ import PROGRAM


def start(checkout: Path, folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The demo, started from a folder that is not the checkout."""
    inherited = {name: value for name, value in os.environ.items() if name != "FASTGEOM_DATA"}
    inherited["PYTHONPATH"] = str(checkout)
    command = [sys.executable, "-m", "reproductions", "demo", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=inherited | environment, stdout=pipe, stderr=pipe, text=True, encoding="utf-8"
    )


def run(checkout: Path, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    process = start(checkout, folder, *arguments, **environment)
    output, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> tuple[Path, str, str]:
    """Folder, output and errors of eight steps on the digits, the second run into the same folder."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "runs").mkdir()
    (folder / "runs" / "demo.h5").write_text("what an earlier run left")
    done = run(checkout, folder, "--data", "digits", "--images", "200", "--steps", "8", "--lr", "0.05", "--seed", "3")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


def test_trace_holds_every_step(demo: tuple[Path, str, str]) -> None:
    trace = fastgeom.open_trace(demo[0] / "runs" / "demo.h5")
    assert trace.step.tolist() == list(range(8))
    assert trace.window == 32
    assert trace.layers == ("conv1", "conv2", "conv3", "linear")
    assert np.isfinite(trace.loss).all() and (np.diff(trace.loss) < 0).all()
    assert np.all(trace.lr == 0.05)
    assert trace.status == "finished"


def test_step_is_plain_gradient_descent(demo: tuple[Path, str, str]) -> None:
    """u_t = -eta g_t, read off the trace."""
    trace = fastgeom.open_trace(demo[0] / "runs" / "demo.h5")
    np.testing.assert_allclose(trace.update_sq[:-1], 0.05**2 * trace.grad_sq[:-1], rtol=1e-4)
    np.testing.assert_allclose(trace.grad_dot_update[:-1], -0.05 * trace.grad_sq[:-1], rtol=1e-4)
    kappa = analysis.step_curvature(trace.grad_dot_update, trace.next_grad_dot_update)
    ratio = np.sqrt(trace.grad_sq[1:] / trace.grad_sq[:-1])
    np.testing.assert_allclose(kappa[:-1], 1 - ratio * trace.lag_cosine[1:, 0], atol=1e-3)


def test_picture_is_written(demo: tuple[Path, str, str]) -> None:
    picture = (demo[0] / "runs" / "demo.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 50_000


def test_table_is_aligned_and_adds_up(demo: tuple[Path, str, str]) -> None:
    output = demo[1]
    rows = [line for line in output.splitlines() if re.match("regime|smooth|mixed|zigzag", line)]
    assert [row.split()[0] for row in rows] == ["regime", "smooth", "mixed", "zigzag"]
    assert len({len(row) for row in rows}) == 1
    assert sum(int(row.split()[1]) for row in rows[1:]) == 8
    assert sum(float(row.split()[3]) for row in rows[1:]) == pytest.approx(1, abs=0.02)
    assert re.search(r"largest step curvature +-?\d+\.\d\d at step \d", output)
    assert re.search(r"cost of measuring +\d+\.\d\d ms of \d+\.\d ms a step: \d+\.\d%", output)


def test_settings_and_places_are_printed(demo: tuple[Path, str, str]) -> None:
    output = demo[1]
    for part in ("200 images of 8×8 digits", "3,738 parameters", "η = 0.05", "seed 3", "settings are ours"):
        assert part in output
    assert str(Path("runs") / "demo.h5") in output and str(Path("runs") / "demo.png") in output


def test_progress_bar_is_live(demo: tuple[Path, str, str]) -> None:
    assert re.search(r"8/8 .*steps.*loss \d\.\d{4}, correlation [+-]\d\.\d{3}", demo[2])


def test_cifar10_without_data_is_one_line(checkout: Path, tmp_path: Path) -> None:
    missing = tmp_path / "nothing here"
    done = run(checkout, tmp_path, "--data", "cifar10", FASTGEOM_DATA=str(missing))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert str(missing) in done.stderr and "FASTGEOM_DATA" in done.stderr


def test_cifar10_without_a_folder_named_says_where_it_looked(
    in_process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTGEOM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    status, errors = in_process(["--data", "cifar10"])
    assert status == 2
    assert len(errors.splitlines()) == 1
    assert str(tmp_path / "data") in errors and "FASTGEOM_DATA is not set" in errors


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--steps", "0"], "--steps: expected a whole number of at least 1, got '0'"),
        (["--steps", "1.5"], "--steps: expected a whole number of at least 1, got '1.5'"),
        (["--lr", "-1"], "--lr: expected a finite number above 0, got '-1'"),
        (["--lr", "nan"], "--lr: expected a finite number above 0, got 'nan'"),
        (["--lr", "fast"], "--lr: expected a finite number above 0, got 'fast'"),
        (["--seed", "-1"], "--seed: expected a whole number from 0 to 1,000,000,000, got '-1'"),
        (["--seed", "99999999999999999999"], "--seed: expected a whole number from 0 to 1,000,000,000, got '9999"),
        (["--data", "imagenet"], "--data: invalid choice: 'imagenet'"),
    ],
)
def test_bad_arguments_are_one_line(in_process, arguments: list[str], expected: str) -> None:
    status, errors = in_process(arguments)
    assert status == 2
    assert len(errors.splitlines()) == 1
    assert expected in errors


@pytest.fixture
def in_process(capsys: pytest.CaptureFixture[str]):
    """Runs the demo's main in this process: exit status and errors."""
    from reproductions import demo

    def run_main(arguments: list[str]) -> tuple[int | str | None, str]:
        with pytest.raises(SystemExit) as stopped:
            sys.exit(demo.main(arguments))
        return stopped.value.code, capsys.readouterr().err

    return run_main


def test_folder_that_cannot_be_written_is_one_line(in_process, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    status, errors = in_process(["--data", "digits", "--steps", "1", "--out", str(tmp_path / "file")])
    assert status == 2
    assert len(errors.splitlines()) == 1 and str(tmp_path / "file") in errors


def said(errors: str) -> list[str]:
    """The lines that are no progress bar."""
    return [line for line in re.split(r"[\r\n]", errors) if line.strip() and "%|" not in line]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("earlier", [True, False])
def test_ctrl_c_before_the_first_step_draws_no_earlier_run(
    in_process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    arguments = ["--data", "digits", "--images", "50", "--steps", "2", "--out", str(tmp_path)]
    if earlier:
        assert in_process(arguments)[0] == 0
        (tmp_path / "demo.png").unlink()
    monkeypatch.setattr("reproductions.demo.add_full_batch_gradient", interrupt)
    status, errors = in_process(arguments)
    assert status == 130 and said(errors) == ["Interrupted: nothing is drawn."]
    assert not (tmp_path / "demo.h5").exists() and not (tmp_path / "demo.png").exists()


def test_ctrl_c_before_training_leaves_an_earlier_run(
    in_process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo.h5").write_text("what an earlier run left")
    monkeypatch.setattr("reproductions.demo.load", interrupt)
    status, errors = in_process(["--data", "digits", "--out", str(tmp_path)])
    assert status == 130 and said(errors) == ["Interrupted: nothing is drawn."]
    assert (tmp_path / "demo.h5").read_text() == "what an earlier run left"


def test_trace_that_cannot_be_created_is_one_line(in_process, tmp_path: Path) -> None:
    (tmp_path / "demo.h5").write_text("what an earlier run left")
    (tmp_path / "demo.h5.part").mkdir()  # where the trace is created
    status, errors = in_process(["--data", "digits", "--images", "50", "--steps", "2", "--out", str(tmp_path)])
    assert status == 2
    expected = f"{PROGRAM} demo: expected a trace file, got no file at {tmp_path / 'demo.h5'}"
    assert said(errors) == [expected]


def test_trace_behind_a_link_is_written_there(in_process, tmp_path: Path) -> None:
    (tmp_path / "demo.h5").symlink_to(tmp_path / "elsewhere.h5")
    arguments = ["--data", "digits", "--images", "50", "--steps", "2", "--out", str(tmp_path)]
    assert in_process(arguments)[0] == in_process(arguments)[0] == 0
    assert (tmp_path / "demo.h5").is_symlink() and (tmp_path / "elsewhere.h5").is_file()


def test_divergence_stops_and_leaves_a_picture(in_process, tmp_path: Path) -> None:
    arguments = ["--data", "digits", "--images", "50", "--steps", "100", "--lr", "1e30", "--out", str(tmp_path)]
    status, errors = in_process(arguments)
    assert status == 0 and "no longer finite" in errors
    trace = fastgeom.open_trace(tmp_path / "demo.h5")
    assert 1 < len(trace.step) < 100 and not np.isfinite(trace.loss[-1])
    assert (tmp_path / "demo.png").stat().st_size > 0


def test_ctrl_c_leaves_trace_and_picture(checkout: Path, tmp_path: Path) -> None:
    process = start(checkout, tmp_path, "--data", "digits", "--steps", "1000000", "--out", "out")
    line = ""
    while "correlation" not in line:  # the bar of a step that was measured
        character = process.stderr.read(1)
        assert character, f"ended by itself: {process.communicate()}"
        line = line + character if character not in "\r\n" else ""
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Interrupted" in errors and "Traceback" not in errors
    trace = fastgeom.open_trace(tmp_path / "out" / "demo.h5")
    assert trace.status == "finished" and len(trace.step) > 0
    assert (tmp_path / "out" / "demo.png").is_file()

"""The independent check of the regimes: it agrees with the library on a run, and reports what does not agree."""

from pathlib import Path

import numpy as np
import pytest

from fastgeom import analysis
from reproductions import check_regimes as script


@pytest.fixture
def gradients() -> np.ndarray:
    """Four smooth steps, then a zigzag of five, then one at right angles."""
    signs = np.array([1, 1, 1, 1, -1, 1, -1, 1, -1])
    rows = np.outer(signs, [1.0, 2.0, 0.0])
    rows[:, 2] = 0.1 * np.arange(len(rows)) / len(rows)
    return np.vstack([rows, [2.0, -1.0, 0.0]]).astype(np.float32)


def test_plain_regimes_are_those_drawn_up_by_hand(gradients: np.ndarray) -> None:
    cosine, labels = script.plain_regimes(gradients)
    assert np.isnan(cosine[0])
    assert labels.tolist() == [0, 1, 1, 1, -1, -1, -1, -1, -1, 0]
    assert script.plain_regimes(gradients[[0, 1, 4, 5]])[1].tolist() == [0, 0, -1, -1]


def test_agreement_is_silent(gradients: np.ndarray) -> None:
    cosine, _ = script.plain_regimes(gradients)
    assert script.compare(cosine, analysis.classify(cosine, 0.9), gradients) == []


def test_flipped_label_is_reported(gradients: np.ndarray) -> None:
    cosine, labels = script.plain_regimes(gradients)
    labels[5] = 1
    assert script.compare(cosine, labels, gradients) == ["step 5: label +1, plain numpy says -1"]


def test_wrong_cosine_is_reported(gradients: np.ndarray) -> None:
    cosine, labels = script.plain_regimes(gradients)
    cosine[3] -= 1e-4
    (line,) = script.compare(cosine, labels, gradients)
    assert "differs by 0.0001" in line


def test_run_agrees_with_the_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--steps", "12", "--runs", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "12 steps" in printed and "All labels agree." in printed


def test_disagreement_sets_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analysis, "classify", lambda cosine, theta: -np.ones(len(cosine), np.int8))
    assert script.main(["--steps", "4", "--runs", str(tmp_path)]) == 1
    assert "step 1: label -1, plain numpy says +1" in capsys.readouterr().out


@pytest.mark.parametrize("steps", ["1", "3"])
def test_very_short_run_works(tmp_path: Path, steps: str) -> None:
    assert script.main(["--steps", steps, "--runs", str(tmp_path)]) == 0

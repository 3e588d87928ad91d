"""Finished runs: a trace named by its configuration, stored beside a record of how it was made."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import fastgeom
from fastgeom import analysis
from reproductions.common.configuration import Configuration

SKETCH_WINDOW = 1
"""Lags of the trace with stored sketches, which hold every pair of steps anyway."""


class RunError(Exception):
    """A stored run cannot be used; the message names its file."""


@dataclass(frozen=True)
class TrainingRun:
    """A finished run.

    Attributes:
        configuration: what was trained.
        folder: where its files lie.
        n_parameters: how many numbers were trained.
        seconds: wall time of the training, measurements included.
        diverged_at: the first step whose loss was not finite; None where there is none.
        versions: of the packages that made it.
        processor: what computed it, and with which instructions.
    """

    configuration: Configuration
    folder: Path
    n_parameters: int
    seconds: float
    diverged_at: int | None
    versions: dict[str, str]
    processor: str = "unknown"

    @cached_property
    def trace(self) -> Any:
        """The trace of every step."""
        return self._open(trace_path(self.configuration, self.folder), self.configuration.window)

    @cached_property
    def sketches(self) -> Any:
        """The second trace, with stored sketches; only where the configuration asks for one."""
        return self._open(sketch_path(self.configuration, self.folder), SKETCH_WINDOW)

    def check(self) -> None:
        """Raise ``RunError`` where a trace of this run is incomplete: training itself never fails over that."""
        _ = self.trace
        if self.configuration.sketch is not None:
            _ = self.sketches

    def _open(self, path: Path, window: int) -> Any:
        """Open a trace of this run; raises ``RunError`` where it is incomplete."""
        try:
            trace = fastgeom.open_trace(path)
        except (OSError, ValueError) as error:
            raise self._error(path, f"the trace of {self.configuration.title}", error) from error
        if trace.status != "finished":
            raise self._error(path, "a finished trace", f"a {trace.status} one")
        if trace.window != window:
            raise self._error(path, f"a window of {window}", trace.window)
        n_rows = self.configuration.steps if self.diverged_at is None else self.diverged_at + 1
        if len(trace) != n_rows:
            raise self._error(path, f"{n_rows} steps", len(trace))
        return trace

    def _error(self, path: Path, expected: str, got: object) -> RunError:
        record = record_path(self.configuration, self.folder)
        remedy = f"delete {record.name} to train again" if record.exists() else "nothing is recorded, train again"
        return RunError(f"{path}: expected {expected}, got {got}: {remedy}")

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """``checkpoint_steps``, ``checkpoints`` (checkpoint, parameter), ``gradients`` (step, parameter), as asked."""
        path = arrays_path(self.configuration, self.folder)
        try:
            with path.open("rb") as file, np.load(file) as archive:  # np.load leaves a bad file open
                return dict(archive)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise self._error(path, f"the arrays of {self.configuration.title}", error) from error

    @cached_property
    def end(self) -> int:
        """Number of rows before the loss or the gradient stopped being finite: what a statistic may read."""
        is_nonfinite = ~np.isfinite(self.trace.grad_sq) | ~np.isfinite(self.trace.loss)
        return int(np.argmax(is_nonfinite)) if is_nonfinite.any() else len(is_nonfinite)

    @property
    def cosine(self) -> np.ndarray:
        """c_t of every step before a divergence, shape (step,)."""
        return self.trace.lag_cosine[: self.end, 0]

    @property
    def layer_cosine(self) -> np.ndarray:
        """c_t of every layer and step before a divergence, shape (step, layer)."""
        return self.trace.layer_lag_cosine[: self.end, :, 0]

    def labels(self, theta: float) -> np.ndarray:
        """Regime of every step before a divergence, shape (step,)."""
        return analysis.classify(self.cosine, theta)

    def share(self, regime: str, theta: float) -> float:
        """Share of the steps before a divergence that lie in a regime, as ``regime_share`` counts them."""
        return regime_share(self.cosine, regime, theta)


def regime_share(cosine: np.ndarray, regime: str, theta: float) -> float:
    """Share of the steps with a finite c_t that lie in a regime; NaN where there are fewer than two such steps.

    Args:
        cosine: c_t, shape (step,).
        regime: a key of ``analysis.REGIMES``.
        theta: threshold of the regimes.
    """
    measured = np.isfinite(cosine)
    if np.count_nonzero(measured) < 2:
        return float("nan")
    return float(np.mean(analysis.classify(cosine, theta)[measured] == analysis.REGIMES[regime]))


def trace_path(configuration: Configuration, folder: Path) -> Path:
    """Path of a run's trace."""
    return folder / f"{configuration.name}.h5"


def sketch_path(configuration: Configuration, folder: Path) -> Path:
    """Path of a run's trace with stored sketches."""
    return folder / f"{configuration.name}.sketches.h5"


def arrays_path(configuration: Configuration, folder: Path) -> Path:
    """Path of a run's checkpoints and gradients."""
    return folder / f"{configuration.name}.npz"


def record_path(configuration: Configuration, folder: Path) -> Path:
    """Path of the record; it is written last, so that a run without one is unfinished and made again."""
    return folder / f"{configuration.name}.json"


@contextlib.contextmanager
def lock_run(configuration: Configuration, folder: Path) -> Iterator[None]:
    """Lock a run, so that no second process makes it at the same time; waits while another one does."""
    locks = folder / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / configuration.name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_arrays(configuration: Configuration, folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a run's arrays atomically."""
    path = arrays_path(configuration, folder)
    draft = path.with_suffix(".npz.part")
    with draft.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(draft, path)


def write_record(run: TrainingRun) -> None:
    """Record atomically that a run is finished, and how it was made."""
    record = {field.name: getattr(run, field.name) for field in fields(TrainingRun)}
    del record["folder"]
    path = record_path(run.configuration, run.folder)
    draft = path.with_suffix(".json.part")
    draft.write_text(json.dumps(record | {"configuration": run.configuration.as_dict()}, indent=1) + "\n")
    os.replace(draft, path)


def find(configuration: Configuration, folder: Path) -> TrainingRun | None:
    """Find a stored run; None where it was never finished.

    Raises:
        RunError: its record is unreadable, or that of another configuration.
    """
    path = record_path(configuration, folder)
    try:
        record = json.loads(path.read_text())
        stored = record.pop("configuration")
        run = TrainingRun(configuration, folder, **record)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: expected the record of a run, got none ({error}): delete it to train again") from error
    if stored != json.loads(json.dumps(configuration.as_dict())):
        raise RunError(f"{path}: expected the record of {configuration.title}, got another's: delete it to train again")
    return run

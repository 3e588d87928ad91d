"""Type checkers see the public names and the fields of a trace, and refuse names that do not exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastgeom

SNIPPET = """\
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import fastgeom
from fastgeom import Exact, Probe, Sketch, analysis, figures, open_trace
from fastgeom import Prob  # wrong

trace = open_trace("run.h5")
layer = trace.layer("blocks.3")
assert_type(trace, fastgeom.trace.Trace)
assert_type(trace.grad_norm, NDArray[np.float64])
assert_type(trace.layer_lag_cosine, NDArray[np.float64])
assert_type(trace.loss, NDArray[np.float64])
assert_type(trace.step, NDArray[np.int64])
assert_type(trace.layer_nonfinite, NDArray[np.int64])
assert_type(trace.sketch, NDArray[np.float32])
assert_type(trace["lr"], NDArray[Any])
assert_type(layer.lag_cosine, NDArray[np.float64])
assert_type(layer.nonfinite, NDArray[np.int64])
assert_type(layer.step, NDArray[np.int64])
assert_type(analysis.classify(trace.lag_cosine[:, 0]), NDArray[np.int8])
assert_type(fastgeom.analysis.stretches([0, 1]), list[analysis.Stretch])
assert_type(fastgeom.__version__, str)
history: Exact | Sketch = Sketch(stored_size=128)
make_probe: type[fastgeom.Probe] = Probe
figures.draw_run(trace)

fastgeom.Prob  # wrong
fastgeom.analysis.clasify  # wrong
trace.grd_norm  # wrong
trace.layer("a").grd_norm  # wrong
layer.loss  # wrong
layer.layer_grad_norm  # wrong
trace.lr  # wrong
"""

CONFIGURATION = """\
[mypy]
strict = true
follow_imports = silent
[mypy-torch.*,triton.*,numba.*,llvmlite.*,matplotlib.*]
follow_imports = skip
"""
"""Of other packages numpy alone is read: the snippet's types need no other."""


@pytest.fixture(scope="module")
def messages(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[str]]:
    """What mypy says of each line of the snippet."""
    folder = tmp_path_factory.mktemp("typing")
    (folder / "mypy.ini").write_text(CONFIGURATION)
    (folder / "snippet.py").write_text(SNIPPET + "".join(f"fastgeom.{name}\n" for name in fastgeom.__all__))
    (folder / "fastgeom").symlink_to(
        checkout / "fastgeom"
    )  # beside the snippet: whatever is installed, this is checked
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--no-pretty", "snippet.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, f"errors were expected\n{done.stdout}{done.stderr}"
    by_line: dict[int, list[str]] = {}
    for line, message in re.findall(r"^snippet\.py:(\d+): (.*)$", done.stdout, re.MULTILINE):
        by_line.setdefault(int(line), []).append(message)
    return by_line


@pytest.mark.parametrize(
    ("number", "code"), [(n, line) for n, line in enumerate(SNIPPET.splitlines(), 1) if line.endswith("# wrong")]
)
def test_mypy_refuses_a_wrong_name(messages, number: int, code: str) -> None:
    (error,) = (m for m in messages[number] if m.startswith("error"))
    assert error.endswith("[attr-defined]"), code


def test_mypy_refuses_nothing_else(messages) -> None:
    """Correct uses, and every public name in turn, are no errors."""
    correct = [n for n, line in enumerate(SNIPPET.splitlines(), 1) if not line.endswith("# wrong")]
    public = range(len(SNIPPET.splitlines()) + 1, len(SNIPPET.splitlines()) + len(fastgeom.__all__) + 1)
    assert not {n: messages[n] for n in (*correct, *public) if n in messages}

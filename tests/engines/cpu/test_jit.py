"""Compiled loops: kept between runs, and never run where a source that they are made of has changed since."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LOOPS = Path("fastgeom", "engines", "cpu", "loops")
RUN = """
import numpy as np, torch
from fastgeom.engines.cpu.loops import shared
from fastgeom.engines.cpu.loops.memory import LINE_BYTES
bits = np.array([1.0], np.float32).view(np.uint32) >> 16  # 1 as a bfloat16
dot = shared.dot(np.ones(1), bits.astype(np.uint16))
print(dot, sum(shared.dot.stats.cache_hits.values()))
"""


@pytest.fixture
def copy(tmp_path: Path, checkout: Path) -> Path:
    """The package alone, somewhere else, with nothing compiled."""
    ignored = shutil.ignore_patterns("__pycache__", "kernels")
    shutil.copytree(checkout / "fastgeom", tmp_path / "fastgeom", ignore=ignored)
    return tmp_path


def run(folder: Path) -> tuple[float, int]:
    """The dot of 1 and a bfloat16 1, and whether its code came from the cache."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", RUN]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    dot, hits = done.stdout.split()
    return float(dot), int(hits)


def test_code_is_compiled_once(copy: Path) -> None:
    assert run(copy) == (1.0, 0)
    assert run(copy) == (1.0, 1)


def test_code_compiled_from_other_sources_does_not_run(copy: Path) -> None:
    """A constant of another file than that of the function which is cached, changed within the file's old time."""
    assert run(copy) == (1.0, 0)
    path = copy / LOOPS / "memory.py"
    source, times = path.read_text(), path.stat()
    shift = "np.uint32(value) << np.uint32(16)"
    assert source.count(shift) == 1
    path.write_text(source.replace(shift, "np.uint32(value) << np.uint32(15)"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    for compiled in (copy / LOOPS).rglob("memory.*.pyc"):
        compiled.unlink()  # Python itself goes by time and size
    dot, hits = run(copy)
    assert dot != 1.0 and hits == 0
    path.write_text(source)
    assert run(copy)[0] == 1.0, "what was compiled before, once more"


def test_old_code_goes_when_it_is_not_used_any_more(copy: Path) -> None:
    run(copy)
    cache = copy / LOOPS / "__pycache__"
    (current,) = cache.glob("fastgeom-*")
    for age in range(2, 9):
        old = cache / f"fastgeom-{age}"
        old.mkdir()
        os.utime(old, (0, age))
    today = cache / "fastgeom-today"
    today.mkdir()
    shutil.rmtree(current)
    run(copy)
    left = {path.name for path in cache.glob("fastgeom-*")}
    assert left == {current.name, today.name, "fastgeom-8", "fastgeom-7"}

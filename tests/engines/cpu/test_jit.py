"""The cache of compiled loops: hit while no source has changed, and never with the code of another source."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastgeom.engines.cpu.loops import jit

LOOPS = Path("fastgeom/engines/cpu/loops")
PROGRAM = """
import numpy as np
from fastgeom.engines.cpu.loops import {module} as loops
{call}
print(result, sum(loops.{name}.stats.cache_hits.values()))
"""
# Each calls a function of one file whose result depends on a constant of another file; a change of the constant.
STORED_BFLOAT16 = PROGRAM.format(
    module="shared",
    name="write",
    call="""
out = np.zeros(1, np.uint16)
loops.write(np.array([np.nan], np.float32), out.ctypes.data, 0, out)
result = hex(out[0])
""",
)
LARGEST_MAGNITUDE = PROGRAM.format(
    module="window",
    name="_first_pass",
    call="""
x, none = np.full(16, -2.0, np.float32), np.zeros((0, 1), np.int64)
result = loops._first_pass(x, none, 0, 0, x[:0], np.zeros(3))[1]
""",
)


def run(package: Path, program: str, **environment: str) -> tuple[str, int]:
    """What a fresh process that imports this copy of the package printed: a result, and how often the cache was hit."""
    variables = os.environ | {"PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1"} | environment
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=package, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    result, hits = done.stdout.split()
    return result, int(hits)


def replace(path: Path, old: str, new: str) -> None:
    """Change a file, and leave its time as it was."""
    source, status = path.read_text(), path.stat()
    assert source.count(old) == 1
    path.write_text(source.replace(old, new))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def package(tmp_path, checkout) -> Path:
    """A copy of the package, without compiled code."""
    ignored = shutil.ignore_patterns("__pycache__", "kernels")
    shutil.copytree(checkout / "fastgeom", tmp_path / "fastgeom", ignore=ignored)
    return tmp_path


@pytest.mark.parametrize(
    ("program", "file", "constant", "changed", "results"),
    [
        (STORED_BFLOAT16, "memory.py", "np.uint32(0x40)", "np.uint32(0x60)", ("0x7fc0", "0x7fe0")),
        (
            LARGEST_MAGNITUDE,
            "simd.py",
            "(1 << (self._bits.width - 1)) - 1",
            "(1 << (self._bits.width - 2)) - 1",
            ("2.0", "0.0"),
        ),
    ],
    ids=["memory", "simd"],
)
def test_after_a_change_in_another_file_the_new_code_runs_and_else_the_cached_one(
    package, program, file, constant, changed, results
) -> None:
    before, after = results
    assert run(package, program) == (before, 0)
    assert run(package, program) == (before, 1)
    replace(package / LOOPS / file, constant, changed)
    assert run(package, program) == (after, 0)
    assert run(package, program) == (after, 1)
    replace(package / LOOPS / file, changed, constant)
    assert run(package, program) == (before, 1)


def test_a_folder_that_the_user_names_is_used_and_keeps_apart_what_differs(package) -> None:
    cache = package / "cache"
    folder = {"NUMBA_CACHE_DIR": str(cache)}
    assert run(package, STORED_BFLOAT16, **folder) == ("0x7fc0", 0)
    assert list(cache.rglob("*.nbc")) and not list((package / "fastgeom").rglob("*.nbc"))
    replace(package / LOOPS / "memory.py", "np.uint32(0x40)", "np.uint32(0x60)")
    assert run(package, STORED_BFLOAT16, **folder) == ("0x7fe0", 0)


def test_code_of_earlier_sources_is_removed_but_for_the_newest(tmp_path) -> None:
    for age in range(9):
        (tmp_path / f"fastgeom-{age}").mkdir()
        os.utime(tmp_path / f"fastgeom-{age}", (1000 - age, 1000 - age))
    for name in ("other", "fastgeom-of-today"):
        (tmp_path / name).mkdir()
    jit._make_folder(tmp_path / "fastgeom-new")
    assert (tmp_path / "fastgeom-new").is_dir()
    remaining = {path.name for path in tmp_path.iterdir()}
    assert remaining == {"fastgeom-new", "fastgeom-of-today", "fastgeom-0", "fastgeom-1", "other"}


def test_every_module_that_the_loops_take_something_from_is_in_the_digest(checkout) -> None:
    digested = {f"fastgeom.engines.cpu.loops.{path.stem}" for path in (checkout / LOOPS).iterdir()}
    digested.add("fastgeom.layout.count_sketch")
    for path in sorted((checkout / LOOPS).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fastgeom"):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                assert node.module in digested or names <= digested, path.name

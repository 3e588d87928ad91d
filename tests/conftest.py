"""Fixtures of every test: the checkout, a fresh interpreter, and the same random numbers each time."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

os.environ["MPLBACKEND"] = "Agg"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; the programs tested would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton: kernels run on CPU tensors, slowly


def speed_up_interpreter() -> None:
    """Let Triton's interpreter patch the language once a kernel; what kernels compute stays the same.

    It patches the language again whenever a kernel calls another function, though everything is patched already. A
    version in which its functions have other names is left unchanged.
    """
    from triton import language
    from triton.runtime import interpreter

    if not (hasattr(interpreter, "_patch_lang") and hasattr(interpreter, "_LangPatchScope")):
        return
    patch = interpreter._patch_lang

    def patch_once(function: Callable) -> object:
        modules = [v for v in function.__globals__.values() if v is language or v is language.core]
        is_patched = modules and not any(language.core.is_builtin(module.load) for module in modules)
        return interpreter._LangPatchScope() if is_patched else patch(function)

    interpreter._patch_lang = patch_once


if os.environ.get("TRITON_INTERPRET") == "1":
    speed_up_interpreter()


SLOW_FILES = (
    "bench/test_codegen.py",
    "engines/triton/test_engine.py",
    "kernels/test_launching.py",
    "reproductions/test_figures.py",
    "reproductions/test_bad_input.py",
    "test_probe.py",
    "reproductions/test_demo.py",
    "reproductions/test_runs.py",
    "engines/cpu/test_engine.py",
    "recording/test_recorder.py",
)
"""Handed out first, in this order, so that no process is left alone with one of them in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow files first where files are distributed over processes."""
    here = Path(__file__).resolve().parent
    rank = {here / name: position for position, name in enumerate(SLOW_FILES)}
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Device on which the kernels are tested: a card where there is one, else the CPU through Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the checkout under test."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def run_python(checkout: Path) -> Callable[..., str]:
    """Function that runs code in a fresh interpreter, in the checkout, and returns its output; raises if it fails."""

    def run(code: str, *arguments: str) -> str:
        command = [sys.executable, "-W", "error::DeprecationWarning", "-c", code, *arguments]
        completed = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120, check=False)
        assert completed.returncode == 0, f"{code}\n{completed.stdout}{completed.stderr}"
        return completed.stdout

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread of torch: for small networks several threads wait longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Start every test from the same seed, where torch is loaded."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)

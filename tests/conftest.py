"""What every test may use: the checkout, a fresh interpreter, and the same random numbers each time."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

os.environ["MPLBACKEND"] = "Agg"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton: kernels run on CPU tensors, slowly


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels are tested: on a card where there is one, else through Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the checkout under test."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def run_python(checkout: Path) -> Callable[..., str]:
    """Runs code in a fresh interpreter, in the checkout, and returns what it printed; a failure shows its traceback."""

    def run(code: str, *arguments: str) -> str:
        command = [sys.executable, "-W", "error::DeprecationWarning", "-c", code, *arguments]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Every test starts from the same seed, where torch is in use at all."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)

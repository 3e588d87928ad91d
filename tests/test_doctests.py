"""The examples in the docstrings run, and everything that is called by hand has one."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest
import torch

import fastgeom

PACKAGE = Path(fastgeom.__file__).parent
PROMPT = ">>> "
CALLED_BY_HAND = "Probe bursts clip_grad_norm_ cosine dot every norm scale_sweep window_dots".split()


def modules_with_examples() -> list[str]:
    """Names of modules, read from the sources, so that a module without examples need not be importable here."""
    modules = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if PROMPT in path.read_text():
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            modules.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return modules


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_this_module_run_and_print_what_they_say(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # an example that writes a file does not leave it in the checkout
    tried = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch})
    assert tried.attempted > 0, "the examples stand where doctest does not look"
    assert tried.failed == 0, "see the output above"


@pytest.mark.parametrize("name", CALLED_BY_HAND)
def test_what_is_called_by_hand_shows_how(name) -> None:
    examples = doctest.DocTestFinder(recurse=False).find(getattr(fastgeom, name), name)
    assert any(test.examples for test in examples), f"fastgeom.{name} has no example in its docstring"


@pytest.mark.parametrize("name", sorted(n for n, v in vars(fastgeom.analysis).items() if inspect.isfunction(v)))
def test_every_analysis_shows_how_and_is_exported(name) -> None:
    assert name in fastgeom.analysis.__all__
    text = inspect.getdoc(getattr(fastgeom.analysis, name))
    assert PROMPT in text and ("Returns:" in text or name == "regime_counts"), f"{name}: no example, or no Returns"


@pytest.mark.parametrize("name", ["fastgeom.analysis", "fastgeom.ops", "fastgeom.probe", "fastgeom.schedules"])
def test_a_public_module_is_among_those_whose_examples_run(name) -> None:
    assert name in modules_with_examples()

"""The list of mutants fits the sources, and the runner tells a mutant that is found from one that is not."""

import re
from pathlib import Path

import pytest

from bench.codegen.cases import collect
from tests.mutation.__main__ import try_mutant
from tests.mutation.mutants import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_changes_one_place_and_names_tests_that_exist(checkout: Path, mutant: Mutant):
    assert (checkout / mutant.file).read_text().count(mutant.old) == 1 and mutant.new != mutant.old
    if mutant.tests == "tests/bench/test_codegen.py":
        assert mutant.only in {f"{case.file}-{case.name}-sm_90" for case in collect()}
    else:
        tests = (checkout / mutant.tests).read_text()
        assert any(word in tests for word in re.split(r" and | or ", mutant.only))


def test_names_are_different():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize(
    ("old", "new", "only", "is_found", "words"),
    [
        ("a + b", "a - b", "", True, "FAILED test_sum.py::test_sum"),
        ("a + b", "b + a", "", False, "no test failed (pytest: 0)"),
        ("a * b", "a - b", "", False, "its text occurs 0 times in sum.py"),
        ("a", "c", "", False, "its text occurs 5 times in sum.py"),
        ("a + b", "a +", "", False, "no test failed (pytest: 2)"),
        ("a + b", "a - b", "nothing", False, "no test failed (pytest: 5)"),
    ],
)
def test_the_runner_demands_a_red_test(tmp_path: Path, old, new, only, is_found, words):
    source = "add = lambda a, b: a + b\n"
    (tmp_path / "sum.py").write_text(source)
    (tmp_path / "test_sum.py").write_text("from sum import add\n\ndef test_sum():\n    assert add(2, 3) == 5\n")
    found, said = try_mutant(tmp_path, Mutant("sum", "sum.py", old, new, "test_sum.py", only))
    assert found == is_found and words in said
    assert (tmp_path / "sum.py").read_text() == source

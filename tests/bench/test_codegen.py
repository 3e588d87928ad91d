"""The machine code of every kernel keeps the rules of `bench.codegen`.

Compiling goes on in a process of its own: the tests run under Triton's interpreter, which compiles nothing. To keep it
short, every variant is compiled here for one target only, and of the variants those whose tests are selected;
`make codegen` compiles everything for every target. What has not changed since is not compiled again.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.codegen.cases import Case, collect, kernel_files
from bench.codegen.rules import RULES

CASES = collect()


def rules_of(case: Case) -> list[str]:
    """The rules that this variant can break here."""
    target = case.quick_target
    without = {"instructions", "barriers"} if case.goal(target) is None else set()
    without |= {"loads", "stores"} if not case.needed_width(target) else set()
    return [rule for rule in RULES if rule not in without]


@pytest.fixture(scope="session")
def records(request, checkout):
    """What `bench.codegen` finds, by file and variant, at least where tests are selected."""
    cases = [item.callspec.params["case"] for item in request.session.items if "records" in item.fixturenames]
    flags = {flag for case in cases for flag in (f"--kernel={case.file}", f"--variant={case.name}")}
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.codegen", "--quick", "--json", *sorted(flags)]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done.stderr
    return {(r["file"], r["variant"]): r for r in json.loads(done.stdout)}


@pytest.mark.parametrize(
    ("case", "rule"),
    [
        pytest.param(case, rule, id=f"{case.file}-{case.name}-{case.quick_target.name}-{rule}")
        for case in CASES
        for rule in rules_of(case)
    ],
)
def test_machine_code_keeps_the_rule(records, case: Case, rule):
    broken = records[case.file, case.name]["broken"]
    assert "compiles" not in broken, broken["compiles"]
    assert rule not in broken, broken[rule]


@pytest.mark.parametrize("file", kernel_files())
def test_every_kernel_is_compiled_by_some_variant(checkout: Path, file):
    module = ast.parse((checkout / "kernels" / f"{file}.py").read_text())
    kernels = {f.name for f in module.body if isinstance(f, ast.FunctionDef) and f.name.endswith("_kernel")}
    assert kernels == {case.variant["kernel"].__name__ for case in CASES if case.file == file}


def test_the_tool_refuses_the_interpreter(checkout: Path):
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "bench.codegen", "--kernel=lists/norm"]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "TRITON_INTERPRET is set" in done.stderr

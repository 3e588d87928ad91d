"""Dot products of two lists of tensors."""

import pytest

from bench.common.case import DOT, LARGE, Case
from bench.common.measuring import Bench
from bench.common.reads import Reads
from bench.common.running import run_case

CASES = [
    Case(DOT, 10**5, 1),
    *(Case(DOT, 10**7, tensors) for tensors in (400, 5000)),
    Case(DOT, 10**7, 400, "mixed"),
    *(Case(DOT, large) for large in LARGE),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_dot(bench: Bench, reads: Reads, case: Case) -> None:
    run_case(bench, reads, case)

"""The moments of the update, and the snapshot renewed."""

import pytest

from bench.common.case import LARGE, UPDATE, Case
from bench.common.measuring import Bench
from bench.common.reads import Reads
from bench.common.running import run_case

CASES = [
    Case(UPDATE, 10**5, 1, window=1),
    *(Case(UPDATE, 10**7, tensors, window=1) for tensors in (400, 5000)),
    Case(UPDATE, 10**7, 400, "mixed", window=1),
    *(Case(UPDATE, large, window=1) for large in LARGE),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_update(bench: Bench, reads: Reads, case: Case) -> None:
    run_case(bench, reads, case)

"""The lags of B steps taken in one pass over the ring, against our own window at every step, and a matrix product."""

import pytest

from bench.common.case import DEFERRED, LARGE, Case
from bench.common.measuring import Bench
from bench.common.methods import STEP_BY_STEP
from bench.common.reads import Reads
from bench.common.running import Goal, run_case

CASES = [
    *(Case(DEFERRED, 10**7, 400, dtype, window=16, block=block) for dtype, block in (("float32", 16), ("bfloat16", 8))),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_deferred(bench: Bench, reads: Reads, case: Case) -> None:
    run_case(bench, reads, case)


@pytest.mark.parametrize("elements", LARGE, ids="{:.0e}".format)
def test_deferred_at_full_size(bench: Bench, reads: Reads, elements: int) -> None:
    goals = [Goal("ratio", least=1.8, way=STEP_BY_STEP)]
    run_case(bench, reads, Case(DEFERRED, elements, window=16, block=16), goals=goals, others=[STEP_BY_STEP], rounds=3)

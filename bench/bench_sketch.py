"""Count sketches, against dense random projections where these can be had, and a step with a window of sketches."""

import pytest

from bench.common.case import LARGE, SKETCH, SKETCH_STEP, Case
from bench.common.measuring import Bench
from bench.common.methods import ONE_THREAD
from bench.common.reads import Reads
from bench.common.running import Goal, run_case
from bench.common.shapes import GPT2, total

BUCKETS = 1 << 18

AGAINST_OTHERS = [
    Case(SKETCH, 10**5, 1, buckets=512, layers="all"),
    Case(SKETCH, 10**7, 400, buckets=BUCKETS),
]

CASES = [
    Case(SKETCH, 10**7, 5000, buckets=BUCKETS, layers="all"),
    Case(SKETCH, 10**7, 400, "mixed", buckets=BUCKETS),
    Case(SKETCH_STEP, 10**7, 400, window=16, buckets=BUCKETS),
    Case(SKETCH_STEP, total(GPT2), GPT2, window=16, buckets=BUCKETS),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sketch(bench: Bench, reads: Reads, case: Case) -> None:
    run_case(bench, reads, case, others=[ONE_THREAD])


@pytest.mark.parametrize("case", AGAINST_OTHERS, ids=lambda case: case.name)
def test_sketch_against_other_projections(bench: Bench, reads: Reads, case: Case) -> None:
    run_case(bench, reads, case)


@pytest.mark.parametrize("elements", LARGE, ids="{:.0e}".format)
def test_sketch_at_full_size(bench: Bench, reads: Reads, elements: int) -> None:
    goals = []
    if bench.device.kind == "cpu" and bench.device.threads() > 1:
        goals = [Goal("ns_per_element", most=2.0, way=ONE_THREAD), Goal("ratio", least=1.0, way=ONE_THREAD)]
    case = Case(SKETCH, elements, buckets=BUCKETS, layers="all")
    run_case(bench, reads, case, goals=goals, others=[ONE_THREAD])

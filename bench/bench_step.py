"""A whole ``Probe.step`` of many small tensors, where the host's work counts."""

import pytest

from bench.common.case import STEP, Case
from bench.common.measuring import Bench
from bench.common.reads import Reads
from bench.common.running import Goal, run_case

CASES = [Case(STEP, 2_000_000, 2000, window=16, layers="all", traced=traced) for traced in (False, True)]


def test_step_by_parameter(bench: Bench, reads: Reads) -> None:
    case = Case(STEP, 2_000_000, 2000, window=16, layers="parameter")
    run_case(bench, reads, case, goals=[Goal("fraction_of_peak", least=0.4)], rounds=9)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_step_in_one_layer(bench: Bench, reads: Reads, case: Case) -> None:
    run_case(bench, reads, case, rounds=9)

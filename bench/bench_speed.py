"""Every statistic of the registry at every one of its cases: ours beside the other implementations."""

import pytest

from bench.common.case import Case
from bench.common.peak import Peak
from bench.common.registry import REGISTRY
from bench.common.running import run_case
from bench.common.timing import Bench

CASES = [case for statistic in REGISTRY.values() for case in statistic.cases]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_speed(bench: Bench, peak: Peak, case: Case) -> None:
    run_case(bench, peak, case)

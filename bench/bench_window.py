"""Dots with a window of past gradients, the norm and the store: the pass inside a step, and all of ``Probe.step``."""

import pytest

from bench.common.case import LARGE, STEP, WINDOW, Case
from bench.common.measuring import Bench
from bench.common.methods import CAT_DOTS, LEAN, NUMBA, STACK
from bench.common.reads import Reads
from bench.common.running import Goal, run_case
from bench.common.shapes import GPT2, LLAMA, RESNET, total

CASES = [
    Case(WINDOW, 10**5, 1, window=16),
    *(Case(WINDOW, 10**7, 400, window=window) for window in (1, 4, 16)),
    Case(WINDOW, 10**7, 5000, window=16),
    Case(WINDOW, 10**7, 400, "mixed", window=16),
]

AGAINST_FEW = [
    (Case(WINDOW, 10**7, 400, window=64), [LEAN, CAT_DOTS]),
    (Case(WINDOW, 10**7, 400, "bfloat16", window=16), [LEAN]),
    (Case(WINDOW, total(RESNET), RESNET, window=16), [LEAN, CAT_DOTS, NUMBA]),
    (Case(WINDOW, total(GPT2), GPT2, window=4), [LEAN]),
    (Case(WINDOW, total(LLAMA), LLAMA, "bfloat16", window=1), []),
]
"""Where some others take many times as long."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_window(bench: Bench, reads: Reads, case: Case) -> None:
    run_case(bench, reads, case)


@pytest.mark.parametrize(("case", "others"), AGAINST_FEW, ids=[case.name for case, _ in AGAINST_FEW])
def test_window_against_few(bench: Bench, reads: Reads, case: Case, others: list[str]) -> None:
    run_case(bench, reads, case, others=others)


@pytest.mark.parametrize("elements", LARGE, ids="{:.0e}".format)
def test_window_at_full_size(bench: Bench, reads: Reads, elements: int) -> None:
    goals = [Goal("fraction_of_peak", least=0.9)]
    run_case(bench, reads, Case(WINDOW, elements, window=16), goals=goals, others=[LEAN])


@pytest.mark.parametrize("elements", LARGE, ids="{:.0e}".format)
def test_window_of_bfloat16_at_full_size(bench: Bench, reads: Reads, elements: int) -> None:
    goals = [Goal("fraction_of_peak", least=0.4)]
    run_case(bench, reads, Case(WINDOW, elements, 400, "bfloat16", window=16), goals=goals, others=[LEAN])


@pytest.mark.parametrize("elements", LARGE, ids="{:.0e}".format)
def test_step_at_full_size(bench: Bench, reads: Reads, elements: int) -> None:
    goals = [Goal("fraction_of_peak", least=0.75)]
    goals += [Goal("ratio", least=least, way=way) for way, least in ((LEAN, 1.1), (CAT_DOTS, 2.0), (STACK, 8.0))]
    run_case(bench, reads, Case(STEP, elements, window=16), goals=goals, others=[LEAN, CAT_DOTS, STACK], rounds=9)

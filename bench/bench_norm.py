"""Norms of lists of tensors, and clipping by them."""

import pytest

from bench.common.case import CLIP, LARGE, NORM, Case
from bench.common.measuring import Bench
from bench.common.methods import CARD_NORMS, FOREACH, TOTAL
from bench.common.reads import Reads
from bench.common.running import run_case
from bench.common.shapes import GPT2, LLAMA, total

CASES = [
    Case(NORM, 10**5, 1),
    *(Case(NORM, 10**7, tensors) for tensors in (400, 5000)),
    *(Case(NORM, 10**7, 400, dtype) for dtype in ("bfloat16", "mixed")),
    *(Case(NORM, large, 400, dtype) for large in LARGE for dtype in ("float32", "bfloat16")),
    Case(NORM, total(GPT2), GPT2),
    Case(CLIP, total(GPT2), GPT2),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_norm(bench: Bench, reads: Reads, case: Case) -> None:
    run_case(bench, reads, case)


def test_norm_of_a_large_model(bench: Bench, reads: Reads) -> None:
    case = Case(NORM, total(LLAMA), LLAMA, "bfloat16")
    run_case(bench, reads, case, others=[FOREACH, TOTAL, *CARD_NORMS])

"""The registry: one entry makes a statistic benchable.

An entry gives what a step must move and compute, the implementations (ours first) and the cases that are timed.
`bench/bench_speed.py` times every case, on a card where there is one; the page has one table an entry.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.common.case import LARGE, ON_CARD, OURS, Case, Goal
from bench.common.implementations import fastgeom_impl, numba_impl, peers_impl, torch_impl
from bench.common.implementations.base import Implementation
from bench.common.problem import Problem
from bench.common.shapes import GPT2, LLAMA, RESNET, total
from bench.peers import card_norms
from fastgeom.kernels.lists.dots import dot_bytes
from fastgeom.kernels.lists.norm import norm_bytes
from fastgeom.kernels.sketch.compare_and_store import ring_bytes
from fastgeom.kernels.sketch.sketch import sketch_bytes
from fastgeom.kernels.window.gram import gram_bytes
from fastgeom.kernels.window.update import update_bytes
from fastgeom.kernels.window.window import window_bytes

LEAN, CAT_DOTS, STACK = "cat(out=) + mv + norm", "cat + dots + norm", "stack + cat + mv + norm"
COMPILED, NUMBA, FOREACH, EAGER = "torch.compile(dynamic=True)", "numba", "torch._foreach_norm", "torch"
TOTAL = "torch get_total_norm"
CARD_NORMS = tuple(card_norms.PEERS)
STEP_BY_STEP, ONE_THREAD = "fastgeom, every step", "fastgeom, one thread"
BUCKETS = 1 << 18


@dataclass(frozen=True)
class Statistic:
    """One entry.

    Attributes:
        heading: of its table.
        meaning: in a sentence.
        implementations: ours first.
        cases: what is timed.
        item_bytes: the least that a step must move of elements of one dtype, from the case, their number and the bytes
            of each.
        operations: multiplications with an addition that a step must do for each element.
        vectors: gradients in memory at once, one for the check among them.
        ring_rows: past gradients that other implementations keep, where ours cannot be lent.
        fixed_bytes: what a step must move beside the elements.
    """

    heading: str
    meaning: str
    implementations: tuple[Implementation, ...]
    cases: tuple[Case, ...]
    item_bytes: Callable[[Case, int, int], int]
    operations: Callable[[Case], int]
    vectors: Callable[[Case], int]
    ring_rows: Callable[[Case], int] = lambda case: 0
    fixed_bytes: Callable[[Case], int] = lambda case: 0

    def bytes_moved(self, problem: Problem) -> int:
        """The least that a step must move, whoever computes it."""
        each = (self.item_bytes(problem.case, flat.numel(), flat.element_size()) for flat in problem.g.flats)
        return sum(each) + self.fixed_bytes(problem.case)

    def memory_bytes(self, case: Case, *, lent: bool = True) -> float:
        """Memory for each element; ``lent`` where the other implementations use our ring and need none of their own."""
        return (self.vectors(case) + (0 if lent else self.ring_rows(case))) * case.item_bytes


def _large(
    statistic: str,
    sizes: Sequence[int] = LARGE,
    dtypes: Sequence[str] = ("float32",),
    goals: Callable[[int], tuple[Goal, ...]] = lambda n: (),
    **options: Any,
) -> list[Case]:
    """Cases of some sizes and dtypes, in 400 tensors; ``goals`` by the size."""
    return [Case(statistic, n, dtype=dtype, goals=goals(n), **options) for n in sizes for dtype in dtypes]


def _of_datasheet(n: int) -> tuple[Goal, ...]:
    return (Goal("fraction_of_datasheet", least=0.88 if n >= 10**9 else 0.75, on="cuda"),)


def _of_both(n: int, peak: float) -> tuple[Goal, ...]:
    return (Goal("fraction_of_peak", least=peak), *_of_datasheet(n))


def _deferring(least: float) -> tuple[Goal, ...]:
    return (Goal("ratio", least=least, of=STEP_BY_STEP),)


BOTH = ("float32", "bfloat16")
CARD_DTYPES = BOTH if ON_CARD else ("float32",)
CARD_SIZES = ON_CARD[:2]
"""Sizes of cases that only a card times."""

# the others that are timed, and the goals, of cases that share them
LARGE_WINDOWS = (LEAN, CAT_DOTS, COMPILED) if ON_CARD else (LEAN,)
THREADS = (
    Goal("ns_per_element", most=2.0, of=ONE_THREAD, on="cpu"),
    Goal("ratio", least=1.0, of=ONE_THREAD, on="cpu"),
)
SKETCHES = (*(THREADS if torch.get_num_threads() > 1 else ()), Goal("fraction_of_datasheet", least=0.8, on="cuda"))
STEPS = (
    Goal("fraction_of_peak", least=0.75),
    *(Goal("ratio", least=least, of=other) for other, least in ((LEAN, 1.1), (CAT_DOTS, 2.0), (STACK, 8.0))),
)
SMALL_STEPS = (Goal("fraction_of_peak", least=0.4), Goal("host_ms", most=0.3, on="cuda"))

REGISTRY: dict[str, Statistic] = {
    "norm": Statistic(
        heading="Norm",
        meaning="The norm of a list of tensors.",
        implementations=(
            Implementation(OURS, fastgeom_impl.norm),
            Implementation(FOREACH, torch_impl.foreach_norm),
            Implementation(TOTAL, torch_impl.total_norm),
            Implementation("torch cat + norm", torch_impl.cat_norm, lambda case: 1),
            Implementation(COMPILED, torch_impl.compiled_norm, counted=False),
            Implementation(NUMBA, numba_impl.norm, counted=False),
            *peers_impl.NORMS,
        ),
        cases=(
            Case("norm", 10**5, 1),
            *(Case("norm", 10**7, tensors) for tensors in (400, 5000)),
            *(Case("norm", 10**7, 400, dtype) for dtype in ("bfloat16", "mixed")),
            *_large("norm", LARGE, BOTH, _of_datasheet),
            Case("norm", total(GPT2), GPT2),
            Case("norm", total(LLAMA), LLAMA, "bfloat16", only=(FOREACH, TOTAL, *CARD_NORMS)),
            *(Case("norm", 2_000_000, 2000, dtype, only=(FOREACH,)) for dtype in BOTH if ON_CARD),
        ),
        item_bytes=lambda case, n, item: norm_bytes(n, item),
        operations=lambda case: 1,
        vectors=lambda case: 1,
    ),
    "dot": Statistic(
        heading="Dot product",
        meaning="The inner product of two lists of tensors.",
        implementations=(
            Implementation(OURS, fastgeom_impl.dot),
            Implementation("torch.dot, each pair", torch_impl.dots),
            Implementation("torch cat + dot", torch_impl.cat_dot, lambda case: 2),
            Implementation("torch._foreach_mul + sums", torch_impl.foreach_dot, lambda case: 1),
            Implementation(COMPILED, torch_impl.compiled_dot, counted=False),
            Implementation(NUMBA, numba_impl.dot, counted=False),
        ),
        cases=(
            Case("dot", 10**5, 1),
            *(Case("dot", 10**7, tensors) for tensors in (400, 5000)),
            Case("dot", 10**7, 400, "mixed"),
            *_large("dot"),
        ),
        item_bytes=lambda case, n, item: dot_bytes(n, item),
        operations=lambda case: 1,
        vectors=lambda case: 2,
    ),
    "window": Statistic(
        heading="Window",
        meaning="Inner products with the W gradients before, norms, and the gradient stored, in one pass.",
        implementations=(
            Implementation(OURS, fastgeom_impl.window),
            Implementation(LEAN, torch_impl.lean),
            Implementation(CAT_DOTS, torch_impl.cat_dots, lambda case: 1),
            Implementation(STACK, torch_impl.stack_mv, lambda case: case.window + 1),
            Implementation(COMPILED, torch_impl.compiled_window, lambda case: case.window, counted=False),
            Implementation(NUMBA, numba_impl.window, counted=False),
        ),
        cases=(
            Case("window", 10**5, 1, window=16),
            *(Case("window", 10**7, 400, window=window) for window in (1, 4, 16)),
            Case("window", 10**7, 5000, window=16),
            Case("window", 10**7, 400, "mixed", window=16),
            # some others take many times as long here
            Case("window", 10**7, 400, window=64, only=(LEAN, CAT_DOTS)),
            Case("window", 10**7, 400, "bfloat16", window=16, only=(LEAN,)),
            Case("window", total(RESNET), RESNET, window=16, only=(LEAN, CAT_DOTS, NUMBA)),
            Case("window", total(GPT2), GPT2, window=4, only=(LEAN,)),
            Case("window", total(LLAMA), LLAMA, "bfloat16", window=1, only=()),
            *_large("window", LARGE, BOTH[:1], lambda n: _of_both(n, 0.9), window=16, only=LARGE_WINDOWS),
            *_large("window", LARGE, BOTH[1:], lambda n: _of_both(n, 0.4), window=16, only=LARGE_WINDOWS),
            *_large("window", CARD_SIZES, BOTH, _of_datasheet, window=1, only=(LEAN,)),
            *_large("window", CARD_SIZES, BOTH, _of_datasheet, window=4, only=(LEAN,)),
            *_large("window", CARD_SIZES, BOTH, _of_datasheet, window=64, only=(LEAN,)),
        ),
        item_bytes=lambda case, n, item: window_bytes(n, case.window, item, item),
        operations=lambda case: case.window + 3,
        vectors=lambda case: case.window + 2,
        ring_rows=lambda case: case.window,
    ),
    "deferred": Statistic(
        heading="Deferred window",
        meaning="The same, the lags of B steps in one pass; beside it our window at every step, and a matrix product.",
        implementations=(
            Implementation(OURS, fastgeom_impl.deferred),
            Implementation(STEP_BY_STEP, fastgeom_impl.step_by_step),
            Implementation("cat(out=) + norm, mm every B steps", torch_impl.deferred_mm),
        ),
        cases=(
            Case("deferred", 10**7, window=16, block=16),
            Case("deferred", 10**7, dtype="bfloat16", window=16, block=8),
            *_large("deferred", goals=lambda n: _deferring(1.8), window=16, block=16, only=(STEP_BY_STEP,), rounds=3),
            *_large("deferred", CARD_SIZES, BOTH[1:], lambda n: _deferring(3), window=16, block=8, rounds=3),
        ),
        item_bytes=lambda case, n, item: (
            window_bytes(n, 0, item, item) + gram_bytes(n, case.window, case.block, item) // case.block
        ),
        operations=lambda case: case.window + 3,
        vectors=lambda case: 2 * case.window + case.block + 2,
        ring_rows=lambda case: case.window + case.block,
    ),
    "update": Statistic(
        heading="Update",
        meaning="Norms of parameters and update, products of the update with both gradients, and the snapshot renewed.",
        implementations=(
            Implementation(OURS, fastgeom_impl.update),
            Implementation(EAGER, torch_impl.update, lambda case: 5),
            Implementation(COMPILED, torch_impl.compiled_update, counted=False),
        ),
        cases=(
            Case("update", 10**5, 1, window=1),
            *(Case("update", 10**7, tensors, window=1) for tensors in (400, 5000)),
            Case("update", 10**7, 400, "mixed", window=1),
            *_large("update", window=1),
            *_large("update", CARD_SIZES, BOTH[1:], window=1),
        ),
        item_bytes=lambda case, n, item: update_bytes(n, item, item, item),
        operations=lambda case: 4,
        vectors=lambda case: 7,
    ),
    "sketch": Statistic(
        heading="Sketch",
        meaning="The count sketch of a gradient, against dense random projections where these can be had.",
        implementations=(
            Implementation(OURS, fastgeom_impl.sketch),
            Implementation(ONE_THREAD, fastgeom_impl.sketch_on_one_thread),
            *peers_impl.PROJECTORS,
        ),
        cases=(
            Case("sketch", 10**5, 1, buckets=512, layers="all"),
            Case("sketch", 10**7, 400, buckets=BUCKETS),
            Case("sketch", 10**7, 5000, buckets=BUCKETS, layers="all", only=(ONE_THREAD,)),
            Case("sketch", 10**7, 400, "mixed", buckets=BUCKETS, only=(ONE_THREAD,)),
            *_large(
                "sketch", LARGE, CARD_DTYPES, lambda n: SKETCHES, buckets=BUCKETS, layers="all", only=(ONE_THREAD,)
            ),
            *_large("sketch", CARD_SIZES, BOTH, buckets=BUCKETS, only=()),
        ),
        item_bytes=lambda case, n, item: sketch_bytes(n, item),
        operations=lambda case: 2,
        vectors=lambda case: 1,
    ),
    "sketch step": Statistic(
        heading="Probe.step with sketches",
        meaning="One whole step with a window of sketches.",
        implementations=(Implementation(OURS, fastgeom_impl.sketch_step),),
        cases=(
            Case("sketch step", 10**7, 400, window=16, buckets=BUCKETS),
            Case("sketch step", total(GPT2), GPT2, window=16, buckets=BUCKETS),
            *_large("sketch step", CARD_SIZES, BOTH, window=16, buckets=BUCKETS, layers="all"),
        ),
        item_bytes=lambda case, n, item: sketch_bytes(n, item),
        operations=lambda case: 2,
        vectors=lambda case: 1,
        fixed_bytes=lambda case: ring_bytes(case.buckets, case.window),
    ),
    "step": Statistic(
        heading="Probe.step",
        meaning="Every statistic of a step, through the public call; of many small tensors the host's work counts.",
        implementations=(
            Implementation(OURS, fastgeom_impl.probe_step),
            Implementation(LEAN, torch_impl.lean),
            Implementation(CAT_DOTS, torch_impl.cat_dots, lambda case: 1),
            Implementation(STACK, torch_impl.stack_mv, lambda case: case.window + 1),
        ),
        cases=(
            *(
                Case("step", 2_000_000, 2000, dtype, 16, layers="parameter", goals=SMALL_STEPS, rounds=9)
                for dtype in CARD_DTYPES
            ),
            *(
                Case("step", 2_000_000, 2000, dtype, 16, layers="all", traced=traced, rounds=9)
                for traced in (False, True)
                for dtype in CARD_DTYPES
            ),
            *_large("step", goals=lambda n: STEPS, window=16, rounds=9),
        ),
        item_bytes=lambda case, n, item: window_bytes(n, case.window, item, item),
        operations=lambda case: case.window + 3,
        vectors=lambda case: case.window + 3,
        ring_rows=lambda case: case.window,
    ),
    "clip": Statistic(
        heading="Clipping",
        meaning="Scaling gradients down to a given norm.",
        implementations=(
            Implementation(OURS, fastgeom_impl.clip),
            Implementation("torch clip_grad_norm_", torch_impl.clip_grad_norm),
        ),
        cases=(Case("clip", total(GPT2), GPT2),),
        item_bytes=lambda case, n, item: 3 * norm_bytes(n, item),
        operations=lambda case: 2,
        vectors=lambda case: 1,
    ),
}

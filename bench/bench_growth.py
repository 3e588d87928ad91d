"""How a step's time grows with elements, window, tensors, layers and processes, beside what its bytes would take."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.common.case import STEP, WINDOW, Case
from bench.common.cpu import Cpu
from bench.common.implementations.base import Work
from bench.common.peak import Peak
from bench.common.problem import Problem
from bench.common.registry import REGISTRY
from bench.common.running import fit
from bench.common.timing import Bench, Estimate

ROUNDS = 9


def _over(kind: str) -> dict[int, Case]:
    """Cases by what grows."""
    return {
        "elements": {n: Case(WINDOW, n, 16, window=16) for n in (10**6, 3 * 10**6, 10**7, 3 * 10**7)},
        "window": {w: Case(WINDOW, 4_000_000, 16, window=w) for w in (1, 4, 16, 64)},
        "tensors": {k: Case(STEP, 4_000_000, k, window=16, layers="all") for k in (1, 16, 400, 5000)},
        "layers": {k: Case(STEP, 4_000_000, 4000, window=16, layers=f"{k} layers") for k in (1, 40, 400, 4000)},
    }[kind]


@pytest.mark.parametrize("kind", ["elements", "window", "tensors", "layers"])
def test_growth(bench: Bench, peak: Peak, kind: str) -> None:
    cases = _over(kind)
    if not bench.device.timed:
        cases = {size: replace(case, elements=case.elements // 300) for size, case in cases.items()}
    shrunk = {size: fit(bench.device, case) for size, case in cases.items()}
    problems = {size: Problem(bench.device, case) for size, (case, _) in shrunk.items()}
    name = next(iter(cases.values())).statistic
    statistic = REGISTRY[name]
    works: dict[int, Work] = {}
    try:
        for size, problem in problems.items():
            works[size] = statistic.implementations[0].build(problem)
        timed = bench.rounds({str(size): work.call for size, work in works.items()} | peak.work, rounds=ROUNDS)
        bytes_per_s = float(peak.measured(timed)["peak_gb_per_s"]) * 1e9
        sizes = [problem.g.n_elements for problem in problems.values()] if kind == "elements" else list(problems)
        moved = dict(zip(sizes, map(statistic.bytes_moved, problems.values()), strict=True))
        rounds = list(zip(*(timed.seconds[str(size)] for size in problems), strict=True))
        model = {"model": lambda size: moved[size] / bytes_per_s, "reference": sizes[-2]}
        bench.record(**recorded(kind, name, sizes, rounds, **model))
        if notes := [f"{size:,}: {note}" for size, (_, note) in shrunk.items() if note]:
            bench.record(note="; ".join(notes))
    finally:
        for work in works.values():
            work.close()


def test_growth_over_processes(bench: Bench, peak: Peak) -> None:
    """Ranks of data-parallel training that share a machine: each measures its own gradients, with one thread."""
    if bench.device.device.type != "cpu":
        pytest.skip("processes that share a card do not run side by side")
    elements = 4_000_000 if bench.device.timed else 10_000
    counts = (1, 2, 4) if bench.device.timed else (1, 2)
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(ProcessPoolExecutor(1, spawn, initializer=_prepare_rank, initargs=(elements,)))
            for _ in range(counts[-1])
        ]
        _slowest(ranks)
        rounds = [[_slowest(ranks[:count]) for count in counts] for _ in range(ROUNDS if bench.device.timed else 1)]
    timed = bench.rounds(peak.work, rounds=ROUNDS)
    bytes_per_s = float(peak.measured(timed)["peak_gb_per_s"]) * 1e9
    seconds = REGISTRY[WINDOW].bytes_moved(Problem(bench.device, _rank_case(elements))) / bytes_per_s
    model = {"model": lambda count: count * seconds, "reference": counts[0]}
    bench.record(**recorded("processes", WINDOW, counts, rounds, **model))


def _rank_case(elements: int) -> Case:
    return Case(WINDOW, elements, 16, window=16)


def _prepare_rank(elements: int) -> None:
    """Let this process have a window and one thread."""
    torch.set_num_threads(1)
    _rank.append(REGISTRY[WINDOW].implementations[0].build(Problem(Cpu(), _rank_case(elements))))


_rank: list[Work] = []
"""Of the process of a rank."""


def _step_seconds() -> float:
    start = time.perf_counter()
    _rank[0].call()
    return time.perf_counter() - start


def _slowest(ranks: Sequence[ProcessPoolExecutor]) -> float:
    """Seconds of the slowest of some processes that step at the same time."""
    return max(step.result() for step in [rank.submit(_step_seconds) for rank in ranks])


def fit_power_law(
    sizes: Sequence[float], rounds: Sequence[Sequence[float]], reference: float
) -> tuple[Estimate, float]:
    """Fit time = constant (x / reference)^exponent to every round, by least squares of the logarithms.

    Args:
        sizes: x.
        rounds: of each, seconds at every size.
        reference: where the constant is read off.

    Returns:
        The exponent, and the constant in seconds.
    """
    fits = [np.polyfit(np.log(np.array(sizes) / reference), np.log(times), 1) for times in rounds]
    constants = Estimate.of([float(np.exp(constant)) for _, constant in fits])
    return Estimate.of([float(exponent) for exponent, _ in fits]), constants.value


def recorded(
    over: str,
    statistic: str,
    sizes: Sequence[float],
    rounds: Sequence[Sequence[float]],
    *,
    model: Callable[[float], float],
    reference: float,
) -> dict[str, object]:
    """What is recorded of a growth: that of the rounds, as in `fit_power_law`, and of a model that gives seconds."""
    exponent, constant = fit_power_law(sizes, rounds, reference)
    model_exponent, model_constant = fit_power_law(sizes, [[model(size) for size in sizes]], reference)
    medians = np.median(np.array(rounds), axis=0)
    return {
        "kind": "growth",
        "over": over,
        "statistic": statistic,
        "points": [[size, float(seconds)] for size, seconds in zip(sizes, medians, strict=True)],
        "exponent": exponent.value,
        "exponent_low": exponent.low,
        "exponent_high": exponent.high,
        "constant": constant * 1e3,
        "constant_unit": f"ms at {reference:,.0f}",
        "model_exponent": model_exponent.value,
        "model_constant": model_constant * 1e3,
    }

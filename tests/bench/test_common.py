"""What the benches are made of: sizes, rounds, fits; what is wrong is not timed, what is left out is named."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.common import methods, running, truth
from bench.common.case import CLIP, DEFERRED, DOT, NORM, SKETCH, STEP, UPDATE, WINDOW, Case
from bench.common.cpu import Cpu
from bench.common.gradients import Gradients
from bench.common.growth import fit as fit_power_law
from bench.common.growth import recorded
from bench.common.measuring import Bench
from bench.common.problem import Problem, fit
from bench.common.reads import Reads
from bench.common.rounds import Estimate, Rounds
from bench.common.running import Goal, Rotation, run_case
from bench.common.shapes import GPT2, LISTS, LLAMA, RESNET, llama3_8b, numels, total
from bench.common.ways import OURS, Way, Work
from bench.pages import document
from bench.peers.available import Missing


class FakeBenchmark:
    """pytest-benchmark's fixture, as far as a bench uses it."""

    def __init__(self) -> None:
        self.extra_info: dict[str, object] = {}

    def pedantic(self, target: Callable, setup: Callable, rounds: int) -> None:
        for _ in range(rounds):
            setup()
            target()


@pytest.fixture
def cpu() -> Cpu:
    return Cpu(timed=False)


@pytest.fixture
def bench(cpu) -> Bench:
    return Bench(FakeBenchmark(), cpu, {})


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [(GPT2, 148, 124_439_808), (RESNET, 161, 25_557_032), (LLAMA, 12, 1_268_789_248)],
)
def test_lists_have_the_sizes_of_the_networks(name, tensors, elements):
    sizes = numels(name, 10**12)
    assert len(sizes) == tensors and sum(sizes) == total(name) == elements
    assert all(size % 8 == 0 for size in sizes), "a tensor would not begin at 16 bytes"


def test_llama_is_whole_at_its_full_depth():
    assert sum(math.prod(shape) for shape in llama3_8b()) == 8_030_261_248


@pytest.mark.parametrize("name", LISTS)
def test_a_list_that_is_too_large_keeps_its_tensors_and_shrinks_each(name):
    whole, small = numels(name, 10**12), numels(name, 100_000)
    assert len(small) == len(whole) and sum(small) < 110_000
    assert np.argmax(small) == np.argmax(whole) and min(small) == 8


def test_a_case_for_which_memory_is_short_shrinks_and_says_so(cpu, monkeypatch):
    case = Case(WINDOW, 1_000_000, 4, window=8)
    assert fit(cpu, case).case == case and not fit(cpu, case).note
    monkeypatch.setattr(cpu, "room_bytes", lambda: 4 * 10 * 1000)
    shrunk = fit(cpu, case)
    assert shrunk.case.elements == 992
    assert shrunk.note == "992 elements; 1,000,000 would take more than 60 % of the memory"


def test_mixed_tensors_alternate_and_lie_in_two_memories():
    g = Gradients.empty([8, 16, 24, 32], "mixed", torch.device("cpu")).draw(3)
    assert [t.dtype for t in g.tensors] == [torch.float32, torch.bfloat16] * 2
    assert [t.numel() for t in g.tensors] == [8, 16, 24, 32] and g.n_elements == 80
    assert {t.untyped_storage().data_ptr() for t in g.tensors} == {f.data_ptr() for f in g.flats}
    assert all(int(a) == t.data_ptr() for a, t in zip(g.located.address, g.tensors, strict=True))


@pytest.mark.parametrize(
    ("case", "bytes_each"),
    [
        (Case(NORM, 800), 4),
        (Case(DOT, 800), 8),
        (Case(WINDOW, 800, window=16), 72),
        (Case(WINDOW, 800, 400, "bfloat16", window=16), 36),
        (Case(DEFERRED, 800, window=16, block=16), 16),
        (Case(UPDATE, 800, window=1), 20),
        (Case(SKETCH, 800, buckets=128), 4),
    ],
)
def test_the_bytes_that_must_move_are_those_of_the_model(cpu, case, bytes_each):
    problem = Problem(cpu, replace(case, elements=3200))
    assert problem.bytes_moved() == 3200 * bytes_each


def test_layers_of_a_growing_number_share_the_tensors_out():
    layout = Gradients.empty([8] * 10, "float32", torch.device("cpu")).layout("5 layers")
    assert layout.layer.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


# ---------------------------------------------------------------- rounds


def test_a_ratio_is_paired_and_its_interval_holds_the_median():
    rounds = Rounds({"ours": [1.0, 2.0, 4.0], "other": [3.0, 6.0, 12.0], "slow": [10.0]}, {})
    assert rounds.median("ours") == 2.0
    assert rounds.ratio("other", over="ours") == Estimate(3.0, 3.0, 3.0)
    assert rounds.ratio("slow", over="ours") == Estimate(10.0, 10.0, 10.0), "rounds that a way was left out of"


@pytest.mark.parametrize(("n", "cut"), [(1, 0), (5, 0), (6, 0), (9, 1), (20, 5)])
def test_the_interval_is_that_of_the_order_statistics(n, cut):
    """Of 9 values the second to the eighth hold the median with 96 %, the third to the seventh with 82 %."""
    found = Estimate.of(list(range(n)))
    assert (found.low, found.high) == (cut, n - 1 - cut)


def test_the_interval_covers_as_often_as_it_says():
    generator = np.random.default_rng(0)
    draws = generator.exponential(size=(4000, 9))
    held = sum(e.low <= math.log(2) <= e.high for e in map(Estimate.of, draws.tolist())) / len(draws)
    assert 0.95 <= held <= 0.975


def test_a_power_law_is_found():
    sizes = [10, 100, 1000]
    law = fit_power_law(sizes, [[3e-6 * x**0.8 for x in sizes]] * 2, reference=100)
    assert law.exponent.value == pytest.approx(0.8) and law.constant == pytest.approx(3e-6 * 100**0.8)


def test_growth_stands_beside_what_the_bytes_would_take():
    sizes = [1, 2, 4]
    found = recorded("window", WINDOW, sizes, [[1.0, 2.0, 4.0]], model=lambda w: 0.5, reference=2)
    assert found["exponent"] == pytest.approx(1) and found["model_exponent"] == pytest.approx(0, abs=1e-12)
    assert found["constant"] == pytest.approx(2000) and found["model_constant"] == pytest.approx(500)
    assert found["points"] == [[1, 1.0], [2, 2.0], [4, 4.0]] and found["constant_unit"] == "ms at 2"


# ---------------------------------------------------------------- a case


def run_with(monkeypatch, bench, ways, case=None, **options):
    monkeypatch.setitem(methods.WAYS, NORM, ways)
    run_case(bench, Reads(bench.device), case or Case(NORM, 1000, 4), **options)
    return bench._benchmark.extra_info


def constant(error=0.0):
    return lambda problem: Work(lambda: None, error)


def test_ways_are_recorded_with_ratio_error_and_cost(monkeypatch, bench):
    ways = [*methods.WAYS[NORM][:3]]
    found = run_with(monkeypatch, bench, ways)
    assert found["kind"] == "speed" and found["n_elements"] == 992 and found["bytes_moved"] == 4 * 992
    assert found["time_ms"] > 0 and 0 < found["fraction_of_peak"] and found["peak_way"] in Reads(bench.device).work
    assert found["bandwidth_gb_per_s"] == pytest.approx(found["bytes_moved"] / found["time_ms"] / 1e6)
    assert set(found["peers"]) == {way.name for way in ways[1:]}
    for peer in found["peers"].values():
        assert peer["ratio_low"] <= peer["ratio"] <= peer["ratio_high"] and peer["launches"] >= 1
        assert peer["relative_error"] < 1e-5


def test_ours_that_is_wrong_fails_before_anything_is_timed(monkeypatch, bench):
    monkeypatch.setattr(running.Bench, "rounds", lambda *a, **k: pytest.fail("timed"))
    monkeypatch.setattr("fastgeom.norm", lambda tensors: torch.tensor(1.0))
    with pytest.raises(AssertionError, match="norm squared: off by"):
        run_case(bench, Reads(bench.device), Case(NORM, 1000, 4))


@pytest.mark.parametrize("statistic", [NORM, CLIP, DOT, WINDOW, DEFERRED, UPDATE])
def test_every_way_is_held_against_the_truth(cpu, monkeypatch, statistic):
    """The truth is moved: a way that compared nothing would still be made ready."""
    case = Case(statistic, 3000, 3, window=3, block=2, layers="all")
    summed = truth.summed
    monkeypatch.setattr(truth, "summed", lambda *arguments, **options: 2 * summed(*arguments, **options) + 1e6)
    for way in methods.WAYS[statistic]:
        try:
            with pytest.raises(AssertionError):
                way.build(Problem(cpu, case))
        except Missing:
            continue


def test_a_way_that_cannot_run_is_recorded_with_its_reason(monkeypatch, bench):
    def absent(problem):
        raise Missing("needs the package nowhere")

    found = run_with(monkeypatch, bench, [Way(OURS, constant()), Way("other", absent)])
    assert found["peers"] == {"other": {"skipped": "needs the package nowhere"}}


def test_ours_is_never_skipped(monkeypatch, bench):
    def absent(problem):
        raise Missing("no")

    with pytest.raises(Missing):
        run_with(monkeypatch, bench, [Way(OURS, absent)])


def test_a_way_that_needs_more_memory_than_there_is_is_left_out(monkeypatch, bench):
    monkeypatch.setattr(bench.device, "free_bytes", lambda: 10_000)
    found = run_with(
        monkeypatch, bench, [Way(OURS, constant()), Way("greedy", constant(), more_gradients=lambda case: 10**6)]
    )
    assert found["peers"] == {"greedy": {"skipped": "it needs 4.0 GB more"}}


def test_goals_are_judged_by_what_was_found(monkeypatch, bench):
    goals = [
        Goal("fraction_of_peak", least=1e9),
        Goal("ratio", least=0.0, way="other"),
        Goal("ns_per_element", most=1e9),
    ]
    found = run_with(monkeypatch, bench, [Way(OURS, constant()), Way("other", constant())], goals=goals)
    peak, ratio, each = found["goals"]
    assert peak == {"what": "of the measured peak", "value": found["fraction_of_peak"], "least": 1e9}
    assert ratio == {"what": "times as fast as other", "value": found["peers"]["other"]["ratio"], "least": 0.0}
    assert each == {"what": "ns an element, fastgeom", "value": found["ns_per_element"], "most": 1e9}
    assert [line.endswith("MISSED") for line in Bench.lines[-3:]] == [True, False, False]


def test_steps_of_a_call_are_divided_out(monkeypatch, bench):
    many = Way("many", lambda problem: Work(lambda: None, 0.0, steps=4))
    monkeypatch.setattr(running.Bench, "rounds", lambda self, ways, rounds: Rounds(
        {name: [8.0] for name in ways}, {name: [8.0] for name in ways}))  # fmt: skip
    found = run_with(monkeypatch, bench, [Way(OURS, lambda problem: Work(lambda: None, 0.0, steps=2)), many])
    assert found["time_ms"] == 4000 and found["peers"]["many"]["time_ms"] == 2000
    assert found["peers"]["many"]["ratio"] == 0.5


def test_ways_go_through_the_copies_in_turn(cpu):
    case = Case(NORM, 100, 1)
    copies = [Problem(cpu, case) for _ in range(3)]
    seen: list[int] = []
    way = Way(OURS, lambda problem: Work(lambda: seen.append(copies.index(problem)), 0.0))
    rotation = Rotation(copies)
    first, second = rotation.build(way), rotation.build(way)
    for work in (first, second, second, first):
        work.call()
    assert seen == [0, 1, 2, 0]


def test_nothing_is_closed_twice_and_everything_once(monkeypatch, bench):
    closed: list[str] = []
    ways = [
        Way(name, lambda problem, name=name: Work(lambda: None, 0.0, close=lambda: closed.append(name)))
        for name in (OURS, "other")
    ]
    run_with(monkeypatch, bench, ways)
    assert sorted(closed) == [OURS, "other"]


# ---------------------------------------------------------------- the processor


def test_launches_count_operations_of_torch_and_passes_of_ours(cpu):
    x = torch.ones(4)
    assert cpu.launches(lambda: x + x + x) == 2
    problem = Problem(cpu, Case(NORM, 100, 2))
    ours = methods.WAYS[NORM][0].build(problem)
    assert cpu.launches(ours.call) > cpu.launches(lambda: None) == 0


def test_the_memory_of_a_call_is_its_peak(cpu):
    found = cpu.peak_bytes(lambda: torch.ones(20_000_000).sum())
    assert found is None or 70e6 < found < 120e6


def test_facts_name_the_processor_for_people_and_for_files(cpu):
    facts = cpu.facts()
    assert facts["kind"] == "cpu" and facts["cores"] >= 1 and facts["memory_bytes"] > 1e8
    assert facts["slug"] == facts["slug"].lower() and " " not in facts["slug"] and facts["slug"].endswith("-cores")


def test_every_statistic_has_others_to_be_compared_with():
    assert {STEP, WINDOW, NORM, DOT, DEFERRED, UPDATE, SKETCH} <= set(methods.WAYS)
    for statistic, ways in methods.WAYS.items():
        names = [way.name for way in ways]
        assert names[0] == OURS and len(set(names)) == len(names), statistic


def test_results_are_kept_where_the_repository_keeps_them(checkout):
    assert document.RESULTS == checkout / "bench" / "results" and (document.RESULTS / "codegen.md").exists()


def test_at_full_size_a_way_that_fails_or_is_wrong_leaves_its_reason_and_ours_its_result(monkeypatch, bench):
    monkeypatch.setattr(bench.device, "timed", True)

    def fails(problem):
        raise RuntimeError("no\ncompiler")

    def wrong(problem):
        raise AssertionError("norm: off by 0.08")

    few = Case(NORM, 1000, 4)
    monkeypatch.setattr(Case, "few", lambda self: self)
    found = run_with(monkeypatch, bench, [Way(OURS, constant()), Way("a", fails), Way("b", wrong)], few, rounds=1)
    assert found["peers"] == {
        "a": {"skipped": "failed, RuntimeError: no compiler"},
        "b": {"skipped": "wrong, and so not timed: norm: off by 0.08"},
    }


def test_at_few_elements_a_way_that_is_wrong_is_a_bug_here(monkeypatch, bench):
    def wrong(problem):
        raise AssertionError("off")

    with pytest.raises(AssertionError, match="off"):
        run_with(monkeypatch, bench, [Way(OURS, constant()), Way("b", wrong)])


def test_ways_that_are_left_out_are_named(monkeypatch, bench):
    found = run_with(monkeypatch, bench, [Way(OURS, constant()), Way("slow", constant())], others=[])
    assert found["peers"]["slow"]["skipped"].startswith("left out here")

"""What the benches are made of: sizes, rounds, fits; what is wrong is not timed, what is left out is named."""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.bench_growth import recorded
from bench.common import device, truth
from bench.common.case import CLIP, DEFERRED, DOT, NORM, OURS, SKETCH, UPDATE, WINDOW, Case, Goal
from bench.common.cpu import Cpu
from bench.common.device import Card
from bench.common.gradients import Gradients
from bench.common.implementations.base import Implementation, Work
from bench.common.peak import Peak
from bench.common.problem import Problem
from bench.common.registry import REGISTRY
from bench.common.running import Rotation, fit, run_case
from bench.common.shapes import GPT2, LISTS, LLAMA, RESNET, llama3_8b, numels, total
from bench.common.timing import Bench, Estimate, Rounds
from bench.pages import document
from bench.peers.available import Missing
from fastgeom import reference


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
    assert name != LLAMA or sum(math.prod(shape) for shape in llama3_8b()) == 8_030_261_248, "at its full depth"


@pytest.mark.parametrize("name", LISTS)
def test_a_list_that_is_too_large_keeps_its_tensors_and_shrinks_each(name):
    full, small = numels(name, 10**12), numels(name, 100_000)
    assert len(small) == len(full) and sum(small) < 110_000
    assert np.argmax(small) == np.argmax(full) and min(small) == 8


def test_a_case_for_which_memory_is_short_shrinks_and_says_so(cpu, monkeypatch):
    case = Case(WINDOW, 1_000_000, 4, window=8)
    assert fit(cpu, case) == (case, "")
    monkeypatch.setattr(cpu, "room_bytes", lambda: 4 * 10 * 1000)
    shrunk, note = fit(cpu, case)
    assert shrunk.elements == 992
    assert note == "992 elements; 1,000,000 would take more than 60 % of the memory"


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
    assert REGISTRY[case.statistic].bytes_moved(problem) == 3200 * bytes_each


def test_layers_of_a_growing_number_share_the_tensors_out():
    layout = Gradients.empty([8] * 10, "float32", torch.device("cpu")).layout("5 layers")
    assert layout.layer.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


# ---------------------------------------------------------------- rounds


def test_a_ratio_is_paired_and_its_interval_holds_the_median():
    rounds = Rounds({"ours": [1.0, 2.0, 4.0], "other": [3.0, 6.0, 12.0], "slow": [10.0]}, {})
    assert rounds.median("ours") == 2.0
    assert rounds.ratio("other", over="ours") == Estimate(3.0, 3.0, 3.0)
    assert rounds.ratio("slow", over="ours") == Estimate(10.0, 10.0, 10.0), "rounds without it"


@pytest.mark.parametrize(("n", "cut"), [(1, 0), (5, 0), (6, 0), (9, 1), (20, 5)])
def test_the_interval_is_that_of_the_order_statistics(n, cut):
    """Of 9 values the second to the eighth hold the median with 96 %, the third to the seventh with 82 %."""
    estimate = Estimate.of(list(range(n)))
    assert (estimate.low, estimate.high) == (cut, n - 1 - cut)


def test_growth_stands_beside_what_the_bytes_would_take():
    sizes = [10, 100, 1000]
    rounds = [[3e-6 * x**0.8 for x in sizes]] * 2
    law = recorded("window", WINDOW, sizes, rounds, model=lambda w: 0.5, reference=100)
    assert law["exponent"] == pytest.approx(0.8) and law["model_exponent"] == pytest.approx(0, abs=1e-12)
    assert law["constant"] == pytest.approx(3e-3 * 100**0.8) and law["model_constant"] == pytest.approx(500)
    assert law["points"] == [list(pair) for pair in zip(sizes, rounds[0], strict=True)]
    assert law["constant_unit"] == "ms at 100"


# ---------------------------------------------------------------- a case


def run_with(monkeypatch, bench, builders, **options):
    """What is recorded of a case whose implementations are these builders, by name, or implementations."""
    made = [Implementation(name, each) if callable(each) else each for name, each in builders.items()]
    monkeypatch.setitem(REGISTRY, NORM, replace(REGISTRY[NORM], implementations=tuple(made)))
    run_case(bench, Peak(bench.device), Case(NORM, 1000, 4, **options))
    return bench._benchmark.extra_info


def constant(problem: Problem) -> Work:
    return Work(lambda: None, 0.0)


def raising(error: Exception) -> Callable[[Problem], Work]:
    def build(problem: Problem) -> Work:
        raise error

    return build


def test_implementations_are_recorded_with_ratio_error_and_cost(monkeypatch, bench):
    result = run_with(monkeypatch, bench, {each.name: each for each in REGISTRY[NORM].implementations[:3]})
    assert result["kind"] == "speed" and result["n_elements"] == 992 and result["bytes_moved"] == 4 * 992
    assert result["time_ms"] > 0 and 0 < result["fraction_of_peak"] and result["peak_way"] in Peak(bench.device).work
    assert result["bandwidth_gb_per_s"] == pytest.approx(result["bytes_moved"] / result["time_ms"] / 1e6)
    assert len(result["peers"]) == 2
    for peer in result["peers"].values():
        assert peer["ratio_low"] <= peer["ratio"] <= peer["ratio_high"] and peer["launches"] >= 1
        assert peer["relative_error"] < 1e-5


def test_ours_that_is_wrong_fails_before_anything_is_timed(monkeypatch, bench):
    monkeypatch.setattr(Bench, "rounds", lambda *a, **k: pytest.fail("timed"))
    monkeypatch.setattr("fastgeom.norm", lambda tensors: torch.tensor(1.0))
    with pytest.raises(AssertionError, match="norm squared: off by"):
        run_case(bench, Peak(bench.device), Case(NORM, 1000, 4))


@pytest.mark.parametrize("statistic", [NORM, CLIP, DOT, WINDOW, DEFERRED, UPDATE])
def test_every_implementation_is_checked(cpu, monkeypatch, statistic):
    """The truth is moved: an implementation that compared nothing would still be built."""
    case = Case(statistic, 3000, 3, window=3, block=2, layers="all")
    summed = truth.summed
    monkeypatch.setattr(truth, "summed", lambda *arguments, **options: 2 * summed(*arguments, **options) + 1e6)
    for implementation in REGISTRY[statistic].implementations:
        try:
            with pytest.raises(AssertionError):
                implementation.build(Problem(cpu, case))
        except Missing:
            continue


def test_what_cannot_run_is_recorded_with_its_reason_and_ours_is_never_skipped(monkeypatch, bench):
    monkeypatch.setattr(bench.device, "room_bytes", lambda: 10**9)
    monkeypatch.setattr(bench.device, "free_bytes", lambda: 10_000)
    absent = raising(Missing("needs the package nowhere"))
    greedy = Implementation("greedy", constant, more_gradients=lambda case: 10**6)
    others = {"other": absent, "greedy": greedy, "slow": constant}
    peers = run_with(monkeypatch, bench, {OURS: constant, **others}, only=("other", "greedy"))["peers"]
    assert peers.pop("slow")["skipped"].startswith("left out here")
    assert peers == {"other": {"skipped": "needs the package nowhere"}, "greedy": {"skipped": "it needs 4.0 GB more"}}
    with pytest.raises(Missing):
        run_with(monkeypatch, bench, {OURS: absent})


def test_goals_are_judged_by_what_was_measured_on_their_device(monkeypatch, bench):
    goals = (
        Goal("fraction_of_peak", least=1e9),
        Goal("ratio", least=0.0, of="other"),
        Goal("ns_per_element", most=1e9),
        Goal("fraction_of_datasheet", least=0.0),  # of a processor nobody knows it
        Goal("host_ms", most=0.3, on="cuda"),
    )
    result = run_with(monkeypatch, bench, {OURS: constant, "other": constant}, goals=goals)
    peak, ratio, each = result["goals"]
    assert peak == {"what": "of the measured peak", "value": result["fraction_of_peak"], "least": 1e9}
    assert ratio == {"what": "times as fast as other", "value": result["peers"]["other"]["ratio"], "least": 0.0}
    assert each == {"what": "ns an element, fastgeom", "value": result["ns_per_element"], "most": 1e9}


def test_steps_of_a_call_are_divided_out(monkeypatch, bench):
    def rounds(self, calls, rounds):
        seconds = {name: [8.0] for name in calls}
        return Rounds(seconds, seconds)

    monkeypatch.setattr(Bench, "rounds", rounds)
    two, four = (lambda problem, steps=steps: Work(lambda: None, 0.0, steps=steps) for steps in (2, 4))
    result = run_with(monkeypatch, bench, {OURS: two, "many": four})
    assert result["time_ms"] == 4000 and result["peers"]["many"]["time_ms"] == 2000
    assert result["peers"]["many"]["ratio"] == 0.5


def test_copies_are_used_in_turn(cpu):
    copies = [Problem(cpu, Case(NORM, 100, 1)) for _ in range(3)]
    seen: list[int] = []
    implementation = Implementation(OURS, lambda problem: Work(lambda: seen.append(copies.index(problem)), 0.0))
    rotation = Rotation(copies)
    first, second = rotation.build(implementation), rotation.build(implementation)
    for work in (first, second, second, first):
        work.call()
    assert seen == [0, 1, 2, 0]


def test_everything_is_closed_once(monkeypatch, bench):
    closed: list[str] = []
    build = {name: lambda problem, name=name: Work(int, 0.0, close=lambda: closed.append(name)) for name in (OURS, "a")}
    run_with(monkeypatch, bench, build)
    assert sorted(closed) == ["a", OURS]


def test_at_full_size_what_fails_or_is_wrong_leaves_its_reason_and_ours_its_result(monkeypatch, bench):
    builders = {
        OURS: constant,
        "a": raising(RuntimeError("no\ncompiler")),
        "b": raising(AssertionError("norm: off by 0.08")),
    }
    with pytest.raises(RuntimeError, match="compiler"):  # at few elements it is a bug here
        run_with(monkeypatch, bench, builders)
    monkeypatch.setattr(bench.device, "timed", True)
    assert run_with(monkeypatch, bench, builders, rounds=1)["peers"] == {
        "a": {"skipped": "failed, RuntimeError: no compiler"},
        "b": {"skipped": "wrong, and so not timed: norm: off by 0.08"},
    }


def test_every_entry_of_the_registry_is_complete():
    assert set(REGISTRY) == set(document.STATISTICS)
    names = [case.name for entry in REGISTRY.values() for case in entry.cases]
    assert len(set(names)) == len(names), "two cases of one name"
    for statistic, entry in REGISTRY.items():
        implementations = [each.name for each in entry.implementations]
        assert implementations[0] == OURS and len(set(implementations)) == len(implementations), statistic
        for case in entry.cases:
            assert case.statistic == statistic
            assert {*(case.only or ()), *(goal.of for goal in case.goals)} <= set(implementations), case.name


# ---------------------------------------------------------------- devices


def test_launches_count_operations_of_torch_and_passes_of_ours(cpu):
    x = torch.ones(4)
    assert cpu.launches(lambda: x + x + x) == 2
    ours = REGISTRY[NORM].implementations[0].build(Problem(cpu, Case(NORM, 100, 2)))
    assert cpu.launches(ours.call) > cpu.launches(lambda: None) == 0


def test_the_memory_of_a_call_is_its_peak(cpu):
    peak_bytes = cpu.peak_bytes(lambda: torch.ones(20_000_000).sum())
    assert peak_bytes is None or 70e6 < peak_bytes < 120e6


def test_a_call_on_a_card_is_timed_alone_behind_reads_that_outlast_the_host(monkeypatch):
    """On a card whose device counts: a read of the cover takes 1 ms there."""
    device_s, passes = [0.0], []

    class Event:
        def record(self):
            self.at = device_s[0]

        def elapsed_time(self, end):
            return (end.at - self.at) * 1e3

        def synchronize(self):
            pass

    def read_cover(count):
        passes.append(count)
        device_s[0] += count * 1e-3

    def work():
        device_s[0] += 5e-3
        time.sleep(4e-3)

    card = Card.__new__(Card)
    card._pass_s, card._read_cover, card.synchronize = 1e-3, read_cover, lambda: None
    monkeypatch.setattr(device, "_event", Event)
    seconds, host_s = card.clock(work).sample()
    assert seconds == pytest.approx(5e-3) and 4e-3 <= host_s < 0.1
    assert len(passes) == 1 and passes[0] * 1e-3 >= 1.5 * 4e-3


def test_the_data_sheet_is_that_of_the_very_card():
    speeds = {"NVIDIA H100 80GB HBM3": 3350, "NVIDIA H200": 4800, "AMD Instinct MI300X": 5300}
    speeds |= dict.fromkeys(("NVIDIA H100 PCIe", "NVIDIA GH200 480GB", "NVIDIA A100-SXM4-40GB"))
    assert {name: device.datasheet_gb_per_s(name) for name in speeds} == speeds


# ---------------------------------------------------------------- the truth


def test_numbers_are_drawn_again_and_differ_from_seed_to_seed():
    g = Gradients.empty(numels(3, 1000), "float32", torch.device("cpu")).draw(0)
    first = g.flat.clone()
    assert not torch.equal(g.draw(1).flat, first) and torch.equal(g.draw(0).flat, first)


def test_sums_a_few_elements_at_a_time_are_those_of_the_reference():
    a, b = torch.randn(1000).bfloat16(), torch.randn(1000)
    assert truth.summed(torch.mul, [a], [b], chunk=64) == pytest.approx(reference.dot([a], [b]), rel=1e-13)
    assert truth.square(b) == pytest.approx(reference.dot([b], [b]), rel=1e-13)
    assert truth.diff_sq([a], [b]) == pytest.approx(reference.diff_sq([a], [b]), rel=1e-13)


@pytest.mark.parametrize("sizes", [(5000,), (1300, 1, 999, 128), (60, 40)])
def test_sketches_a_few_elements_at_a_time_are_those_of_the_reference(sizes):
    tensors = [torch.randn(n) for n in sizes]
    expected = reference.count_sketch(tensors, 128, 77)
    torch.testing.assert_close(truth.count_sketch(tensors, 128, 77, chunk=300), expected, rtol=1e-12, atol=1e-12)


def test_what_is_off_by_too_much_or_is_no_number_raises():
    assert truth.assert_near(1.001, 1.0, 0.01, "x") == pytest.approx(0.001)
    with pytest.raises(AssertionError, match=r"^x: off by 0\.1 relatively, allowed 0\.01: 1\.1 for 1\.0$"):
        truth.assert_near(1.1, 1.0, 0.01, "x")
    with pytest.raises(AssertionError, match=r"^x: off by nan"):
        truth.assert_near(float("nan"), 1.0, 0.01, "x")

"""The statistic of every figure on runs made by hand, against the number that its words say."""

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastgeom
from reproductions.__main__ import NAMES
from reproductions.common import sweeps
from tests.handmade_figures import (
    BELOW_5,
    EXAMPLES,
    HARD,
    LR,
    SOFT,
    Runs,
    at_equal_loss,
    by_loss_and_rate,
    dirichlet,
    oscillating_at,
    restarts,
    rotating,
    swept,
    turning,
    twice,
)
from tests.handmade_runs import TURNS, cut, diverged, made, walk
from tests.trajectories import Descent

Measure = Callable[..., float]
"""Figure's id, runs and perhaps theta -> statistic."""


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(1))


def add_quadratic_gradient(model: Line, *_: object) -> Tensor:
    loss = (torch.where(model.x > 0, HARD, SOFT) * model.x**2 / 2).sum()
    loss.backward()
    return loss.detach()


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Measures as a figure does; P10 sweeps a parabola on a line, HARD at x > 0 and SOFT below."""

    def value(figure_id: str, runs: Runs, theta: float = 0.9) -> float:
        (name,) = (name for name in NAMES if name.startswith(f"{figure_id.lower()}_"))
        kept = {run.configuration: run for run in runs.values()}
        monkeypatch.setattr(sweeps, "find", lambda configuration, folder: kept[configuration])
        sweeps._sweeps.cache_clear()
        return importlib.import_module(f"reproductions.{name}").FIGURE.measure(runs, theta)

    monkeypatch.setattr(sweeps, "load", lambda *_: SimpleNamespace(to=lambda device: None))
    monkeypatch.setattr(sweeps, "build", lambda *_: Line())
    monkeypatch.setattr(sweeps, "add_full_batch_gradient", add_quadratic_gradient)
    return value


each_figure = pytest.mark.parametrize("figure", EXAMPLES)


def test_every_figure_has_an_example() -> None:
    assert list(EXAMPLES) == [name.partition("_")[0].upper() for name in NAMES]


@each_figure
def test_statistic_is_what_its_words_say(figure: str, measure: Measure) -> None:
    runs, expected = EXAMPLES[figure]()
    assert measure(figure, runs) == pytest.approx(expected, abs=1e-12)


@each_figure
def test_what_comes_after_a_divergence_does_not_count(figure: str, measure: Measure) -> None:
    runs, expected = EXAMPLES[figure]()
    lost = {key: diverged(run) for key, run in runs.items()}
    assert all(run.end == len(runs[key].trace.loss) for key, run in lost.items())
    assert measure(figure, lost) == pytest.approx(expected, abs=1e-12)


@each_figure
@pytest.mark.parametrize("steps", [0, 1])
def test_run_without_two_gradients_has_no_statistic(figure: str, steps: int, measure: Measure) -> None:
    runs, _ = EXAMPLES[figure]()
    assert math.isnan(measure(figure, {key: cut(run, steps) for key, run in runs.items()}))
    assert math.isnan(measure(figure, {key: diverged(cut(run, steps)) for key, run in runs.items()}))


@pytest.mark.parametrize("figure", ["P1", "P2", "P4", "P5", "P6", "P9", "P10", "A1", "A2", "A3"])
def test_weaker_correlations_count_below_their_threshold(
    figure: str, measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TURNS, "s", TURNS["S"])
    monkeypatch.setitem(TURNS, "z", TURNS["Z"])
    runs, expected = EXAMPLES[figure]()
    assert measure(figure, runs, 0.8) == pytest.approx(expected, abs=1e-12)
    assert measure(figure, runs, 0.9) != pytest.approx(expected, abs=0.01)


def test_handmade_trace_is_what_a_real_one_holds(tmp_path: Path) -> None:
    gradients = np.random.default_rng(0).normal(size=(8, 2))
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    run = made(gradients, layers=[gradients[:, :1], gradients[:, 1:]], window=4, lr=LR)
    with fastgeom.Probe(
        model, window=4, history=fastgeom.Exact(), trace=tmp_path / "trace.h5", track_updates=True
    ) as probe:
        for gradient, loss in zip(gradients, run.trace.loss, strict=True):
            for parameter, value in zip(model.parameters(), gradient, strict=True):
                parameter.grad = torch.full((1, 1), value, dtype=torch.float64)
            probe.step(loss=loss)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(parameter.grad, alpha=LR)
    trace = fastgeom.open_trace(tmp_path / "trace.h5")
    for name, rows in vars(run.trace).items():
        np.testing.assert_allclose(rows, getattr(trace, name), rtol=1e-9, atol=1e-9, err_msg=name)


def test_p1_follows_theta_and_takes_the_smaller(measure: Measure) -> None:
    run = {"run": turning("ssZZZSSSmm")}
    assert [measure("P1", run, theta) for theta in (0.8, 0.86)] == pytest.approx([0.3, 0.0])
    assert measure("P1", {"run": turning("zzzzssmmmm")}) == pytest.approx(0.2), "the smaller one is smooth here"


def test_p1_lone_reversal_is_no_zigzag(measure: Measure) -> None:
    assert measure("P1", {"run": turning("sszsszssmm")}) == 0


@pytest.mark.parametrize(("smooth", "zigzag"), [(0.4, 0.0), (0.0, 0.4), (0.1, 0.3), (0.3, 0.1), (math.pi / 8, 0.0)])
def test_p3_rotation_lowers_the_mean_of_its_window(smooth: float, zigzag: float, measure: Measure) -> None:
    expected = min(dirichlet(angle) if angle else 1.0 for angle in (smooth, zigzag))
    assert measure("P3", {"run": rotating(smooth, zigzag)}) == pytest.approx(expected)


def test_p3_whole_turn_leaves_less_than_no_order(measure: Measure) -> None:
    """Sixteen gradients around the circle add up to 0: their 16 ones and 240 correlations do too."""
    assert measure("P3", {"run": rotating(2 * math.pi / 16, 0.0)}) == pytest.approx(-1 / 15)


@pytest.mark.parametrize("turns", ["s" * 40, "z" * 40, "s" * 7 + "z" * 7])
def test_p3_needs_both_windows(turns: str, measure: Measure) -> None:
    assert math.isnan(measure("P3", {"run": made(walk(turns))}))


def test_p4_without_zigzag_is_zero_and_unknown_without_a_run(measure: Measure) -> None:
    rates = [(loss, rate) for loss in ("cross-entropy", "mse") for rate in (0.1, 1.0)]
    assert measure("P4", by_loss_and_rate(dict.fromkeys(rates, BELOW_5))) == 0
    unknown = dict.fromkeys(rates, "z" * 9) | {("mse", 0.1): "z", ("mse", 1.0): "z"}
    assert math.isnan(measure("P4", by_loss_and_rate(unknown))), "no run of one loss is long enough"
    assert measure("P4", by_loss_and_rate(unknown | {("mse", 0.1): "zz"})) == pytest.approx((1 + 0) / 2)


def test_p5_without_zigzag_is_zero_and_unknown_without_a_run(measure: Measure) -> None:
    assert measure("P5", restarts(cross_entropy=(BELOW_5,) * 4, mse=("sss",) * 4)) == 0
    assert math.isnan(measure("P5", restarts(cross_entropy=("zz",) * 4, mse=("z",) * 4)))
    tenth = restarts(cross_entropy=("sss", "sss", "sss", "zz"), mse=("sss", "sss", "sss", "zz"))
    assert measure("P5", tenth) == pytest.approx(math.log2(10))


def test_p6_of_a_loss_that_did_not_fall_is_unknown(measure: Measure) -> None:
    runs = {"digits": turning("sszz", losses=[5, 4, 3, 2, 1]), "mnist5k": turning("sszz", losses=[5, 4, 3, 4, 5])}
    assert math.isnan(measure("P6", runs))
    assert measure("P6", {"digits": runs["digits"]}) == pytest.approx(1 / 4), "the last step's change is not known"


def test_p7_perfect_zigzag_has_the_smoothness_of_the_edge(measure: Measure) -> None:
    """Gradient descent at the rate 0.1: L = 1 while g falls by tenths, and 2 / eta = 20 while it changes its sign."""
    falling = 0.9 ** np.arange(11)
    zigzag = falling[-1] * (-1.0) ** np.arange(1, 9)
    assert measure("P7", {"digits": made(np.concatenate([falling, zigzag]), lr=LR)}) == pytest.approx(math.log2(20))


@pytest.mark.parametrize("gradients", [[8, 7, 6, 5], [1, -1, 1, -1]])
def test_p7_needs_both_regimes(gradients: list[float], measure: Measure) -> None:
    assert math.isnan(measure("P7", {"digits": made(gradients)}))


def test_p8_is_the_mean_over_the_parts(measure: Measure) -> None:
    assert measure("P8", at_equal_loss(2.0 ** np.arange(10))) == pytest.approx(sum(range(10)) / 10)
    assert measure("P8", at_equal_loss(np.full(10, 0.5))) == pytest.approx(-1)


def test_p8_without_common_losses_is_unknown(measure: Measure) -> None:
    runs = at_equal_loss(np.full(10, 4.0))
    apart = made([1, -1, 1], losses=[0.9, 0.8, 0.7], network="plain-bn")
    assert math.isnan(measure("P8", {**runs, "plain-bn": apart}))


def test_p9_is_the_smaller_of_momentum_and_adam(measure: Measure) -> None:
    runs = {"gd": turning("mmmm"), "momentum": turning("zzzz"), "adam": turning("zzmm")}
    assert measure("P9", runs) == 0.5
    assert measure("P9", {**runs, "adam": runs["momentum"], "momentum": runs["adam"]}) == 0.5


@pytest.mark.parametrize("short", ["momentum", "adam"])
def test_p9_is_unknown_where_one_is_too_short(short: str, measure: Measure) -> None:
    runs = {"momentum": turning("zzzz"), "adam": turning("zzmm")}
    assert math.isnan(measure("P9", {**runs, short: turning("z")}))


@pytest.mark.parametrize(("positions", "expected"), [((1, 1, 1), 1), ((-1, -1, -1), 0), ((-1, -1, 1), 1 / 3)])
def test_p10_counts_points_that_turn_within_a_tenth(
    positions: tuple[float, ...], expected: float, measure: Measure
) -> None:
    assert measure("P10", swept(*positions)) == pytest.approx(expected)


def test_p10_sweep_is_that_of_the_parabola(measure: Measure) -> None:
    runs = swept(1, -1, 1)
    measure("P10", runs)
    points = sweeps.sweeps(runs["run"], 0.9)
    assert [point.regime for point in points] == ["smooth"] * 3 + ["zigzag"] * 3
    for point, curvature in zip(points, (HARD, HARD, HARD, HARD, SOFT, HARD), strict=True):
        assert point.curvature == pytest.approx(curvature, rel=1e-3)
        below = sweeps.SCALES * LR * curvature < 1
        np.testing.assert_allclose(point.cosine, np.where(below, 1, -1), atol=1e-6)


def test_p10_without_zigzag_is_unknown(measure: Measure) -> None:
    run = made(walk("s" * 20), arrays={"checkpoint_steps": np.arange(21), "checkpoints": np.ones((21, 1), np.float32)})
    assert math.isnan(measure("P10", {"run": run}))


def test_a1_is_what_both_initialisations_agree_on(measure: Measure) -> None:
    times = (0.2, 0.4, 0.9)
    assert measure("A1", twice(times, times[::-1])) == pytest.approx(-math.sqrt((2 * 0.3 * 0.4 - 0.01) / 2))
    assert measure("A1", twice(times, (0.4, 0.2, 0.9))) == pytest.approx(math.sqrt((0.03 + 0.03 + 0.16) / 2))
    assert measure("A1", twice(times, (0.5, 0.5, 0.5))) == pytest.approx(0, abs=1e-6)
    elsewhere = {"a on mnist5k": oscillating_at(0.1), "b on mnist5k": oscillating_at(0.9)}
    assert measure("A1", twice(times, times) | elsewhere) == pytest.approx(math.sqrt(0.13)), "trained once only"


def test_a1_is_around_zero_where_chance_decides(measure: Measure) -> None:
    """Each time is drawn by itself: one run tells of a deviation of 0.23, two together of none."""
    draw = np.random.default_rng(0)
    made_once = [oscillating_at(time) for time in np.linspace(0.1, 0.9, 33)]
    keys = [f"{letter} on digits{again}" for again in ("", ", again") for letter in "abcde"]
    values = [
        measure("A1", {key: made_once[k] for key, k in zip(keys, draw.integers(0, 33, 10), strict=True)})
        for _ in range(400)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(400) < 0.04
    assert 0.4 < np.mean(np.asarray(values) < 0) < 0.6


def test_a1_counts_architectures_with_ten_zigzag_steps_in_both_runs(measure: Measure) -> None:
    runs = twice((0.2, 0.4, 0.9), (0.2, 0.4, 0.9))
    two = math.sqrt(2 * 0.1**2)
    assert measure("A1", {**runs, "c on digits, again": oscillating_at(0.9, zigzag=9)}) == pytest.approx(two)
    one = {key: runs[key] for key in ("a on digits", "a on digits, again")}
    assert math.isnan(measure("A1", one))


def test_a2_layer_without_a_gradient_is_left_out(measure: Measure) -> None:
    oscillating = walk("zz" + "m" * 2)
    run = made(oscillating, layers=[np.zeros((5, 2)), oscillating])
    assert measure("A2", {"a": run, "too short": turning("z", "m")}) == 0.5


def test_a3_network_that_is_too_short_is_left_out(measure: Measure) -> None:
    assert measure("A3", {"a": turning("zz", "mm"), "b": turning("z", "m")}) == 1
    assert measure("A3", {"a": turning("mm", "zz")}) == -1


def test_a4_hangs_on_the_sign_alone(measure: Measure) -> None:
    runs, expected = EXAMPLES["A4"]()
    assert [measure("A4", runs, theta) for theta in (0.1, 0.99)] == pytest.approx([expected] * 2)


def test_a4_network_whose_loss_did_not_fall_is_left_out(measure: Measure) -> None:
    fell, rose = turning("wsws", losses=[5, 4, 3, 2, 1]), turning("wsws", losses=[1, 2, 3, 4, 5])
    assert measure("A4", {"mlp": fell, "cnn": rose}) == pytest.approx(2 / 4)


@pytest.mark.parametrize(("start", "expected"), [([1.0, 0.0], 1.0), ([0.0, 1.0], 0.95)])
def test_b1_along_the_top_eigenvector_is_one(start: list[float], expected: float, measure: Measure) -> None:
    path = Descent([20.0, 19.0], eta=LR, start=start, steps=20)
    run = made(path.gradients, updates=-LR * path.gradients, sharpness=[20.0] * 21, lr=LR)
    assert measure("B1", {"run": run}, 0.9) == pytest.approx(expected)


def test_b1_without_a_sharpness_in_zigzag_is_unknown(measure: Measure) -> None:
    run = made([1, 0.9, 0.8, -0.8, 0.8, -0.8], sharpness=[5, 5, *[math.nan] * 4])
    assert math.isnan(measure("B1", {"run": run}))

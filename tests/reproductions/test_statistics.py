"""The statistic of every figure on runs made by hand, against the number that its words say."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import fastgeom
from reproductions.__main__ import NAMES
from reproductions.common import sweeps
from reproductions.p5_restarts import parent_share
from reproductions.p9_optimisers_and_batches import lost_share
from tests.figures.handmade_runs import TURNS, cut, diverged, made, walk
from tests.reproductions.handmade_figures import (
    BELOW_5,
    EXAMPLES,
    HARD,
    IMPLIED,
    LR,
    PARENT,
    SOFT,
    Line,
    Runs,
    add_quadratic_gradient,
    at_equal_loss,
    by_loss_and_rate,
    dirichlet,
    measured,
    restarts,
    rotating,
    swept,
    turning,
)

Measure = Callable[..., float]
"""Figure's id, runs and perhaps theta -> statistic."""


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Measures as a figure does; P10 sweeps a parabola on a line, HARD at x > 0 and SOFT below."""

    def value(figure_id: str, runs: Runs, theta: float = 0.9) -> float:
        kept = {run.configuration: run for run in runs.values()}
        monkeypatch.setattr(sweeps, "find", lambda configuration, folder: kept[configuration])
        sweeps._sweeps.cache_clear()
        return measured(figure_id, runs, theta)

    monkeypatch.setattr(sweeps, "load", lambda *_: SimpleNamespace(to=lambda device: None))
    monkeypatch.setattr(sweeps, "build", lambda *_: Line())
    monkeypatch.setattr(sweeps, "add_full_batch_gradient", add_quadratic_gradient)
    return value


P4_RATES = (0.1, 0.2, 0.4, 0.8, 1.6)

each_figure = pytest.mark.parametrize("figure", EXAMPLES)


def test_every_figure_has_an_example() -> None:
    assert list(EXAMPLES) == [name.partition("_")[0].upper() for name in NAMES]


@each_figure
def test_statistic_is_what_its_words_say(figure: str, measure: Measure) -> None:
    runs, expected = EXAMPLES[figure]()
    assert measure(figure, runs) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("figure", [figure for figure in EXAMPLES if figure != "P4"])
def test_what_comes_after_a_divergence_does_not_count(figure: str, measure: Measure) -> None:
    runs, expected = EXAMPLES[figure]()
    diverged_runs = {key: diverged(run) for key, run in runs.items()}
    assert all(run.end == len(runs[key].trace.loss) for key, run in diverged_runs.items())
    assert measure(figure, diverged_runs) == pytest.approx(expected, abs=1e-12)


@each_figure
@pytest.mark.parametrize("steps", [0, 1])
def test_run_without_two_gradients_has_no_statistic(figure: str, steps: int, measure: Measure) -> None:
    runs, _ = EXAMPLES[figure]()
    assert math.isnan(measure(figure, {key: cut(run, steps) for key, run in runs.items()}))
    assert math.isnan(measure(figure, {key: diverged(cut(run, steps)) for key, run in runs.items()}))


@pytest.mark.parametrize("figure", ["P1", "P2", "P4", "P5", "P6", "P9", "P10"])
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
    assert measure("P4", by_loss_and_rate(unknown | {("mse", 0.1): "zz"})) == pytest.approx((1 + 0.5) / 2)


@pytest.mark.parametrize(
    ("word", "losses", "expected"),
    [
        ("zzzz", [2, 9, 9, 9, 1], math.log10(16)),
        ("mmmm", [2, 1, 1, 1, 1], 1.5 * math.log10(2)),
        ("zzzz", [2, 0, 0, 0, 1.01], 1.5 * math.log10(2)),
        ("z", [2, 0], 1.5 * math.log10(2)),
    ],
    ids=["halves its loss", "does not zigzag", "does not learn", "too short"],
)
def test_p4_rate_that_does_not_count_splits_the_row(
    word: str, losses: list[float], expected: float, measure: Measure
) -> None:
    runs = dict(by_loss_and_rate({(loss, rate): "zz" for loss in ("mse", "cross-entropy") for rate in P4_RATES}))
    runs |= {f"{loss} 0.4": turning(word, loss=loss, lr=0.4, losses=losses) for loss in ("mse", "cross-entropy")}
    assert measure("P4", runs) == pytest.approx(expected)


def test_p4_diverged_run_does_not_count(measure: Measure) -> None:
    runs = by_loss_and_rate({(loss, rate): "zz" for loss in ("mse", "cross-entropy") for rate in P4_RATES})
    split = {key: diverged(run) if run.configuration.lr == 0.4 else run for key, run in runs.items()}
    assert measure("P4", split) == pytest.approx(1.5 * math.log10(2))
    assert measure("P4", {key: diverged(run) for key, run in runs.items()}) == 0


def test_p5_without_zigzag_is_zero_and_unknown_without_a_run(measure: Measure) -> None:
    calm = (PARENT, BELOW_5, BELOW_5, BELOW_5, BELOW_5)
    assert measure("P5", restarts(cross_entropy=calm, mse=calm)) == 0
    short = (PARENT, "z" * 19, "z" * 19, "z" * 19, "z" * 19)
    assert math.isnan(measure("P5", restarts(cross_entropy=short, mse=short)))
    tenth = (PARENT, "s" * 20, "s" * 20, "s" * 20, "z" * 20)
    assert measure("P5", restarts(cross_entropy=tenth, mse=tenth)) == pytest.approx(math.log2(10))
    assert measure("P5", restarts(cross_entropy=tenth, mse=short)) == pytest.approx(math.log2(10))


@pytest.mark.parametrize(
    ("word", "counts"),
    [
        ("z" * 10 + "m" * 30, True),
        ("m" * 10 + "z" * 10, True),
        ("z" * 9 + "m" * 31, False),
        ("m" * 11 + "z" * 40, False),
        ("m" * 20 + "z" * 40, False),
        ("z" * 19, False),
    ],
)
def test_p5_looks_at_the_first_twenty_steps(word: str, counts: bool, measure: Measure) -> None:
    turns = (PARENT, "m" * 40, "m" * 40, "m" * 40, word)
    assert measure("P5", restarts(cross_entropy=turns, mse=turns)) == pytest.approx(math.log2(10) if counts else 0)


@pytest.mark.parametrize(
    "parent",
    ["zm" * 30, "z" * 16 + "m" * 40, "m" * 30 + "z" * 30, "mm" + "m" * 30],
    ids=["never two in a row", "stops too soon", "ends too soon", "none"],
)
def test_p5_loss_whose_parent_does_not_zigzag_on_is_left_out(parent: str, measure: Measure) -> None:
    zigzag, calm = (PARENT, "z" * 20, "z" * 20, "m" * 20, "m" * 20), (parent, *["z" * 20] * 4)
    assert measure("P5", restarts(cross_entropy=zigzag, mse=calm)) == 1
    assert measure("P5", restarts(cross_entropy=calm, mse=zigzag)) == 1
    assert math.isnan(measure("P5", restarts(cross_entropy=calm, mse=calm)))
    runs = restarts(cross_entropy=zigzag, mse=calm)
    assert measure("P5", {key: diverged(run) for key, run in runs.items()}) == 1


def test_p5_parent_goes_on_from_the_middle_of_its_longest_zigzag() -> None:
    """Of the steps 17 to 32 the middle kept one is 26: six of the next twenty are zigzag."""
    turns = "m" * 5 + "z" * 6 + "m" * 5 + "z" * 16 + "m" * 20
    parent = restarts(mse=(turns, "z", "z", "z", "z"))["mse, rate / 1"]
    assert parent_share(parent, 0.9) == parent_share(diverged(parent), 0.9) == 6 / 20


def test_p6_of_a_loss_that_did_not_fall_is_unknown(measure: Measure) -> None:
    runs = {"digits": turning("sszz", losses=[5, 4, 3, 2, 1]), "mnist5k": turning("sszz", losses=[5, 4, 3, 4, 5])}
    assert math.isnan(measure("P6", runs))
    assert measure("P6", {"digits": runs["digits"]}) == pytest.approx(1 / 4), "the last step's change is not known"


def test_p7_perfect_zigzag_has_the_smoothness_of_the_edge(measure: Measure) -> None:
    """Gradient descent at the rate 0.1: L = 1 while g falls by tenths, and 2 / eta = 20 while it changes its sign."""
    falling = 0.9 ** np.arange(11)
    zigzag = falling[-1] * (-1.0) ** np.arange(1, 9)
    assert measure("P7", {"digits": made(np.concatenate([falling, zigzag]), lr=LR)}) == pytest.approx(
        math.log2(20) - IMPLIED
    )


@pytest.mark.parametrize("theta", [0.3, 0.84999])
def test_p7_labels_alone_imply_nothing(theta: float, measure: Measure) -> None:
    """Gradients of one length, as correlated as 0.85 and -0.85: they are beyond the threshold by so much."""
    beyond = 0.5 * math.log2(1.85 / 0.15 * (1 - theta) / (1 + theta))
    assert measure("P7", {"digits": turning("S" * 9 + "Z" * 9)}, theta) == pytest.approx(beyond, abs=1e-9)
    assert (beyond < 1e-4) == (theta > 0.8)


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


def test_p9_share_lost_in_noise_is_that_of_all_steps_together() -> None:
    """Halves' products of 3 over squares of 6, in batches of 4 of 10 examples: noise is (1 - 4/10) (1 - 3/6)."""
    run = made([1, -1, 2, 1], batch=4, n_examples=10)
    for half_dot, expected in ([-1, math.nan, 3.5, 0.5], 0.3), ([-1, -1, -4, -1], 1), ([math.nan] * 4, math.nan):
        run.trace.half_dot = np.array(half_dot)
        assert [lost_share(run), lost_share(diverged(run))] == pytest.approx([expected] * 2, nan_ok=True)


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

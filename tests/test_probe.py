"""`Probe` in real training runs, against the definitions applied to gradients that the test keeps itself."""

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastgeom
from fastgeom import reference

# Sums are float64 whatever the tensors are; the reference adds in another order.
ROUNDING = 1e-13
CPU = torch.device("cpu")


class On(NamedTuple):
    """An engine, where its tensors lie, and how far its sums may be off, relative to those of their terms' sizes."""

    backend: str
    device: torch.device
    rounding: float

    def probe(self, *arguments: Any, **options: Any) -> fastgeom.Probe:
        return fastgeom.Probe(*arguments, backend=self.backend, **options)


@pytest.fixture(params=["cpu", "triton"])
def on(request, device) -> On:
    """Both engines; short float32 sums are what Triton's begin with."""
    return On("cpu", CPU, ROUNDING) if request.param == "cpu" else On("triton", device, 1e-6)


def small_model(dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 5)).to(dtype)
    return model.to(device)


def batch(step: int, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images, labels = torch.randn(16, 1, 8, 8, generator=generator), torch.randint(5, (16,), generator=generator)
    return images.to(device, dtype), labels.to(device)


class Recorder:
    """Trains and keeps every gradient and every parameter."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.gradients: list[list[Tensor]] = []
        self.parameters: list[list[Tensor]] = []

    def backward(self, step: int) -> Tensor:
        self.optimizer.zero_grad()
        like = next(self.model.parameters())
        images, labels = batch(step, like.dtype, like.device)
        loss = nn.functional.cross_entropy(self.model(images).float(), labels)
        loss.backward()
        self.gradients.append([p.grad.clone() for p in self.model.parameters()])
        self.parameters.append([p.detach().clone() for p in self.model.parameters()])
        return loss

    def run(self, steps: int, measure: Callable[[Tensor], object]) -> list[object]:
        results = []
        for step in range(steps):
            loss = self.backward(step)
            results.append(measure(loss))
            self.optimizer.step()
        return results


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def recorder(dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> Recorder:
    model = small_model(dtype, device)
    return Recorder(model, sgd(model))


LAYERS = {"0": slice(0, 2), "3": slice(2, 4)}
PARTS = [("", (), slice(None)), *(("layer_", (i,), part) for i, part in enumerate(LAYERS.values()))]
"""Prefix of a field, index into its layers, and the parameters that it sums over."""


def test_every_statistic_of_a_run_is_that_of_its_definition(tmp_path, on):
    run, window = recorder(device=on.device), 4
    with on.probe(run.model, window=window, trace=tmp_path / "run.h5") as probe:
        run.run(10, lambda loss: probe.step(loss=loss))
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert trace.status == "finished"
    assert trace.layers == tuple(LAYERS)
    for step, now in enumerate(run.gradients):
        for prefix, index, part in PARTS:
            g = now[part]
            value = lambda name, *more: trace[prefix + name][(step, *index, *more)]  # noqa: B023, E731
            assert value("grad_sq") == pytest.approx(reference.dot(g, g), rel=on.rounding)
            assert value("grad_norm") == pytest.approx(reference.norm(g), rel=on.rounding)
            assert value("grad_absmax") == reference.grad_absmax(g)
            assert value("nonfinite") == 0
            for lag in range(1, window + 1):
                if step < lag:
                    assert math.isnan(value("lag_dot", lag - 1))
                    assert math.isnan(value("lag_cosine", lag - 1))
                    continue
                past = run.gradients[step - lag][part]
                scale = reference.norm(g) * reference.norm(past)
                assert value("lag_dot", lag - 1) == pytest.approx(reference.dot(g, past), abs=on.rounding * scale)
                assert value("lag_cosine", lag - 1) == pytest.approx(reference.cosine(g, past), abs=on.rounding)
            if step:
                past = run.gradients[step - 1][part]
                assert value("diff_sq") == pytest.approx(reference.diff_sq(g, past), rel=on.rounding)
                assert value("sum_sq") == pytest.approx(reference.sum_sq(g, past), rel=on.rounding)
            else:
                assert math.isnan(value("diff_sq"))
                assert math.isnan(value("sum_sq"))


def test_step_returns_what_the_trace_records(tmp_path, on):
    run = recorder(device=on.device)
    with on.probe(run.model, window=3, trace=tmp_path / "run.h5", track_updates=True) as probe:
        statistics = run.run(6, lambda loss: probe.step(loss=loss))
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    for row, step in enumerate(statistics):
        assert step.step == trace.step[row] == row
        for name in "grad_sq grad_norm grad_absmax nonfinite lag_dot lag_cosine diff_sq sum_sq param_sq".split():
            for prefix in ("", "layer_"):
                recorded, returned = trace[prefix + name][row], getattr(step, prefix + name)
                np.testing.assert_allclose(recorded, returned.cpu().numpy(), rtol=1e-12, err_msg=name)
        assert step.lag_cosine.shape == (3,)
        assert step.layer_lag_cosine.shape == (2, 3)
        assert step.grad_sq.dtype == torch.float64


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_updates_are_the_parameters_own_movement_whatever_the_optimizer(tmp_path, optimizer, on):
    model = small_model(device=on.device)
    run = Recorder(model, optimizer(model.parameters()))
    with on.probe(model, window=1, trace=tmp_path / "run.h5", track_updates=True) as probe:
        run.run(6, lambda loss: probe.step(loss=loss))
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    for step in range(6):
        for prefix, index, part in PARTS:
            x = run.parameters[step][part]
            assert trace[prefix + "param_sq"][(step, *index)] == pytest.approx(reference.dot(x, x), rel=on.rounding)
            names = ("update_sq", "grad_dot_update", "next_grad_dot_update")
            if step == 5:
                assert all(math.isnan(trace[prefix + name][(step, *index)]) for name in names)
                continue
            after, g, g_next = run.parameters[step + 1][part], run.gradients[step][part], run.gradients[step + 1][part]
            truth = reference.update_moments(x, after, g, g_next)
            largest_dot = math.sqrt(truth["update_sq"]) * max(reference.norm(g), reference.norm(g_next))
            for name in names:
                tolerance = on.rounding * (truth[name] if name == "update_sq" else largest_dot)
                assert trace[prefix + name][(step, *index)] == pytest.approx(truth[name], abs=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_lose_nothing_of_the_gradient(tmp_path, dtype):
    run = recorder(dtype)
    with fastgeom.Probe(run.model, window=2, trace=tmp_path / "run.h5", track_updates=True) as probe:
        run.run(5, lambda loss: probe.step(loss=loss))
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    g = run.gradients
    for step in range(1, 5):
        scale = reference.norm(g[step]) * reference.norm(g[step - 1])
        assert trace.lag_dot[step, 0] == pytest.approx(reference.dot(g[step], g[step - 1]), abs=ROUNDING * scale)
        assert trace.diff_sq[step] == pytest.approx(reference.diff_sq(g[step], g[step - 1]), rel=ROUNDING)
        truth = reference.update_moments(run.parameters[step - 1], run.parameters[step], g[step - 1], g[step])
        assert trace.update_sq[step - 1] == pytest.approx(truth["update_sq"], rel=ROUNDING)


@pytest.mark.parametrize("history", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_history_of_less_precision_rounds_the_dots_but_not_the_differences(history):
    run = recorder()
    probe = fastgeom.Probe(run.model, window=2, history=fastgeom.Exact(dtype=history))
    last = run.run(5, lambda loss: probe.step(loss=loss))[-1]
    g = run.gradients
    rounded = [t.to(history) for t in g[-3]]
    scale = reference.norm(g[-1]) * reference.norm(g[-3])
    assert last.lag_dot[1].item() == pytest.approx(reference.dot(g[-1], rounded), abs=ROUNDING * scale)
    assert last.diff_sq.item() == pytest.approx(reference.diff_sq(g[-1], g[-2]), rel=ROUNDING)
    assert last.sum_sq.item() == pytest.approx(reference.sum_sq(g[-1], g[-2]), rel=ROUNDING)


def test_differences_keep_their_digits_where_gradients_almost_agree_or_cancel():
    torch.manual_seed(0)
    first = torch.randn(5000)
    near = first + 1e-7 * torch.randn(5000) * first.abs()
    opposite = -first + 4e-8 * torch.randn(5000) * first.abs()
    for history in (None, torch.bfloat16):
        for second, name in [(near, "diff_sq"), (opposite, "sum_sq")]:
            definition = reference.diff_sq if name == "diff_sq" else reference.sum_sq
            p = nn.Parameter(torch.zeros(5000))
            probe = fastgeom.Probe([("p", p)], window=2, history=fastgeom.Exact(dtype=history))
            for g in (first, second):
                p.grad = g
                statistics = probe.step()
            assert getattr(statistics, name).item() == pytest.approx(definition([second], [first]), rel=ROUNDING)


def test_a_lag_counts_optimiser_steps_and_what_was_not_measured_is_nan(tmp_path, on):
    run = recorder(device=on.device)
    schedule = fastgeom.bursts(every=5, length=2)
    with on.probe(run.model, window=6, trace=tmp_path / "run.h5", schedule=schedule, track_updates=True) as probe:
        results = run.run(12, lambda loss: probe.step(loss=loss))
    assert [s is not None for s in results] == [schedule(step) for step in range(12)]
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert list(trace.step) == [0, 1, 5, 6, 10, 11]
    known = {0: [], 1: [1], 5: [4, 5], 6: [1, 5, 6], 10: [4, 5], 11: [1, 5, 6]}
    for row, step in enumerate(trace.step):
        assert [k for k in range(1, 7) if np.isfinite(trace.lag_cosine[row, k - 1])] == known[int(step)]
        for k in known[int(step)]:
            truth = reference.cosine(run.gradients[step], run.gradients[step - k])
            assert trace.lag_cosine[row, k - 1] == pytest.approx(truth, abs=on.rounding)
        assert np.isfinite(trace.diff_sq[row]) == (1 in known[int(step)])
        assert np.isfinite(trace.update_sq[row]) == (step in {0, 5, 10})
        assert np.isfinite(trace.param_sq[row])


def test_the_trainers_own_step_count_is_kept_and_must_grow(tmp_path):
    run = recorder()
    numbers = iter([3, 4, 7, 8])
    with fastgeom.Probe(run.model, window=4, trace=tmp_path / "run.h5") as probe:
        run.run(4, lambda _: probe.step(step=next(numbers)))
        with pytest.raises(ValueError, match=r"step: expected a number above the last, 8, got 8"):
            probe.step(step=8)
        with pytest.raises(ValueError, match="step: expected an integer"):
            probe.step(step=1.5)
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert list(trace.step) == [3, 4, 7, 8]
    assert np.isfinite(trace.lag_dot[3]).tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("module", ("0", "3")),
        ("parameter", ("0.weight", "0.bias", "3.weight", "3.bias")),
        ("all", ("(all)",)),
        (lambda name: name.rpartition(".")[2], ("weight", "bias")),
    ],
    ids=["module", "parameter", "all", "callable"],
)
def test_layers_decide_what_a_layer_is(layers, names, on):
    run = recorder(device=on.device)
    probe = on.probe(run.model, window=2, layers=layers)
    statistics = run.run(3, lambda loss: probe.step(loss=loss))[-1]
    assert probe.layers == names
    assert statistics.layer_lag_dot.shape == (len(names), 2)
    torch.testing.assert_close(statistics.layer_lag_dot.sum(0), statistics.lag_dot, rtol=1e-12, atol=0)
    torch.testing.assert_close(statistics.layer_grad_absmax.max(), statistics.grad_absmax)


def test_max_norm_clips_as_torch_does_and_by_the_norm_just_measured(tmp_path, on):
    run = recorder(device=on.device)
    with on.probe(run.model, window=2, trace=tmp_path / "run.h5", schedule=fastgeom.every(2)) as probe:
        for step in range(4):
            loss = run.backward(step)
            twin = copy.deepcopy(run.model)
            for p, q in zip(run.model.parameters(), twin.parameters(), strict=True):
                q.grad = p.grad.clone()
            torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.3)
            statistics = probe.step(loss=loss, max_norm=0.3)
            for p, q in zip(run.model.parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=0)
            if step % 2 == 0:
                norm = reference.norm(run.gradients[step])
                assert norm > 0.3
                assert statistics.grad_norm.item() == pytest.approx(norm, rel=on.rounding)
                assert statistics.clip_coefficient.item() == pytest.approx(0.3 / (norm + 1e-6), rel=on.rounding)
            run.optimizer.step()
    coefficients = fastgeom.open_trace(tmp_path / "run.h5").clip_coefficient
    assert len(coefficients) == 2
    assert np.all(coefficients < 1)


def test_gradients_may_lie_elsewhere_than_in_grad(on):
    parameters = [(f"p{i}", nn.Parameter(torch.zeros(4, dtype=torch.bfloat16, device=on.device))) for i in range(2)]
    for _, p in parameters:
        p.main_grad = torch.ones(4, device=on.device)
    probe = on.probe(parameters, window=2, gradient=lambda p: p.main_grad)
    assert probe.step().grad_sq.item() == 8.0
    assert probe.step().lag_cosine[0].item() == pytest.approx(1.0)


def test_a_gradient_of_none_is_a_row_of_zeros_and_all_none_is_an_error(on):
    a, b = nn.Parameter(torch.zeros(3, device=on.device)), nn.Parameter(torch.zeros(3, device=on.device))
    probe = on.probe([("a", a), ("b", b)], window=2, layers="parameter")
    a.grad, b.grad = torch.ones(3, device=on.device), torch.full((3,), 2.0, device=on.device)
    probe.step()
    b.grad = None
    statistics = probe.step()
    assert statistics.layer_grad_sq.tolist() == [3.0, 0.0]
    assert statistics.layer_diff_sq.tolist() == [0.0, 12.0]
    assert statistics.layer_lag_dot[:, 0].tolist() == [3.0, 0.0]
    b.grad = torch.ones(3, device=on.device)
    assert probe.step().layer_lag_dot.tolist() == [[3.0, 3.0], [0.0, 6.0]]
    a.grad = b.grad = None
    with pytest.raises(ValueError, match="gradient: expected at least one of 2 parameters"):
        probe.step()


def test_nan_and_inf_are_counted_and_the_run_goes_on(tmp_path, on):
    run = recorder(device=on.device)
    with on.probe(run.model, window=2, trace=tmp_path / "run.h5") as probe:
        for step in range(4):
            loss = run.backward(step)
            if step == 1:
                run.model[3].bias.grad[:2] = torch.tensor([math.nan, -math.inf], device=on.device)
            statistics = probe.step(loss=loss)
            assert statistics.nonfinite.item() == (2 if step == 1 else 0)
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert trace.layer_nonfinite.tolist() == [[0, 0], [0, 2], [0, 0], [0, 0]]
    assert trace.layer_grad_absmax[1, 1] == math.inf
    assert np.isfinite(trace.layer_grad_sq[:, 0]).all()
    assert np.isnan(trace.grad_sq[1])
    assert np.isfinite(trace.grad_sq[[0, 2, 3]]).all()


def test_empty_and_scalar_parameters_are_fine(on):
    parameters = [
        ("empty", nn.Parameter(torch.zeros(0, 3, device=on.device))),
        ("scalar", nn.Parameter(torch.tensor(1.0, device=on.device))),
    ]
    for _, p in parameters:
        p.grad = torch.full_like(p, 2.0)
    probe = on.probe(parameters, window=2, layers="parameter", track_updates=True)
    probe.step()
    statistics = probe.step()
    assert statistics.layer_grad_sq.tolist() == [0.0, 4.0]
    assert statistics.layer_lag_dot[:, 0].tolist() == [0.0, 4.0]
    assert statistics.layer_param_sq.tolist() == [0.0, 1.0]


def test_recorded_lags_are_kept_per_layer_and_all_lags_overall(tmp_path, on):
    run = recorder(device=on.device)
    with on.probe(run.model, window=5, trace=tmp_path / "run.h5", layer_lags=[4, 1]) as probe:
        statistics = run.run(7, lambda loss: probe.step(loss=loss))
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert np.isfinite(trace.lag_dot[-1]).all()
    assert np.isfinite(trace.layer_lag_dot[-1]).tolist() == [[True, False, False, True, False]] * 2
    np.testing.assert_allclose(
        trace.layer_lag_dot[-1][:, [0, 3]], statistics[-1].layer_lag_dot[:, [0, 3]].cpu().numpy()
    )


def test_attached_it_measures_before_every_optimizer_step_until_detached(tmp_path, on):
    run = recorder(device=on.device)
    with on.probe(run.model, window=2, trace=tmp_path / "run.h5", track_updates=True) as probe:
        assert probe.attach(run.optimizer) is probe
        with pytest.raises(RuntimeError, match="attached"):
            probe.attach(run.optimizer)
        run.run(3, lambda _: None)
        probe.detach()
        run.run(2, lambda _: None)
        probe.detach()
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert list(trace.step) == [0, 1, 2]
    for step in range(3):
        assert trace.grad_norm[step] == pytest.approx(reference.norm(run.gradients[step]), rel=on.rounding)
    assert trace.update_sq[0] == pytest.approx(0.01 * trace.grad_sq[0], rel=1e-5)  # float32 parameters round the update


def test_closing_detaches():
    run = recorder()
    probe = fastgeom.Probe(run.model, window=2).attach(run.optimizer)
    probe.close()
    run.run(1, lambda _: None)


def test_an_attached_probe_refuses_a_closure_that_computes_gradients_after_it():
    run = recorder()
    fastgeom.Probe(run.model, window=2).attach(run.optimizer)
    with pytest.raises(RuntimeError, match="without a closure"):
        run.optimizer.step(lambda: run.backward(0))


def test_scaled_gradients_of_a_fused_optimizer_are_divided_and_skipped_steps_marked(tmp_path):
    model = small_model()
    run = Recorder(model, torch.optim.AdamW(model.parameters(), lr=0.01, fused=True))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    with fastgeom.Probe(model, window=3, trace=tmp_path / "run.h5").attach(run.optimizer):
        for step in range(5):
            images, labels = batch(step)
            run.optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(images), labels)).backward()
            run.gradients.append([p.grad / scaler.get_scale() for p in model.parameters()])
            if step == 2:
                model[0].bias.grad[0] = math.inf
            scaler.step(run.optimizer)
            scaler.update()
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert trace.skipped.tolist() == [0, 0, 1, 0, 0]
    for step in (0, 1, 3, 4):
        assert trace.grad_norm[step] == pytest.approx(reference.norm(run.gradients[step]), rel=ROUNDING)
    truth = reference.cosine(run.gradients[3], run.gradients[1])
    assert np.isnan(trace.lag_cosine[3, 0])
    assert trace.lag_cosine[3, 1] == pytest.approx(truth, abs=ROUNDING)


def test_the_same_run_gives_the_same_bits_with_one_thread_and_with_two():
    results = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            torch.manual_seed(0)
            p = nn.Parameter(torch.zeros(300_000))
            probe = fastgeom.Probe([("p", p)], window=3)
            for _ in range(4):
                p.grad = torch.randn(300_000)
                statistics = probe.step()
            results.append(statistics)
        finally:
            torch.set_num_threads(before)
    for name in ("lag_dot", "grad_sq", "diff_sq", "sum_sq"):
        assert torch.equal(getattr(results[0], name), getattr(results[1], name))


def test_measuring_changes_neither_gradients_nor_parameters():
    run = recorder()
    probe = fastgeom.Probe(run.model, window=2, track_updates=True)
    run.backward(0)
    probe.step()
    for p, g, x in zip(run.model.parameters(), run.gradients[0], run.parameters[0], strict=True):
        assert torch.equal(p.grad, g)
        assert torch.equal(p.detach(), x)


def test_statistics_of_a_step_are_its_own_for_ever():
    run = recorder()
    probe = fastgeom.Probe(run.model, window=2)
    results = run.run(5, lambda loss: probe.step(loss=loss))
    norms = [s.grad_norm.item() for s in results]
    assert norms == pytest.approx([reference.norm(g) for g in run.gradients], rel=ROUNDING)


BAD_ARGUMENTS = {
    "no parameters": (lambda m: dict(target=nn.ReLU()), "at least one parameter"),
    "window 0": (lambda m: dict(target=m, window=0), r"window: expected an integer of at least 1, got 0"),
    "window true": (lambda m: dict(target=m, window=True), "window: expected an integer"),
    "history": (lambda m: dict(target=m, history="exact"), r"history: expected None, fastgeom.Exact"),
    "layers": (lambda m: dict(target=m, layers="global"), r"layers: expected 'module', 'parameter', 'all'"),
    "backend": (
        lambda m: dict(target=m, backend="tpu"),
        r"backend: expected None or one of 'cpu', 'triton', got 'tpu'",
    ),
    "lag": (lambda m: dict(target=m, window=4, layer_lags=[5]), r"layer_lags: .* from 1 to window = 4, got \[5\]"),
    "lag twice": (lambda m: dict(target=m, layer_lags=[1, 1]), "layer_lags: expected different lags"),
    "fractional lag": (lambda m: dict(target=m, layer_lags=[1.5]), r"layer_lags: expected an integer .* got 1\.5"),
    "no lags": (lambda m: dict(target=m, layer_lags=[]), "layer_lags"),
    "name twice": (lambda m: dict(target=[("a", m[0].weight), ("a", m[0].bias)]), "parameter 'a' twice"),
    "no name": (lambda m: dict(target=[("", m[0].weight)]), "name that is not empty"),
    "bare tensors": (lambda m: dict(target=list(m.parameters())), r"pairs \(name, parameter\)"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_a_bad_argument_is_an_error_that_says_what_came(case):
    arguments, message = BAD_ARGUMENTS[case]
    with pytest.raises(ValueError, match=message):
        fastgeom.Probe(**arguments(small_model()))


@pytest.mark.parametrize(
    "arguments", [{"schedule": 10}, {"gradient": 10}, {"trace": 3}, {"trace": b"run.h5"}, {"layer_lags": 3}], ids=str
)
def test_an_argument_of_another_type_is_named(arguments):
    (name,) = arguments
    with pytest.raises(TypeError, match=f"{name}: expected None or "):
        fastgeom.Probe(small_model(), **arguments)


@pytest.mark.parametrize(
    "history",
    [
        fastgeom.Exact(defer=np.int64(2)),
        fastgeom.Sketch(size=np.int64(512), seed=np.int32(1), stored_size=np.int64(128)),
        fastgeom.Sketch(size=np.uint16(512), seed=np.uint8(1)),
    ],
    ids=["deferred", "stored sketch", "sketch"],
)
def test_integers_may_be_numpys_own(tmp_path, history):
    run, path = recorder(), tmp_path / "run.h5"
    numbers = iter(np.arange(3, 7))
    options = {"window": np.int64(2), "layer_lags": list(np.arange(1, 2)), "schedule": fastgeom.every(np.int64(1))}
    with fastgeom.Probe(run.model, history=history, trace=path, **options) as probe:
        results = run.run(4, lambda _: probe.step(step=next(numbers), lr=np.float32(0.5), max_norm=np.float32(0.25)))
    assert type(probe.window) is int
    assert [(type(r.step), r.step) for r in results] == [(int, 3), (int, 4), (int, 5), (int, 6)]
    trace = fastgeom.open_trace(path)
    configuration = trace.attributes["configuration"]
    assert "np." not in str(configuration) and configuration["history"] == repr(history)
    assert configuration["window"] == 2 and configuration["schedule"] == "every(1)"
    assert trace.step.tolist() == [3, 4, 5, 6] and trace.lr.tolist() == [0.5] * 4
    assert np.isfinite(trace.lag_dot[3]).all() and np.isfinite(trace.layer_lag_dot[3, :, 0]).all()
    assert np.isnan(trace.layer_lag_dot[3, :, 1]).all()
    assert (trace.clip_coefficient < 1).all()


def test_the_statistics_of_a_step_have_no_field_that_only_the_trace_has(tmp_path):
    run = recorder()
    fields = {f.name for f in dataclasses.fields(fastgeom.StepStatistics)}
    assert not [name for name in fields if "update" in name]
    always_none = fields
    for history in (fastgeom.Exact(), fastgeom.Sketch(size=1024, stored_size=128)):
        probe = fastgeom.Probe(run.model, window=2, track_updates=True, history=history)
        statistics = run.run(2, lambda _, probe=probe: probe.step(max_norm=1.0))[-1]
        always_none = {name for name in always_none if getattr(statistics, name) is None}
    assert always_none == set()


@pytest.mark.parametrize("max_norm", [-1.0, math.nan, "a"])
def test_a_max_norm_that_is_no_norm_is_refused(max_norm):
    run = recorder()
    probe = fastgeom.Probe(run.model, window=2)
    with pytest.raises(ValueError, match="max_norm: expected None or a number of at least 0"):
        run.run(1, lambda _: probe.step(max_norm=max_norm))


def test_an_unknown_history_dtype_is_an_error():
    with pytest.raises(ValueError, match=r"history dtype: expected None or one of .*, got torch.int8"):
        fastgeom.Exact(dtype=torch.int8)


def test_a_float16_history_is_for_float16_gradients_alone():
    run = recorder()
    probe = fastgeom.Probe(run.model, window=2, history=fastgeom.Exact(dtype=torch.float16))
    with pytest.raises(ValueError, match="expected float16 gradients"):
        run.run(1, lambda loss: probe.step(loss=loss))


@pytest.mark.parametrize(
    ("gradient", "error", "message"),
    [
        (torch.ones(3).to_sparse(), TypeError, "gradient of 'b': expected a dense tensor"),
        (torch.ones(3, dtype=torch.complex64), TypeError, "gradient of 'b': expected dtype .*, got complex64"),
        (torch.ones(3, dtype=torch.int32), TypeError, "gradient of 'b': expected dtype .*, got int32"),
        (torch.ones(4), ValueError, r"gradient of 'b': expected shape \(3,\) as at the start, got \(4,\)"),
        (torch.ones(3, device="meta"), ValueError, "gradient of 'b': expected it on cpu with all others, got meta"),
        (torch.ones(3, dtype=torch.float64), ValueError, "gradient of 'b': expected dtype torch.float32 as at the"),
    ],
    ids=["sparse", "complex", "integer", "shape", "device", "dtype"],
)
def test_a_gradient_that_does_not_fit_is_named_and_the_probe_stays_usable(gradient, error, message):
    parameters = [(name, nn.Parameter(torch.zeros(3))) for name in "ab"]
    gradients = {id(p): torch.ones(3) for _, p in parameters}
    probe = fastgeom.Probe(parameters, window=2, gradient=lambda p: gradients[id(p)])
    probe.step()
    gradients[id(parameters[1][1])] = gradient
    with pytest.raises(error, match=message):
        probe.step()
    gradients[id(parameters[1][1])] = torch.ones(3)
    assert probe.step().lag_cosine[0].item() == pytest.approx(1.0)


def test_a_refused_step_leaves_the_rows_before_and_after_it_right(tmp_path):
    p = nn.Parameter(torch.zeros(4))
    gradients = iter([torch.ones(4), torch.ones(4, dtype=torch.float64), torch.full((4,), 2.0), torch.ones(4)])
    probe = fastgeom.Probe(
        [("p", p)], window=2, gradient=lambda _: next(gradients), track_updates=True, trace=tmp_path / "run.h5"
    )
    with probe:
        probe.step()
        p.data += 1.0
        with pytest.raises(ValueError, match="expected dtype torch.float32"):
            probe.step()
        with pytest.raises(ValueError, match="max_norm: expected None or a number of at least 0, got 'a'"):
            probe.step(max_norm="a")
        probe.step()
        p.data += 1.0
        probe.step()
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert trace.step.tolist() == [0, 1, 2]
    assert trace.update_sq[:2].tolist() == [4.0, 4.0]
    assert trace.lag_dot[1:].tolist()[1] == [8.0, 4.0]
    assert trace.grad_dot_update[:2].tolist() == [4.0, 8.0]


def test_a_parameter_replaced_in_the_module_is_named_and_not_measured_stale():
    run = recorder()
    probe = fastgeom.Probe(run.model, window=2)
    run.run(1, lambda loss: probe.step(loss=loss))
    run.model[3].bias = nn.Parameter(torch.zeros(5))
    run.backward(1)
    with pytest.raises(ValueError, match=r"parameter '3\.bias': expected the one that the probe was made for"):
        probe.step()


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps], ids=["deepcopy", "pickle"])
def test_a_probe_cannot_be_copied_since_it_knows_its_memory_by_address(copied):
    run = recorder()
    probe = fastgeom.Probe(run.model, window=2)
    run.run(1, lambda loss: probe.step(loss=loss))
    with pytest.raises(TypeError, match="Probe: expected one that is neither copied nor pickled"):
        copied(probe)
    copied(run.model)


def test_an_empty_tensor_may_be_the_only_one_of_its_dtype():
    parameters = [("a", nn.Parameter(torch.ones(3))), ("b", nn.Parameter(torch.zeros(0, dtype=torch.bfloat16)))]
    for _, p in parameters:
        p.grad = torch.ones_like(p)
    probe = fastgeom.Probe(parameters, window=2, track_updates=True)
    probe.step()
    assert probe.step().lag_dot[0].item() == 3.0


def test_a_gradient_that_comes_late_is_taken_to_be_of_the_dtype_of_its_kind():
    parameters = [(name, nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))) for name in "ab"]
    main = {"a": torch.ones(3), "b": None}
    names = {id(p): name for name, p in parameters}
    probe = fastgeom.Probe(parameters, window=2, gradient=lambda p: main[names[id(p)]], layers="parameter")
    probe.step()
    main["b"] = torch.full((3,), 1 + 2.0**-20)
    probe.step()
    assert probe.step().layer_diff_sq.tolist() == [0.0, 0.0]


def test_the_whole_range_of_float32_is_measured():
    p = nn.Parameter(torch.zeros(10_000))
    probe = fastgeom.Probe([("p", p)], window=2, track_updates=True)
    for size in (1e-30, 1e30):
        p.grad = torch.full((10_000,), size)
        for _ in range(2):
            statistics = probe.step()
        assert statistics.grad_sq.item() == pytest.approx(1e4 * float(p.grad[0]) ** 2, rel=ROUNDING)
        assert statistics.sum_sq.item() == pytest.approx(4e4 * float(p.grad[0]) ** 2, rel=ROUNDING)
        assert statistics.lag_cosine[0].item() == pytest.approx(1.0, rel=ROUNDING)


def test_step_after_close_is_an_error():
    run = recorder()
    probe = fastgeom.Probe(run.model, window=2)
    probe.close()
    probe.close()
    with pytest.raises(RuntimeError, match="expected an open probe"):
        run.run(1, lambda loss: probe.step(loss=loss))

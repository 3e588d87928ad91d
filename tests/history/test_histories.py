"""What a probe remembers: deferred windows give the exact ones' numbers, sketches give estimates with honest errors."""

import logging

import numpy as np
import pytest
import torch

import fastgeom
from fastgeom import reference
from fastgeom.engines.cpu import deferred_window, passes
from fastgeom.engines.cpu.loops import window as loops
from fastgeom.history import choose as history

CLOCKS = {"wall_time", "measure_time_ms"}
SIZES = {"a.weight": 3000, "a.bias": 5, "b.weight": 900}


def made(dtype=torch.float32):
    return [(name, torch.nn.Parameter(torch.zeros(n, dtype=dtype))) for name, n in SIZES.items()]


def gradients(seed, correlation=0.0):
    """Random gradients of one step, correlated with those of all other seeds."""
    common = torch.Generator().manual_seed(99)
    own = torch.Generator().manual_seed(seed)
    return [
        correlation**0.5 * torch.randn(n, generator=common) + (1 - correlation) ** 0.5 * torch.randn(n, generator=own)
        for n in SIZES.values()
    ]


def run(path, steps, gradient_of=gradients, dtype=torch.float32, **options):
    """A run over given gradients and random updates; returns its trace and what every step returned."""
    named = made(dtype)
    found = []
    with fastgeom.Probe(named, trace=path, **options) as probe:
        for step in steps:
            for (_, p), g in zip(named, gradient_of(step), strict=True):
                p.grad = g.to(dtype)
            found.append(probe.step(step=step))
            with torch.no_grad():
                for (_, p), u in zip(named, gradients(1000 + step), strict=True):
                    p.add_(u.to(dtype), alpha=0.1)
    return fastgeom.open_trace(path), found


# ---------------------------------------------------------------- deferred


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("window", "defer", "steps"), [(3, 2, 7), (3, 4, 9), (1, 8, 20), (5, 3, 2), (2, 16, 5)])
def test_a_deferred_window_gives_the_exact_one_s_numbers_under_their_own_steps(tmp_path, window, defer, steps, dtype):
    """Also where the last steps are fewer than a block: `close` takes their lags."""
    options = {"window": window, "track_updates": True, "dtype": dtype}
    exact, _ = run(tmp_path / "exact.h5", range(steps), **options)
    deferred, _ = run(tmp_path / "deferred.h5", range(steps), history=fastgeom.Exact(defer=defer), **options)
    assert deferred.names == exact.names and deferred.step.tolist() == list(range(steps))
    for name in set(exact.names) - CLOCKS:
        np.testing.assert_allclose(deferred[name], exact[name], rtol=1e-12, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_deferred_window_stores_past_the_caches_what_a_small_one_stores(tmp_path, monkeypatch, dtype):
    found, streamed, pass_of = [], [], loops.window_moments
    monkeypatch.setattr(loops, "window_moments", lambda *a: (streamed.append(bool(a[-1])), pass_of(*a)))
    for least in (10**9, 1000):
        monkeypatch.setattr(deferred_window, "_STREAMED_ELEMENTS", least)
        options = {"window": 3, "history": fastgeom.Exact(defer=4), "dtype": dtype}
        found.append(run(tmp_path / f"{least}.h5", range(9), **options)[0])
    assert streamed == [False] * 9 + [True] * 9
    for name in set(found[0].names) - CLOCKS:
        np.testing.assert_array_equal(found[0][name], found[1][name], err_msg=name)


def test_a_deferred_window_counts_steps_as_an_exact_one_does(tmp_path):
    steps, options = (0, 1, 4, 5, 6, 7, 30, 31), {"window": 3, "layer_lags": [2], "track_updates": True}
    exact, _ = run(tmp_path / "exact.h5", steps, **options)
    deferred, _ = run(tmp_path / "deferred.h5", steps, history=fastgeom.Exact(defer=3), **options)
    for name in set(exact.names) - CLOCKS:
        np.testing.assert_allclose(deferred[name], exact[name], rtol=1e-12, atol=1e-11, err_msg=name)


def test_what_comes_late_is_none_in_the_step_s_own_statistics(tmp_path):
    _, found = run(tmp_path / "run.h5", range(4), window=2, history=fastgeom.Exact(defer=2))
    for statistics in found:
        assert statistics.lag_dot is statistics.layer_lag_cosine is statistics.diff_sq is statistics.sum_sq is None
        assert float(statistics.grad_norm) > 0


def test_rows_of_a_deferred_window_reach_the_file_a_block_at_a_time(tmp_path):
    named = made()
    with fastgeom.Probe(named, window=2, trace=tmp_path / "run.h5", history=fastgeom.Exact(defer=3)) as probe:
        waiting = []
        for step in range(7):
            for (_, p), g in zip(named, gradients(step), strict=True):
                p.grad = g
            probe.step()
            waiting.append([row.step for row in probe._recorder._pending])
    assert waiting == [[0], [0, 1], [], [3], [3, 4], [], [6]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"defer": 0}, r"^history defer: expected an integer of at least 1, got 0$"),
        ({"defer": np.float32(2)}, r"^history defer: expected an integer of at least 1, got .*2\.0.*$"),
        ({"defer": True}, r"^history defer: expected an integer of at least 1, got True$"),
        ({"defer": 4, "dtype": torch.bfloat16}, r"^history defer: expected gradients in their own dtype .*bfloat16$"),
    ],
)
def test_a_deferral_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fastgeom.Exact(**options)


def test_a_history_stores_pythons_integers_whatever_integers_it_is_given():
    assert repr(fastgeom.Exact(defer=np.int64(2))) == "Exact(dtype=None, defer=2)"
    sketch = fastgeom.Sketch(size=np.int64(512), seed=np.int32(1), stored_size=np.uint8(128))
    assert repr(sketch) == "Sketch(size=512, seed=1, stored_size=128)"
    assert sketch == fastgeom.Sketch(512, 1, 128)


# ---------------------------------------------------------------- sketches


def test_what_a_window_of_sketches_does_not_estimate_is_exact(tmp_path):
    exact, _ = run(tmp_path / "exact.h5", range(6), window=3, track_updates=True)
    ours, _ = run(tmp_path / "ours.h5", range(6), window=3, track_updates=True, history=fastgeom.Sketch(size=512))
    for name in ("grad_sq", "grad_absmax", "nonfinite", "param_sq", "update_sq", "next_grad_dot_update"):
        for prefix in ("", "layer_"):
            np.testing.assert_allclose(ours[prefix + name], exact[prefix + name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_estimates_are_within_their_errors_over_many_seeds(tmp_path, correlation):
    """Errors are standard errors: over seeds, the mean of (error / standard error)^2 is 1."""
    exact, _ = run(tmp_path / "exact.h5", range(3), lambda s: gradients(s, correlation), window=2, track_updates=True)
    off = {}
    for seed in range(40):
        path = tmp_path / f"{seed}.h5"
        options = {"window": 2, "track_updates": True, "history": fastgeom.Sketch(size=512, seed=seed)}
        ours, _ = run(path, range(3), lambda s: gradients(s, correlation), **options)
        for name in ("lag_dot", "diff_sq", "sum_sq", "grad_dot_update"):
            for field in (name, f"layer_{name}"):
                error = ours[f"{field}_error"][1]
                hashed = error > 0
                off.setdefault(field, []).extend(((ours[field][1] - exact[field][1])[hashed] / error[hashed]) ** 2)
    for field, squares in off.items():
        assert np.count_nonzero(~np.isnan(squares)) >= 40
        assert 0.5 < np.nanmean(squares) < 1.6, f"{field}: {np.nanmean(squares)}"


def test_a_layer_that_fits_is_kept_whole_and_has_no_error(tmp_path):
    options = {"window": 2, "layers": "parameter"}
    exact, _ = run(tmp_path / "exact.h5", range(4), **options)
    ours, _ = run(tmp_path / "ours.h5", range(4), history=fastgeom.Sketch(size=4096), **options)
    kept = [ours.layers.index("a.bias"), ours.layers.index("b.weight")]
    np.testing.assert_allclose(ours.layer_lag_dot[:, kept], exact.layer_lag_dot[:, kept], rtol=1e-6, atol=1e-5)
    assert np.nanmax(ours.layer_lag_dot_error[:, kept]) == 0 < np.nanmin(ours.layer_lag_dot_error[1:, 0, 0])


def test_parallel_and_opposite_gradients_have_no_error(tmp_path):
    """Normalised by the sketches' own norms: the zigzag's cosine of -1 is exact whatever the size."""
    ours, _ = run(
        tmp_path / "run.h5",
        range(4),
        lambda s: [(-1.5) ** s * g for g in gradients(0)],
        window=2,
        history=fastgeom.Sketch(size=512),
    )
    np.testing.assert_allclose(ours.lag_cosine[2], [-1, 1], atol=1e-6)
    np.testing.assert_allclose(ours.lag_cosine_error[2], 0, atol=1e-6)


def test_a_zero_gradient_has_zero_dots_and_no_cosine(tmp_path):
    ours, _ = run(
        tmp_path / "run.h5",
        range(3),
        lambda s: [g * (s != 1) for g in gradients(s)],
        window=2,
        history=fastgeom.Sketch(size=512),
    )
    assert ours.lag_dot[1, 0] == ours.lag_dot[2, 0] == ours.lag_dot_error[2, 0] == 0
    assert np.isnan(ours.lag_cosine[2, 0]) and np.isfinite(ours.lag_cosine[2, 1])


def test_lags_of_sketches_count_steps_and_what_was_not_measured_is_nan(tmp_path):
    ours, found = run(tmp_path / "run.h5", (0, 1, 4), window=3, track_updates=True, history=fastgeom.Sketch(size=512))
    known = ~np.isnan(ours.lag_dot)
    assert known.tolist() == [[False] * 3, [True, False, False], [False, False, True]]
    np.testing.assert_array_equal(known, ~np.isnan(ours.lag_dot_error))
    assert (~np.isnan(ours.grad_dot_update)).tolist() == [True, False, False]
    np.testing.assert_allclose(ours.lag_cosine[1], found[1].lag_cosine.numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours.layer_lag_dot_error[1], found[1].layer_lag_dot_error.numpy(), rtol=1e-12)


def test_a_gradient_that_is_not_finite_spoils_its_own_lags_only(tmp_path):
    def spoilt(step):
        g = gradients(step)
        if step == 1:
            g[0][7] = torch.nan
        return g

    ours, _ = run(
        tmp_path / "run.h5", range(5), spoilt, window=2, track_updates=True, history=fastgeom.Sketch(size=512)
    )
    assert ours.nonfinite.tolist() == [0, 1, 0, 0, 0]
    assert np.isnan(ours.lag_dot[1:3, 0]).all() and np.isfinite(ours.lag_dot[3:, 0]).all()
    assert np.isfinite(ours.lag_dot[2, 1]) and np.isfinite(ours.update_sq[2])


def test_recorded_sketches_compare_any_two_steps_of_a_run(tmp_path):
    options = {"window": 1, "history": fastgeom.Sketch(size=4096, stored_size=1024)}
    ours, _ = run(tmp_path / "run.h5", range(6), lambda s: gradients(s, 0.5), **options)
    assert ours.sketch.shape == (6, 1024) and ours.dims("sketch") == ("step", "bucket")
    truth = [gradients(s, 0.5) for s in range(6)]
    for i, j in ((0, 5), (1, 4), (2, 3)):
        found = ours.sketch[i] @ ours.sketch[j] / np.linalg.norm(ours.sketch[i]) / np.linalg.norm(ours.sketch[j])
        assert abs(found - reference.cosine(truth[i], truth[j])) < 5 / 1024**0.5
    assert ours.to_xarray()["sketch"].shape == (6, 1024)


def test_the_memory_of_sketches_is_window_times_size(monkeypatch):
    taken = []
    zeros = passes.zeros

    def counted(rows, n_elements, dtype):
        taken.append(rows * n_elements * dtype.itemsize)
        return zeros(rows, n_elements, dtype)

    monkeypatch.setattr(passes, "zeros", counted)
    named = made()
    size, window = 1024, 16
    with fastgeom.Probe(named, window=window, history=fastgeom.Sketch(size=size)) as probe:
        for _, p in named:
            p.grad = torch.ones_like(p)
        probe.step()
    assert 0.5 * window * size * 4 < sum(taken) <= window * size * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, r"^sketch size: expected an integer of at least 1, got 0$"),
        ({"size": 2.0**18}, r"^sketch size: expected an integer of at least 1, got 262144.0$"),
        ({"size": True}, r"^sketch size: expected an integer of at least 1, got True$"),
        ({"seed": False}, r"^sketch seed: expected an integer of at least 0, got False$"),
        ({"stored_size": True}, r"^sketch stored_size: expected an integer of at least 1, got True$"),
        ({"seed": -1}, r"^sketch seed: expected an integer of at least 0, got -1$"),
        ({"stored_size": 0}, r"^sketch stored_size: expected an integer of at least 1, got 0$"),
        ({"stored_size": 64}, r"^sketch stored_size: expected a power of two from 128 to size = \d+, got 64$"),
        ({"stored_size": 100}, r"^sketch stored_size: expected a power of two .*, got 100$"),
        (
            {"size": 256, "stored_size": 512},
            r"^sketch stored_size: expected a power of two from 128 to size = \d+, got 512$",
        ),
        ({"size": 128}, r"^size: expected at least \d+ for 2 groups, got 128$"),
    ],
)
def test_a_sketch_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fastgeom.Probe(made(), history=fastgeom.Sketch(**options))


# ---------------------------------------------------------------- the choice


@pytest.mark.parametrize(("memory", "chosen"), [(10 * 4 * 4 * 3905, "Exact"), (10 * 4 * 4 * 3905 - 1, "Sketch")])
def test_none_takes_what_fits_a_tenth_of_the_memory_and_says_so(tmp_path, monkeypatch, caplog, memory, chosen):
    monkeypatch.setattr(history, "_total_memory", lambda device: memory)
    with caplog.at_level(logging.INFO, "fastgeom"):
        trace, _ = run(tmp_path / "run.h5", range(2), window=4)
    configuration = trace.attributes["configuration"]
    assert configuration["history"].startswith(f"{chosen}(") and configuration["history_chosen"] is True
    assert any(f"{'sketches' if chosen == 'Sketch' else 'Exact()'}" in message for message in caplog.messages)
    assert ("lag_dot_error" in trace.names) == (chosen == "Sketch")


def test_a_history_that_was_asked_for_is_taken_whatever_it_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "_total_memory", lambda device: 1)
    trace, _ = run(tmp_path / "run.h5", range(2), window=4, history=fastgeom.Exact())
    assert trace.attributes["configuration"]["history_chosen"] is False
    assert "lag_dot_error" not in trace.names

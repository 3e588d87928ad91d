"""The Triton engine gives what the CPU engine gives: whole small runs, list calls, and what it may not do.

Without a card all of it runs through Triton's interpreter, on CPU tensors.
"""

import numpy as np
import pytest
import torch

import fastgeom
from fastgeom.engines.select import select_engine
from fastgeom.engines.torch_ops import list_dots, list_norms, list_scale_, list_sketch
from fastgeom.engines.triton.tables import PartialRows, segment_tables
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.count_sketch import SketchPlan
from fastgeom.layout.layout import Layout
from fastgeom.validation import DTYPES
from tests.support import memory_of, random_tensor

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
ROUNDING = {F32: 2e-6, F64: 1e-12, BF16: 2e-6, F16: 2e-6}
"""Sums of float32 products against float64 ones; the gradients themselves are the same to the bit."""
CLOCKS = ("wall_time", "measure_time_ms")


def parameters(dtypes, device, largest):
    """One large tensor and smaller ones, one of them channels_last, one empty."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"a.weight": (largest,), "a.bias": (7,), "b.weight": (4, 3, 3, 5), "b.bias": (1,), "c": (0,), "d": (600,)}
    drawn = [torch.randn(shape, generator=generator) for shape in shapes.values()]
    named = {name: tensor.to(dtype) for name, tensor, dtype in zip(shapes, drawn, dtypes, strict=True)}
    named["b.weight"] = named["b.weight"].to(memory_format=torch.channels_last)
    return [(name, torch.nn.Parameter(tensor.to(device))) for name, tensor in named.items()]


def run(
    path, device, backend, *, dtype=F32, dtypes=None, largest=8300, steps=range(6), without=(), spoil=None, **options
):
    """A run whose gradients and updates are random numbers; the same for both engines.

    The largest tensor has more than one whole unit of 16 KB.
    """
    named = parameters(dtypes or [dtype] * 6, device if backend == "triton" else "cpu", largest)
    generator = torch.Generator().manual_seed(2)
    with fastgeom.Probe(named, window=3, trace=path, backend=backend, **options) as probe:
        for step in steps:
            for name, p in named:
                noise = torch.randn(p.shape, generator=generator)
                p.grad = None if (step, name) in without else torch.empty_like(p).copy_(noise)
                if spoil is not None and (step, name) in spoil:
                    p.grad.view(-1)[0] = spoil[step, name]
            probe.step(step=step, loss=torch.tensor(0.5, device=p.device))
            with torch.no_grad():
                for _, p in named:
                    p.add_(torch.randn(p.shape, generator=generator).to(p.device, p.dtype), alpha=0.01)
    return fastgeom.open_trace(path)


def assert_same_trace(ours, expected, rounding, floor=0.0):
    """Every recorded and derived field, within rounding of the sums' terms."""
    assert ours.names == expected.names and ours.layers == expected.layers
    for name in ours.names:
        if name in CLOCKS:
            continue
        a, b = np.asarray(ours[name], float), np.asarray(expected[name], float)
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b), err_msg=name)
        scale = magnitude(expected, name, b)
        with np.errstate(invalid="ignore"):
            off = np.abs(a - b) > rounding * scale + floor
        wrong = off & ~np.isnan(b) & (a != b)
        assert not wrong.any(), f"{name}: {a[wrong][:3]} for {b[wrong][:3]}"


def magnitude(trace, name, values):
    """What a sum's terms may add up to: for a dot product the product of the norms."""
    base, prefix = name.removeprefix("layer_"), "layer_" if name.startswith("layer_") else ""
    norm = np.sqrt(trace[f"{prefix}grad_sq"])
    if base in ("lag_dot", "lag_dot_error"):
        return np.broadcast_to((norm * np.nanmax(norm))[..., None], values.shape)
    if base in ("grad_dot_update", "next_grad_dot_update", "grad_dot_update_error"):
        return np.nanmax(norm) * np.sqrt(trace[f"{prefix}update_sq"])
    return np.maximum(np.abs(values), 1.0 if base.startswith("lag_cosine") else 0.0)


HISTORIES = {
    "own dtype": ({}, ROUNDING),
    "bfloat16": ({"dtype": BF16}, {F32: 2.0**-7, F64: 2.0**-7}),  # the interpreter truncates where the CPU rounds
    "deferred": ({"defer": 4}, ROUNDING),
}


@pytest.mark.parametrize(
    ("history", "dtype"),
    [
        ("own dtype", F32),
        ("own dtype", F64),
        ("own dtype", BF16),
        ("own dtype", F16),
        ("bfloat16", F32),
        ("bfloat16", F64),
        ("deferred", F32),
        ("deferred", BF16),
    ],
)
def test_a_run_has_the_trace_that_the_cpu_engine_gives(tmp_path, device, history, dtype):
    options, rounding = HISTORIES[history]
    options = {"history": fastgeom.Exact(**options), "dtype": dtype, "track_updates": True}
    expected = run(tmp_path / "cpu.h5", device, "cpu", **options)
    ours = run(tmp_path / "triton.h5", device, "triton", **options)
    assert ours.attributes["configuration"]["backend"] == "triton" and len(ours) == 6
    assert_same_trace(ours, expected, rounding[dtype])


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_window_of_sketches_has_the_same_estimates_and_errors_on_both_engines(tmp_path, device, dtype):
    """The same buckets and signs: estimates agree within rounding, not within their errors."""
    options = {
        "history": fastgeom.Sketch(size=512, seed=5, stored_size=128),
        "dtype": dtype,
        "largest": 1500,
        "track_updates": True,
        "steps": (0, 1, 2, 4, 9),
        "without": {(1, "d"), (2, "a.weight"), (4, "a.bias")},
        "spoil": {(4, "d"): np.nan},
    }
    expected = run(tmp_path / "cpu.h5", device, "cpu", **options)
    ours = run(tmp_path / "triton.h5", device, "triton", **options)
    assert ours.sketch.shape == (5, 128)
    assert_same_trace(ours, expected, 1e-5, floor=1e-5)


@pytest.mark.parametrize("sizes", [[10**6, 3 * 10**5, 1000], [10**4] * 100], ids=["few", "many"])
def test_a_window_of_sketches_takes_the_memory_of_its_sketches(device, sizes):
    """Less than 1 % more; what a step takes for its own time is the allocator's again when the step is launched."""
    window = 16
    named = [(f"{k}.weight", torch.zeros(n, device=device)) for k, n in enumerate(sizes)]
    layout, engine = Layout(named), select_engine("triton", device)
    plan = SketchPlan(layout.numels, layout.layer, len(layout.layers), 2**18)
    past = engine.sketch_window(layout, plan, window)
    past.prepare(located([tensor for _, tensor in named]))
    ring = window * plan.total * 4
    assert ring <= sum(memory_of(past, layout, engine, plan).values()) <= 1.01 * ring


def test_what_the_ring_rounds_the_differences_do_not(tmp_path, device):
    options = {"history": fastgeom.Exact(dtype=BF16), "steps": range(3)}
    expected = run(tmp_path / "cpu.h5", device, "cpu", **options)
    ours = run(tmp_path / "triton.h5", device, "triton", **options)
    for name in ("diff_sq", "sum_sq", "layer_diff_sq", "layer_sum_sq"):
        np.testing.assert_allclose(ours[name], expected[name], rtol=ROUNDING[F32])


def test_missing_gradients_gaps_nan_and_inf_are_the_same_on_both_engines(tmp_path, device):
    options = {
        "steps": (0, 1, 3, 4, 5, 9),
        "without": {(1, "d"), (4, "a.bias"), (5, "b.bias"), (0, "a.weight")},
        "spoil": {(3, "a.weight"): np.nan, (5, "d"): -np.inf, (9, "a.bias"): 1e30},
        "track_updates": True,
        "layer_lags": [1, 3],
    }
    expected = run(tmp_path / "cpu.h5", device, "cpu", **options)
    ours = run(tmp_path / "triton.h5", device, "triton", **options)
    assert ours.nonfinite.tolist() == [0, 0, 1, 0, 1, 0]
    finite = {"grad_sq", "diff_sq", "sum_sq", "lag_dot", "lag_cosine", "grad_norm"}
    for name in sorted(finite | {f"layer_{n}" for n in finite} | {"update_sq", "grad_dot_update", "layer_param_sq"}):
        a, b = ours[name][:5], expected[name][:5]
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b), err_msg=name)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(ours.layer_grad_absmax, expected.layer_grad_absmax)
    np.testing.assert_array_equal(ours.layer_nonfinite, expected.layer_nonfinite)


def test_layers_of_any_grouping_and_mixed_dtypes_share_one_window(tmp_path, device):
    options = {
        "dtypes": [F32, BF16, F32, F16, F32, BF16],
        "layers": lambda name: "even" if name in ("a.weight", "b.bias", "d") else "odd",
        "track_updates": True,
        "steps": range(4),
    }
    expected = run(tmp_path / "cpu.h5", device, "cpu", **options)
    ours = run(tmp_path / "triton.h5", device, "triton", **options)
    assert ours.layers == ("even", "odd")
    assert_same_trace(ours, expected, ROUNDING[F32])


@pytest.mark.parametrize(
    "history",
    [fastgeom.Exact(), fastgeom.Exact(defer=3), fastgeom.Sketch(size=128), fastgeom.Sketch(size=512)],
    ids=["exact", "deferred", "hashed", "kept whole"],
)
def test_a_skipped_step_is_measured_but_not_remembered(tmp_path, device, history):
    """A fused optimizer under a gradient scaler: gradients come scaled, and a step with an overflow changes nothing."""
    traces = []
    for backend in ("cpu", "triton"):
        path = tmp_path / f"{backend}.h5"
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 300, device=device if backend == "triton" else "cpu"))
        optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
        scaler = torch.amp.GradScaler(weight.device.type, init_scale=1024.0)
        with fastgeom.Probe([("w", weight)], window=3, trace=path, backend=backend, history=history) as probe:
            probe.attach(optimizer)
            for step in range(6):
                loss = (weight.square() * (torch.inf if step == 2 else step + 1.0)).sum()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        traces.append(fastgeom.open_trace(path))
    expected, ours = traces
    assert ours.skipped.tolist() == expected.skipped.tolist() == [0, 0, 1, 0, 0, 0]
    kept = [0, 1, 3, 4, 5]
    for name in ("grad_sq", "lag_dot", "lag_cosine", "diff_sq", "sum_sq"):
        np.testing.assert_allclose(ours[name][kept], expected[name][kept], rtol=1e-5, err_msg=name)
    assert np.isnan(ours.lag_cosine[3, 0]) and np.isfinite(ours.lag_cosine[4, 0])


def test_a_second_run_has_the_same_bits(tmp_path, device):
    first, second = (run(tmp_path / f"{k}.h5", device, "triton", track_updates=True, steps=range(3)) for k in (0, 1))
    for name in set(first.names) - set(CLOCKS):
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


# ---------------------------------------------------------------- list calls


def located(tensors):
    return AddressTable(
        np.array([t.data_ptr() for t in tensors], np.int64), np.array([DTYPES.index(t.dtype) for t in tensors], np.int8)
    )


def test_list_moments_are_those_of_the_cpu_engine(device):
    dtypes = [F32, BF16, F64, F16, F32]
    sizes = [17_001, 1, 300, 8193, 0]
    lists = [[random_tensor(n, d, offset=k) for n, d in zip(sizes, dtypes, strict=True)] for k in range(3)]
    engine = select_engine("triton", device)
    numels = np.array(sizes, np.int64)
    on_device = [[t.to(device) for t in tensors] for tensors in lists]
    tables = [located(tensors) for tensors in on_device]
    for rows in ([], [1], [1, 2]):
        ours = engine.list_moments(numels, tables[0], [tables[k] for k in rows])
        truth = select_engine("cpu", torch.device("cpu")).list_moments(
            numels, located(lists[0]), [located(lists[k]) for k in rows]
        )
        torch.testing.assert_close(ours.dots.cpu(), truth.dots, rtol=0, atol=1e-6 * float(truth.grad_sq))
        torch.testing.assert_close(ours.grad_norm.cpu(), truth.grad_norm, rtol=1e-6, atol=0)
        if not rows:
            assert float(ours.grad_absmax) == float(truth.grad_absmax) and int(ours.nonfinite) == 0


def test_scaling_multiplies_every_dtype_in_place(device):
    tensors = [random_tensor(n, d).to(device) for n, d in ((20_000, F32), (3, BF16), (700, F64))]
    expected = [t * 0.5 for t in tensors]
    select_engine("triton", device).scale(tensors, torch.tensor(0.5, dtype=F64, device=device))
    for ours, right in zip(tensors, expected, strict=True):
        assert torch.equal(ours, right)


def test_more_partial_sums_than_one_segment_are_added_in_a_fixed_order(device):
    engine = select_engine("triton", device)
    partials = torch.randn(1500, 2, dtype=F64, device=device).abs()
    total = engine._total(partials, max_column=1)
    torch.testing.assert_close(total[0], partials[:, 0].sum(), rtol=1e-13, atol=0)
    assert float(total[1]) == float(partials[:, 1].max())


def test_segments_cover_every_row_once_layer_by_layer():
    launches = [
        [PartialRows(0, 8, np.array([0, 0, 2])), PartialRows(24, 1, np.array([1, 2, 2]))],
        [],
        [PartialRows(0, 1, np.repeat(1, 1300))],
    ]
    by_matrix, by_layer = segment_tables(launches, layers=4)
    sizes = [27, 0, 1300]
    owner = {}
    for matrix, (segments, size) in enumerate(zip(by_matrix, sizes, strict=True)):
        rows = np.zeros(size, int)
        for begin, end, number in segments.T:
            rows[begin:end] += 1
            owner[int(number)] = matrix
        assert (rows == 1).all() and (segments[1] - segments[0] <= 512).all()
    assert sorted(owner) == list(range(7))
    assert by_layer.tolist() == [[0, 1, 5, 7, 0], [1, 5, 7, 7, 7], [0, 1, 2, 3, 4]]


# ---------------------------------------------------------------- operators of torch


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (list_norms, lambda x: ([x, 2 * x],)),
        (list_dots, lambda x: ([x, x + 1], [x, x, 2 * x, 3 * x])),
        (list_sketch, lambda x: ([x], 128, 3)),
        (list_scale_, lambda x: ([x.clone(), x + 1], torch.tensor(0.5, dtype=F64, device=x.device))),
    ],
    ids=["norms", "dots", "sketch", "scale"],
)
def test_operators_are_registered_as_torch_demands(device, operator, arguments):
    torch.library.opcheck(operator, arguments(torch.randn(300, device=device)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of the compiler's own
def test_list_calls_stay_whole_under_compile(device):
    a, b = ([torch.randn(n, device=device) for n in (300, 7)] for _ in range(2))

    def statistics(a, b):
        return fastgeom.norm(a) + fastgeom.dot(a, b) + fastgeom.cosine(a, b), fastgeom.window_dots(a, [b, a])

    compiled = torch.compile(statistics, fullgraph=True, backend="aot_eager")
    for ours, expected in zip(compiled(a, b), statistics(a, b), strict=True):
        torch.testing.assert_close(ours, expected)


# ---------------------------------------------------------------- what may run where


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    with pytest.raises(ValueError, match=r"^backend: expected tensors on cpu, cuda or xpu, got meta$"):
        select_engine(None, torch.device("meta"))
    with pytest.raises(ValueError, match=r"^backend: expected tensors on the CPU for 'cpu', got cuda:0$"):
        select_engine("cpu", torch.device("cuda:0"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"^backend: expected tensors on a GPU for 'triton', got cpu; .*INTERPRET=1"):
        fastgeom.Probe(torch.nn.Linear(2, 2), backend="triton")


def test_too_wide_a_deferred_window_or_a_float64_gradient_in_one_is_refused(device):
    weight = torch.nn.Parameter(torch.zeros(3, device=device))
    with pytest.raises(ValueError, match=r"^history defer: expected window \+ defer of at most 128 .*, got 120 \+ 9$"):
        fastgeom.Probe([("w", weight)], window=120, backend="triton", history=fastgeom.Exact(defer=9))
    for backend in ("cpu", "triton"):
        wide = torch.nn.Parameter(torch.zeros(3, dtype=F64, device=device if backend == "triton" else "cpu"))
        wide.grad = torch.ones_like(wide)
        with pytest.raises(
            ValueError, match=r"^history defer: expected gradients of 16 or 32 bits, got float64 in 'w'"
        ):
            fastgeom.Probe([("w", wide)], window=2, backend=backend, history=fastgeom.Exact(defer=2)).step()


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize(
    "history", [fastgeom.Exact(), fastgeom.Exact(defer=2), fastgeom.Sketch(size=256, stored_size=128)]
)
def test_torch_s_defaults_of_dtype_and_device_change_nothing(tmp_path, device, backend, history):
    weight = torch.nn.Parameter(torch.ones(300, device=device if backend == "triton" else "cpu"))
    weight.grad = torch.ones_like(weight)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with (
            torch.device("meta"),
            fastgeom.Probe(
                [("w", weight)],
                window=2,
                trace=tmp_path / "run.h5",
                backend=backend,
                history=history,
                track_updates=True,
            ) as probe,
        ):
            for _ in range(3):
                probe.step(max_norm=1e9)
    finally:
        torch.set_default_dtype(before)
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    np.testing.assert_allclose(trace.lag_cosine[2], [1, 1], rtol=1e-6)
    np.testing.assert_allclose(trace.grad_sq, 300, rtol=1e-6)

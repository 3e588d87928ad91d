"""`scale_sweep` against quadratics that are solved by hand, and what it leaves behind."""

import gc
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgeom import ScaleSweep, reference, scale_sweep
from tests.support import assert_same_bits

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
SCALES = [1e-3, 0.05, 0.2, 0.3, 0.7, 4.0, 100.0]


class Bowl:
    """The loss ½ Σ λ x², with a closure that counts its calls."""

    def __init__(self, parameters: list[Tensor], curvatures: list[Tensor]) -> None:
        self.parameters, self.curvatures, self.calls = parameters, curvatures, 0

    def __call__(self) -> Tensor:
        self.calls += 1
        for parameter in self.parameters:
            parameter.grad = None
        loss = 0.5 * sum((c * p**2).sum() for c, p in zip(self.curvatures, self.parameters, strict=True))
        loss.backward()
        return loss

    def gradient(self, points: list[Tensor]) -> list[Tensor]:
        return [c * p.detach() for c, p in zip(self.curvatures, points, strict=True)]


def bowl(dtype: torch.dtype = F64) -> Bowl:
    shapes = [(7, 5), (), (11,)]
    parameters = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    return Bowl(parameters, [3 * torch.rand(shape, dtype=dtype) + 0.1 for shape in shapes])


# ---------------------------------------------------------------- numbers


def test_a_quadratic_gives_the_closed_forms() -> None:
    f = bowl()
    x = [p.detach().clone() for p in f.parameters]
    sweep = scale_sweep(f, f.parameters, SCALES)
    g = f.gradient(x)
    k = sum(float((c * u * u).sum()) for c, u in zip(f.curvatures, g, strict=True)) / reference.dot(g, g)
    assert 1 < k < 3.1
    np.testing.assert_allclose(sweep.curvature, k, rtol=1e-12)
    for place, s in enumerate(SCALES):
        there = [u * (1 - s * c) for u, c in zip(g, f.curvatures, strict=True)]
        moved = [a - s * u for a, u in zip(x, g, strict=True)]
        step = [-s * u for u in g]
        assert float(sweep.cosine[place]) == pytest.approx(reference.cosine(g, there), abs=1e-13)
        assert float(sweep.grad_norm[place]) == pytest.approx(reference.norm(there), rel=1e-13)
        assert float(sweep.displacement[place]) == pytest.approx(s * reference.norm(g), rel=1e-12)
        expected = 0.5 * sum(float((c * p**2).sum()) for c, p in zip(f.curvatures, moved, strict=True))
        assert float(sweep.loss[place]) == pytest.approx(expected, rel=1e-13)
        curvature = reference.directional_curvature(g, there, step)
        assert float(sweep.curvature[place]) == pytest.approx(curvature, rel=1e-12)
    assert float(sweep.start_grad_norm) == pytest.approx(reference.norm(g), rel=1e-14)
    assert float(sweep.start_loss) == float(f().detach())


def test_the_cosine_changes_sign_where_scale_times_curvature_is_one() -> None:
    f = bowl()
    curvature = float(scale_sweep(f, f.parameters, [1.0]).curvature[0])
    near = [(1 - 1e-9) / curvature, (1 + 1e-9) / curvature]
    below, above = scale_sweep(f, f.parameters, near).cosine.tolist()
    assert 0 < below < 1e-8 and -1e-8 < above < 0
    far = scale_sweep(f, f.parameters, [1e-7, 1e7]).cosine.tolist()
    assert far[0] == pytest.approx(1, abs=1e-12)
    g = f.gradient(f.parameters)
    hg = f.gradient(g)
    assert far[1] == pytest.approx(-reference.cosine(g, hg), abs=1e-6)


def test_a_curve_that_is_no_quadratic_is_averaged_over_the_step() -> None:
    x = torch.tensor([1.0], dtype=F64, requires_grad=True)

    def quartic() -> Tensor:
        x.grad = None
        loss = (x**4).sum()
        loss.backward()
        return loss

    sweep = scale_sweep(quartic, [x], [1e-6, 0.1])
    assert float(sweep.curvature[0]) == pytest.approx(12, rel=1e-4)  # f'' at 1
    assert float(sweep.curvature[1]) == pytest.approx((4 - 4 * 0.6**3) / (0.1 * 4), rel=1e-12)


def test_scales_stand_in_the_order_given_and_every_field_is_float64() -> None:
    f = bowl(F32)
    scales = np.array([0.5, 0.01, 0.5])
    sweep = scale_sweep(f, iter(f.parameters), scales)
    assert f.calls == 4
    assert sweep.scales.tolist() == scales.tolist()
    for name in ("scales", "cosine", "grad_norm", "curvature", "displacement", "loss"):
        value = getattr(sweep, name)
        assert value.dtype is F64 and value.shape == (3,) and not value.requires_grad
        assert value[0] == value[2] != value[1]
    for value in (sweep.start_grad_norm, sweep.start_loss):
        assert value.dtype is F64 and value.shape == () and not value.requires_grad


def test_a_network_s_curvature_is_the_rayleigh_quotient_of_its_hessian() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)).double()
    x, y = torch.randn(20, 4, dtype=F64), torch.randn(20, 2, dtype=F64)
    parameters = list(model.parameters())

    def closure() -> Tensor:
        model.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    g = torch.autograd.grad((model(x) - y).square().mean(), parameters, create_graph=True)
    hg = torch.autograd.grad(g, parameters, grad_outputs=[u.detach() for u in g])
    rayleigh = reference.dot(g, hg) / reference.dot(g, g)
    assert float(scale_sweep(closure, parameters, [1e-5]).curvature[0]) == pytest.approx(rayleigh, rel=1e-3)


def test_without_a_gradient_there_is_no_angle() -> None:
    x = torch.ones(3, requires_grad=True)
    for closure in (lambda: None, lambda: (0 * x).sum().backward()):
        sweep = scale_sweep(closure, [x], [0.1, 1.0])
        assert sweep.cosine.isnan().all() and sweep.curvature.isnan().all()
        assert sweep.grad_norm.tolist() == [0, 0] == sweep.displacement.tolist() and float(sweep.start_grad_norm) == 0
        assert sweep.loss is None and sweep.start_loss is None


def test_a_parameter_without_gradient_counts_as_zero_and_stays() -> None:
    f = bowl()
    alone = scale_sweep(f, f.parameters, SCALES)
    unused, frozen = torch.ones(4, dtype=F64, requires_grad=True), torch.ones(2, dtype=F64)
    together = scale_sweep(f, [unused, *f.parameters, frozen], SCALES)
    for name in ("cosine", "grad_norm", "displacement"):  # sums of more tensors add up in another order
        torch.testing.assert_close(getattr(together, name), getattr(alone, name), rtol=1e-14, atol=1e-15)
    assert unused.grad is None and frozen.grad is None


def test_a_parameter_given_twice_counts_once() -> None:
    f = bowl()
    assert_same_bits(scale_sweep(f, f.parameters * 2, SCALES).grad_norm, scale_sweep(f, f.parameters, SCALES).grad_norm)


@pytest.mark.parametrize("returned", [2.5, np.float64(2.5), torch.tensor([[2.5]]), torch.tensor(2.5, dtype=BF16)])
def test_a_loss_may_be_any_number(returned) -> None:
    f = bowl()
    sweep = scale_sweep(lambda: (f(), returned)[1], f.parameters, [0.1])
    assert sweep.loss.tolist() == [2.5] and float(sweep.start_loss) == 2.5


def test_a_closure_that_never_clears_gradients_gives_the_same() -> None:
    f = bowl()
    expected = scale_sweep(f, f.parameters, SCALES)

    def sums_up() -> None:
        assert all(p.grad is None for p in f.parameters)
        (0.5 * sum((c * p**2).sum() for c, p in zip(f.curvatures, f.parameters, strict=True))).backward()

    assert_same_bits(scale_sweep(sums_up, f.parameters, SCALES).cosine, expected.cosine)


def test_a_closure_whose_gradients_share_one_memory_gives_the_same() -> None:
    """As those of DistributedDataParallel do with ``gradient_as_bucket_view``."""
    f = bowl()
    expected = scale_sweep(f, f.parameters, SCALES)
    buffers = [torch.empty_like(p) for p in f.parameters]

    def closure() -> Tensor:
        loss = f()
        for parameter, buffer in zip(f.parameters, buffers, strict=True):
            parameter.grad = buffer.copy_(parameter.grad)
        return loss

    assert_same_bits(scale_sweep(closure, f.parameters, SCALES).cosine, expected.cosine)


def test_the_closure_runs_with_gradients_on_where_they_are_off() -> None:
    f = bowl()
    expected = scale_sweep(f, f.parameters, SCALES)
    with torch.no_grad():
        assert_same_bits(scale_sweep(f, f.parameters, SCALES).cosine, expected.cosine)


# ---------------------------------------------------------------- dtypes and memory


@pytest.mark.parametrize(("dtype", "unit"), [(F32, 2.0**-24), (BF16, 2.0**-9), (F16, 2.0**-12)], ids=str)
def test_displacement_tells_where_a_step_is_below_what_the_dtype_resolves(dtype, unit) -> None:
    x = torch.full((1000,), 1.0, dtype=dtype, requires_grad=True)

    def closure() -> Tensor:
        x.grad = None
        loss = 0.5 * (x**2).sum()
        loss.backward()
        return loss

    sweep = scale_sweep(closure, [x], [unit / 2, 2 * unit, 0.5])
    root = math.sqrt(1000)
    assert float(sweep.displacement[0]) == 0 and float(sweep.curvature[0]) == 0
    np.testing.assert_allclose(sweep.displacement[1:], [2 * unit * root, 0.5 * root], rtol=1e-6)
    np.testing.assert_allclose(sweep.curvature[1:], 1, rtol=1e-6)
    np.testing.assert_allclose(sweep.cosine, 1, rtol=1e-6)


def test_dtypes_and_memory_orders_may_be_mixed() -> None:
    weights = [
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(6, 4).t(),
        torch.randn(8, dtype=BF16),
        torch.randn(9, 6, dtype=F64)[:, ::2],
    ]
    f = Bowl([w.requires_grad_() for w in weights], [torch.rand_like(w) + 0.5 for w in weights])
    before = [w.detach().clone() for w in weights]
    strides, addresses = [w.stride() for w in weights], [w.data_ptr() for w in weights]
    g = f.gradient(weights)
    sweep = scale_sweep(f, weights, [0.25, 2.0])
    for place, s in enumerate((0.25, 2.0)):
        there = f.gradient([(x - s * u).to(x.dtype) for x, u in zip(before, g, strict=True)])
        assert float(sweep.cosine[place]) == pytest.approx(reference.cosine(g, there), abs=1e-3)  # bfloat16's gradient
    for weight, x in zip(weights, before, strict=True):
        assert_same_bits(weight.detach(), x)
    assert [w.stride() for w in weights] == strides and [w.data_ptr() for w in weights] == addresses


def test_it_holds_two_copies_and_no_more() -> None:
    size = 12_345
    x = torch.randn(size, requires_grad=True)
    seen, kinds = [], (Tensor, torch.nn.Parameter)

    def closure() -> Tensor:
        found = {o.data_ptr() for o in gc.get_objects() if type(o) in kinds and o.numel() == size}
        seen.append(len(found))
        loss = (x**2).sum()
        loss.backward()
        return loss

    scale_sweep(closure, [x], [0.1, 0.2, 0.3])
    assert seen == [2, 3, 3, 3]  # the parameter and its copy; then g too


# ---------------------------------------------------------------- what it leaves behind


def prepared() -> tuple[Bowl, list[Tensor], list[Tensor | None], list[Tensor | None]]:
    """Parameters with awkward bits, of which one has a gradient, and copies of all of it."""
    f = bowl(F32)
    with torch.no_grad():
        f.parameters[0][0] = torch.tensor([1e-30, -0.0, 1e30, 0.1, 1e-45])
    f.parameters[2].grad = torch.randn(11)
    gradients = [p.grad for p in f.parameters]
    copies = [None if g is None else g.clone() for g in gradients]
    return f, [p.detach().clone() for p in f.parameters], gradients, copies


def assert_untouched(f: Bowl, x: list[Tensor], gradients: list[Tensor | None], copies: list[Tensor | None]) -> None:
    for parameter, bits, gradient, copy in zip(f.parameters, x, gradients, copies, strict=True):
        assert torch.equal(parameter.detach().view(torch.int32), bits.view(torch.int32))
        assert parameter.grad is gradient and parameter.requires_grad and parameter.is_leaf
        if gradient is not None and copy is not None:
            assert_same_bits(gradient, copy)


def test_parameters_and_gradients_are_what_they_were() -> None:
    f, *before = prepared()
    scale_sweep(f, f.parameters, [1e-3, 0.1, 7.0])
    assert_untouched(f, *before)


def test_adding_the_step_back_would_not_have_been_enough() -> None:
    f, x, *_ = prepared()
    g = f.gradient(x)
    assert any((a - 7 * u + 7 * u != a).any() for a, u in zip(x, g, strict=True))


@pytest.mark.parametrize("last", [1, 2, 4])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_they_are_after_an_exception_too(error, last) -> None:
    f, *before = prepared()

    def fails() -> Tensor:
        loss = f()
        if f.calls == last:
            raise error("at this point")
        return loss

    with pytest.raises(error, match="at this point"):
        scale_sweep(fails, f.parameters, [0.1, 0.2, 0.3, 0.4])
    assert f.calls == last
    assert_untouched(f, *before)


@pytest.mark.parametrize("loss", [torch.ones(2), torch.ones(1, dtype=torch.complex64)])
def test_they_are_after_a_loss_that_is_no_number(loss) -> None:
    f, *before = prepared()
    with pytest.raises(ValueError, match=r"^closure: expected it to return one number, got a tensor of shape"):
        scale_sweep(lambda: (f(), loss)[1], f.parameters, [0.1])
    assert_untouched(f, *before)


def test_a_closure_that_zeroes_in_place_leaves_the_gradients_set_aside_alone() -> None:
    f, *before = prepared()
    optimizer = torch.optim.SGD(f.parameters, lr=0.1)

    def closure() -> None:
        optimizer.zero_grad(set_to_none=False)
        (0.5 * sum((c * p**2).sum() for c, p in zip(f.curvatures, f.parameters, strict=True))).backward()

    scale_sweep(closure, f.parameters, [0.1, 1.0])
    assert_untouched(f, *before)


def test_a_sparse_gradient_is_refused_by_place() -> None:
    table = torch.nn.Embedding(5, 3, sparse=True)
    before = table.weight.detach().clone()
    with pytest.raises(TypeError, match=r"^gradient of parameters\[0\]: expected a dense tensor, got layout"):
        scale_sweep(lambda: table(torch.tensor([1])).sum().backward(), table.parameters(), [0.1])
    assert_same_bits(table.weight.detach(), before)


def never() -> ScaleSweep:
    raise AssertionError("bad input is found before the closure runs")


LEAF = torch.ones(3, requires_grad=True)
BAD_PARAMETERS: dict[str, tuple[object, type[Exception], str]] = {
    "none": ([], ValueError, r"parameters: expected at least one, got none"),
    "one tensor": (LEAF, TypeError, r"parameters: expected an iterable of parameters, .*, got Tensor"),
    "module": (torch.nn.Linear(2, 1), TypeError, r"parameters: expected .* model.parameters\(\), got Linear"),
    "pairs": ([("w", LEAF)], TypeError, r"parameters\[0\]: expected a tensor, got tuple"),
    "no leaf": ([LEAF, LEAF * 2], ValueError, r"parameters\[1\]: expected a leaf tensor, got the result of <MulB"),
    "expanded": ([torch.ones(1).expand(3)], ValueError, r"parameters\[0\]: expected each element in a place of its"),
    "integer": ([torch.ones(3).int()], TypeError, r"parameters\[0\]: expected dtype float32, .*, got int32"),
    "elsewhere": (
        [torch.ones(3, device="meta")],
        ValueError,
        r"parameters\[0\]: expected tensors on cpu, .*, got meta",
    ),
}


@pytest.mark.parametrize(("parameters", "error", "message"), BAD_PARAMETERS.values(), ids=BAD_PARAMETERS)
def test_bad_parameters_are_named(parameters, error, message) -> None:
    with pytest.raises(error, match=f"^{message}"):
        scale_sweep(never, parameters, [0.1])


BAD_SCALES: dict[str, tuple[object, type[Exception], str]] = {
    "none": ([], ValueError, r"scales: expected at least one, got none"),
    "one number": (0.1, TypeError, r"scales: expected a sequence of numbers on the host, got float"),
    "a tensor": (torch.ones(3), TypeError, r"scales: expected a sequence of numbers on the host, got Tensor"),
    "of tensors": ([torch.tensor(0.1)], TypeError, r"scales\[0\]: expected a number on the host, got Tensor"),
    "text": (["0.1"], TypeError, r"scales\[0\]: expected a number on the host, got str"),
    "zero": ([0.1, 0.0], ValueError, r"scales\[1\]: expected a finite number above 0, got 0.0"),
    "below": ([-1.0], ValueError, r"scales\[0\]: expected a finite number above 0, got -1.0"),
    "infinite": ([math.inf], ValueError, r"scales\[0\]: expected a finite number above 0, got inf"),
    "nan": ([math.nan], ValueError, r"scales\[0\]: expected a finite number above 0, got nan"),
}


@pytest.mark.parametrize(("scales", "error", "message"), BAD_SCALES.values(), ids=BAD_SCALES)
def test_bad_scales_are_named(scales, error, message) -> None:
    with pytest.raises(error, match=f"^{message}"):
        scale_sweep(never, [LEAF], scales)


def test_a_point_where_the_gradient_is_not_finite_says_so() -> None:
    x = torch.tensor([1.0], requires_grad=True)

    def closure() -> Tensor:
        x.grad = None
        loss = x.sqrt().sum()
        loss.backward()
        return loss

    sweep = scale_sweep(closure, [x], [0.5, 4.0])
    assert sweep.cosine.isfinite().tolist() == [True, False] and sweep.loss.isnan().tolist() == [False, True]
    assert x.tolist() == [1.0]


def test_it_is_taken_from_a_closure_written_for_lbfgs() -> None:
    f = bowl()
    optimizer = torch.optim.LBFGS(f.parameters)
    closure: Callable[[], Tensor] = f
    first = scale_sweep(closure, optimizer.param_groups[0]["params"], [0.1])
    optimizer.step(closure)
    assert float(scale_sweep(closure, f.parameters, [0.1]).start_loss) < float(first.start_loss)

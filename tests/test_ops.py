"""The calls on lists of tensors against `fastgeom.reference`, and clipping against torch's own."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgeom import clip_grad_norm_, cosine, count_sketch, dot, norm, reference, window_dots
from fastgeom.ops import clip_coefficient
from tests.support import assert_accurate, assert_same_bits, random_tensor

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
EVERY_DTYPE = pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
SHAPES = [(70_001,), (3, 5), (), (0,), (1,), (2, 3, 4, 5)]


def tensors(*dtypes: torch.dtype) -> list[Tensor]:
    """One tensor of each shape; the dtypes in turn."""
    return [random_tensor(math.prod(shape), dtypes[i % len(dtypes)]).reshape(shape) for i, shape in enumerate(SHAPES)]


def assert_norm(ours: Tensor, of: list[Tensor]) -> None:
    assert ours.dtype is F64 and ours.shape == ()
    assert_accurate(float(ours.square()), reference.dot(of, of), torch.square, of)


def assert_dot(ours: Tensor, a: list[Tensor], b: list[Tensor]) -> None:
    assert ours.dtype is F64 and ours.shape == ()
    assert_accurate(float(ours), reference.dot(a, b), torch.mul, a, b)


# ---------------------------------------------------------------- norm, dot, cosine, window_dots


@EVERY_DTYPE
def test_norm_dot_and_cosine_are_the_reference_s(dtype) -> None:
    a, b = tensors(dtype), tensors(dtype)
    assert_norm(norm(a), a)
    assert_dot(dot(a, b), a, b)
    # The dot is off by at most 2^-22 of |a||b| (the floor of `support`), each norm by half of that of itself.
    assert abs(float(cosine(a, b)) - reference.cosine(a, b)) <= 2 * 2.0**-22
    assert cosine(a, b).dtype is F64 and cosine(a, b).shape == ()


def test_dtypes_may_differ_within_a_list_and_between_the_two() -> None:
    a, b = tensors(F32, BF16), tensors(F32, F32, F32, F64)
    assert {(x.dtype, y.dtype) for x, y in zip(a, b, strict=True)} == {(F32, F32), (BF16, F32), (BF16, F64)}
    # One pair computes in float64 and the large ones do not: bound the list by its float32 part.
    for ours, truth in ((dot(a, b), reference.dot(a, b)), (dot(b, a), reference.dot(b, a))):
        assert abs(float(ours) - truth) <= 2.0**-22 * reference.norm(a) * reference.norm(b)
    assert abs(float(norm(b)) / reference.norm(b) - 1) <= 2.0**-22


def test_a_vector_is_at_cosine_one_to_itself_and_minus_one_to_its_negative() -> None:
    a = tensors(F32)
    assert abs(float(cosine(a, a)) - 1) <= 2.0**-22
    assert abs(float(cosine(a, [-t for t in a])) + 1) <= 2.0**-22
    assert float(cosine([torch.tensor([1.0, 0.0])], [torch.tensor([0.0, 1.0])])) == 0


def test_cosine_is_nan_where_a_norm_is_zero() -> None:
    assert cosine([torch.zeros(3)], [torch.ones(3)]).isnan()
    assert cosine([torch.ones(3)], [torch.zeros(3)]).isnan()
    assert cosine([], []).isnan()


def test_an_empty_list_has_norm_zero_and_dot_zero() -> None:
    for nothing in ([], [torch.zeros(0)], iter(())):
        assert_same_bits(norm(nothing), torch.zeros((), dtype=F64))
    assert_same_bits(dot([], []), torch.zeros((), dtype=F64))
    assert_same_bits(window_dots([], [[], []]), torch.zeros(2, dtype=F64))
    assert_same_bits(window_dots(tensors(F32), []), torch.zeros(0, dtype=F64))


def test_window_dots_of_rows_of_differing_dtypes_stand_in_the_order_of_the_history() -> None:
    g = tensors(BF16)
    history = [tensors(dtype) for dtype in (BF16, F32, BF16, F32, F32)]
    ours = window_dots(g, history)
    assert ours.dtype is F64 and ours.shape == (5,)
    for found, truth, row in zip(ours, reference.window_dots(g, history), history, strict=True):
        assert_accurate(float(found), truth, torch.mul, g, row)


def test_generators_are_taken_as_lists_are() -> None:
    a, b = tensors(F32), tensors(F32)
    assert_same_bits(norm(t for t in a), norm(a))
    assert_same_bits(dot(iter(a), iter(b)), dot(a, b))
    assert_same_bits(cosine(iter(a), iter(b)), cosine(a, b))
    assert_same_bits(window_dots(iter(a), [iter(b), iter(a)]), window_dots(a, [b, a]))


MEMORY_ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "every second": lambda t: t.repeat_interleave(2, dim=3)[..., ::2],
    "negated view": lambda t: torch._neg_view(-t),
    "permuted, with gaps": lambda t: t.permute(2, 0, 3, 1).repeat(1, 1, 2, 1)[:, :, :5].permute(1, 3, 0, 2),
}


@pytest.mark.parametrize("of_b", MEMORY_ORDERS)
@pytest.mark.parametrize("of_a", MEMORY_ORDERS)
def test_elements_are_paired_by_their_indices_whatever_their_order_in_memory(of_a, of_b) -> None:
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    other_a, other_b = MEMORY_ORDERS[of_a](a), MEMORY_ORDERS[of_b](b)
    assert torch.equal(a, other_a) and torch.equal(b, other_b)
    assert_dot(dot([other_a], [other_b]), [a], [b])
    assert_norm(norm([other_a]), [a])


def test_an_expanded_tensor_counts_every_element() -> None:
    row, full = torch.randn(5), torch.randn(3, 5)
    expanded = row.expand(3, 5)
    assert_dot(dot([expanded], [full]), [expanded], [full])
    assert_dot(dot([full], [expanded]), [expanded], [full])
    assert_norm(norm([expanded]), [expanded])


def test_tensors_that_require_gradients_are_measured_and_their_graph_is_left_alone() -> None:
    leaf = torch.randn(5, requires_grad=True)
    result = leaf * 2
    for measured in (norm([leaf, result]), dot([leaf], [result]), cosine([leaf], [result])):
        assert not measured.requires_grad
    assert leaf.grad is None and leaf.requires_grad and result.grad_fn is not None
    assert_norm(norm([leaf, result]), [leaf, result])


@EVERY_DTYPE
def test_nothing_that_is_measured_is_changed(dtype) -> None:
    a, b = tensors(dtype), tensors(dtype)
    before = [t.clone() for t in a + b]
    norm(a), dot(a, b), cosine(a, b), window_dots(a, [b, a])
    for t, u in zip(a + b, before, strict=True):
        assert_same_bits(t, u)


def test_nan_and_inf_come_through() -> None:
    assert float(norm([torch.tensor([1.0, math.inf])])) == math.inf
    assert norm([torch.tensor([1.0, math.nan]), torch.ones(2)]).isnan()
    assert float(dot([torch.tensor([math.inf])], [torch.tensor([-1.0])])) == -math.inf


class Sharded(torch.Tensor):
    """What tells a DTensor from others."""

    placements = ()


BAD = {
    "sparse": (torch.ones(3).to_sparse(), r"expected a dense tensor, got layout torch.sparse_coo"),
    "complex": (torch.ones(3, dtype=torch.complex64), r"expected dtype float32, .*, got complex64"),
    "integer": (torch.ones(3, dtype=torch.int64), r"expected dtype float32, .*, got int64"),
    "8-bit": (torch.ones(3).to(torch.float8_e4m3fn), r"expected dtype float32, .*, got float8_e4m3fn"),
    "sharded": (torch.ones(3).as_subclass(Sharded), r"expected a plain tensor, got a DTensor"),
    "no tensor": (3.0, r"expected a tensor, got float"),
}


@pytest.mark.parametrize(("bad", "message"), BAD.values(), ids=BAD)
def test_a_tensor_that_cannot_be_measured_is_named_by_its_place(bad, message) -> None:
    good = torch.ones(3)
    with pytest.raises(TypeError, match=rf"^tensors\[1\]: {message}"):
        norm([good, bad])
    with pytest.raises(TypeError, match=rf"^a\[0\]: {message}"):
        dot([bad], [good])
    with pytest.raises(TypeError, match=rf"^b\[0\]: {message}"):
        cosine([good], [bad])
    with pytest.raises(TypeError, match=rf"^history\[1\]\[0\]: {message}"):
        window_dots([good], [[good], [bad]])


def test_a_bare_tensor_in_the_place_of_a_list_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^tensors: expected a list of tensors, got one tensor; write \[tensor\]$"):
        norm(torch.ones(3))
    with pytest.raises(TypeError, match=r"^b: expected a list of tensors, got one tensor"):
        dot([torch.ones(3)], torch.ones(3))


def test_lists_of_other_lengths_or_shapes_are_refused() -> None:
    one, two = [torch.ones(3)], [torch.ones(3), torch.ones(3)]
    with pytest.raises(ValueError, match=r"^b: expected 1 tensors to pair with, got 2$"):
        dot(one, two)
    with pytest.raises(ValueError, match=r"^b: expected 2 tensors to pair with, got 1$"):
        cosine(two, one)
    with pytest.raises(ValueError, match=r"^history\[1\]\[0\]: expected shape \(3,\), got \(3, 1\)$"):
        window_dots(one, [one, [torch.ones(3, 1)]])


def test_two_devices_are_refused() -> None:
    here, there = torch.ones(3), torch.ones(3, device="meta")
    with pytest.raises(ValueError, match=r"^tensors: expected all on one device, got cpu and meta$"):
        norm([here, there])
    with pytest.raises(ValueError, match=r"^b: expected tensors on cpu, cuda or xpu, got meta$"):
        dot([here], [there])
    with pytest.raises(ValueError, match=r"^tensors: expected tensors on cpu, cuda or xpu, got meta$"):
        norm([there])


# ---------------------------------------------------------------- count_sketch


def test_size_and_seed_of_a_sketch_may_be_numpys_integers() -> None:
    a = tensors(F32)
    assert_same_bits(count_sketch(a, size=np.int64(256), seed=np.int64(3)), count_sketch(a, size=256, seed=3))
    assert_same_bits(count_sketch([], size=np.int64(256)), torch.zeros(256))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of the compiler's own
def test_a_sketch_is_one_operator_under_compile() -> None:
    def sketches(a: list[Tensor], size: int, seed: int) -> tuple[Tensor, Tensor]:
        return count_sketch(a, size, seed), count_sketch(a, size=256)

    a = tensors(F32, BF16)
    compiled = torch.compile(sketches, fullgraph=True, backend="aot_eager")
    for size, seed in ((128, 0), (256, 1), (512, 2)):  # from the second call on, numbers are symbols
        for ours, expected in zip(compiled(a, size, seed), sketches(a, size, seed), strict=True):
            assert_same_bits(ours, expected)


@pytest.mark.parametrize("size", [0, 64, 100, 384, -256, 256.0, "256", True, None, np.float64(256)])
def test_a_size_that_is_no_power_of_two_of_at_least_128_is_refused(size) -> None:
    message = re.escape(f"size: expected a power of two of at least 128, got {size!r}")
    for list_of_tensors in ([torch.ones(3)], []):
        with pytest.raises(ValueError, match=f"^{message}$"):
            count_sketch(list_of_tensors, size=size)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, None])
def test_a_seed_that_is_no_32_bit_number_is_refused(seed) -> None:
    message = re.escape(f"seed: expected 0 <= seed < 2^32, got {seed!r}")
    for list_of_tensors in ([torch.ones(3)], []):
        with pytest.raises(ValueError, match=f"^{message}$"):
            count_sketch(list_of_tensors, size=128, seed=seed)


# ---------------------------------------------------------------- clip_grad_norm_

UNIT = {F32: 2.0**-23, F64: 2.0**-52, BF16: 2.0**-7, F16: 2.0**-10}


def with_gradients(gradients: list[Tensor | None]) -> list[torch.nn.Parameter]:
    parameters = []
    for gradient in gradients:
        like = torch.zeros(2) if gradient is None else gradient
        parameters.append(torch.nn.Parameter(torch.zeros_like(like)))
        parameters[-1].grad = None if gradient is None else gradient.clone()
    return parameters


@pytest.mark.parametrize("norm_type", [1, 2, 2.0, 3.0, math.inf, "inf"])
@pytest.mark.parametrize("max_norm", [0.5, 1e9])
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
def test_clipping_leaves_the_gradients_that_torch_leaves(dtype, max_norm, norm_type) -> None:
    gradients: list[Tensor | None] = [random_tensor(1000, dtype), None, random_tensor(15, dtype).reshape(3, 5)]
    ours, torchs = with_gradients(gradients), with_gradients(gradients)
    total = clip_grad_norm_(ours, max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(torchs, max_norm, norm_type)
    # torch rounds a norm to the gradients' dtype twice, each tensor's and the total; ours is exact or torch's own.
    assert total.dtype is F64 and total.shape == ()
    assert abs(float(total) / float(expected) - 1) <= 2 * UNIT[dtype]
    for a, b in zip(ours, torchs, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None and b.grad is not None:
            # The norm's two roundings again, the coefficient's, and that of the product.
            torch.testing.assert_close(a.grad, b.grad, rtol=4 * UNIT[dtype], atol=0)
    if max_norm > 1e6:
        for parameter, gradient in zip(ours, gradients, strict=True):
            assert gradient is None or torch.equal(parameter.grad, gradient)


def test_the_norm_after_clipping_is_the_one_asked_for() -> None:
    parameters = with_gradients(tensors(F32, F64))
    before = [p.grad.double().clone() for p in parameters]
    total = float(clip_grad_norm_(parameters, 0.5))
    coefficient = reference.clip_coefficient(reference.norm(before), 0.5)
    # float32 rounds: the elements once (2^-24), the sums of our norm (2^-22 of its square)
    assert abs(total / reference.norm(before) - 1) <= 2.0**-22
    for parameter, g in zip(parameters, before, strict=True):
        torch.testing.assert_close(parameter.grad.double(), coefficient * g, rtol=2.0**-21, atol=0)
    assert abs(reference.norm([p.grad for p in parameters]) - 0.5) <= 0.5 * 2.0**-20


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_do_to_gradients_what_they_do_in_torch(bad, norm_type) -> None:
    gradients: list[Tensor | None] = [torch.tensor([1.0, bad, -2.0]), torch.tensor([3.0, 0.0])]
    ours, torchs = with_gradients(gradients), with_gradients(gradients)
    total = clip_grad_norm_(ours, 0.5, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(torchs, 0.5, norm_type)
    torch.testing.assert_close(total, expected.double(), rtol=0, atol=0, equal_nan=True)
    for a, b in zip(ours, torchs, strict=True):
        assert_same_bits(a.grad, b.grad)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_raises_on_request_and_leaves_the_gradients_alone(bad, norm_type) -> None:
    parameters = with_gradients([torch.tensor([1.0, bad])])
    with pytest.raises(RuntimeError, match=r"^gradients: expected a finite norm of order .*, got (nan|inf)$"):
        clip_grad_norm_(parameters, 0.5, norm_type, error_if_nonfinite=True)
    assert_same_bits(parameters[0].grad, torch.tensor([1.0, bad]))
    assert float(clip_grad_norm_(with_gradients([torch.ones(4)]), 9.0, norm_type, error_if_nonfinite=True)) > 0


def test_without_gradients_the_norm_is_zero() -> None:
    for parameters in ([], with_gradients([None, None]), torch.ones(3, requires_grad=True)):
        assert_same_bits(clip_grad_norm_(parameters, 1.0), torch.zeros((), dtype=F64))


def test_one_tensor_a_list_and_a_generator_are_all_taken() -> None:
    (one,), many, same = (with_gradients([torch.tensor([3.0, 4.0])]) for _ in range(3))
    assert float(clip_grad_norm_(one, 1.0)) == 5
    assert float(clip_grad_norm_(many, 1.0)) == 5
    assert float(clip_grad_norm_((p for p in same), 1.0)) == 5
    for parameter in (one, *many, *same):
        torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8]), rtol=3 * 2.0**-23, atol=0)


def test_foreach_changes_nothing() -> None:
    results = []
    for foreach in (None, True, False):
        parameters = with_gradients([random_tensor(9, F32) * 0 + 3])
        clip_grad_norm_(parameters, 1.0, foreach=foreach)
        results.append(parameters[0].grad)
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


def test_gradients_that_are_part_of_a_graph_are_clipped_outside_of_it() -> None:
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    (x.grad,) = torch.autograd.grad((x**2).sum() / 2, x, create_graph=True)
    assert x.grad.requires_grad and not x.grad.is_leaf
    norm_before = clip_grad_norm_([x], 1.0)
    assert not norm_before.requires_grad
    torch.testing.assert_close(x.grad.detach(), torch.tensor([0.6, 0.8]), rtol=4 * 2.0**-23, atol=0)
    x.grad = torch.ones(2, requires_grad=True)  # a leaf, which autograd lets no one change in its sight
    assert math.isclose(float(clip_grad_norm_([x], 1.0)), math.sqrt(2))
    x.grad = None


def test_gradients_in_any_memory_order_are_clipped_in_place() -> None:
    gradient = torch.randn(2, 3, 4, 5)
    parameters = with_gradients([MEMORY_ORDERS["channels last"](gradient), MEMORY_ORDERS["transposed"](gradient)])
    addresses = [p.grad.data_ptr() for p in parameters]
    total = clip_grad_norm_(parameters, 0.5)
    assert [p.grad.data_ptr() for p in parameters] == addresses
    for parameter in parameters:
        torch.testing.assert_close(parameter.grad, gradient * float(0.5 / (total + 1e-6)), rtol=3 * 2.0**-23, atol=0)


def test_a_gradient_that_cannot_be_measured_is_refused() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3).to_sparse()
    with pytest.raises(TypeError, match=r"^tensors\[0\]: expected a dense tensor, got layout torch.sparse_coo"):
        clip_grad_norm_([parameter], 1.0)


@pytest.mark.parametrize("total", [0.0, 1e-9, 0.999, 1.0, 7.0, 1e30])
def test_the_clip_coefficient_is_the_reference_s(total) -> None:
    ours = clip_coefficient(torch.tensor(total, dtype=F64), 1.0)
    assert float(ours) == reference.clip_coefficient(total, 1.0)

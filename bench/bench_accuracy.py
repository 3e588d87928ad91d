"""Error of a norm and of a dot product, of ours and of others, against the exact value.

The error of a norm is that of its square, relative: |x^2 - exact| / exact. The error of a dot product is
|x - exact| / (|a| |b|), the error of the cosine, which no cancellation inflates. Where all but about 1e-8 of
|a| |b| cancels, |x - exact| / |exact| stands beside it as the relative error; at 1 not even the sign is known.

Ours is given all elements in one tensor and in 400, most of which begin at no multiple of 16 bytes; the worse counts.
torch sees the same memory on the same device. numpy and the compensated sum see it on the host; bfloat16, which they do
not have, as float32. "numpy" is BLAS for both statistics, "numpy sum" the pairwise sum of float32 products. "torch
float64" is how plain torch reaches our accuracy: a norm with ``dtype=``, a dot product of float64 copies.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

import fastgeom
from bench.common.summation import compensated_dot, exact_dot, host_array
from bench.common.timing import Bench

SIZES = [10**power for power in range(3, 9)]
UNTIMED = 100_000
"""Most elements where nothing is timed."""
TENSORS = 400
CASES = [("float32", size) for size in SIZES] + [("bfloat16", 1_000_000)]

CPU_BOUND = 64 * 2.0**-53
"""Largest error of ours where all is float64: what the tests allow a sum. A sum kept in float32 is off by more than
this 7e-15, be it of 1000 elements."""
CARD_BOUND = 5e-8
"""The same on a card, where short float32 sums are folded into float64: the squares that are most of a sum with heavy
tails are rounded to 24 bits."""

Calls = dict[str, list[Callable[[], float | Tensor]]]
"""Name → calls, each of which returns the statistic."""


@pytest.fixture(scope="module")
def normal(device) -> list[Tensor]:
    """Two vectors of normal numbers, of which every case takes a prefix."""
    generator, most = torch.Generator().manual_seed(0), SIZES[-1] if device.timed else UNTIMED
    return [torch.randn(most, generator=generator).to(device.device) for _ in range(2)]


def pair(normal: list[Tensor], distribution: str, dtype: str, size: int) -> list[Tensor]:
    """Two vectors of that many elements, or of `UNTIMED`; the second in the stated relation to the first."""
    return [x.to(getattr(torch, dtype)) for x in DISTRIBUTIONS[distribution](*(x[:size] for x in normal))]


def heavy_tails(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Log-normal magnitudes exp(2 z) with random signs: 5 decades among 1000 elements, 10 among 1e8."""
    return torch.mul(a, 2).exp_().copysign_(b), torch.mul(b, 2).exp_().copysign_(a)


def cancelling(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A second vector from which the first is taken away but for a cosine of 1e-8, or what rounding it leaves."""
    squares, dot, b_squares = (float(exact_dot(x, y)) for x, y in ((a, a), (a, b), (b, b)))
    return a, torch.add(b, a, alpha=(1e-8 * math.sqrt(squares * b_squares) - dot) / squares)


DISTRIBUTIONS = {
    "normal": lambda a, b: (a, b),
    "heavy tails": heavy_tails,
    "cancelling": cancelling,
    "nearly parallel": lambda a, b: (a, torch.add(a, b, alpha=1e-3)),
}


@pytest.mark.parametrize("distribution", ["normal", "heavy tails"])
@pytest.mark.parametrize(("dtype", "size"), CASES)
def test_norm(bench: Bench, device, normal: list[Tensor], *, distribution: str, dtype: str, size: int) -> None:
    x, _ = pair(normal, distribution, dtype, size)
    on_host, exact = host_array(x), exact_dot(x, x)
    calls = {
        "fastgeom": [lambda: fastgeom.norm([x]), lambda: fastgeom.norm(x.tensor_split(TENSORS))],
        "torch": [lambda: torch.linalg.vector_norm(x)],
        "torch get_total_norm": [lambda: torch.nn.utils.get_total_norm(x.tensor_split(TENSORS))],
        "torch float64": [lambda: torch.linalg.vector_norm(x, dtype=torch.float64)],
        "numpy": [lambda: np.linalg.norm(on_host)],
        "numpy sum": [lambda: np.sqrt(np.sum(on_host * on_host))],
        "compensated float32": [lambda: math.sqrt(compensated_dot(on_host, on_host))],
    }
    errors = largest_errors(calls, lambda value: float(abs(value**2 - exact) / exact))
    case = {"statistic": "norm", "distribution": distribution, "dtype": dtype, "elements": len(x)}
    record(bench, device, calls, errors, **case)


@pytest.mark.parametrize("distribution", list(DISTRIBUTIONS))
@pytest.mark.parametrize(("dtype", "size"), CASES)
def test_dot(bench: Bench, device, normal: list[Tensor], *, distribution: str, dtype: str, size: int) -> None:
    a, b = pair(normal, distribution, dtype, size)
    a_on_host, b_on_host = host_array(a), host_array(b)
    exact, scale = exact_dot(a, b), math.sqrt(exact_dot(a, a) * exact_dot(b, b))
    calls = {
        "fastgeom": [
            lambda: fastgeom.dot([a], [b]),
            lambda: fastgeom.dot(a.tensor_split(TENSORS), b.tensor_split(TENSORS)),
        ],
        "torch": [lambda: torch.dot(a, b)],
        "torch sum": [lambda: torch.sum(a * b)],
        "torch float64": [lambda: torch.dot(a.double(), b.double())],
        "numpy": [lambda: np.dot(a_on_host, b_on_host)],
        "numpy sum": [lambda: np.sum(a_on_host * b_on_host)],
        "compensated float32": [lambda: compensated_dot(a_on_host, b_on_host)],
    }
    errors = largest_errors(calls, lambda value: float(abs(value - exact)) / scale)
    more = {}
    if distribution == "cancelling":
        more["relative_errors"] = {name: error * scale / abs(float(exact)) for name, error in errors.items()}
    case = {"statistic": "dot", "distribution": distribution, "dtype": dtype, "elements": len(a)}
    record(bench, device, calls, errors, **case, **more)


def largest_errors(calls: Calls, error_of: Callable[[Fraction], float]) -> dict[str, float]:
    return {name: max(error_of(Fraction(float(call()))) for call in each) for name, each in calls.items()}


def record(bench: Bench, device, calls: Calls, errors: dict[str, float], **case: object) -> None:
    """Record the errors beside the time of one call of ours; assert that ours is right."""
    bound = CPU_BOUND if device.device.type == "cpu" else CARD_BOUND
    assert errors["fastgeom"] <= bound
    bench.time_once(calls["fastgeom"][0])
    bench.record(kind="accuracy", errors=errors, bound=bound, **case)

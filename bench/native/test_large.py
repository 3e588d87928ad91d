"""More than 2^31 elements in one tensor, and 2e9 in a list, against float64 sums; on a processor few elements."""

import pytest
import torch
from torch import Tensor

import fastgeom
from bench.common import truth
from bench.common.device import Card, Cpu
from bench.common.gradients import fill
from fastgeom.layout.count_sketch import SketchPlan

ROUNDING = 1e-7
"""Relative to the product of the norms."""
MARK = 64.0
"""What the elements around and beyond 2^31 are: a sum that leaves one out is wrong by far more than rounding."""


def marked(x: Tensor, seed: int) -> Tensor:
    """Numbers of this seed, but for the last ten."""
    fill(x, seed)
    x[-10:] = MARK * (seed + 1)
    return x


@pytest.fixture
def large(device: Card | Cpu) -> Tensor:
    """2^31 + 5 elements of 16 bits."""
    n = (1 << (31 if device.kind == "cuda" else 10)) + 5
    return marked(torch.empty(n, dtype=torch.bfloat16, device=device.device), 0)


def test_norm_of_one_large_tensor(large: Tensor) -> None:
    truth.assert_near(float(fastgeom.norm([large])) ** 2, truth.square(large), ROUNDING, "norm squared")


def test_window_of_one_large_tensor(device: Card | Cpu, large: Tensor) -> None:
    options = {"history": fastgeom.Exact(), "backend": device.backend, "gradient": lambda p: p}
    probe = fastgeom.Probe([("x", large)], window=1, **options)
    probe.step()
    before = large.clone()
    marked(large, 1)
    statistics = probe.step()
    scale = truth.square(large)
    truth.assert_near(float(statistics.grad_sq), scale, ROUNDING, "grad_sq")
    truth.assert_near(float(statistics.lag_dot[0]), truth.dot([large], [before]), ROUNDING, "lag_dot", scale)
    truth.assert_near(float(statistics.diff_sq), truth.diff_sq([large], [before]), ROUNDING, "diff_sq", scale)
    assert float(statistics.grad_absmax) == 2 * MARK and int(statistics.nonfinite) == 0
    large[-1] = torch.inf
    assert int(probe.step().nonfinite) == 1


def test_sketch_of_one_large_tensor(device: Card | Cpu, large: Tensor) -> None:
    size = 1 << 18 if device.kind == "cuda" else 256
    sketch = fastgeom.count_sketch([large], size=size, seed=3)
    plan = SketchPlan([len(large)], [0], 1, size, 3)
    exact = truth.count_sketch([large], size, int(plan.seeds[0]))
    off = float((sketch - exact).abs().max() / exact.abs().max())
    assert off <= 1e-5, f"a bucket is off by {off:.2g} of the largest"


def test_norm_and_dot_of_a_long_list(device: Card | Cpu) -> None:
    """400 tensors of both widths, 2e9 elements."""
    n, count = (5_000_000, 400) if device.kind == "cuda" else (300, 4)
    dtypes = [(torch.bfloat16, torch.float32)[k % 2] for k in range(count)]
    a, b = ([torch.empty(n, dtype=dtype, device=device.device) for dtype in dtypes] for _ in range(2))
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        fill(x, k)
        fill(y, k + 3)
    square, exact = truth.square(*a), truth.dot(a, b)
    scale = (square * truth.square(*b)) ** 0.5
    truth.assert_near(float(fastgeom.norm(a)) ** 2, square, ROUNDING, "norm squared")
    truth.assert_near(float(fastgeom.dot(a, b)), exact, ROUNDING, "dot", scale)

"""Error against float64 at 1e8 standard normal float32 elements, ours beside torch's own.

The errors are the same on every machine with the same vector width. The bandwidth beside them has no goal.
"""

import pytest
import torch

import fastgeom
from bench.measuring import Bench, elements
from fastgeom.kernels.dots import dot_bytes
from fastgeom.kernels.norm import norm_bytes

LARGEST_ERROR = 5e-8


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    n = elements(100_000_000, 40)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, generator=generator), torch.randn(n, generator=generator)


def truth(a: torch.Tensor, b: torch.Tensor) -> float:
    """sum a b in float64, in pieces that need little memory."""
    return sum(float(x.double() @ y.double()) for x, y in zip(a.split(1 << 22), b.split(1 << 22), strict=True))


def test_squared_norm(bench: Bench, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, _ = pair
    exact = truth(a, a)
    error = abs(fastgeom.norm([a]).item() ** 2 / exact - 1)
    bench.note("relative error of |g|^2", error, most=LARGEST_ERROR)
    bench.note("the same, torch.linalg.vector_norm", abs(torch.linalg.vector_norm(a).item() ** 2 / exact - 1))
    assert error <= LARGEST_ERROR
    rounds = bench.rounds(lambda: fastgeom.norm([a]), {})
    bench.note("bandwidth_gb_per_s", norm_bytes(len(a)) / rounds.ours / 1e9, "GB/s")


def test_dot(bench: Bench, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = pair
    scale = (truth(a, a) * truth(b, b)) ** 0.5
    near = a + 1e-3 * b
    exact, exact_near, scale_near = truth(a, b), truth(a, near), (truth(a, a) * truth(near, near)) ** 0.5
    error = abs(fastgeom.dot([a], [b]).item() - exact) / scale
    error_near = abs(fastgeom.dot([a], [near]).item() - exact_near) / scale_near
    bench.note("error of a·b over |a||b|, orthogonal", error, most=LARGEST_ERROR)
    bench.note("error of a·b over |a||b|, parallel", error_near, most=LARGEST_ERROR)
    bench.note("the same, torch.dot", abs(torch.dot(a, near).item() - exact_near) / scale_near)
    assert max(error, error_near) <= LARGEST_ERROR
    rounds = bench.rounds(lambda: fastgeom.dot([a], [b]), {})
    bench.note("bandwidth_gb_per_s", dot_bytes(len(a)) / rounds.ours / 1e9, "GB/s")

"""What the accuracy bench compares with: the exact sum is exact, and the compensated float32 sum is a fair peer."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from bench.common.summation import CHUNK, LANES, compensated_dot, exact_dot, host_array

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def by_fractions(a, b):
    return sum((Fraction(x) * Fraction(y) for x, y in zip(a.tolist(), b.tolist(), strict=True)), Fraction(0))


def wide_range(n, dtype):
    """Magnitudes over 24 decades, with signs."""
    exponents = torch.rand(n, dtype=F64) * 24 - 12
    return (torch.randn(n, dtype=F64) * 10**exponents).to(dtype)


def cancelling_pair(n, dtype):
    """Products that cancel in pairs, far apart and in another order, but for one of 2^-60 times the largest."""
    half = n // 2
    a, b = wide_range(half, dtype), wide_range(half, dtype)
    order = torch.randperm(half)
    tiny = torch.full((1,), float((a.double() * b.double()).abs().max().sqrt()) * 2.0**-30).to(dtype)
    return torch.cat([a, tiny, a[order]]), torch.cat([b, tiny, -b[order]])


@pytest.mark.parametrize("dtype", [F32, BF16, F64])
@pytest.mark.parametrize("n", [0, 1, LANES - 1, LANES, LANES + 1, 3 * LANES + 17, 5000])
def test_exact_is_exact_over_24_decades(dtype, n):
    a, b = wide_range(n, dtype), wide_range(n, dtype)
    allowed = (1 + Fraction(n, LANES)) ** 2 / 2**105 * by_fractions(a.abs(), b.abs())
    assert abs(exact_dot(a, b) - by_fractions(a, b)) <= allowed


@pytest.mark.parametrize("dtype", [F32, BF16, F64])
def test_exact_is_exact_where_all_but_2_to_the_minus_60_cancels(dtype):
    a, b = cancelling_pair(2000, dtype)
    exact = by_fractions(a, b)
    largest = float((a.double() * b.double()).abs().max())
    assert 0 < exact < 2.0**-59 * largest
    assert abs(exact_dot(a, b) / exact - 1) < 1e-9


def test_products_of_float64_lose_nothing():
    x = torch.tensor([1 + 2.0**-52, 1.0], dtype=F64)
    y = torch.tensor([1 + 2.0**-52, -1 - 2.0**-51], dtype=F64)
    assert exact_dot(x, y) == Fraction(2) ** -104


def test_exact_is_the_rounded_truth_over_more_than_one_chunk():
    a, b = torch.randn(CHUNK + 3), torch.randn(CHUNK + 3)
    b[-3:] = 1e6
    products = a.double() * b.double()  # exact
    assert float(exact_dot(a, b)) == math.fsum(products.tolist())


def test_host_arrays_hold_the_same_values():
    x = torch.randn(100)
    assert host_array(x).ctypes.data == x.data_ptr()
    assert host_array(x.double()).dtype == np.float64
    np.testing.assert_array_equal(host_array(x.bfloat16()), x.bfloat16().double().numpy())


def test_compensated_keeps_up_where_float32_stands_still():
    ones = np.ones(2**24 + 2**20, np.float32)
    assert np.cumsum(ones)[-1] == 2**24
    assert compensated_dot(ones, ones) == 2**24 + 2**20


def test_compensated_is_float32():
    x, ones = np.array([1, 2.0**-30], np.float32), np.ones(2, np.float32)
    assert compensated_dot(x, ones) == 1
    rounded = np.array([1 + 2.0**-12], np.float32)
    assert compensated_dot(rounded, rounded) == 1 + 2.0**-11, "the product is rounded to float32"

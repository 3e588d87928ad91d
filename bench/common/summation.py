"""Sums of products that need no trust: the exact value, and what careful people write by hand in float32."""

from fractions import Fraction

import numba
import numpy as np
import torch

LANES = 256
CHUNK = 1 << 20
_SPLITTER = 2.0**27 + 1


def exact_dot(a: torch.Tensor, b: torch.Tensor) -> Fraction:
    """Sum a b, whatever cancels.

    Every product and every addition is stored as a float64 number and what its rounding lost (Dekker 1971, Knuth 1969).
    Only what was lost is summed with rounding: the result is off by at most (1 + n / 256)^2 2^-105 sum |a b|, for 1e8
    elements 4e-21 sum |a b|. No product may overflow, nor what it loses underflow: those of float32 never do.

    Args:
        a: flat, of a float dtype and on any device; read in chunks.
        b: another like it.
    """
    sums, lost = np.zeros(LANES), np.zeros(LANES)
    for x, y in zip(a.split(CHUNK), b.split(CHUNK), strict=True):
        _add_products(host_array(x), host_array(y), sums, lost)
    return sum(map(Fraction, np.concatenate([sums, lost]).tolist()), Fraction(0))


def host_array(x: torch.Tensor) -> np.ndarray:
    """A tensor for numpy; one of 16 bits is widened to float32, which changes no value."""
    return (x.float() if x.itemsize == 2 else x).cpu().numpy()


@numba.njit
def _add_products(a, b, sums, lost):
    """Add element i to lane i % LANES; lanes, unlike one sum, are independent and so vectorised."""
    for first in range(0, len(a), LANES):
        u, v = a[first : first + LANES], b[first : first + LANES]
        for lane in range(len(u)):
            x, y = np.float64(u[lane]), np.float64(v[lane])
            product = x * y
            x_high, y_high = _upper_half(x), _upper_half(y)
            x_low, y_low = x - x_high, y - y_high
            product_lost = ((x_high * y_high - product) + x_high * y_low + x_low * y_high) + x_low * y_low
            before = sums[lane]
            after = before + product
            added = after - before
            sums[lane] = after
            lost[lane] += ((before - (after - added)) + (product - added)) + product_lost


@numba.njit(inline="always")
def _upper_half(x):
    scaled = _SPLITTER * x
    return scaled - (scaled - x)


@numba.njit
def compensated_dot(a, b):
    """Sum a b of float32 arrays in float32: rounded products, and Kahan's compensated sum (1965) of them.

    What an addition loses is given back in the next one. Variants that sum it up apart (Neumaier 1974) do that in
    float32 too, which is off by 3 % after 1e8 squares.
    """
    total, owed = np.float32(0.0), np.float32(0.0)
    for i in range(len(a)):
        term = a[i] * b[i] - owed
        after = total + term
        owed = (after - total) - term
        total = after
    return total

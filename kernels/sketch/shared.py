"""What all kernels of the sketch use: the random words, the table of tensors, and rows of moments."""

import triton
import triton.language as tl

TENSOR_COLUMNS = tl.constexpr(8)
"""Columns of the table of tensors: see `launch_sketch`."""
ORDER_STREAM = tl.constexpr(0x85EBCA6B)
"""What the counter of r_i is XORed with; see ``fastgeom.layout.count_sketch``."""


@triton.jit
def mix32(x):
    """A random word for each uint32: ``fastgeom.layout.count_sketch.mix32``."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def scaled(x, scale, SCALED: tl.constexpr):
    """``x`` times the scale; zeros stay zero even if the scale is not finite."""
    if SCALED:
        x = tl.where(x == 0, x, x * scale.to(x.dtype))
    return x


@triton.jit
def store_moments(pointer, first, second, third):
    """Write a row of ``partials``."""
    tl.store(pointer, first)
    tl.store(pointer + 1, second)
    tl.store(pointer + 2, third)
